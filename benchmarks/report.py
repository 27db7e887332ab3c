"""The report of a comparison: a row for minivit and for each baseline, notes, and where all was measured."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.baselines import ABLATED, BASELINES, OURS, Bar, bars_of
from benchmarks.harness import Outcome, fastest_of
from benchmarks.ratios import FEWEST_ROUNDS, Ratio, ratio_of_times, spread
from benchmarks.workloads import Workload
from minivit.engine.machine import cores

LEGEND = (
    "images/s and ms a step: median of the rounds; spread: their range. ratio: the baseline's time over minivit's, of "
    "medians and of the fastest steps; memory: its peak over minivit's; above 1 minivit is faster, or smaller. limit: "
    "the matrix products alone, in the fastest layout; its ratio is the fraction of it that minivit reaches. "
    "required (target): the ratio that must be reached, and the one that should be; open where the interval contains "
    "the required ratio; ratio uncertain: the interval is wider than a tenth of the ratio."
)
_BASELINES = BASELINES | ABLATED
_LARGEST_DIFFERENCE = 0.03  # of what two systems compute, relative
_ABSENT = re.compile(r"No module named '(?!(?:benchmarks|minivit|tests)\b)")
_ROOT = Path(__file__).parent.parent
_VARIABLES = ("BLIS_", "DNNL_", "GOTO_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH", "XLA_")


@dataclass(frozen=True)
class Row:
    """A system's figures."""

    title: str  # minivit, or the baseline with the variant that counts
    system: str
    images_per_second: float
    milliseconds: float  # of the median step
    spread: float  # the range of the rounds' medians as a part of their median
    peak_bytes: float  # the median over the rounds
    ratio: Ratio | None = None  # the baseline's time over minivit's
    memory_ratio: float | None = None  # its memory over minivit's; the limit, which is no program, has none
    verdicts: tuple[str, ...] = ()  # the required ratio, the target in brackets, and whether they were reached

    @property
    def cells(self) -> dict[str, str]:
        """The cells of the table by column."""
        ratio, memory = self.ratio, self.memory_ratio
        return {
            "system": self.title,
            "images/s": f"{self.images_per_second:,.1f}",
            "ms a step": f"{self.milliseconds:,.1f}",
            "spread": percent(self.spread) if self.spread else "",  # of one round there is none
            "peak MB": f"{self.peak_bytes / 1e6:,.0f}" if self.peak_bytes else "",
            "ratio": f"{ratio.of_medians:.2f}" if ratio else "",
            "95 % interval": ratio.interval_text if ratio else "",
            "of bests": f"{ratio.of_bests:.2f}" if ratio else "",
            "memory": f"{memory:.1f}" if memory is not None else "",
            "required (target)": "; ".join([*self.verdicts, *["ratio uncertain"] * bool(ratio and ratio.noisy)]),
        }


@dataclass(frozen=True)
class Comparison:
    """A workload on minivit and its baselines."""

    workload: Workload
    groups: Mapping[str, Sequence[str]]  # the systems of minivit and of each baseline
    outcomes: Mapping[str, Outcome]  # by system
    notes: list[str] = field(default_factory=list)  # what a reader has to know beside the table
    rows: list[Row] = field(default_factory=list)  # minivit's first; none where no system of a baseline took all rounds
    failed: list[str] = field(default_factory=list)  # baselines that failed altogether, or computed something else

    def __post_init__(self) -> None:
        outcomes = self.outcomes
        self.notes.extend(f"{system}: {outcome.stopped}" for system, outcome in outcomes.items() if outcome.stopped)
        for name, group in self.groups.items():
            system = fastest_of(group, outcomes)
            if system is None:  # a library that is not installed is no failure
                missing = name != OURS and all(_ABSENT.search(outcomes[system].stopped) for system in group)
                self.failed.extend([] if missing else [name])
                continue
            against = _BASELINES[name].against if name in _BASELINES else OURS
            ours = outcomes[against] if name != OURS and fastest_of([against], outcomes) else None
            self.rows.append(self._row(name, system, ours))
            if ours is not None:
                self._compare_answers(name, system, ours)
        ratios = {row.title: row.ratio for row in self.rows if row.ratio is not None}
        for title, ratio in ratios.items():
            if ratio.noisy:
                self.notes.append(f"{title}: too noisy to tell the ratio, which lies in {ratio.interval_text}")
        if any(ratio.interval is None for ratio in ratios.values()):
            self.notes.append(f"fewer than {FEWEST_ROUNDS} rounds cannot tell noise, nor what is reached")

    def _row(self, name: str, system: str, ours: Outcome | None) -> Row:
        outcome = self.outcomes[system]
        title = _BASELINES[name].title if name in _BASELINES else name
        if len(self.groups[name]) > 1:
            title += f" ({system.partition(':')[2]})"
        own = (self.workload.batch_size / outcome.median, 1e3 * outcome.median, spread(outcome.seconds))
        if ours is None:
            return Row(title, system, *own, outcome.peak_bytes)
        ratio = ratio_of_times(ours.seconds, outcome.seconds)
        memory = outcome.peak_bytes / ours.peak_bytes if name != "limit" and ours.peak_bytes else None
        bars = bars_of(self.workload, name)
        verdicts = [_verdict(bar, ratio) for bar in bars if bar.measure == "time"]
        if memory:
            exact = Ratio(memory, memory, (memory, memory))
            verdicts += [f"memory {_verdict(bar, exact)}" for bar in bars if bar.measure == "memory"]
        return Row(title, system, *own, outcome.peak_bytes, ratio, memory, tuple(verdicts))

    def _compare_answers(self, name: str, system: str, ours: Outcome) -> None:
        mine, other = (outcome.results[0] for outcome in (ours, self.outcomes[system]))
        x, y = mine.get("answer"), other.get("answer")
        if x is None or y is None:
            return
        same = abs(y - x) <= _LARGEST_DIFFERENCE * abs(x)  # False where either is NaN
        if not same or mine.get("label") != other.get("label"):
            answers = (f"{result['answer']:.4g} {result.get('label') or ''}".strip() for result in (other, mine))
            self.notes.append("{}: its first answer is {}, minivit's {}: not the same model".format(system, *answers))
            self.failed.append(f"{name} computes something else")

    @property
    def versions(self) -> dict[str, str]:
        """The versions of what the systems use, by name."""
        results = [result for outcome in self.outcomes.values() for result in outcome.results]
        return {name: version for result in results for name, version in result["versions"].items()}

    def __str__(self) -> str:
        """Return title, table and notes in Markdown."""
        parts = [f"**{self.workload.title}**", records_table([row.cells for row in self.rows])]
        return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in self.notes)] if self.notes else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [asdict(row) | {"noisy": row.ratio is not None and row.ratio.noisy} for row in self.rows]
        systems = {system: asdict(outcome) for system, outcome in self.outcomes.items()}
        return {"workload": asdict(self.workload), "rows": rows, "notes": self.notes, "systems": systems}


