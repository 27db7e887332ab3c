"""A damaged file of a run is refused in one sentence, or changes no answer; and a run that is given more epochs."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import RECIPE, Killed, Listener, ask_to_stop, bits, kill, make_dataset, run_at, stopped_run, train

from minivit import UserError, load_model
from minivit.train import curves
from minivit.train.interrupt import Interrupt, Interrupted
from minivit.train.run_folder import RunFolder
from minivit.train.schedules import learning_rate
from minivit.train.trainer import Trainer
from minivit.weights import model_metadata

SMALL = replace(RECIPE, epochs=2, batch_size=14)  # two steps an epoch


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A finished run, and runs that were stopped inside an epoch and at its end."""
    root = tmp_path_factory.mktemp("runs")
    train(run_at(root / "finished", SMALL), make_dataset(), Listener())
    for step in (2, 3):
        with pytest.raises(Interrupted):
            train(run_at(root / f"stopped{step}", SMALL), make_dataset(), Listener(step, ask_to_stop))
    return sorted(root.iterdir())


def answers(path: Path) -> Any:
    """Return what commands would answer from a run: its models, and the bits in which it ends, or its result."""
    models = [
        (load_model(path / which).parameters.store.values.tobytes(), model_metadata(path / which))
        for which in ("best", "last")
    ]
    run = RunFolder.open(path)
    result = train(run, make_dataset(), Listener(), resume=True)
    ends = [load_model(path / which).parameters.store.values.tobytes() for which in ("best", "last")]
    return models, ends, result["test_accuracy"], result["best_epoch"], [line["train_loss"] for line in run.metrics()]


def silent_damages(runs: list[Path], count: int, scratch: Path) -> list[str]:
    """Flip a byte, or cut the file, at `count` random places of files of runs; return those that changed an answer."""
    generator = np.random.default_rng(0)
    right: dict[Path, Any] = {}
    silent = []
    for run in runs:
        right[run] = answers(shutil.copytree(run, scratch / f"right-{run.name}"))
    for number in range(count):
        run = runs[generator.integers(len(runs))]
        files = sorted(file for file in run.rglob("*") if file.is_file() and file.suffix != ".png")
        file = files[generator.integers(len(files))].relative_to(run)
        here = shutil.copytree(run, scratch / str(number))
        content = bytearray((here / file).read_bytes())
        place = int(generator.integers(len(content)))
        if generator.random() < 0.25:
            del content[place:]
        else:
            content[place] ^= int(generator.integers(1, 256))
        (here / file).write_bytes(content)
        try:
            if answers(here) != right[run]:
                silent.append(f"{file} of {run.name} at {place}")
        except UserError as error:
            assert str(here) in str(error)  # noqa: PT017 - some of these damages raise no error
        shutil.rmtree(here)
    return silent


@pytest.mark.parametrize("name", ["recipe.json", "result.json", "metrics.jsonl"])
def test_a_file_without_its_checksum_is_damaged(runs: list[Path], tmp_path: Path, name: str) -> None:
    """Otherwise a flip in the name of the checksum would turn its check off."""
    run = shutil.copytree(runs[0], tmp_path / "run")
    text = (run / name).read_text()
    where = text.rindex('"checksum"')
    (run / name).write_text(text[:where] + '"shecksum"' + text[where + 10 :])
    with pytest.raises(UserError, match=r"changed or damaged"):
        answers(run)


