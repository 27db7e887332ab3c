"""Kept weights, statistics by layer, what they say in words, and metrics for other programs."""

from __future__ import annotations

import csv
import importlib
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_run
import numpy as np
import pytest
import strict
from command_line import TINY, Minivit, assert_refused
from contract import assert_same_bits
from devices import SIXTEEN_BITS
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit import UserError, ViT, load_model
from minivit.data.batches import batches
from minivit.train.diagnostics import NotFiniteError
from minivit.train.layer_statistics import activation_statistics
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer
from minivit.train.watch_options import WatchOptions

ALL, EVERY = WatchOptions(keep_every=5, every=3), WatchOptions(every=2)
PLAIN = replace(RECIPE, warmup_epochs=0.0, model_options={"patch_size": 2, "depth": 4, "embed_dim": 8, "num_heads": 2})


def trained(path: Path, watch: WatchOptions = ALL, recipe: Recipe = RECIPE) -> RunFolder:
    run = run_at(path, recipe)
    train(run, make_dataset(), Listener(), watch=watch)
    return RunFolder.open(run.path)


def words_of(path: Path, plant: Callable[[Trainer], object], recipe: Recipe = PLAIN, every: int = 2) -> list[str]:
    """Return the warnings of a run into which `plant` puts a fault."""
    trainer = Trainer(run_at(path, recipe), make_dataset(), 1, watch=WatchOptions(every=every))
    plant(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Listener())
    said = [str(warning.message) for warning in caught]
    assert said == [words for line in trainer.run.watched() for words in line["warnings"]]
    return said


def test_watching_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    without, watched = trained(tmp_path / "without", WatchOptions()), trained(tmp_path / "watched")
    kept = bits(watched)[0]
    assert_same_bits(
        [np.frombuffer(value, np.uint8) for value in bits(without)[0].values()],
        [np.frombuffer(kept[name], np.uint8) for name in bits(without)[0]],
    )
    assert bits(watched)[1] == bits(without)[1]
    assert not (without.path / "watch.jsonl").exists()


