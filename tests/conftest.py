"""Settings that every test shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

pytest.register_assert_rewrite(  # before anything imports them
    "command_line", "contract", "device_run", "devices", "model_files"
)
sys.path.append(str(Path(__file__).parent.parent))  # for benchmarks; last, so that an installed minivit is tested

import devices
import strict
from command_line import TINY, Minivit, Said, save_squares
from forks import needs_fork
from hypothesis import HealthCheck, settings
from small_run import FIGURES, Listener, make_dataset, run_at, train

from minivit import explorer, ops
from minivit.cli import main
from minivit.engine import worker_pool
from minivit.train import step
from minivit.train.run_folder import RunFolder

os.environ["MINIVIT_CACHE"] = "off"  # here, and in the processes that tests start

settings.register_profile(
    "minivit",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "10")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("minivit")
strict.register()
devices.register_kernels()


@pytest.hookimpl(tryfirst=True)  # before any is deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a GPU test with a skip condition, which would skip it on a GPU too."""
    for item in items:
        if item.get_closest_marker("gpu") and item.get_closest_marker("skipif"):
            raise pytest.UsageError(f"{item.nodeid} is for a GPU and must not be skipped there")


@pytest.fixture(params=[pytest.param("processes", marks=needs_fork), "threads"])
def worker_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of workers that an engine starts; threads are used where a system cannot fork."""
    if request.param == "threads":
        monkeypatch.setattr(worker_pool, "can_fork", lambda: False)
    return str(request.param)


@pytest.fixture(params=[pytest.param("kernels", marks=devices.needs_kernels), "references"])
def computed(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with the CUDA kernels and with the references of the ops."""
    with ops.reference_only() if request.param == "references" else nullcontext():
        yield request.param


@pytest.fixture(scope="session", autouse=True)
def no_figures() -> Iterator[None]:
    """Let runs make empty files for figures, whose drawing takes longer than a small run; see `figures_drawn`."""

    def make_empty(*arguments: object) -> str:
        path = next(each for each in arguments if isinstance(each, Path))
        path.touch()
        return str(path)

    with pytest.MonkeyPatch.context() as patch:
        for module, name in FIGURES:
            patch.setattr(module, name, make_empty)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_syncing() -> Iterator[None]:
    """Do not wait until files are on the disk.

    A killed process loses no data without this wait, which takes longer than a small run trains.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def pages_without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `minivit inspect` check no gradients and try no mistakes, which takes most of its time."""
    monkeypatch.setattr(explorer, "explore", partial(explorer.explore, checks=False))


@pytest.fixture
def reads_every_third_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, read the metrics after every third step."""
    monkeypatch.setattr(step, "_READ_EVERY", 3)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The small run on the host."""
    run = run_at(tmp_path_factory.mktemp("runs") / "host")
    train(run, make_dataset(), Listener())
    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Minivit:
    """Run a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images."""
    return save_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def run_folder(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "squares-1"
    assert main(["train", str(squares), *TINY, "--epochs", "2", "--lr", "0.002", "--run", str(path)]) == 0
    return path
