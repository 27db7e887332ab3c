"""Metrics for TensorBoard. They need its package (extra: tensorboard), whose own protocol and records are written.

loss/train, loss/val, accuracy/train, ...    of the epochs, at their last steps
step/loss, step/gradient_norm, ...           of watched steps
gradient/LAYER, update_ratio/LAYER           of the parameters of a layer
activation_std/LAYER                         of its result
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from minivit.errors import RunError, UserError, install
from minivit.files import make_folder

_EPOCH = {"train_loss": "loss/train", "val_loss": "loss/val", "train_accuracy": "accuracy/train"}
_EPOCH |= {"val_accuracy": "accuracy/val", "learning_rate": "learning_rate", "images_per_second": "images_per_second"}


class TensorBoard:
    """Writes an event file, in the calling thread: a process with another thread cannot fork workers safely.

    Parameters
    ----------
    folder : Path
        The folder of the run's event files; ``tensorboard --logdir`` takes it, or one above it.

    Raises
    ------
    UserError
        TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise UserError(f"--tensorboard needs TensorBoard: {install('tensorboard')}") from error
        self._event, self._summary, self._record_writer = Event, Summary, RecordWriter
        self._folder = folder
        self._file: BinaryIO | None = None

    def begin(self, epochs: Iterable[Mapping[str, Any]], steps: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics and statistics so far anew: event files of a run that was resumed may hold later ones."""
        self.close()  # a run that was rolled back has an open file
        make_folder(self._folder)
        now = time.time()
        try:
            for path in self._folder.glob("events.out.tfevents.*"):
                path.unlink()
            self._file = (self._folder / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}").open("wb")
        except OSError as error:
            raise self._cannot_write(error) from error
        self._records = self._record_writer(self._file)
        self._write(self._event(wall_time=now, file_version="brain.Event:2"))
        for line in steps:
            self.add_step(line)
        for metrics in epochs:
            self.add_epoch(metrics)

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of an epoch: a line of metrics.jsonl."""
        self._add(metrics["step"], {tag: metrics[name] for name, tag in _EPOCH.items() if name in metrics})

    def add_step(self, line: Mapping[str, Any]) -> None:
        """Add the statistics of a step: a line of watch.jsonl."""
        values = {f"step/{name}": line[name] for name in ("loss", "learning_rate", "gradient_norm")}
        for name, statistics in line["parameters"].items():
            values |= {f"gradient/{name}": statistics["gradient"], f"update_ratio/{name}": statistics["ratio"]}
        values |= {f"activation_std/{name}": statistics["std"] for name, statistics in line["activations"].items()}
        self._add(line["step"], values)

    def _add(self, step: int, values: Mapping[str, float | None]) -> None:
        found = [
            self._summary.Value(tag=tag, simple_value=math.nan if value is None else value)
            for tag, value in values.items()
        ]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=found)))

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(f"cannot write into {self._folder}: {error.strerror or error}")

    def close(self) -> None:
        """Close the event file."""
        if self._file is not None:
            self._file.close()