def _verdict(bar: Bar, ratio: Ratio) -> str:
    """Return the required ratio, the target in brackets, and whether they were reached."""
    words = {True: "reached", False: "missed", None: "open" if ratio.interval else "open (too few rounds)"}
    word = "target reached" if ratio.reaches(bar.aim) else words[ratio.reaches(bar.at_least)]
    return f"{bar.at_least:g} ({bar.aim:g}): {word}"


def percent(share: float) -> str:
    """Return a share of 1 in percent."""
    return f"{100.0 * share:.1f} %"


def figures_text(figures: Any, title: str = "") -> str:
    """Return nested figures in Markdown: a table of a list of rows, a line for each number, a title for each part."""
    if isinstance(figures, list):
        return records_table(figures) if figures else "none"
    plain = [f"- {name}: {_cell(value)}" for name, value in figures.items() if not isinstance(value, (dict, list))]
    parts = [f"**{title}**"] * bool(title) + ["\n".join(plain)] * bool(plain)
    nested = {name: value for name, value in figures.items() if isinstance(value, (dict, list))}
    return "\n\n".join(parts + [figures_text(value, f"{title} {name}".strip()) for name, value in nested.items()])


def records_table(rows: Sequence[Mapping[str, Any]], words: int = 1) -> str:
    """Return a Markdown table of rows by column; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(columns, [[_cell(row.get(name)) for name in columns] for row in rows], words)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table, legible as it is: `words` columns of words, then numbers on the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    marks = [f":{(w - 1) * '-'}" if i < words else f"{(w - 1) * '-'}:" for i, w in enumerate(widths)]

    def padded(row: Sequence[str]) -> list[str]:
        return [
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]

    return "\n".join(f"| {' | '.join(cells)} |" for cells in (padded(head), marks, *map(padded, rows)))


def surroundings(threads: int | None = None) -> dict[str, Any]:
    """Return the processor, the cores that `threads` threads use, load, system, Python, commit, date, environment.

    The environment holds the variables that set how libraries multiply matrices: one may halve or double a rate.
    """
    return {
        "processor": _processor(),
        "cores": min(threads or cores(), cores()),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" in fields:
        return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of the repository, with ``+changes`` where files differ from it; "unknown" outside of one."""
    commands = ["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"]
    try:
        commit, changes = (
            subprocess.check_output(["git", *c], cwd=_ROOT, stderr=subprocess.DEVNULL, text=True) for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+changes" if changes else "")


def heading(where: Mapping[str, Any], versions: Mapping[str, str], rounds: int, turns: str = "") -> str:
    """Return where, when and with what the figures were measured, in `turns`; by default in processes in turn."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    turns = turns or f"{rounds} process{'es' * (rounds > 1)} per system, in turn"
    variables = ", ".join(f"{name}={value}" for name, value in where["environment"].items())
    return (
        f"{where['processor']}, {where['cores']} core{'s' * (where['cores'] > 1)} used, {where['system']}; Python "
        f"{where['python']}, {found}{'; with ' * bool(variables)}{variables}; commit {where['commit']}, "
        f"{where['date']}; {turns}."
    )
