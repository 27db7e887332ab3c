"""A process that measures one side when it is asked to."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.rounds import WorkerError
from minivit.engine.machine import cores

_ROOT = Path(__file__).parent.parent.parent
_PATIENCE = 10.0  # seconds for an end


class Worker:
    """``python -m benchmarks.gpu_parts.worker`` with `arguments`.

    Parameters
    ----------
    arguments : str
        Its own.
    """

    def __init__(self, *arguments: str) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        threads = str(max(1, cores() // 4))  # several compile at once
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_parts.worker", *arguments],
            cwd=_ROOT,
            env={"TORCHINDUCTOR_COMPILE_THREADS": threads, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._replies.put(line)
        self._replies.put("")  # it has ended

    def reply(self, seconds: float) -> dict[str, Any]:
        """Return its next reply.

        Raises
        ------
        WorkerError
            The reply is an error, it ended, or `seconds` went by, after which it is ended.
        """
        try:
            line = self._replies.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"it took longer than {seconds:.0f} s") from None
        if not line:
            raise WorkerError(self._last_words())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise WorkerError(said["error"])
        return said

    def measure(self, duration: float, seconds: float) -> dict[str, Any]:
        """Let it measure for about `duration` seconds, and return its reply as `reply` does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{duration}\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._last_words()) from None
        return self.reply(seconds)

    def close(self) -> None:
        """End it: at its next turn, or by force where that does not come soon."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        self._complaints.close()

    def _last_words(self) -> str:
        status = self._process.wait(_PATIENCE)
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {status}{': ' + lines[-1].strip() if lines else ''}"
