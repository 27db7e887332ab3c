"""NaN in training: what is written to study it, and rollbacks to the end of an epoch at half the learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused
from devices import needs_kernels
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit import AdamW, RunError, load_model
from minivit.arrays import Array, to_host
from minivit.data import normalize
from minivit.errors import UserError
from minivit.tracing import load_trace
from minivit.train import nan_dump
from minivit.train.nan_dump import read_batch
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.step import DataLoader, TrainStep
from minivit.train.trainer import Trainer
from minivit.train.watch_options import WatchOptions
from minivit.weights import read_tensors

pytestmark = [
    pytest.mark.usefixtures("reads_every_third_step"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

ROLLBACK = replace(RECIPE, on_nan="rollback", warmup_epochs=0.0, schedule="constant")
ONE_EPOCH = replace(RECIPE, epochs=1, batch_size=100, warmup_epochs=0.0)  # of one step
STEP = 6  # of 12, from 1; it is the second of the second epoch


@pytest.fixture
def overflow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let images overflow in the patch embedding in step 6, if its learning rate is above a limit."""
    run, batch = TrainStep.run, DataLoader.batch
    limit, rate = 0.0, 0.0

    def remembering(self: TrainStep, step: int, samples: Array, lr: float) -> None:
        nonlocal rate
        rate = lr if step == STEP - 1 else rate
        run(self, step, samples, lr)

    def overflowing(self: DataLoader, samples: Array, step: int, dtype: Any) -> Any:
        images, labels, key = batch(self, samples, step, dtype)
        if step == STEP - 1 and rate > limit:
            images[0] = 3e38
        return images, labels, key

    def set_limit(value: float) -> None:
        nonlocal limit
        limit = value

    monkeypatch.setattr(TrainStep, "run", remembering)
    monkeypatch.setattr(DataLoader, "batch", overflowing)
    return set_limit


def rollbacks(action: Callable[[], object], error: type[Exception] | None = None) -> list[str]:
    """Return the warnings of rollbacks in `action`, which ends in `error`."""
    with warnings.catch_warnings(record=True) as said, pytest.raises(error) if error else nullcontext():
        warnings.simplefilter("always", UserWarning)
        action()
    return [words for each in said if "Rollback" in (words := str(each.message))]


def stopped(path: Path, backend: str = "numpy", recipe: Recipe = RECIPE) -> RunFolder:
    run = run_at(path, recipe)
    with pytest.raises(
        RunError, match=rf"not finite at step {STEP}: it shows first in the result of patch_embed\.proj"
    ):
        train(run, make_dataset(), Listener(), backend=backend, watch=WatchOptions(keep_every=1))
    return run


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_the_batch_the_weights_and_a_trace_are_written(
    backend: str, tmp_path: Path, overflow: Callable[[float], None]
) -> None:
    run = stopped(tmp_path / "run", backend)
    folder = run.path / "nan"
    assert {path.name for path in folder.iterdir()} == {
        "batch.npz", "config.json", "model.safetensors", "trace.safetensors",
    }  # fmt: skip
    batch = read_batch(folder)
    trainer = Trainer(run_at(tmp_path / "other"), make_dataset(), backend=backend)
    samples = trainer.data_loader.order(1)[8:16]
    images, labels, _ = trainer.data_loader.batch(samples, STEP - 1, np.float32)
    for name, expected in (("images", images), ("labels", labels), ("samples", samples)):
        np.testing.assert_array_equal(batch[name], to_host(expected))
    assert int(batch["step"]) == STEP
    assert str(batch["where"]) == "it shows first in the result of patch_embed.proj"
    assert batch["traced"].tolist() == list(range(8))
    before, dumped = load_model(run.kept_steps()[STEP - 1]), load_model(folder)
    assert before.parameters.store.values.tobytes() == dumped.parameters.store.values.tobytes()
    assert (~np.isfinite(dumped(batch["images"]))).any(axis=1).tolist() == [True] + [False] * 7
    traced = load_trace(folder / "trace.safetensors")
    assert "patch_embed.proj" in traced
    assert all(name.startswith("patch_embed.proj") for name in traced.names)
    finite = np.isfinite(traced["patch_embed.proj"].y).reshape(8, -1).all(axis=1)
    assert finite.tolist() == [False] + [True] * 7


