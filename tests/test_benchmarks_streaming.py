"""The command benchmarks.streaming."""

import json
from pathlib import Path
from typing import Any

from benchmarks import streaming


def test_images_in_memory_prepared_and_in_files_are_trained_on_in_turn(tmp_path: Path, capsys: Any) -> None:
    out, sizes = tmp_path / "streaming.json", ["--images", "20", "--size", "16", "--model", "vit_micro_patch4_8"]
    few = ["--batch-size", "4", "--threads", "1", "--rounds", "1", "--seconds", "0.01"]
    streaming.main([*sizes, *few, "--folder", str(tmp_path / "images"), "--json", str(out)])
    rows = json.loads(out.read_text())["sources"]
    assert [row["images"] for row in rows] == ["memory", "prepared", "files"]
    assert all(row["ms a step"] > 0 and row["peak MB"] > 10 for row in rows)
    assert len([*(tmp_path / "images" / "files" / "train").glob("*/*.jpg")]) == 20
    assert "vit_micro_patch4_8, batch 4, 20 images" in capsys.readouterr().out
