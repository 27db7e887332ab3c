"""Errors of every command: each gives an exit status and one clear line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TINY, Minivit, assert_refused, in_a_shell

import minivit
from minivit.cli import COMMANDS, main


def test_an_unknown_command(cli: Minivit) -> None:
    assert_refused(cli("trian", "digits"), 2, "'trian'", "did you mean 'train'", "gradcheck")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["train"], ["DATA", "minivit train --help"]),
        (["train", "digits", "--epoch", 3], ["--epoch", "did you mean '--epochs'", "minivit train --help"]),
        (["train", "digits", "--batchsize=3"], ["did you mean '--batch-size'"]),
        (["train", "digits", "--batch_size", 3], ["did you mean '--batch-size'"]),
        (["train", "digits", "--learning-rate", 3], ["did you mean '--lr'"]),
        (["train", "digits", "--schedule", "cosin"], ["'cosin'", "did you mean 'cosine'"]),
        (["train", "digits", "--dtype", "float"], ["float32"]),
        (["train", "digits", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "digits", "--epochs", 0], ["epochs is 0", "at least 1"]),
        (["train", "digits", "--lr", "nan"], ["lr is nan"]),
        (["train", "digits", "--validation", 1], ["validation is 1.0"]),
        (["train", "digits", "--seed", -1], ["seed is -1"]),
        (["train", "digits", "--optimizer", "adamax"], ["adamax", "adamw"]),
        (["train", "digits", "--set", "depht=2"], ["did you mean 'depth'"]),
        (["train", "digits", "--set", "depth=two"], ["depth=two", "a whole number"]),
        (["train", "digits", "--set", "depth"], ["FIELD=VALUE"]),
        (["train", "digits", "--set", "betas"], ["FIELD=VALUE"]),
        (["train", "digits", "--set", "betsa=0.9,0.9"], ["did you mean 'betas'"]),
        (["train", "digits", "--set", "betas=0.9,x"], ["betas is [0.9, 'x']; expected two numbers"]),
        (["train", "digits", "--set", "lr=1", "--lr", "2"], ["lr: given by --set and by an option"]),
        (["info", "vit_tiny_patch4_32", "--set", "lr=1"], ["--set lr=1", "FIELD=VALUE"]),
        (["train", "digits", "--set", "freeze=[ab].*", "--set", "lr=.5x"], ["lr is '.5x'"]),
        (["--json", "info"], ["unknown arguments: --json; give it after the command"]),
        (["info", "model.npz"], ["there is no run or model model.npz"]),
        (["train", "digits", "--set", "img_size=8x8x8"], ["img_size=8x8x8", "pixels"]),
        (["train", "digits", "--set", "conv_stem=a"], ["conv_stem=a", "numbers of channels"]),
        (["train", "digits", "--set", "fc_norm=maybe"], ["fc_norm=maybe", "true or false"]),
        (["train", "digits", "--set", "patch_stride=1x2x3"], ["patch_stride=1x2x3", "pixels"]),
        (["train", "digits", "--set", "representation_size=8x8"], ["representation_size=8x8", "a whole number"]),
        (["train", "digits", "--init", "nowhere"], ["there is no file nowhere"]),
        (["train", "digits", "--pretrained", "x"], ["did you mean '--init'?"]),
        (["convert", "nowhere", "x"], ["there is no run or model nowhere"]),
        (["convert", "nowhere", "x", "--format", "keras"], ["'keras' is not one of timm, google"]),
        (["train", "digits", "--set", "patch_size=3"], ["8 x 8", "3 x 3", "patch_size that divides"]),
        (["train", "digits", "--model", "vit_tiny_patch16_224"], ["8 x 8", "16 x 16"]),
        (["train", "digits", "--model", "vit_tinny_patch4_32"], ["did you mean 'vit_tiny_patch4_32'"]),
        (["train", "digitz"], ["'digitz'", "did you mean 'digits'"]),
        (["train", "cifar-10"], ["did you mean 'cifar10'"]),
        (["train", "digits", "--resume"], ["no run of digits"]),
        (["train", "digits", "--resume", "--run", "nowhere"], ["nowhere is not a run"]),
        (["train", "digits", "--backend", "tpu"], ["tpu"]),
        (["train", "digits", "--out", "here"], ["did you mean '--run'"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["eval", "model.safetensors", "photos"], ["did you mean '--dataset photos'"]),
        (["predict", "nowhere", "a.png"], ["nowhere"]),
        (["gradcheck", "atention"], ["'atention'", "did you mean 'attention'"]),
        (["gradcheck", "VIT_TINY_PATCH4_23"], ["did you mean 'vit_tiny_patch4_32'"]),
        (["gradcheck", "missing.safetensors"], ["there is no file missing.safetensors"]),
        (["gradcheck", "linear", "--batch", 0], ["--batch is 0"]),
        (["gradcheck", "vit_micro_patch4_8", "--depth", 0], ["depth is 0"]),
        (["info", "vit_smal_patch16_224"], ["did you mean 'vit_small_patch16_224'"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_options(cli: Minivit, argv: list[object], words: list[str]) -> None:
    assert_refused(cli(*argv), 2, *words)
    assert not list(Path.cwd().iterdir())


def test_cupy_that_is_not_installed(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_refused(cli("train", "digits", "--backend", "cupy"), 2, "CuPy", "numpy")


def test_a_process_without_standard_output(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        status = main(["info", "--json"])
    assert status == 0


def test_an_unexpected_error(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(COMMANDS["info"], "run", fail)
    assert_refused(cli("info"), 1, "unexpected KeyError: 'surprise'", "--debug")
    said = cli("info", "--debug")
    assert said.status == 1
    assert "Traceback" in said.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to a single process")
def test_ctrl_c_pressed_again_and_again_prints_one_line(squares: Path, tmp_path: Path) -> None:
    command = in_a_shell("train", str(squares), *TINY, "--epochs", "1000", "--run", "here", cwd=tmp_path)
    while not (tmp_path / "here" / "best").exists() and command.poll() is None:
        time.sleep(0.01)
    for _ in range(6):
        command.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, error = command.communicate(timeout=60)
    assert command.returncode == 1
    (line,) = error.splitlines()
    assert line.startswith("minivit: stopped")


@pytest.mark.parametrize(("program", "line"), [("minivit", "minivit: stopped"), ("another", "KeyboardInterrupt")])
def test_ctrl_c_during_the_imports_ends_a_command_in_one_line(program: str, line: str) -> None:
    code = f"""
import sys, importlib.abc, signal
sys.argv = [{program!r}]

class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Press())
signal.signal(signal.SIGINT, signal.default_int_handler)
import minivit
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert said.stderr.splitlines()[-1] == line
    assert ("Traceback" in said.stderr) == (program == "another")


def test_ctrl_c_has_its_handler_before_anything_slow_is_imported() -> None:
    program = """
import os, signal, sys
sys.argv, before = ["minivit"], set(sys.modules)
def show(*_):
    slow = {"contextlib", "difflib", "importlib.util", "pathlib", "numpy"}
    os.write(1, " ".join(slow & set(sys.modules) - before).encode())
    os._exit(7)
signal.signal = show
signal.getsignal = lambda number: signal.default_int_handler
import minivit
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
