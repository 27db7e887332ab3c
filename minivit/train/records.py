"""The metrics and the result of a run in files, and the values that a run's files may hold: types and ranges."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minivit.errors import UserError
from minivit.files import atomic_write, expect_checksum, parse_json, read_bytes, read_json, with_checksum


class Number(NamedTuple):
    """A number from `low` to `high`; `whole` for an integer, `null` if None is allowed too."""

    low: float
    high: float
    whole: bool = False
    null: bool = False

    def fits(self, value: Any) -> bool:
        """Whether the value is such a number; true and false are none."""
        if value is None:
            return self.null
        kinds: Any = int if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        most = f" and at most {self.high:,.0f}" if self.high <= _MANY else ""
        return f"{kind}, at least {self.low:g}{most}" + (", or null" if self.null else "")


_LARGEST_METRICS = 1 << 26  # bytes
_LARGEST_WATCH = 1 << 30
_MANY = 1e9
_LONGEST = 1e12  # seconds
LARGEST_SEED = 2**63 - 1

COUNT = Number(0, _MANY, whole=True)
POSITIVE_COUNT = Number(1, _MANY, whole=True)
SHARE = Number(0, 1)
SECONDS = Number(0, _LONGEST)
LOSS = Number(0, float(2**1023))  # also of other finite numbers without a limit of their own
STEP = Number(0, 1e15, whole=True)

METRICS: dict[str, Number] = {
    "epoch": POSITIVE_COUNT,
    "step": STEP,
    "train_loss": LOSS,
}
OPTIONAL_METRICS: dict[str, Number] = {
    "train_accuracy": SHARE,  # of a classifier
    "val_loss": LOSS,
    "val_accuracy": SHARE,
    "learning_rate": LOSS,
    "images_per_second": LOSS,
    "seconds": SECONDS,
    "rollbacks": COUNT,
}
WATCHED: dict[str, Number] = {"step": STEP}
RESULT: dict[str, Number] = {
    "test_accuracy": Number(0, 1, null=True),
    "test_images": COUNT,
    "best_epoch": COUNT,
    "best_val_accuracy": Number(0, 1, null=True),
    "seconds": SECONDS,
    "images_per_second": LOSS,
}


def expect_values(values: Mapping[str, Any], rules: Mapping[str, Number], optional: bool = False) -> None:
    """Check the values of the fields in `rules`.

    Raises
    ------
    UserError
        A value does not fit its rule, or, without `optional`, is missing; the message names the field.
    """
    if not optional and (missing := sorted(rules.keys() - values.keys())):
        raise UserError(f"it lacks {', '.join(missing)}")
    for name, rule in rules.items():
        if name in values and not rule.fits(values[name]):
            raise UserError(f"{name} is {short(values[name])}; expected {rule}")


def short(value: Any) -> str:
    """Return a value from a file for a message, of at most 40 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, none if there is no such file.

    Raises
    ------
    UserError
        The file is damaged.
    """
    return _read_lines(path, _LARGEST_METRICS, "the metrics of an epoch", METRICS, OPTIONAL_METRICS)


def read_watched(path: Path) -> list[dict[str, Any]]:
    """Return the lines of watch.jsonl, none if there is no such file.

    A last line that was cut, by a kill while it was written, is left out.

    Raises
    ------
    UserError
        The file is damaged.
    """
    try:
        return _read_lines(path, _LARGEST_WATCH, "the statistics of a step", WATCHED, {}, may_be_cut=True)
    except UserError as error:
        raise UserError(f"{error}; or remove it: the run goes on without these statistics") from error


def _read_lines(
    path: Path,
    limit: int,
    what: str,
    rules: Mapping[str, Number],
    optional: Mapping[str, Number],
    may_be_cut: bool = False,
) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines, each of which is `what`, without their checksums."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    before, number = "", 0
    try:
        text = read_bytes(path, limit).decode()
        if may_be_cut:
            text = text[: text.rfind("\n") + 1]
        for number, line in enumerate(text.splitlines(), start=1):  # noqa: B007 - read after an error
            values = parse_json(line, "it")
            records.append(expect_checksum(values, "it", before, required=bool(before)))
            before = str(values.get("checksum", ""))
            expect_values(values, rules)
            expect_values(values, optional, optional=True)
    except ValueError as error:
        where = f"line {number} is not {what}: " if number else ""
        raise UserError(f"{path} is damaged: {where}{error}") from error
    return records


def lines_of(records: Iterable[Mapping[str, Any]], before: str = "") -> tuple[str, str]:
    """Return records as JSON lines, and the last checksum.

    The checksum of a line covers that of the line before, so that a lost line is noticed; `before` is that of the line
    before the first.
    """
    text = ""
    for record in records:
        values = with_checksum(record, before)
        before = values["checksum"]
        text += json.dumps(values, allow_nan=False) + "\n"
    return text, before


def write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, and the same into metrics.csv beside it, with a column for each metric."""
    text, _ = lines_of(records)
    atomic_write(path, lambda file: file.write(text.encode()))
    table = io.StringIO()
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    if records:
        writer.writeheader()
    writer.writerows(records)
    atomic_write(path.with_suffix(".csv"), lambda file: file.write(table.getvalue().encode()))


def read_result(path: Path) -> dict[str, Any]:
    """Return the content of result.json.

    Raises
    ------
    UserError
        The file is damaged.
    """
    try:
        values = read_json(path)
        result = expect_checksum(values, path, required="epochs" in values)
        expect_values(result, RESULT)
    except UserError as error:
        words = str(error) if str(path) in str(error) else f"{path} is not the result of a run: {error}"
        raise UserError(f"{words}; or remove it and --resume anew") from error
    return result
