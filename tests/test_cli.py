"""The commands: what they print, the object of --json, exit statuses, and one clear line for whatever goes wrong."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from strict import strict

import minivit
from minivit import ops
from minivit.cases import CASES
from minivit.cli import COMMANDS, main
from minivit.data import normalize
from minivit.train import loop
from minivit.train.interrupt import Interrupted
from minivit.train.loop import Trainer
from minivit.weights import read_tensors

SIZES = ("patch_size=2", "depth=1", "embed_dim=8", "num_heads=2")
TINY = ("--model", "vit_micro_patch4_8", *(text for size in SIZES for text in ("--set", size)))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Said(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return values


Minivit = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Minivit:
    """Run a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        return Said(status, *capsys.readouterr())

    return run


def save_squares(folder: Path, count: int = 12) -> Path:
    """Write a folder of 8 x 8 images: noise with a bright left or right half."""
    generator = np.random.default_rng(0)
    for part, n in (("train", count), ("test", 5)):
        for label, name in enumerate(("left", "right")):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 128, (8, 8), dtype=np.uint8)
                pixels[:, 4 * label : 4 * label + 4] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def run_folder(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "squares-1"
    assert main(["train", str(squares), *TINY, "--epochs", "2", "--lr", "0.002", "--run", str(path)]) == 0
    return path


def assert_refused(said: Said, status: int, *words: str) -> None:
    """Assert one line on standard error that says all of `words`, and nothing that looks like a traceback."""
    assert said.status == status, said
    line, *more = [text for text in said.err.splitlines() if text.startswith("minivit: ")]
    assert not more
    assert "Traceback" not in said.err
    for word in words:
        assert word in line


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in read_tensors(run / "last" / "model.safetensors")[0].items()}


def in_a_shell(*argv: str, cwd: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "minivit", *argv]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# What succeeds


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cli: Minivit, command: str) -> None:
    said = cli(command, "--help")
    assert said.status == 0
    assert re.search(rf"^examples?:\n  minivit {command}", said.out, re.MULTILINE)
    assert "--json" in said.out


def test_version(cli: Minivit) -> None:
    assert cli("--version").out == f"minivit {minivit.__version__}\n"