def test_no_damage_changes_an_answer_silently(runs: list[Path], tmp_path: Path) -> None:
    assert silent_damages(runs, 40, tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_damage_of_500_changes_an_answer_silently(runs: list[Path], tmp_path: Path) -> None:
    assert silent_damages(runs, 500, tmp_path) == []


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_model_of_another_run_is_noticed(runs: list[Path], tmp_path: Path, which: str) -> None:
    other = run_at(tmp_path / "other", replace(SMALL, seed=1))
    train(other, make_dataset(), Listener())
    for run in runs:
        here = shutil.copytree(run, tmp_path / run.name)
        for file in ("model.safetensors", "config.json"):
            shutil.copy(other.path / which / file, here / which / file)
        with pytest.raises(UserError, match=f"{which}/model.safetensors is not a model of the run"):
            load_model(here / which)
        if run.name != "finished":
            with pytest.raises(UserError, match=f"{which}/model.safetensors is not the model of this run"):
                train(RunFolder.open(here), make_dataset(), Listener(), resume=True)


def test_the_best_model_of_another_epoch_is_noticed(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", 5)
    shutil.rmtree(run.path / "best")
    shutil.copytree(run.path / "last", run.path / "best")
    with pytest.raises(UserError, match="is not the model of this run after step 4"):
        train(run, make_dataset(), Listener(), resume=True)


def test_a_kill_between_the_state_and_its_models_loses_nothing(
    tmp_path: Path, on_host: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model = RunFolder.save_model

    def kill_before(self: RunFolder, which: str, model: Any, dataset: Any, step: int) -> None:
        if (which, step) == killed:
            raise Killed
        save_model(self, which, model, dataset, step)

    for killed in (("last", 0), ("last", 4), ("best", 4)):
        run = run_at(tmp_path / f"{killed[0]}{killed[1]}")
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save_model", kill_before)
            with pytest.raises(Killed):
                train(run, make_dataset(), Listener())
        train(run, make_dataset(), Listener(), resume=True)
        assert bits(run) == bits(on_host)


def extended(path: Path, listener: Listener | None = None) -> RunFolder:
    """Give a run of 3 epochs in `path` 5 of them."""
    run = RunFolder.open(path).replaced(epochs=5)
    train(run, make_dataset(), listener or Listener(), resume=True)
    return RunFolder.open(path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_for_more_epochs_by_the_schedule_of_the_new_length(tmp_path: Path, finished: bool) -> None:
    run = run_at(tmp_path / "run") if finished else stopped_run(tmp_path / "run", 6)
    if finished:
        train(run, make_dataset(), Listener())
    listener = Listener()
    longer = extended(run.path, listener)
    first = 12 if finished else 6
    assert listener.started_with == [first, 20, 4]
    rates = [report.learning_rate for report in listener.reports]
    assert rates == [learning_rate(step, 20, RECIPE.lr, 4) for step in range(first, 20)]
    assert longer.recipe.epochs == 5
    assert longer.origin["extended"] == [{"epochs": 3, "until_step": first}]
    assert [line["epoch"] for line in longer.metrics()] == [1, 2, 3, 4, 5]
    result = longer.result()
    assert result is not None
    assert result["best_val_accuracy"] == max(line["val_accuracy"] for line in longer.metrics())


def as_of_an_earlier_version(path: Path) -> None:
    """Take from a run's files what earlier versions of minivit did not write."""
    for name in ("recipe.json", "result.json"):
        if (path / name).exists():
            values = json.loads((path / name).read_text())
            kept = {key: value for key, value in values.items() if key not in ("id", "data", "checksum")}
            if name == "result.json":
                del kept["epochs"]
            (path / name).write_text(json.dumps(kept))


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_an_earlier_version_goes_on_for_more_epochs(tmp_path: Path, finished: bool) -> None:
    run = run_at(tmp_path / "run") if finished else stopped_run(tmp_path / "run", 6)
    if finished:
        train(run, make_dataset(), Listener())
    as_of_an_earlier_version(run.path)
    longer = extended(run.path)
    assert longer.recipe.epochs == 5
    assert len(longer.metrics()) == 5
    result = longer.result()
    assert result is not None
    assert result["epochs"] == 5


def test_a_killed_extension_ends_in_the_same_bits(tmp_path: Path, on_host: RunFolder) -> None:
    for name in ("whole", "killed"):
        shutil.copytree(on_host.path, tmp_path / name)
    extended(tmp_path / "whole")
    with pytest.raises(Killed):
        extended(tmp_path / "killed", Listener(15, kill))
    run = RunFolder.open(tmp_path / "killed")
    assert run.result() is None  # that of 3 epochs is gone
    train(run, make_dataset(), Listener(), resume=True)
    assert bits(run) == bits(RunFolder.open(tmp_path / "whole"))


@pytest.mark.parametrize("failure", [RuntimeError("Could not determine home directory"), OSError("read-only")])
def test_curves_that_fail_cost_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(curves, "save_curves", fail)
    run = run_at(tmp_path / "run", SMALL)
    with pytest.warns(UserWarning, match=r"curves\.png could not be drawn"):
        result = train(run, make_dataset(), Listener())
    assert result["curves"] is None
    assert json.loads((run.path / "result.json").read_text())["test_accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_saves_the_run(tmp_path: Path, name: str) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    run = run_at(tmp_path / "run")
    listener = Listener(2, lambda: signal.raise_signal(getattr(signal, name)))
    with pytest.raises(Interrupted, match="step 2"):
        train(run, make_dataset(), listener)
    assert run.has_state()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_pressed_again_and_again_interrupts_once() -> None:
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        for _ in range(4):
            signal.raise_signal(signal.SIGINT)


SAID: list[tuple[dict[str, Any], str]] = [
    ({"warmup_epochs": 3.0}, "the warmup of 3 epochs is as long as the run"),
    ({"model": "vit_tiny_patch16_224", "model_options": {"patch_size": 2, "depth": 1}}, "into 4 patches"),
]


@pytest.mark.parametrize(("change", "words"), SAID, ids=[words for _, words in SAID])
def test_settings_that_leave_little_to_learn_are_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    trainer = Trainer(run_at(tmp_path / "run", replace(RECIPE, **change)), make_dataset())
    with pytest.warns(UserWarning, match=words), pytest.raises(Killed):
        trainer.fit(Listener(1, kill))


def learn(path: Path, lr: float) -> None:
    train(run_at(path, replace(RECIPE, epochs=26, warmup_epochs=0.0, flip=False, lr=lr)), make_dataset(), Listener())


def test_a_loss_that_stays_at_that_of_guessing_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"that of guessing \(0\.69\); a smaller --lr") as said:
        learn(tmp_path / "run", lr=0.0)
    assert len(said) == 1


def test_a_run_that_learns_is_not_said_to_guess(tmp_path: Path) -> None:
    learn(tmp_path / "run", lr=1e-2)  # a warning would be an error


def test_the_state_of_a_run_is_not_recommended_as_a_model(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", 6)
    (run.path / "last" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no model") as error:
        load_model(run.path / "last")
    assert "training.safetensors" not in str(error.value)
