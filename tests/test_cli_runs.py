"""``minivit runs``: the table of runs, the fields in which they differ, their curves, and bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, Minivit, assert_refused
from small_run import RECIPE, run_at


@pytest.fixture
def folder(run_folder: Path, squares: Path, cli: Minivit) -> Path:
    """A folder with a finished run, one that was stopped and has no result, and one deeper that differs from both."""
    shutil.copytree(run_folder, "all/squares-10")
    shutil.copytree(run_folder, "all/squares-2")
    Path("all/squares-2/result.json").unlink()
    other = ("--epochs", 1, "--lr", 0.003, "--validation", 0, "--run", "all/deeper/other")
    assert cli("train", squares, *TINY, *other).status == 0
    return Path("all")


def row(out: str, name: str) -> list[str]:
    return next(line.split() for line in out.splitlines() if line.startswith(f"{name} "))


def of_run(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in values["runs"] if each["run"] == str(folder))


def test_runs_are_listed_in_the_order_of_their_numbers(cli: Minivit, folder: Path) -> None:
    said = cli("runs", folder)
    assert (said.status, said.err) == (0, "")
    lines = [line.split()[0] for line in said.out.splitlines()]
    assert lines == ["run", "other", "squares-2", "squares-10"]
    result = json.loads((folder / "squares-10" / "result.json").read_text())
    cells = row(said.out, "squares-10")
    assert cells[1:4] == ["squares", "vit_micro_patch4_8", "2/2"]
    assert cells[4] == f"{100 * result['best_val_accuracy']:.1f}"
    assert cells[6] == f"{100 * result['test_accuracy']:.1f}"
    assert "recipe" not in said.out


def test_runs_behind_symbolic_links_are_listed_once(cli: Minivit, folder: Path) -> None:
    here = Path("here")
    here.mkdir()
    (here / "again").symlink_to(here.absolute(), target_is_directory=True)  # a circle
    (here / "linked").symlink_to(folder.absolute(), target_is_directory=True)
    (folder / "a-link").symlink_to("squares-2", target_is_directory=True)  # the run has a path without a link
    for root, where in ((folder, folder), (here, here / "linked")):
        listed = [run["run"] for run in cli("runs", root, "--json").json()["runs"]]
        assert listed == [str(where / name) for name in ("deeper/other", "squares-2", "squares-10")]


def test_a_run_without_a_result_has_what_its_metrics_have(cli: Minivit, folder: Path) -> None:
    values = cli("runs", folder, "--json").json()
    finished, stopped = (of_run(folder / name, values) for name in ("squares-10", "squares-2"))
    assert stopped == {**finished, "run": str(folder / "squares-2"), "test_accuracy": None, "test_loss": None} | {
        key: stopped[key] for key in ("seconds", "images_per_second")
    }
    lines = [json.loads(line) for line in (folder / "squares-2" / "metrics.jsonl").read_text().splitlines()]
    assert stopped["val_accuracy"] == max(line["val_accuracy"] for line in lines)
    assert stopped["seconds"] == lines[-1]["seconds"]
    assert of_run(folder / "deeper" / "other", values)["val_accuracy"] is None
    assert values["differences"] == {}


def test_the_best_epoch_of_an_unfinished_run_is_one_with_an_average(cli: Minivit) -> None:
    for choose_by in ("accuracy", "loss"):
        run = run_at(Path("all") / choose_by, replace(RECIPE, epochs=4, swa_start=0.5, choose_by=choose_by))
        measured = enumerate([(0.9, 0.1), (0.8, 0.2), (0.7, 0.8), (0.6, 0.7)], start=1)
        run.write_metrics(
            [
                {"epoch": epoch, "step": epoch, "train_loss": 1.0, "val_accuracy": accuracy, "val_loss": loss}
                for epoch, (accuracy, loss) in measured
            ]
        )
    assert [each["val_accuracy"] for each in cli("runs", "all", "--json").json()["runs"]] == [0.7, 0.6]


def test_a_run_without_an_epoch_is_listed_and_not_drawn(cli: Minivit, folder: Path) -> None:
    for file in folder.glob("squares-2/metrics.*"):
        file.unlink()
    said = cli("runs", folder, "--out", "curves.svg", "--json").json()
    assert of_run(folder / "squares-2", said)["epochs_done"] == 0
    picture = Path("curves.svg").read_text(encoding="utf-8")
    assert "squares-10, validation" in picture
    assert "squares-2," not in picture


def test_named_runs_are_compared_by_their_recipes(cli: Minivit, folder: Path) -> None:
    names = [folder / "squares-10", folder / "deeper" / "other"]
    said = cli("runs", *names, "--json").json()
    assert said["differences"] == {"epochs": [2, 1], "lr": [0.002, 0.003], "validation": [0.1, 0.0]}
    assert [each["run"] for each in said["runs"]] == [str(name) for name in names]
    assert row(cli("runs", *names).out, "lr") == ["lr", "0.002", "0.003"]
    assert cli("runs", names[0], "--json").json()["differences"] == {}


def test_the_default_is_the_folder_in_which_runs_are_written(cli: Minivit, folder: Path) -> None:
    folder.rename("runs")
    assert len(cli("runs", "--json").json()["runs"]) == 3


def test_a_damaged_run_does_not_hide_the_others(cli: Minivit, folder: Path) -> None:
    (folder / "squares-2" / "recipe.json").write_text("{")
    (folder / "squares-10" / "metrics.jsonl").write_text("{}\n")
    said = cli("runs", folder)
    assert said.status == 0
    assert row(said.out, "other")
    assert "all/squares-2 cannot be read: all/squares-2/recipe.json" in said.out
    assert "all/squares-10 cannot be read: all/squares-10/metrics.jsonl is damaged" in said.out
    assert sorted("error" in each for each in cli("runs", folder, "--json").json()["runs"]) == [False, True, True]
    assert cli("runs", folder / "squares-2").status == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "there is no folder runs; expected a run, or a folder of runs"),
        (("empty",), "there are no runs in empty"),
        (("empty", "--out", "c.pdf"), "--out is c.pdf; expected a file .png or .svg"),
    ],
)
def test_bad_input_is_refused(cli: Minivit, argv: tuple[str, ...], words: str) -> None:
    Path("empty").mkdir()
    assert_refused(cli("runs", *argv), 2, words)


def test_a_name_with_a_digit_of_another_kind_is_listed(cli: Minivit, folder: Path) -> None:
    shutil.copytree(folder / "squares-2", folder / "a1²")
    assert cli("runs", folder).status == 0
