"""Gradients that vanish or explode: from block to block, or in time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from minivit.train.symptoms.common import BLOCK, Line, Watched, gradient_norm, innermost

_FAR = 1e4  # between the gradients of one layer in different blocks
_LARGE_RESULT = 100.0  # beside that of the same layer in other blocks
_SATURATED = 0.9  # the share of units
_JUMP = 100.0  # of the norm of all gradients
_LARGE_NORM = 10.0


def by_depth(line: Line, watched: Watched) -> Iterator[tuple[str, str]]:
    """Compare the gradients of each parameter of a block with those of the same parameter in the other blocks."""
    peers: dict[str, dict[int, float]] = {}
    blocks = "blocks."  # how the names of all blocks begin
    for name in watched.trained:
        if (block := BLOCK.match(name)) and (norm := gradient_norm(line, name)):
            blocks = name[: block.start(1)]
            peers.setdefault(name[block.end() :], {})[int(block[1])] = norm
    worst: tuple[float, str, str, int, int] = (math.log10(_FAR), "", "", 0, 0)
    for name, norms in peers.items():
        for far, kind, at, other in _outliers(norms):
            worst = max(worst, (far, kind, name, at, other))
    far, kind, name, at, other = worst
    if not kind:
        return
    here, there = f"{blocks}{at}.{name}", f"{blocks}{other}.{name}"
    of, than = gradient_norm(line, here), gradient_norm(line, there)
    if kind == "vanish":
        cause = _cause_of_vanishing(line, f"{blocks}{at}.")
        yield (
            kind,
            f"step {line['step']}: the gradient vanishes at {here}: its norm is {of:.2g}, and that of {there} "
            f"{than:.2g}; {cause}",
        )
    else:
        yield (
            kind,
            f"step {line['step']}: the gradient explodes at {here}: its norm is {of:.2g}, and that of {there} "
            f"{than:.2g}; {_cause_of_exploding(line, f'{blocks}{at}')}",
        )


def _outliers(norms: Mapping[int, float]) -> Iterator[tuple[float, str, int, int]]:
    """Yield (decades, kind, block, block to compare with) for norms by block that are far from each other.

    The gradient flows from the last block to the first. If it grows or falls on its way, the first is named; otherwise
    a block that is far from the median.
    """
    if len(norms) < 2:
        return
    logs = {at: math.log10(norm) for at, norm in sorted(norms.items())}
    order = list(logs)
    third = max(1, len(order) // 3)
    flow = statistics.median(logs[at] for at in order[:third]) - statistics.median(logs[at] for at in order[-third:])
    if len(order) > 3 and abs(flow) > math.log10(_FAR):
        yield abs(flow), "vanish" if flow < 0 else "explode", order[0], order[-1]
        return
    middle = statistics.median_high(logs.values())
    usual = next(at for at in order if logs[at] == middle)
    for at, log in logs.items():
        yield abs(log - middle), "vanish" if log < middle else "explode", at, usual


def _cause_of_vanishing(line: Line, place: str) -> str:
    small = [
        (of["norm"], name)
        for name, of in line["activations"].items()
        if name.startswith(place) and of["norm"] is not None and name.count(".") > 1
    ]
    if small:
        norm, name = min(small)
        usual = statistics.median(each for each, _ in small)
        if norm < 1e-3 * usual:
            return f"the result of {name} is nearly zero (norm {norm:.2g}): its units are all but dead"
    for name, of in line["activations"].items():
        if name.startswith(place) and of.get("saturated", 0.0) > _SATURATED:
            return f"{of['saturated']:.0%} of {name} is saturated: what enters it is too large"
    return "weights of a very different scale in this block or after it are likely"


def _cause_of_exploding(line: Line, block_name: str) -> str:
    peers: dict[str, dict[str, float]] = {}
    for name, of in line["activations"].items():
        if (block := BLOCK.match(name)) and of["norm"]:
            peers.setdefault(name[block.end() :], {})[name] = of["norm"]
    usual = {name: statistics.median(norms.values()) for norms in peers.values() for name in norms}
    large = [
        name for name, of in line["activations"].items() if name in usual and of["norm"] > _LARGE_RESULT * usual[name]
    ]
    if large:
        name = innermost(large)
        times = line["activations"][name]["norm"] / usual[name]
        return f"the result of {name} is {times:,.0f} times as large as in other blocks"
    return f"weights in {block_name} or in those after it are likely too large"


def jump(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Compare the norm of all gradients with those of the watched steps before."""
    line, before = lines[-1], [each["gradient_norm"] for each in lines[:-1] if each["gradient_norm"]]
    norm = line["gradient_norm"]
    if before and norm > max(_JUMP * max(before), _LARGE_NORM):
        last = lines[-2]

        def growth(name: str) -> float:
            return (gradient_norm(line, name) or 0.0) / (gradient_norm(last, name) or math.inf)

        name = max(line["parameters"], key=growth)
        yield (
            "explode",
            f"step {line['step']}: the gradient explodes: its norm is {norm:.3g}, and was at most {max(before):.3g} "
            f"before; most at {name}. A smaller --lr or a longer warmup; --clip-norm bounds what one step can do",
        )