def test_the_images_that_are_not_finite_are_traced_first(
    tmp_path: Path, overflow: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nan_dump, "_TRACED", 3)
    real = DataLoader.batch

    def last(self: DataLoader, samples: Array, step: int, dtype: Any) -> Any:
        images, labels, key = real(self, samples, step, dtype)
        if len(images) == 8:
            images[:] = images[::-1].copy()
        return images, labels, key

    monkeypatch.setattr(DataLoader, "batch", last)
    run = stopped(tmp_path / "run")
    assert read_batch(run.path / "nan")["traced"].tolist() == [7, 0, 1]


def test_a_parameter_that_is_not_finite_is_written_with_the_last_batch(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, optimizer="sgd", lr=1e39, warmup_epochs=0.0, batch_size=100))
    with pytest.raises(RunError, match=r"nan has the batch, the weights and a trace of the layer$"):
        train(run, make_dataset(), Listener())
    folder = run.path / "nan"
    assert not all(np.isfinite(value).all() for value in read_tensors(folder / "model.safetensors")[0].values())
    assert len(read_batch(folder)["images"]) == 28
    layer = str(read_batch(folder)["where"]).split()[2].rpartition(".")[0]
    assert layer in load_trace(folder / "trace.safetensors")


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parameters after every step be so large that evaluations overflow."""
    step = AdamW.step

    def leaping(self: Any, factor: Any) -> None:
        step(self, factor)
        self._store.values[...] *= 1e30

    monkeypatch.setattr(AdamW, "step", leaping)


@pytest.mark.usefixtures("leap")
def test_images_of_an_evaluation_are_those_whose_logits_are_not_finite(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, batch_size=100))
    with pytest.raises(RunError, match="on the validation images after it"):
        train(run, make_dataset(), Listener())
    batch = read_batch(run.path / "nan")
    assert 0 < len(batch["images"]) <= 7
    assert not np.isfinite(load_model(run.path / "nan")(batch["images"])).all(axis=1).any()


@pytest.mark.usefixtures("leap")
@pytest.mark.parametrize("part", ["validation", "test"])
def test_images_of_an_evaluation_are_named_by_their_place_in_the_data_set(
    part: str, cli: Minivit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_at(Path("run"), replace(ONE_EPOCH, validation=0.2 * (part == "validation")))
    with pytest.raises(RunError, match=f"on the {part} images after it"):
        train(run, make_dataset(), Listener())
    batch, dataset = read_batch(run.path / "nan"), make_dataset()
    pixels = dataset.test_images if part == "test" else dataset.train_images
    np.testing.assert_array_equal(batch["images"], normalize(pixels, (0.5,), (0.25,), "float32")[batch["samples"]])
    names = cli("trace", "run/nan", "--json").json()["images"]
    assert names == [f"{part} image {sample}" for sample in batch["samples"]]


@pytest.mark.usefixtures("leap")
def test_nan_on_the_test_images_ends_a_run_without_advice_to_roll_back(tmp_path: Path) -> None:
    """All steps are done: a run that is resumed ends in the same error, with a rollback too."""
    run = run_at(tmp_path / "run", replace(ONE_EPOCH, on_nan="rollback", validation=0.0))
    words = r"training is complete, but the model of the best epoch, after step 1, is not finite: on the test images"
    for resume in (False, True):
        with pytest.raises(RunError, match=words) as raised:
            train(RunFolder.open(run.path), make_dataset(), Listener(), resume=resume)
        assert "--on-nan" not in str(raised.value)
        assert "`minivit trace" in str(raised.value)
        assert read_batch(run.path / "nan")["step"] == 1
        assert run.result() is None
    load_model(run.path / "best")


@needs_kernels
@pytest.mark.usefixtures("leap")
def test_the_test_images_may_be_finite_in_another_precision_than_float16(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(ONE_EPOCH, validation=0.0))
    with pytest.raises(RunError, match=r"--resume --precision bfloat16 \(or float32\) evaluates it again"):
        train(run, make_dataset(), Listener(), backend="strict", precision="float16")


def test_a_loss_that_is_not_finite_although_the_logits_are_is_studied_on_the_first_images(tmp_path: Path) -> None:
    trainer = Trainer(run_at(tmp_path / "run", replace(ONE_EPOCH, batch_size=5)), make_dataset(), threads=1)

    def set_bias() -> None:
        trainer.model.parameters["head.bias"].value[:] = 3e38, -3e38  # their difference overflows

    with pytest.raises(RunError, match=r"it shows first in the loss\..* has the batch, the weights and a trace"):
        trainer.fit(Listener(trainer.total_steps, set_bias))
    batch = read_batch(trainer.run.path / "nan")
    np.testing.assert_array_equal(batch["samples"], trainer.validation_index[:5])
    assert np.isfinite(load_model(trainer.run.path / "nan")(batch["images"])).all()


def test_the_soft_targets_of_a_batch_of_mixed_images_are_written(
    tmp_path: Path, overflow: Callable[[float], None]
) -> None:
    """The images are those of the whole batch: one micro-batch alone would be mixed with itself."""
    recipe = replace(RECIPE, mixup_alpha=1.0, micro_batch=3)
    folder = stopped(tmp_path / "run", recipe=recipe).path / "nan"
    batch = read_batch(folder)
    trainer = Trainer(run_at(tmp_path / "other", recipe), make_dataset())
    images, labels, _ = trainer.data_loader.batch(trainer.data_loader.order(1)[8:16], STEP - 1, np.float32)
    assert labels.dtype == np.float32
    assert labels.shape == (8, 2)
    np.testing.assert_array_equal(batch["labels"], labels)
    np.testing.assert_array_equal(batch["images"], images)
    traced = load_trace(folder / "trace.safetensors")
    np.testing.assert_array_equal(traced.labels, labels[batch["traced"]])


@needs_kernels
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_step_in_16_bits_is_traced_in_the_dtype_of_the_parameters(
    precision: str, tmp_path: Path, overflow: Callable[[float], None]
) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, mixup_alpha=1.0))
    with pytest.raises(RunError, match=r"nan has the batch, the weights and a trace of the layer: `minivit trace"):
        train(run, make_dataset(), Listener(), backend="strict", precision=precision)
    assert read_batch(run.path / "nan")["labels"].shape == (8, 2)
    traced = load_trace(run.path / "nan" / "trace.safetensors")
    assert traced["patch_embed.proj"].y.dtype == np.float32


def test_a_dump_that_fails_does_not_hide_the_error(
    tmp_path: Path, overflow: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(nan_dump, "write_dump", full)
    with pytest.raises(RunError, match=r"not finite at step 6: .* could not be written: the disk is full"):
        train(run_at(tmp_path / "run"), make_dataset(), Listener())


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_a_rollback_goes_on_from_the_end_of_the_epoch_at_half_the_rate(
    backend: str, tmp_path: Path, overflow: Callable[[float], None]
) -> None:
    overflow(0.6 * ROLLBACK.lr)
    run, listener = run_at(tmp_path / "run", ROLLBACK), Listener()
    words = r"not finite at step 6: .* patch_embed\.proj\. Rollback 1 of 5: it goes on after step 4 at 1/2"
    with pytest.warns(UserWarning, match=words):
        result = train(run, make_dataset(), listener, backend=backend)
    assert result["test_images"] == 13
    assert [report.step for report in listener.reports] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]
    rates = [report.learning_rate / ROLLBACK.lr for report in listener.reports]
    assert rates == [1.0] * 5 + [0.5] * 8
    assert [line.get("rollbacks", 0) for line in run.metrics()] == [0, 1, 1]
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    assert (run.path / "nan" / "batch.npz").exists()


@pytest.mark.parametrize("average", [{}, {"ema_decay": 0.5}])
@pytest.mark.parametrize("at", [5, 7])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_run_that_is_killed_before_or_after_a_rollback_ends_in_the_same_bits(
    at: int, checkpoint_seconds: float, average: dict[str, Any], tmp_path: Path, overflow: Callable[[float], None]
) -> None:
    overflow(0.3 * ROLLBACK.lr)
    recipe = replace(ROLLBACK, **average)
    whole, killed = run_at(tmp_path / "whole", recipe), run_at(tmp_path / "killed", recipe)
    assert len(rollbacks(lambda: train(whole, make_dataset(), Listener()))) == 2
    options: dict[str, Any] = {"checkpoint_seconds": checkpoint_seconds}
    said = rollbacks(lambda: train(killed, make_dataset(), Listener(at, kill), **options), Killed)
    assert len(said) == (2 if at == 7 else 0)
    said += rollbacks(lambda: train(killed, make_dataset(), Listener(), resume=True, **options))
    assert "Rollback 2 of 5" in said[-1]
    for run in (killed, whole):
        (run.path / "nan" / "trace.safetensors").unlink()  # it has integers, which are no weights
    assert bits(killed) == bits(whole)


def test_the_sixth_nan_stops_the_run(tmp_path: Path, overflow: Callable[[float], None]) -> None:
    run, listener = run_at(tmp_path / "run", ROLLBACK), Listener()
    said = rollbacks(lambda: train(run, make_dataset(), listener), RunError)
    assert [f"Rollback {i} of 5" in words for i, words in enumerate(said, start=1)] == [True] * 5
    assert listener.reports[-1].learning_rate == ROLLBACK.lr / 32
    with pytest.raises(RunError, match="it was rolled back 5 times already"):
        train(run, make_dataset(), Listener(), resume=True)


def test_a_run_that_stopped_can_be_resumed_with_rollbacks(tmp_path: Path, overflow: Callable[[float], None]) -> None:
    run = stopped(tmp_path / "run")
    assert not (run.path / "last" / "epoch.safetensors").exists()
    overflow(RECIPE.lr * 0.6)
    with pytest.warns(UserWarning, match="Rollback 1 of 5: it goes on after step 4"):
        train(RunFolder.open(run.path).replaced(on_nan="rollback"), make_dataset(), Listener(), resume=True)
    assert RunFolder.open(run.path).recipe.on_nan == "rollback"
    assert run.metrics()[-1]["rollbacks"] == 1


def test_a_run_that_no_longer_rolls_back_keeps_no_state_for_it(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", ROLLBACK)
    for number, (at, on_nan) in enumerate(((6, "rollback"), (10, "stop"), (11, "rollback"))):
        again = RunFolder.open(run.path).replaced(on_nan=on_nan)
        with pytest.raises(Killed):
            train(again, make_dataset(), Listener(at, kill), resume=number > 0, checkpoint_seconds=0.0)
        assert again.has_state(of_epoch=True) == (on_nan == "rollback")
    train(RunFolder.open(run.path), make_dataset(), Listener(), resume=True)


def test_the_commands_go_on_from_and_trace_a_run_that_stopped(cli: Minivit, squares: Path) -> None:
    options = (*TINY, "--epochs", 2, "--optimizer", "sgd", "--lr", 1e30, "--run", "run")
    said = cli("train", squares, *options)
    assert_refused(said, 1, "training is not finite", "--resume --on-nan rollback", "`minivit trace run/nan`")
    said = cli("train", squares, "--run", "run", "--resume", "--on-nan", "rollback")
    assert said.status == 1
    assert "it was rolled back 5 times already" in said.err
    assert said.err.count("warning: training was not finite at step") == 5
    traced = cli("trace", "run/nan", "--json")
    assert traced.status == 0
    assert traced.json()["images"][0].startswith("validation image ")
    assert "not finite" in " ".join(finding["words"] for finding in traced.json()["findings"])
    assert "it shows first" in cli("trace", "run/nan").out
    (Path("run") / "nan" / "batch.npz").write_bytes(b"PK")
    assert_refused(cli("trace", "run/nan"), 2, "run/nan/batch.npz is not a batch of a run that stopped at NaN")


@pytest.mark.parametrize("changed", [{"traced": np.array([9])}, {"images": np.array(None)}, {"labels": None}])
def test_a_damaged_batch_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    arrays = {
        "images": np.zeros((2, 4, 4, 1)), "labels": np.zeros(2, int), "samples": np.arange(2), "step": np.array(1),
        "traced": np.arange(2), "where": np.array("here"),
    } | changed  # fmt: skip
    np.savez(tmp_path / "batch.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match="is not a batch of a run that stopped at NaN"):
        read_batch(tmp_path)