def test_the_weights_of_every_nth_step_are_kept_with_the_first_and_the_last(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    steps = run.kept_steps()
    assert list(steps) == [0, 5, 10, 12]
    last = load_model(steps[12]).state_dict()
    assert_same_bits(list(last.values()), list(load_model(run.path / "last").state_dict().values()))
    first, fifth = (load_model(steps[step]).state_dict()["head.weight"] for step in (0, 5))
    assert (first != fifth).any()


def test_a_run_without_kept_steps_says_how_to_keep_them(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", WatchOptions())
    with pytest.raises(UserError, match=r"no weights of single steps.*--keep-every"):
        run.kept_steps()


@pytest.mark.parametrize("at", [2, 6, 9, 11])
def test_a_resumed_run_has_the_same_records(at: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    stopped = run_at(tmp_path / "stopped")
    with pytest.raises(Killed):
        train(stopped, make_dataset(), Listener(at, kill), checkpoint_seconds=0.0 if at == 11 else 60.0, watch=ALL)
    with (stopped.path / "watch.jsonl").open("a") as file:
        file.write('{"step": 7, "cut')
    resumed = RunFolder.open(stopped.path)
    train(resumed, make_dataset(), Listener(), resume=True)  # the options are those of the run
    assert resumed.watched() == whole.watched()
    assert (resumed.path / "watch.jsonl").read_bytes() == (whole.path / "watch.jsonl").read_bytes()
    assert bits(resumed) == bits(whole)  # with the kept weights
    assert resumed.watch_options == ALL


def test_statistics_are_those_of_the_parameters_and_the_step(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", WatchOptions(keep_every=1, every=3))
    lines, steps = run.watched(), run.kept_steps()
    assert [line["step"] for line in lines] == [1, 3, 6, 9, 12]
    before, after = (load_model(steps[step]) for step in (8, 9))
    for name, of in lines[3]["parameters"].items():
        p, old = after.parameters[name].value.astype(float), before.parameters[name].value.astype(float)
        assert of["value"] == pytest.approx(np.linalg.norm(p), rel=1e-5)
        assert of["largest"] == pytest.approx(abs(p).max(), rel=1e-5)
        assert of["update"] == pytest.approx(np.linalg.norm(p - old), rel=1e-5)
        assert of["ratio"] == pytest.approx(np.linalg.norm(p - old) / np.linalg.norm(old), rel=1e-5)
    norms = [of["gradient"] for of in lines[3]["parameters"].values()]
    assert lines[3]["gradient_norm"] == pytest.approx(np.linalg.norm(norms), rel=1e-5)
    assert norms[0] > 0


def test_statistics_of_activations_are_those_of_each_layers_result(tmp_path: Path) -> None:
    trainer = Trainer(run_at(tmp_path / "run"), make_dataset(), 1)
    images, model = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32), trainer.model
    assert isinstance(model, ViT)
    found = activation_statistics(model, images)
    results: dict[str, Any] = {}
    with model.blocks[1].mlp.register_forward_hook(lambda layer, x, y: results.update(y=y)):
        model(images)
    of = found["blocks.1.mlp"]
    assert of["norm"] == pytest.approx(np.linalg.norm(results["y"]), rel=1e-5)
    assert of["std"] == pytest.approx(results["y"].std(), rel=1e-5)
    assert [of["min"], of["max"]] == pytest.approx([results["y"].min(), results["y"].max()], rel=1e-5)
    assert found["model"]["zeros"] == 1.0  # the head of zeros
    assert 0 <= found["blocks.0.mlp.act"]["saturated"] <= 1
    assert 0 <= found["blocks.0.attn"]["saturated"] <= 1


def test_a_sound_run_is_not_warned_of(tmp_path: Path) -> None:
    assert words_of(tmp_path / "run", lambda trainer: None, every=1) == []


def test_a_dead_layer_is_named(tmp_path: Path) -> None:
    def kill_units(trainer: Trainer) -> None:
        trainer.model.parameters["blocks.1.mlp.fc1.bias"].value[...] = -1e3

    (said,) = words_of(tmp_path / "run", kill_units)
    assert "the gradient of blocks.1.norm2.weight" in said
    assert "is exactly zero" in said
    assert "the result of blocks.1.mlp.act is zero for every image" in said


def test_a_weight_of_zeros_that_stops_the_gradient_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(trainer: Trainer) -> None:
        step = trainer.train_step.run

        def run(*args: Any) -> None:
            trainer.model.parameters["norm.weight"].value[...] = 0
            step(*args)
            trainer.model.parameters["norm.weight"].value[...] = 0

        monkeypatch.setattr(trainer.train_step, "run", run)

    said = " ".join(words_of(tmp_path / "run", stop))
    assert "exactly zero" in said
    assert "norm.weight is zero, and stops the gradient" in said


def test_an_exploding_learning_rate_is_named(tmp_path: Path) -> None:
    said = words_of(tmp_path / "run", lambda trainer: None, replace(PLAIN, lr=1.0))
    assert "one step changes blocks." in said[0]
    assert "is likely too large; a smaller --lr, or a longer warmup" in said[0]


def test_a_rate_that_explodes_later_is_named(tmp_path: Path) -> None:
    said = words_of(tmp_path / "run", fall_apart)
    assert "step 6: one step changes blocks." in said[0]
    assert "the learning rate" in said[0]


def fall_apart(trainer: Trainer) -> None:
    """Let the learning rate be a thousand times as large from step 6 on."""
    rate = trainer.recipe.learning_rate
    object.__setattr__(trainer.recipe, "learning_rate", lambda step, n: rate(step, n) * (1 if step < 5 else 1e3))


def symptoms_of(trainer: Trainer) -> list[str]:
    return [key for line in trainer.run.watched() for key in line["symptoms"]]


def said_of(action: Callable[[], object], error: type[Exception] | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught, pytest.raises(error) if error else nullcontext():
        warnings.simplefilter("always")
        action()
    return [words for each in caught if "Rollback" not in (words := str(each.message))]


def test_a_line_that_is_written_again_after_a_rollback_has_its_warnings(tmp_path: Path) -> None:
    raised: list[bool] = []

    def fail_once() -> None:
        if not raised:
            raised.append(True)
            raise NotFiniteError("", 7, "a loss")

    trainer = Trainer(run_at(tmp_path / "run", replace(PLAIN, on_nan="rollback")), make_dataset(), 1, watch=EVERY)
    fall_apart(trainer)
    said_of(lambda: trainer.fit(Listener(7, fail_once)))  # back to step 4
    by_step = {line["step"]: line["warnings"] for line in trainer.run.watched()}
    assert any("step 6: one step changes blocks." in words for words in by_step[6])
    assert len(set(symptoms_of(trainer))) == len(symptoms_of(trainer))


def test_a_resumed_run_repeats_no_warning(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", PLAIN)
    killed = Trainer(run, make_dataset(), 1, watch=EVERY)
    fall_apart(killed)
    before = said_of(lambda: killed.fit(Listener(9, kill), checkpoint_seconds=0.0), Killed)
    assert any("step 6: one step changes blocks." in words for words in before)
    resumed = Trainer(RunFolder.open(run.path), make_dataset(), 1)
    fall_apart(resumed)
    said_of(lambda: resumed.fit(Listener(), resume=True))
    assert len(set(symptoms_of(resumed))) == len(symptoms_of(resumed))


@pytest.mark.parametrize("how", ["groups", "set back"])
def test_a_frozen_parameter_is_named(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blocks.2.attn.qkv.weight"

    def freeze(trainer: Trainer) -> None:
        if how == "groups":
            optimizer = trainer.optimizer
            optimizer.groups = tuple(group for group in optimizer.groups if group.name != name)
            return
        value, step = trainer.model.parameters[name].value, trainer.optimizer.step
        begun = value.copy()

        def stepped(factor: Any = None) -> None:
            step(factor)
            value[...] = begun

        monkeypatch.setattr(trainer.optimizer, "step", stepped)

    (said,) = words_of(tmp_path / "run", freeze)
    assert name in said
    assert ("although --freeze does not name it" if how == "groups" else "does not change") in said


def test_a_parameter_that_is_frozen_on_purpose_is_not_warned_of(tmp_path: Path) -> None:
    assert words_of(tmp_path / "run", lambda trainer: None, replace(PLAIN, freeze=("blocks.[01].*",))) == []


@pytest.mark.parametrize("size", ["near", "growing"])
def test_nan_to_come_is_named(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(trainer: Trainer) -> None:
        step, weight = trainer.train_step.run, trainer.model.parameters["blocks.2.mlp.fc2.weight"].value
        if size == "near":
            weight *= 1e17

        def run(*args: Any) -> None:
            step(*args)
            if size == "growing":
                weight[...] *= 20

        monkeypatch.setattr(trainer.train_step, "run", run)

    said = " ".join(words_of(tmp_path / "run", grow, every=2))
    assert "the results of blocks.2.mlp" in said
    assert "NaN is to come" in said


def test_a_gradient_that_vanishes_and_one_that_explodes_are_named_with_the_layer(tmp_path: Path) -> None:
    def vanish(trainer: Trainer) -> None:
        trainer.model.parameters["blocks.1.mlp.fc1.bias"].value[...] = -6.5

    said = " ".join(words_of(tmp_path / "vanish", vanish))
    assert "the gradient vanishes at blocks.1.mlp.fc" in said
    assert "the result of blocks.1.mlp.act is nearly zero" in said

    def explode(trainer: Trainer) -> None:
        trainer.model.parameters["blocks.1.mlp.fc2.weight"].value[...] *= 1e6

    said = " ".join(words_of(tmp_path / "explode", explode))
    assert "the gradient explodes at blocks." in said
    assert "the result of blocks.1.mlp.fc2 is " in said
    assert "times as large as in other blocks" in said


def test_metrics_are_a_csv_file_too(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", WatchOptions())
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [line["val_loss"] for line in run.metrics()]
    assert [list(row) for row in rows] == [list(line) for line in run.metrics()]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    run = run_at(tmp_path / "run")
    watch = WatchOptions(every=6, tensorboard=True)
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(10, kill), watch=watch)
    train(RunFolder.open(run.path), make_dataset(), Listener(), resume=True)
    events = reader.EventAccumulator(str(run.path / "tensorboard")).Reload()

    def read(tag: str) -> list[tuple[int, Any]]:
        return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]

    assert read("loss/train") == [(line["step"], line["train_loss"]) for line in run.metrics()]
    assert read("accuracy/val") == [(line["step"], line["val_accuracy"]) for line in run.metrics()]
    name = "blocks.0.attn.qkv.weight"
    expected = [(line["step"], line["parameters"][name]["gradient"]) for line in run.watched()]
    assert read(f"gradient/{name}") == expected
    assert [step for step, _ in expected] == [1, 6, 12]


@pytest.mark.parametrize("precision", [None, *SIXTEEN_BITS])
def test_a_run_on_a_device_has_the_records_of_the_host_up_to_rounding(tmp_path: Path, precision: str | None) -> None:
    host, device = trained(tmp_path / "host"), run_at(tmp_path / "device")
    train(device, make_dataset(), Listener(), backend="strict", precision=precision, watch=ALL)
    assert list(device.kept_steps()) == list(host.kept_steps())
    for line, other in zip(device.watched(), host.watched(), strict=True):
        assert line["step"] == other["step"]
        for part in ("parameters", "activations"):
            assert list(line[part]) == list(other[part])
        for quantity in ("loss", "gradient_norm", "learning_rate"):
            assert line[quantity] == pytest.approx(other[quantity], rel=0.1 if precision else 1e-3)


def test_a_step_on_a_device_that_is_not_recorded_waits_for_nothing(tmp_path: Path) -> None:
    of = device_run.trainer(tmp_path / "run", watch=WatchOptions(every=100, keep_every=100))
    samples = next(iter(batches(of.data_loader.order(0), of.recipe.batch_size)))
    of._step(samples)  # makes what is made once
    with strict.watch() as counts, of.watch.step(2, samples) as is_recorded:
        of._step(samples)
    assert not is_recorded
    assert (counts.to_device, counts.to_host, counts.synchronisations) == (0, 0, 0)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", WatchOptions(every=6))
    path = run.path / "watch.jsonl"
    path.write_text(path.read_text().replace('"step": 6', '"step": 5'))
    with pytest.raises(
        UserError,
        match=r"watch.jsonl is damaged: line 2 is not the statistics of a step: .*; or remove it: the run goes on",
    ):
        run.watched()


@pytest.mark.parametrize("option", ["--watch", "--keep-every"])
def test_a_number_of_steps_below_zero_is_refused(option: str, cli: Minivit) -> None:
    said = cli("train", "digits", option, "-3", "--run", "here")
    assert_refused(said, 2, f"{option} is -3; expected a number of steps, or 0 for none")
    assert not Path("here").exists()


def test_the_command_records_says_what_is_wrong_and_keeps_its_options_on_resume(cli: Minivit, squares: Path) -> None:
    options = (squares, *TINY, "--epochs", 2, "--batch-size", 8, "--run", "here", "--warmup-epochs", 0, "--lr", 0.5)
    said = cli("train", *options, "--watch", 2, "--keep-every", 2, "--json")
    assert said.json()["run"] == "here"
    assert "the weights of 4 steps are kept in steps/" in said.err
    (warning,) = [line for line in said.err.splitlines() if line.startswith("minivit: warning: step")]
    assert "is likely too large; a smaller --lr" in warning
    assert list(RunFolder.open(Path("here")).kept_steps()) == [0, 2, 4, 6]
    said = cli("train", squares, "--run", "here", "--resume", "--epochs", 3, "--watch", 0)
    assert "the weights of up to 6 steps are kept in steps/" in said.out
    run = RunFolder.open(Path("here"))
    assert run.watch_options == WatchOptions(keep_every=2)
    assert list(run.kept_steps()) == [0, 2, 4, 6, 8, 9]
    assert [line["step"] for line in run.watched()] == [1, 2, 4, 6]


def test_tensorboard_that_is_missing_is_said_before_anything_is_done(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    said = cli("train", squares, *TINY, "--tensorboard", "--run", "here")
    assert_refused(said, 2, "--tensorboard needs TensorBoard", "install", " tensorboard")
    assert not Path("here").exists()
