"""Training on a device, with the strict stand-in: no transfers in a step, and the same run as on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_run import assert_same_course, trainer
from devices import SIXTEEN_BITS, needs_kernels
from small_run import (
    RECIPE,
    Killed,
    Listener,
    ask_to_stop,
    bits,
    edit_state,
    kill,
    make_dataset,
    run_at,
    stopped_run,
    train,
)
from strict import strict, watch

from minivit import UserError, ops
from minivit.arrays import to_backend, to_host
from minivit.data.batches import batches
from minivit.ops.augment import channel_scale
from minivit.train import step
from minivit.train.interrupt import Interrupted
from minivit.train.run_folder import RunFolder
from minivit.train.step import DataLoader, GradScaler
from minivit.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("reads_every_third_step")


def crossings(of: Trainer, count: int) -> tuple[int, int, int]:
    """Return the transfers and synchronisations in `count` steps of the second epoch."""
    first, second = (list(batches(of.data_loader.order(epoch), of.recipe.batch_size)) for epoch in (0, 1))
    of._step(first[0])  # the first step also makes what is made once, such as tables of a kernel
    with watch() as counts:
        for samples in second[:count]:
            of._step(samples)
    return counts.to_device, counts.to_host, counts.synchronisations


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("precision", [None, "tf32", *SIXTEEN_BITS])
def test_nothing_crosses_or_waits_between_two_reads(tmp_path: Path, optimizer: str, precision: str | None) -> None:
    of = trainer(tmp_path / "run", replace(RECIPE, optimizer=optimizer), precision=precision)
    assert crossings(of, 2) == (0, 0, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_nothing_crosses_or_waits_without_any_kernel(tmp_path: Path, optimizer: str) -> None:
    with ops.reference_only():
        assert crossings(trainer(tmp_path / "run", replace(RECIPE, optimizer=optimizer)), 2) == (0, 0, 0)


@pytest.mark.parametrize("precision", [None, *SIXTEEN_BITS])
@pytest.mark.parametrize("mixing", ["mixup_alpha", "cutmix_alpha"])
def test_nothing_crosses_or_waits_with_augmentation(tmp_path: Path, mixing: str, precision: str | None) -> None:
    fields: dict[str, Any] = {"auto_augment": "trivial", "color_jitter": 0.4, "erase_prob": 0.5, mixing: 1.0}
    assert crossings(trainer(tmp_path / "run", replace(RECIPE, **fields), precision=precision), 2) == (0, 0, 0)


def test_augmented_images_and_labels_on_a_device_are_those_of_the_host(tmp_path: Path) -> None:
    recipe = replace(RECIPE, auto_augment="rand", color_jitter=0.4, erase_prob=0.5, cutmix_alpha=1.0)
    there, here = trainer(tmp_path / "there", recipe), Trainer(run_at(tmp_path / "here", recipe), make_dataset())
    samples, dtype = here.train_index[:8], np.dtype("float32")
    for number in range(4):
        made = there.data_loader.batch(to_backend(samples, strict), number, dtype)
        for mine, theirs in zip(made[:2], here.data_loader.batch(samples, number, dtype)[:2], strict=True):
            np.testing.assert_array_equal(to_host(mine), theirs)


def test_nothing_crosses_or_waits_in_micro_batches(tmp_path: Path) -> None:
    assert crossings(trainer(tmp_path / "run", micro_batch=3), 2) == (0, 0, 0)


FORMS: dict[str, dict[str, Any]] = {
    "Polyak": {"ema_decay": 0.7, "freeze": ("blocks.0.*",), "layer_decay": 0.5},
    "stochastic": {"swa_start": 0.4, "swa_lr": 1e-3},
}


@pytest.mark.parametrize("form", FORMS)
def test_nothing_crosses_or_waits_with_averages_and_frozen_parameters(tmp_path: Path, form: str) -> None:
    assert crossings(trainer(tmp_path / "run", replace(RECIPE, **FORMS[form])), 2) == (0, 0, 0)


@pytest.mark.parametrize("form", FORMS)
def test_an_average_on_a_device_is_that_of_the_host_up_to_rounding(tmp_path: Path, form: str) -> None:
    recipe = replace(RECIPE, **FORMS[form])
    on_device, on_host = run_at(tmp_path / "device", recipe), run_at(tmp_path / "host", recipe)
    train(on_device, make_dataset(), Listener(), backend="strict")
    train(on_host, make_dataset(), Listener())
    assert_same_course(on_device, on_host)


def reads_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = GradScaler.factor

    def wrong(self: GradScaler, loss: Any, gradients: Any) -> Any:
        return factor(self, loss, gradients) if float(loss) < 1e9 else None

    monkeypatch.setattr(GradScaler, "factor", wrong)


def copies_numbers_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = DataLoader.batch

    def wrong(self: DataLoader, *args: Any) -> Any:
        self._scale, self._shift = channel_scale((0.5,), (0.25,), "float32", self._library)
        return batch(self, *args)

    monkeypatch.setattr(DataLoader, "batch", wrong)


@pytest.mark.parametrize(
    ("fault", "expected"), [(reads_the_loss, (0, 2, 2)), (copies_numbers_to_the_device, (4, 0, 0))]
)
def test_an_added_transfer_or_synchronisation_is_detected(
    tmp_path: Path, fault: Callable[[pytest.MonkeyPatch], None], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert crossings(trainer(tmp_path / "run"), 2) == expected


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_run_on_a_device_is_that_of_the_host_up_to_rounding(
    tmp_path: Path, on_host: RunFolder, micro_batch: int | None
) -> None:
    run = run_at(tmp_path / "run")
    listener = Listener()
    result = train(run, make_dataset(), listener, backend="strict", micro_batch=micro_batch)
    assert [report.step for report in listener.reports] == list(range(1, 13))
    expected = on_host.result()
    assert expected is not None
    assert result["test_accuracy"] == expected["test_accuracy"]
    assert [line["backend"] for line in run.metrics()] == ["strict"] * 3
    assert_same_course(run, on_host)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_the_interval_between_reads_changes_no_bit(tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run_at(tmp_path / name) for name in ("three", "other")]
    train(runs[0], make_dataset(), Listener(), backend="strict")
    monkeypatch.setattr(step, "_READ_EVERY", every)
    train(runs[1], make_dataset(), Listener(), backend="strict")
    assert bits(runs[0]) == bits(runs[1])


def test_steps_are_reported_when_their_metrics_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch has four steps. The metrics of three are read together, those of the fourth at its end."""
    listener, reported = Listener(), []
    of = trainer(tmp_path / "run")
    take = of.train_step.run

    def spy(number: int, samples: Any, lr: float) -> None:
        reported.append(len(listener.reports))
        take(number, samples, lr)

    monkeypatch.setattr(of.train_step, "run", spy)
    of.fit(listener, False, 1e9)
    assert reported == [0, 0, 0, 3, 4, 4, 4, 7, 8, 8, 8, 11]
    assert sum(report.step for report in listener.reports) == 78
    assert listener.reports[-1].seconds_left == 0


