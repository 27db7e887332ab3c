"""The metrics of a training step, computed on the device of its logits."""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.ops.registry import op
from minivit.ops.shapes import expect


@op
def record_metrics(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
    """Set `record` to the loss, the number of correct predictions, and whether the run has stopped.

    Parameters
    ----------
    record : Array
        (3,) floats, set in place.
    loss, stopped : Array
        0-d, of the dtype of `record`.
    logits : Array
        (B, C) floats; the prediction for an image is its largest logit.
    labels : Array
        (B,) integers, or (B, C) soft targets, of which the largest counts.
    """
    namespace(record, loss, logits, labels, stopped)
    expect("record_metrics", "logits", logits, ("B", "C"))
    soft = labels.dtype.kind == "f"
    expect("record_metrics", "labels", labels, logits.shape[: 1 + soft])
    if soft:
        labels = labels.argmax(axis=1)
    record[0] = loss
    record[1] = (logits.argmax(axis=1) == labels).sum().astype(record.dtype)
    record[2] = stopped
