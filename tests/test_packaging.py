"""What the package says of itself: its metadata, its files, and how to install and start what a message names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import minivit
from minivit.errors import install, program, python

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is alone on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def executable(path: Path) -> Path:
    path.touch(mode=0o755)
    return path


def test_the_version_is_that_of_the_package() -> None:
    assert PROJECT["project"]["version"] == minivit.__version__


def test_the_oldest_python_is_stated_once() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    versions = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert versions[0] == "3.11"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions


def test_types_are_marked_and_declared() -> None:
    assert (ROOT / "minivit" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_the_archive_of_the_source_has_all_that_the_tests_read() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    assert {"minivit", "tests", "benchmarks", "docs", "README.md", "constraints.txt"} <= {*included}


def test_the_tests_find_the_benchmarks_beside_an_installed_minivit(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import conftest, benchmarks"
    command = [sys.executable, "-c", code, str(ROOT / "tests")]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_hint_installs_into_the_python_that_runs(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert install("a", "b[c]") == f'{sys.executable} -m pip install a "b[c]"'
    python = executable(elsewhere / "python3.11")
    monkeypatch.setattr(sys, "executable", str(python))
    assert install("a") == "python3.11 -m pip install a"
    executable(elsewhere / "pip")
    assert install("a") == "pip install a"


def test_a_hint_without_pip_is_for_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert install("a") == f"uv pip install --python {sys.executable} a"


def test_a_path_with_a_space_is_quoted(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my folder/python")
    assert python() == '"/my folder/python"'


def test_the_program_is_called_as_it_was_started(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "minivit" / "__main__.py")])
    assert program() == f"{sys.executable} -m minivit"
    script = executable(elsewhere / "minivit")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == "minivit"
    monkeypatch.setenv("PATH", "")
    assert program() == str(script)
    monkeypatch.setattr(sys, "argv", ["in/a/notebook"])
    assert program() == "minivit"


def test_messages_and_help_of_the_module_name_a_command_that_works(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "minivit", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        return done.stdout + done.stderr

    assert re.search(r"`\S*python\S* -m minivit info` lists all models", said("info", "no-such-model"))
    assert re.search(r"^  \S*python\S* -m minivit eval runs/digits-1$", said("eval", "--help"), re.MULTILINE)
