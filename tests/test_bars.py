"""What the README claims, measured: slow tests of whole commands."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MINIVIT = [sys.executable, "-m", "minivit"]


def minivit_json(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*MINIVIT, *arguments, "--json"], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.timeout(400)
def test_digits_reach_97_percent_on_average_within_a_minute_each(tmp_path: Path) -> None:
    results = [minivit_json("train", "digits", "--seed", str(s), "--run", str(tmp_path / str(s))) for s in range(3)]
    assert sum(result["test_accuracy"] for result in results) / 3 >= 0.97
    assert max(result["seconds"] for result in results) < 60


@pytest.mark.timeout(400)
def test_a_run_killed_at_three_random_moments_ends_in_the_same_files(tmp_path: Path) -> None:
    """SIGKILL at moments drawn from a seed, each time going on with another number of threads."""
    options = ["train", "digits", "--epochs", "20", "--set", "attn_drop_rate=0.1", "--crop-padding", "1", "--flip"]
    minivit_json(*options, "--run", str(tmp_path / "whole"))
    run = tmp_path / "killed"
    moments = random.Random(2020)
    begun = [*MINIVIT, *options, "--run", str(run), "--checkpoint-seconds", "0.1"]
    for threads in (1, 2, 3):
        process = subprocess.Popen([*begun, "--threads", str(threads)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        checkpoint = run / "last" / "training.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        assert not (run / "result.json").exists(), "the run ended before it was killed: nothing is tested"
        begun = [*MINIVIT, "train", "digits", "--run", str(run), "--resume", "--checkpoint-seconds", "0.1"]
    subprocess.run(begun, capture_output=True, check=True)
    for which in ("best", "last"):
        whole, resumed = (tmp_path / name / which / "model.safetensors" for name in ("whole", "killed"))
        assert hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(resumed.read_bytes()).digest()


@pytest.mark.timeout(400)
def test_every_gradient_of_a_model_is_proved() -> None:
    result = minivit_json("gradcheck", "vit_tiny_patch4_32", "--depth", "2")
    assert result["passed"]
    assert result["max_error"] <= 1e-11


def test_importing_minivit_takes_less_than_a_fifth_of_a_second_more_than_numpy() -> None:
    def seconds(module: str) -> float:
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert seconds("minivit") - seconds("numpy") < 0.2
