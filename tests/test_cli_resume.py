"""A run that was stopped by a signal or a full disk is resumed from the command line."""

import errno
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, Minivit, Said, assert_refused, in_a_shell, weights

from minivit.errors import RunError
from minivit.train import trainer
from minivit.train.run_folder import RunFolder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to a single process")
@pytest.mark.parametrize("interrupt", [True, False], ids=["Ctrl-C", "kill -9"])
def test_a_run_stopped_in_a_shell_is_resumed_with_the_same_bits(cli: Minivit, squares: Path, interrupt: bool) -> None:
    options = (str(squares), *TINY, "--epochs", "15", "--batch-size", "4", "--set", "attn_drop_rate=0.1")
    assert cli("train", *options, "--run", "whole").status == 0

    process = in_a_shell("train", *options, "--run", "stopped", "--checkpoint-seconds", "0", cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not Path("stopped/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(2020).uniform(0, 0.1))
    process.send_signal(signal.SIGINT) if interrupt else process.kill()
    _, err = process.communicate(timeout=60)
    assert not Path("stopped/result.json").exists(), "the run ended before it was stopped: nothing is tested"
    if interrupt:
        assert_refused(Said(process.returncode, "", err), 1, f"minivit train {squares} --run stopped --resume")

    said = cli("train", *options, "--run", "stopped", "--resume")
    assert said.status == 0
    assert "continuing after step " in said.out
    assert weights(Path("stopped")) == weights(Path("whole"))
    epochs = [json.loads(line)["epoch"] for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 16))


def test_a_run_stopped_by_a_full_disk_can_be_resumed(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (squares, *TINY, "--epochs", 4)
    assert cli("train", *options, "--run", "whole").status == 0
    end_epoch = trainer.Trainer._end_epoch

    def fill_the_disk(self: trainer.Trainer, epoch: int) -> dict[str, Any]:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if epoch == 3:
            patch.setattr(os, "fsync", full)
        return end_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_end_epoch", fill_the_disk)
        assert_refused(cli("train", *options, "--run", "full"), 1, "No space left", "full")
    assert cli("train", *options, "--run", "full", "--resume").status == 0
    assert weights(Path("full")) == weights(Path("whole"))


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_no_run(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command begins anew when the disk has space again."""
    command = ("train", squares, *TINY, "--epochs", 1, "--run", "full")

    def full(*_: Any) -> None:
        raise RunError("cannot write the state: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", full)
        assert_refused(cli(*command), 1, "No space left")
    assert not Path("full").exists()
    assert cli(*command).status == 0


def test_resuming_a_finished_run_prints_its_result_again(
    cli: Minivit, squares: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.Trainer, "fit", None)
    said = cli("train", squares, "--run", run_folder, "--resume", "--json")
    assert said.status == 0
    result = json.loads((run_folder / "result.json").read_text())
    assert {name: result[name] for name in said.json() if name != "curves"}.items() <= said.json().items()


def test_resume_without_a_folder_continues_the_newest_run(cli: Minivit, squares: Path) -> None:
    for _ in range(2):
        assert cli("train", squares, *TINY, "--epochs", 1).status == 0
    said = cli("train", squares, "--resume", "--json")
    assert said.json()["run"] == "runs/squares-2"
