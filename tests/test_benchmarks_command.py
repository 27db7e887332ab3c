"""What the benchmark commands share: works from texts, checked options, endings, files, and the words of a report."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bars import BARS
from benchmarks.command import at_least_one, duration, ended
from benchmarks.output import check_writable, write_json, write_text
from benchmarks.ratios import Ratio
from benchmarks.rows import Row, Verdict
from benchmarks.sides.same_model import check_same_model
from benchmarks.surroundings import surroundings
from benchmarks.tables import cells, heading
from benchmarks.works import get_work
from minivit.engine.machine import cores
from minivit.errors import RunError, UserError
from minivit.nn.config import ViTConfig


@pytest.mark.parametrize(
    ("assignment", "match"),
    [
        ("depht=2", "no field 'depht'"),
        ("dtype=float64", "no field 'dtype'"),  # all sides compute in float32
        ("name=other", "no field 'name'"),
        ("depth=two", "depth is 'two'"),
        ("depth=", "depth is ''"),
        ("class_token=no", "class_token is 'no'; expected True or False"),
        ("num_heads=7", "cannot be split evenly"),
        ("img_size={[]: 1}", "img_size is"),
        ("mlp_ratio=1e308", "too large"),
        ("batch_size=many", "batch_size is 'many'"),
        ("batch_size=2.5", "batch_size is 2.5"),
        ("batch_size=True", "batch_size is True"),
    ],
)
def test_a_work_that_cannot_be_is_refused_in_one_line(assignment: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        get_work("train-tiny", [assignment])
    assert "\n" not in str(caught.value)


def test_options_are_checked() -> None:
    assert (at_least_one("3"), duration("0"), duration("0.5")) == (3, 0.0, 0.5)
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
            at_least_one(text)
    for text in ("-1", "inf", "nan", "long"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected seconds"):
            duration(text)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (UserError("no such file"), 2, "no such file"),
        (RunError("disk full"), 1, "disk full"),
    ],
)
def test_a_command_ends_in_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert ended(main) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)
    assert (ended(lambda: None), ended(lambda: 1)) == (0, 1)


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "found.json"
    write_json(file, {"rounds": 1})

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(RunError, match="No space left"):
        write_json(file, {"rounds": 2})
    assert json.loads(file.read_text()) == {"rounds": 1}
    assert [*file.parent.iterdir()] == [file]


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "text")
    write_text(None, "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    check_writable(None, tmp_path / "deep" / "found.json")
    assert [*tmp_path.rglob("*")] == [tmp_path / "deep"]
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "found.json", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            check_writable(path)


def test_a_report_says_how_many_cores_were_used() -> None:
    assert surroundings()["cores"] == surroundings(cores() + 1)["cores"] == cores()
    assert ", 1 core used, " in heading(surroundings(1), {}, 1)
    assert heading(surroundings(1), {}, 1).endswith("; 1 process a system, in turn.")
    assert ", 2 cores used, " in heading(surroundings() | {"cores": 2}, {}, 5)


def bar_cell(ratio: Ratio, reached: bool | None) -> str:
    bar = dataclasses.replace(BARS[0], at_least=1.0, aim=2.0)
    verdicts = (Verdict(bar, reached, False),)
    return cells(Row("peer", "peer", 1.0, 1.0, 1.0, 0.1, 1e6, ratio, 1.0, verdicts))[-1]


def test_a_bar_is_reached_missed_or_open_whatever_else_is_uncertain() -> None:
    assert bar_cell(Ratio(1.2, 1.2, (1.19, 1.21)), True) == "1 (2): reached"
    assert bar_cell(Ratio(1.2, 1.2, (1.1, 1.3)), True) == "1 (2): reached; ratio uncertain"
    assert bar_cell(Ratio(0.8, 0.8, (0.7, 0.9)), False) == "1 (2): missed; ratio uncertain"
    assert bar_cell(Ratio(1.0, 1.0, (0.8, 1.2)), None) == "1 (2): open; ratio uncertain"
    assert bar_cell(Ratio(1.2, 1.2, None), None) == "1 (2): open (too few rounds)"


def test_a_peer_refuses_a_model_that_it_does_not_have() -> None:
    check_same_model(ViTConfig())
    check_same_model(ViTConfig(act_layer="gelu_tanh"), ("gelu", "gelu_tanh"))
    wrong: list[dict[str, Any]] = [
        {"act_layer": "gelu_tanh"},
        {"global_pool": "avg", "class_token": False},
        *({f"{name}_rate": 0.1} for name in ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path")),
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match=f"the model of this side .*{next(iter(changes))}"):
            check_same_model(ViTConfig(**changes))