def test_train_prints_an_epoch_a_line_and_what_to_do_next(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--epochs", 2)
    assert said.status == 0
    assert not said.err
    assert not CONTROL.search(said.out)
    epochs = [line for line in said.out.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    for line in epochs:
        assert re.match(r"epoch \d/2  loss \d+\.\d+  accuracy .* %  validation loss .* images/s .* left", line)
    assert re.search(r"^test accuracy \d+\.\d %", said.out, re.MULTILINE)
    assert "minivit eval runs/squares-1" in said.out
    assert Path("runs/squares-1/best/model.safetensors").exists()


def test_train_json(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--epochs", 1, "--run", "here", "--json", "--threads", 1)
    assert len(said.out.splitlines()) == 1
    values = said.json()
    assert values["run"] == "here"
    assert 0 <= values["test_accuracy"] <= 1
    assert values["seconds"] > 0
    assert values["images_per_second"] > 0
    assert values["test_images"] == 10
    assert "epoch 1/1" in said.err


def test_the_digits_need_nothing(cli: Minivit) -> None:
    said = cli("train", "digits", "--epochs", 1, "--set", "depth=1", "--batch-size", 256, "--json")
    assert said.status == 0
    assert said.json()["test_images"] == 359
    assert cli("eval", "runs/digits-1", "--json").json()["accuracy"] == said.json()["test_accuracy"]


def test_options_override_the_recipe(cli: Minivit, squares: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 1, "batch_size": 7, "lr": 0.01, "schedule": "linear", "warmup_epochs": 0.5, "seed": 3,
        "optimizer": "sgd", "weight_decay": 0.1, "label_smoothing": 0.2, "validation": 0.25, "micro_batch": 2,
        "dtype": "float64",
    }  # fmt: skip
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
    more = ("--set", "drop_path_rate=0", "--set", "class_token=false", "--set", "global_pool=avg")
    assert cli("train", squares, *TINY, *given, *more, "--run", "here").status == 0
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert {name: recipe[name] for name in options} == options
    assert recipe["dataset"] == str(squares)
    assert recipe["model_options"] == {
        "patch_size": 2, "depth": 1, "embed_dim": 8, "num_heads": 2, "drop_path_rate": 0.0, "class_token": False,
        "global_pool": "avg",
    }  # fmt: skip


def test_images_of_a_folder_are_resized_to_the_model(cli: Minivit, squares: Path) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--set", "img_size=4x6").status == 0
    config = json.loads(Path("runs/squares-1/best/config.json").read_text())
    assert config["minivit"]["config"]["img_size"] == [4, 6]
    said = cli("predict", "runs/squares-1", squares / "test" / "left" / "0.png")
    assert "resized to 4 x 6: " in said.out


def test_training_on_a_terminal_draws_a_bar(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    said = cli("train", squares, *TINY, "--epochs", 3)
    assert said.status == 0
    assert "\x1b[" in said.out
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.out)
    for words in ("epoch 3/3", "━", "images/s", "left", "validation accuracy", "best "):
        assert words in text


def test_eval_is_what_training_measured(cli: Minivit, run_folder: Path) -> None:
    result = json.loads((run_folder / "result.json").read_text())
    values = cli("eval", run_folder, "--json").json()
    assert values["accuracy"] == result["test_accuracy"]
    assert values["loss"] == pytest.approx(result["test_loss"], rel=1e-6)
    assert values["images"] == 10
    assert [c["images"] for c in values["classes"]] == [5, 5]
    right = sum(c["images"] * c["accuracy"] for c in values["classes"])
    assert right / 10 == pytest.approx(values["accuracy"])

    epochs = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    held_out = cli("eval", run_folder, "--split", "validation", "--checkpoint", "last", "--json").json()
    assert held_out["accuracy"] == epochs[-1]["val_accuracy"]


def test_eval_shows_each_class(cli: Minivit, run_folder: Path, squares: Path) -> None:
    said = cli("eval", run_folder / "best" / "model.safetensors", "--dataset", squares)
    assert said.status == 0
    for words in ("left", "right", "recognised", "accuracy", "loss", "10 test images of squares"):
        assert words in said.out
    assert not CONTROL.search(said.out)


def test_predict_json(cli: Minivit, run_folder: Path, squares: Path) -> None:
    images = [squares / "test" / name / "0.png" for name in ("left", "right")]
    said = cli("predict", run_folder, *images, "--top", 2, "--json")
    assert len(said.out.splitlines()) == 1
    predictions = said.json()["predictions"]
    assert [prediction["path"] for prediction in predictions] == [str(image) for image in images]
    for prediction in predictions:
        assert {top["label"] for top in prediction["top"]} == {"left", "right"}
        first, second = (top["probability"] for top in prediction["top"])
        assert first >= second
        assert first + second == pytest.approx(1, abs=1e-5)


def test_predict_agrees_with_the_model(cli: Minivit, run_folder: Path, squares: Path) -> None:
    image = squares / "test" / "left" / "1.png"
    model, about = minivit.load_model(run_folder), minivit.weights.model_metadata(run_folder)
    pixels = np.asarray(Image.open(image))[None, :, :, None]
    logits = model(normalize(pixels, about["mean"], about["std"], np.float32))
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    for top in cli("predict", run_folder / "best", image, "--json").json()["predictions"][0]["top"]:
        assert top["probability"] == pytest.approx(float(expected[("left", "right").index(top["label"])]), rel=1e-4)


def test_predict_converts_and_resizes(cli: Minivit, run_folder: Path) -> None:
    Image.new("RGBA", (30, 20), (200, 10, 10, 255)).save("colour.png")
    said = cli("predict", run_folder, "colour.png")
    assert said.status == 0
    assert "resized to 8 x 8: colour.png (20 x 30)" in said.out


def test_info_of_a_model(cli: Minivit) -> None:
    values = cli("info", "vit_base_patch16_224", "--json").json()
    assert values["parameters"] == 86_567_656
    assert values["flops"] == pytest.approx(35.1e9, rel=2e-3)
    assert sum(layer["parameters"] for layer in values["layers"]) == values["parameters"]
    said = cli("info", "vit_huge_patch14_224")
    for words in ("632,045,800", "blocks.0-31.attn", "patch_embed", "334.59 G"):
        assert words in said.out


def test_info_of_the_machine(cli: Minivit) -> None:
    values = cli("info", "--json").json()
    assert values["models"]["vit_tiny_patch4_32"]["parameters"] == 5_362_762
    assert values["numpy"] == np.__version__
    assert "numpy" in values["backends"]
    assert values["cores"] >= 1
    said = cli("info")
    assert all(name in said.out for name in minivit.PRESETS)


@pytest.mark.parametrize("target", ["linear", "attention-mask", "Dropout", "vit_micro_patch4_8"])
def test_gradcheck_passes(cli: Minivit, target: str) -> None:
    said = cli("gradcheck", target, "--depth", 1, "--batch", 1, "--seed", 5, "--json")
    assert said.status == 0
    assert len(said.out.splitlines()) == 1
    assert said.json()["passed"] is True
    assert 0 <= said.json()["max_error"] <= 1e-11
    verdicts = {row["verdict"] for check in said.json()["checks"] for row in check["rows"]}
    assert verdicts <= {"ok", "zero"}
    assert "ok" in verdicts


def test_gradcheck_of_a_model_has_no_gradient_hidden_by_its_first_parameters(cli: Minivit) -> None:
    (check,) = cli("gradcheck", "vit_micro_patch4_8", "--depth", 1, "--json").json()["checks"]
    zero = [f"{row['layer']}.{row['name']}" for row in check["rows"] if row["verdict"] == "zero"]
    assert zero == ["blocks.0.attn.qkv.bias[k]"]
    assert "vit_micro_patch4_8 (1 of its 4 blocks)" in check["title"]


def test_gradcheck_of_all_ops_is_a_table(cli: Minivit) -> None:
    said = cli("gradcheck", "ops")
    assert said.status == 0
    assert all(case.name in said.out for case in CASES if case.op.islower())
    assert re.search(r"^passed: \d+ gradients", said.out, re.MULTILINE)


def test_gradcheck_finds_a_wrong_gradient(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.softmax_backward
    monkeypatch.setattr(ops, "softmax_backward", lambda dy, cache: 1.001 * right(dy, cache))
    said = cli("gradcheck", "softmax", "--json")
    assert said.status == 1
    assert said.json()["passed"] is False
    assert said.json()["max_error"] > 1e-4
    shown = cli("gradcheck", "ops")
    assert shown.status == 1
    assert "FAILED" in shown.out


def test_python_m_minivit(tmp_path: Path) -> None:
    process = in_a_shell("info", "vit_micro_patch4_8", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["parameters"] == minivit.create_model("vit_micro_patch4_8").parameters.count


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["info"]], ids=" ".join)
def test_commands_start_without_what_they_do_not_need(argv: list[str], tmp_path: Path) -> None:
    heavy = {
        "rich.progress",
        "rich.live",
        "sklearn",
        "scipy",
        "matplotlib",
        "pooch",
        "PIL",
        "safetensors",
        "hypothesis",
    }
    code = f"import sys; from minivit.cli import main; main({argv}); print('heavy:', {heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy: set()"


# Stopping and going on


@pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot be sent Ctrl-C alone")
@pytest.mark.parametrize("polite", [True, False], ids=["Ctrl-C", "kill -9"])
def test_a_run_stopped_in_a_shell_goes_on_to_the_same_bits(cli: Minivit, squares: Path, polite: bool) -> None:
    options = (str(squares), *TINY, "--epochs", "15", "--batch-size", "4", "--set", "attn_drop_rate=0.1")
    assert cli("train", *options, "--run", "whole").status == 0

    process = in_a_shell("train", *options, "--run", "stopped", "--checkpoint-seconds", "0", cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not Path("stopped/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGINT) if polite else process.kill()
    _, err = process.communicate(timeout=60)
    assert not Path("stopped/result.json").exists()
    if polite:
        assert_refused(Said(process.returncode, "", err), 1, f"minivit train {squares} --run stopped --resume")

    said = cli("train", *options, "--run", "stopped", "--resume")
    assert said.status == 0
    assert "going on after step " in said.out
    assert weights(Path("stopped")) == weights(Path("whole"))
    epochs = [json.loads(line)["epoch"] for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 16))


def test_a_full_disk_stops_the_run_and_loses_nothing(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (squares, *TINY, "--epochs", 4)
    assert cli("train", *options, "--run", "whole").status == 0
    end_epoch = loop.Trainer._end_epoch

    def fill_the_disk(self: loop.Trainer, epoch: int) -> dict[str, Any]:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if epoch == 3:
            patch.setattr(os, "fsync", full)
        return end_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_end_epoch", fill_the_disk)
        assert_refused(cli("train", *options, "--run", "full"), 1, "No space left", "full")
    assert cli("train", *options, "--run", "full", "--resume").status == 0
    assert weights(Path("full")) == weights(Path("whole"))


def test_resuming_a_finished_run_prints_its_result_again(
    cli: Minivit, squares: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Trainer, "fit", None)
    said = cli("train", squares, "--run", run_folder, "--resume", "--json")
    assert said.status == 0
    assert said.json() == json.loads((run_folder / "result.json").read_text())


def test_resume_without_a_folder_takes_the_newest(cli: Minivit, squares: Path) -> None:
    for _ in range(2):
        assert cli("train", squares, *TINY, "--epochs", 1).status == 0
    said = cli("train", squares, "--resume", "--json")
    assert said.json()["run"] == "runs/squares-2"


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    process = in_a_shell("info", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


# What goes wrong


def test_an_unknown_command(cli: Minivit) -> None:
    assert_refused(cli("trian", "digits"), 2, "'trian'", "did you mean 'train'", "gradcheck")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["train"], ["DATA", "minivit train --help"]),
        (["train", "digits", "--epoch", 3], ["--epoch", "minivit train --help"]),
        (["train", "digits", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "digits", "--epochs", 0], ["epochs is 0", "at least 1"]),
        (["train", "digits", "--lr", "nan"], ["lr is nan"]),
        (["train", "digits", "--validation", 1], ["validation is 1.0"]),
        (["train", "digits", "--seed", -1], ["seed is -1"]),
        (["train", "digits", "--optimizer", "adamax"], ["adamax", "adamw"]),
        (["train", "digits", "--threads", 0], ["threads is 0"]),
        (["train", "digits", "--set", "depht=2"], ["depht", "depth"]),
        (["train", "digits", "--set", "depth=two"], ["depth=two", "a whole number"]),
        (["train", "digits", "--set", "depth"], ["FIELD=VALUE"]),
        (["train", "digits", "--set", "img_size=8x8x8"], ["img_size=8x8x8", "pixels"]),
        (["train", "digits", "--set", "img_size=32"], ["img_size", "digits has (8, 8)"]),
        (["train", "digits", "--set", "patch_size=3"], ["8 x 8", "3 x 3", "patch_size that divides"]),
        (["train", "digits", "--model", "vit_tiny_patch16_224"], ["8 x 8", "16 x 16"]),
        (["train", "digits", "--model", "vit_tinny_patch4_32"], ["did you mean 'vit_tiny_patch4_32'"]),
        (["train", "digitz"], ["'digitz'", "did you mean digits"]),
        (["train", "cifar-10"], ["did you mean cifar10"]),
        (["train", "digits", "--resume"], ["no run of digits"]),
        (["train", "digits", "--resume", "--run", "nowhere"], ["nowhere is not a run"]),
        (["train", "digits", "--backend", "tpu"], ["tpu"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["predict", "nowhere", "a.png"], ["nowhere"]),
        (["gradcheck", "atention"], ["'atention'", "did you mean 'attention'"]),
        (["gradcheck", "linear", "--batch", 0], ["--batch is 0"]),
        (["gradcheck", "vit_micro_patch4_8", "--depth", 0], ["depth is 0"]),
        (["info", "vit_smal_patch16_224"], ["did you mean 'vit_small_patch16_224'"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_options(cli: Minivit, argv: list[object], words: list[str]) -> None:
    assert_refused(cli(*argv), 2, *words)
    assert not list(Path.cwd().iterdir())


def test_commands_run_on_a_device(cli: Minivit, squares: Path, run_folder: Path) -> None:
    options = ("--epochs", 1, "--backend", "strict")
    said = cli("train", squares, *TINY, *options, "--run", "here", "--micro-batch", 5)
    assert said.status == 0
    assert "on strict, into here" in said.out
    assert json.loads(Path("here/recipe.json").read_text())["micro_batch"] != 5
    image = squares / "test" / "left" / "0.png"
    for argv in (("eval", run_folder, "--json"), ("predict", run_folder, image, "--json")):
        there, here = cli(*argv, "--backend", "strict").json(), cli(*argv).json()
        for name in there.keys() & {"accuracy", "loss"}:
            assert there[name] == pytest.approx(here[name], rel=1e-5)
        for one, other in zip(there.get("predictions", []), here.get("predictions", []), strict=True):
            assert [top["label"] for top in one["top"]] == [top["label"] for top in other["top"]]
            assert one["top"][0]["probability"] == pytest.approx(other["top"][0]["probability"], rel=1e-5)


def test_the_way_on_names_the_device(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer, *_: Any) -> None:
        raise Interrupted(3)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    options = ("--backend", "strict", "--precision", "tf32", "--micro-batch", 4)
    said = cli("train", squares, *TINY, *options, "--run", "here")
    assert said.status == 1
    options_again = "--precision tf32 --backend strict --micro-batch 4"
    assert said.err.endswith(f"To go on: minivit train {squares} --run here {options_again} --resume\n")
    said = cli("train", squares, *TINY, "--micro-batch", 4, "--run", "there")
    assert said.err.endswith(f"To go on: minivit train {squares} --run there --resume\n")


def test_out_of_memory_gives_the_command_that_helps(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("minivit.engine.Engine.training_step", full)
        said = cli("train", squares, *TINY, "--backend", "strict", "--batch-size", 16, "--run", "here")
    assert_refused(
        said, 1, "at step 1, taking 16 images at a time. About 8 would fit: --micro-batch 8 cuts", "here/last"
    )
    again = said.err.rpartition(": minivit ")[2]
    assert again == f"train {squares} --run here --backend strict --micro-batch 8 --resume\n"
    assert cli(*again.split()).status == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "bfloat16"), ["precision bfloat16 needs a GPU"]),
        (("--precision", "tf32", "--dtype", "float64", "--backend", "strict"), ["float64", "leave it out"]),
        (("--precision", "double"), ["double", "bfloat16"]),
    ],
    ids=str,
)
def test_a_precision_that_does_not_fit_is_refused(cli: Minivit, options: tuple[str, ...], words: list[str]) -> None:
    assert_refused(cli("train", "digits", *options), 2, *words)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "bfloat16"), ["precision bfloat16 needs a GPU"]),
        (("--precision", "tf32", "--dtype", "float64", "--backend", "strict"), ["float64", "leave it out"]),
        (("--precision", "bfloat16", "--backend", "strict"), ["compute capability 7.5, but bfloat16 needs 8.0"]),
        (("--micro-batch", -1), ["micro_batch is -1; expected 0 or more"]),
        (("--micro-batch", -1, "--backend", "strict"), ["micro_batch is -1; expected at least 0"]),
        (("--threads", 0), ["threads is 0; expected at least 1"]),
    ],
    ids=str,
)
def test_options_at_odds_are_refused_before_the_images_are_read(
    cli: Minivit, options: tuple[object, ...], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("the images were read")

    monkeypatch.setattr("minivit.commands.train.open_dataset", read)
    monkeypatch.setattr(strict, "compute_capability", lambda: (7, 5), raising=False)
    assert_refused(cli("train", "cifar10", *options), 2, *words)


class CUBLASError(RuntimeError):
    """Is raised under this name by CuPy."""


TOO_SMALL = [MemoryError("Out of memory allocating 1,024 bytes"), CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")]


@pytest.mark.parametrize("error", TOO_SMALL, ids=str)
@pytest.mark.parametrize("place", ["engine.Engine.predict", "commands.common.load_model"])
def test_too_little_memory_to_predict_has_a_way_out(
    cli: Minivit, squares: Path, run_folder: Path, error: Exception, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"minivit.{place}", full)
    image = squares / "test" / "left" / "0.png"
    for argv in (("eval", run_folder), ("predict", run_folder, image)):
        assert_refused(cli(*argv, "--backend", "strict"), 1, "--backend strict has too little", "--backend numpy")
        assert_refused(cli(*argv), 1, f"out of memory: {error}")


def test_too_little_memory_elsewhere(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in ((TOO_SMALL[1], "out of memory: CUBLAS_STATUS_ALLOC_FAILED"), (MemoryError(), "out of memory")):

        def full(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(COMMANDS["info"], "run", full)
        said = cli("info")
        assert_refused(said, 1, words)
        assert said.err.endswith(f"{words}\n")


def test_cupy_where_it_is_not(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_refused(cli("train", "digits", "--backend", "cupy"), 2, "CuPy", "numpy")


def test_an_empty_class_folder(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    (folder / "train" / "empty").mkdir()
    assert_refused(cli("train", folder, *TINY), 2, str(folder / "train" / "empty"))
    assert not (tmp_path / "runs").exists()


def test_a_corrupt_training_image(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    file = folder / "train" / "left" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    assert_refused(cli("train", folder, *TINY), 2, str(file))


def test_one_bad_image_does_not_lose_the_others(cli: Minivit, run_folder: Path, squares: Path) -> None:
    good = squares / "test" / "left" / "0.png"
    Path("bad.png").write_bytes(good.read_bytes()[:50])
    said = cli("predict", run_folder, "bad.png", good, "--json")
    assert_refused(said, 2, "bad.png cannot be read as an image")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == [str(good)]
    assert [error["path"] for error in said.json()["errors"]] == ["bad.png"]
    assert_refused(cli("predict", run_folder, "nowhere.png"), 2, "no file nowhere.png")
    assert_refused(cli("predict", run_folder, "."), 2, "is a folder")


def test_an_existing_run_is_kept(cli: Minivit, squares: Path, run_folder: Path) -> None:
    before = weights(run_folder)
    assert_refused(cli("train", squares, "--run", run_folder), 2, str(run_folder), "--resume")
    assert weights(run_folder) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", 0.5], ["lr is 0.002 in the run, 0.5 was asked for"]),
        (["--epochs", 7, "--seed", 1], ["epochs is 2", "seed is 0"]),
        (["--set", "depth=2"], ["model_options"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_another_recipe_on_resume(
    cli: Minivit, squares: Path, run_folder: Path, options: list[object], words: list[str]
) -> None:
    assert_refused(cli("train", squares, "--run", run_folder, "--resume", *options), 2, *words)


def test_another_dataset_on_resume(cli: Minivit, run_folder: Path) -> None:
    assert_refused(cli("train", "digits", "--run", run_folder, "--resume"), 2, "dataset", "'digits'")


def test_the_same_options_on_resume(cli: Minivit, squares: Path, run_folder: Path) -> None:
    options = (squares, *TINY, "--epochs", 2, "--lr", 2e-3, "--run", run_folder, "--resume")
    assert cli("train", *options).status == 0


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_checkpoint(cli: Minivit, squares: Path, tmp_path: Path, keep: int) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--run", "here").status == 0
    for name in ("best/model.safetensors", "last/training.safetensors"):
        file = tmp_path / "here" / name
        file.write_bytes(file.read_bytes()[:keep])
    (tmp_path / "here" / "result.json").unlink()
    assert_refused(cli("train", squares, "--run", "here", "--resume"), 2, "training.safetensors")
    assert_refused(cli("eval", "here"), 2, "model.safetensors")
    assert_refused(cli("predict", "here", squares / "test" / "left" / "0.png"), 2, "model.safetensors")


def test_the_checkpoint_of_another_model(cli: Minivit, squares: Path) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--run", "here").status == 0
    Path("here/result.json").unlink()
    recipe = json.loads(Path("here/recipe.json").read_text())
    recipe["model_options"]["depth"] = 2
    Path("here/recipe.json").write_text(json.dumps(recipe))
    said = cli("train", squares, "--run", "here", "--resume")
    assert_refused(said, 2, "training.safetensors", "another model")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epochs": 3}', '{"dataset": "x", "model": "y", "epochs": "many"}'])
def test_a_damaged_recipe(cli: Minivit, squares: Path, text: str) -> None:
    Path("here").mkdir()
    Path("here/recipe.json").write_text(text)
    assert_refused(cli("train", squares, "--run", "here", "--resume"), 2)
    assert_refused(cli("eval", "here"), 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "last" / "training.safetensors").unlink(), ["lost last/training.safetensors"]),
        (lambda run: (run / "metrics.jsonl").unlink(), ["metrics.jsonl", "a line for each epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text(""), ["metrics.jsonl", "a line for each epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"epo'), ["metrics.jsonl is damaged"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}'), ["line 1 is not the metrics of an epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text("[1]"), ["line 1 is not the metrics of an epoch"]),
        (lambda run: (run / "result.json").write_text("{}"), ["result.json", "lacks best_epoch", "remove it"]),
        (lambda run: (run / "result.json").write_text("oops"), ["result.json", "not valid JSON"]),
        (lambda run: edit_recipe(run, seed=1), ["recipe.json says otherwise", ": seed;"]),
        (lambda run: edit_recipe(run, epochs=3, lr=0.1), ["recipe.json says otherwise", ": epochs, lr;"]),
        (lambda run: (run / "best" / "model.safetensors").unlink(), ["best", "model.safetensors"]),
    ],
)
def test_a_damaged_run_is_refused_and_left_as_it_is(
    cli: Minivit, squares: Path, run_folder: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    here = Path("here")
    shutil.copytree(run_folder, here)
    (here / "result.json").unlink()
    damage(here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert_refused(cli("train", squares, "--run", here, "--resume"), 2, *words)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def edit_recipe(run: Path, **fields: Any) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | fields))


def test_images_that_moved(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares")
    assert cli("train", folder, *TINY, "--epochs", 1, "--validation", 0, "--run", "here").status == 0
    Path("here/result.json").unlink()
    moved = folder.rename(tmp_path / "moved")
    assert_refused(cli("train", "squares", "--run", "here", "--resume"), 2, str(folder), "neither a data set nor")
    edit_recipe(Path("here"), dataset=str(moved))
    assert cli("train", "moved", "--run", "here", "--resume").status == 0


def test_ctrl_c_twice_says_how_to_go_on(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: loop.Trainer, samples: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "_step", twice)
    said = cli("train", squares, *TINY, "--run", "here", "--data", "some where")
    assert_refused(said, 1, "stopped at once", "--run here --data 'some where' --resume")


def test_eval_of_images_with_other_channels(cli: Minivit, run_folder: Path, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for file in folder.rglob("0.png"):
        Image.open(file).convert("RGB").save(file)
    assert_refused(cli("eval", run_folder, "--dataset", folder), 2, "images of 1 channels, but squares has 3")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes there")
def test_a_pipe_is_no_image_and_nobody_waits_for_it(cli: Minivit, run_folder: Path) -> None:
    os.mkfifo("pipe.png")
    assert_refused(cli("predict", run_folder, "pipe.png"), 2, "pipe.png", "it is not a file")


def test_no_standard_output_at_all(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        status = main(["info", "--json"])
    assert status == 0


def test_a_model_for_other_classes(cli: Minivit, run_folder: Path, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for part in ("train", "test"):
        (folder / part / "left").rename(folder / part / "middle")
    said = cli("eval", run_folder, "--dataset", folder)
    assert_refused(said, 2, "2 classes (left, right)", "2 classes (middle, right)")


def test_a_model_file_that_does_not_say_its_classes(cli: Minivit, squares: Path) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors")
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png")
    assert_refused(said, 2, "class_names, mean, std")
    assert_refused(cli("eval", "model.safetensors"), 2, "--dataset")
    about = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.5]}
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors", extra=about)
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png")
    assert_refused(said, 2, "names 2 classes", "10")


def test_a_loss_that_is_not_finite(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--batch-size", 8, "--lr", 1e30, "--run", "here")
    assert_refused(said, 1, "not finite at step ", "shows first in the result of ", "here/last", "--lr")
    for value in read_tensors("here/last/model.safetensors")[0].values():
        assert np.isfinite(value).all()


def test_a_file_in_place_of_the_run_folder(cli: Minivit, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_refused(cli("train", squares, *TINY, "--run", "taken"), 1, "taken")
    assert_refused(cli("train", squares, *TINY, "--run", "taken/run"), 1, "taken")


def test_an_error_that_nobody_foresaw(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(COMMANDS["info"], "run", fail)
    assert_refused(cli("info"), 1, "unexpected KeyError: 'surprise'", "--debug")
    said = cli("info", "--debug")
    assert said.status == 1
    assert "Traceback" in said.err