@pytest.mark.parametrize(("first", "then"), [("strict", "numpy"), ("numpy", "strict"), ("strict", "strict")])
@pytest.mark.parametrize("at", [3, 7])
def test_a_run_resumes_on_another_backend(tmp_path: Path, on_host: RunFolder, first: str, then: str, at: int) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Interrupted, match=f"step {at}"):
        train(run, make_dataset(), Listener(at, ask_to_stop), backend=first)
    listener = Listener()
    train(run, make_dataset(), listener, resume=True, backend=then)
    assert listener.started_with[0] == at
    assert_same_course(run, on_host)


def test_a_killed_run_on_a_device_ends_in_the_same_bits(tmp_path: Path) -> None:
    runs = [run_at(tmp_path / name) for name in ("whole", "killed")]
    train(runs[0], make_dataset(), Listener(), backend="strict")
    with pytest.raises(Killed):
        train(runs[1], make_dataset(), Listener(7, kill), backend="strict", checkpoint_seconds=0.0)
    train(runs[1], make_dataset(), Listener(), resume=True, backend="strict")
    assert bits(runs[0]) == bits(runs[1])


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ({}, {"backend": "numpy", "precision": "bfloat16"}, "precision bfloat16 needs a GPU"),
        ({"dtype": "float64"}, {"precision": "tf32"}, "is for models of float32"),
        ({}, {"precision": "float8"}, "precision is 'float8'; expected one of float32, tf32, bfloat16, float16"),
        ({}, {"backend": "numpy", "micro_batch": 4}, "the recipe sets the micro-batch"),
        ({}, {"micro_batch": 0}, "micro_batch is 0"),
    ],
    ids=str,
)
def test_incompatible_options_are_refused(
    tmp_path: Path, recipe: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path / "run", replace(RECIPE, **recipe), **options)


def test_labels_are_checked_before_they_go_to_the_device(tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset.train_labels[3] = 2
    with pytest.raises(UserError, match="label 2 of image 3 is out of range"):
        Trainer(run_at(tmp_path / "run"), dataset, backend="strict")


def test_a_checkpoint_without_a_loss_scale_is_read(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    edit_state(run, lambda state: state.pop("scaling"))
    listener = Listener()
    train(run, make_dataset(), listener, resume=True, backend="strict", precision="tf32")
    assert listener.started_with[0] == 2


@needs_kernels
def test_the_loss_scale_is_kept(tmp_path: Path) -> None:
    of = trainer(tmp_path / "run", precision="float16")
    of.train_step.grad_scaler.load_state((512.0, 7))
    of._checkpoint()
    of = Trainer(of.run, make_dataset(), backend="strict", precision="float16")
    of._begin(resume=True)
    assert of.train_step.grad_scaler.state() == (512.0, 7)
    plain = Trainer(of.run, make_dataset())
    plain._begin(resume=True)
    plain._checkpoint()
    assert plain.state.scaling == (512.0, 7)


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
def test_sixteen_bits_follow_the_host(tmp_path: Path, on_host: RunFolder, precision: str) -> None:
    """The run is resumed on the host: the parameters of a checkpoint are float32."""
    run = run_at(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, make_dataset(), Listener(6, ask_to_stop), backend="strict", precision=precision)
    train(run, make_dataset(), Listener(), resume=True)
    assert [line["precision"] for line in run.metrics()] == [precision, "float32", "float32"]
    for one, other in zip(run.metrics(), on_host.metrics(), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=2e-2)
