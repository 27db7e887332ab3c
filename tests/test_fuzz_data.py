"""Damaged images, batches and archives are loaded or refused in one line; tests/fuzz.py tries many more by hand."""

from pathlib import Path

import pytest
from fuzz import LOADERS, cases, trouble

CASES = list(cases(200))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_damaged_file_is_loaded_or_refused_in_one_line(tmp_path: Path, loader: str) -> None:
    path = tmp_path / "file.png"
    for i, (name, content) in enumerate(CASES):
        if name.startswith(f"{loader}/"):
            path.write_bytes(content)
            assert trouble(name, path) is None, f"case {i}, {name}"


@pytest.mark.parametrize("loader", LOADERS)
def test_the_files_are_loaded_before_they_are_damaged(tmp_path: Path, loader: str) -> None:
    for kind, content in LOADERS[loader].contents.items():
        (tmp_path / "file").write_bytes(content)
        assert LOADERS[loader].load(tmp_path / "file") is not None, kind
