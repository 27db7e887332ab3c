"""What each gain is worth: python -m benchmarks.gains [WORK ...] [--rounds N] [--seconds S] [--json FILE]

The step as it is beside the step without one gain: in every round each variant once, in a process of its own. A figure
is the time without the gain over the time with it: above 1 the gain pays. The kernel of a whole block has GELU and
layer norm in it, so those two kernels are compared where it is set aside on both sides; it calls attention as an op.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.breakdown import replaced
from benchmarks.command import at_least_one, duration, ended, refused_by
from benchmarks.output import check_writable, markdown_table, write_json, write_text
from benchmarks.ratios import FEWEST_ROUNDS, Ratio, ratio_of_times
from benchmarks.rounds import Outcome, run_rounds, run_worker
from benchmarks.sides import minivit as minivit_side
from benchmarks.surroundings import surroundings
from benchmarks.tables import heading, title_of
from benchmarks.task import make_task
from benchmarks.worker import peak_bytes, timed
from benchmarks.works import WORKS, Work, get_work
from minivit import ops
from minivit.engine import engine, worker_pool
from minivit.engine.machine import cores
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.ops.attention import ALL

# While the context lasts, the gain is missing.
Change: TypeAlias = Callable[[], AbstractContextManager[Any]]

USUAL = ("train-tiny", "train-w96", "train-w64", "predict-224")
AS_IS, NO_BLOCK = "as-is", "block"
COMMAND = ("benchmarks.gains", "--worker")
FEWEST_STEPS = 3  # of which a process's time is the median
LEGEND = (
    "Times as long as a step takes without one gain, from medians of rounds, and the 95 % interval; "
    f"`?`: wider than a tenth, too noisy to tell. Fewer than {FEWEST_ROUNDS} rounds give no interval."
)


@dataclass(frozen=True)
class Variant:
    """The step without one gain.

    Parameters
    ----------
    title : str
        In words.
    change : callable
        Returns a context without the gain.
    threads : int, optional
        Workers; all cores by default.
    against : str
        The variant that it is compared with.
    """

    title: str
    change: Change
    threads: int | None = None
    against: str = AS_IS


def _reference(*names: str) -> Change:
    return lambda: ops.reference_only(*names)


def _instead(owner: Any, name: str, change: Callable[[Any], Any]) -> Change:
    """Let an attribute be what `change` makes of it."""
    return lambda: replaced(owner, [name], lambda _, value: change(value))


def _micro_batches(change: Callable[[int], int]) -> Change:
    return _instead(ViTConfig, "micro_batch", lambda size: property(lambda config: change(size.fget(config))))


@contextmanager
def _whole_batch() -> Iterator[None]:
    with (
        _micro_batches(lambda size: sys.maxsize)(),
        _instead(engine, "single_threaded_blas", lambda _: nullcontext)(),
        _instead(engine, "_SHARED_TOKENS", lambda _: math.inf)(),  # nor is a prediction cut into pieces of the tokens
    ):
        yield


VARIANTS: dict[str, Variant] = {
    AS_IS: Variant("as it is", nullcontext),
    NO_BLOCK: Variant("without the kernel of a block", _reference("EncoderBlock")),
    "attention": Variant("without the kernel of attention", _reference("attention")),
    "gelu": Variant("without GELU's (the block's on neither side)", _reference("EncoderBlock", "gelu"), None, NO_BLOCK),
    "layer-norm": Variant("without layer norm's (likewise)", _reference("EncoderBlock", "layer_norm"), None, NO_BLOCK),
    "kernels": Variant("without any kernel", _reference()),
    "processes": Variant("threads instead of processes", _instead(worker_pool, "can_fork", lambda _: lambda: False)),
    "pages": Variant("freed pages given back", _instead(engine, "keep_freed_pages", lambda _: lambda: False)),
    "class-token": Variant("all tokens of the last block", _instead(ViT, "queries", lambda _: lambda model, i: ALL)),
    "half": Variant("micro-batches of half the size", _micro_batches(lambda size: max(1, size // 2))),
    "twice": Variant("micro-batches of twice the size", _micro_batches(lambda size: 2 * size)),
    "workers": Variant("one worker", nullcontext, 1),
    "whole-batch": Variant("one worker, whole batch, threaded BLAS", _whole_batch, 1),
}


def measure(variant: Variant, work: Work, seconds: float) -> dict[str, Any]:
    """Return what `run_rounds` reads of a process, after one step that does not count."""
    with variant.change():
        step = minivit_side.prepare(make_task(work, variant.threads or cores()), "")
        step()
        return {"seconds": timed(step, seconds, FEWEST_STEPS), "peak_bytes": peak_bytes()}


def ratios_of(outcomes: Mapping[str, Outcome]) -> dict[str, Ratio]:
    """Return the time of each variant over that of what it is compared with, where both took all rounds."""
    return {
        name: ratio_of_times(outcomes[variant.against].seconds, outcomes[name].seconds)
        for name, variant in VARIANTS.items()
        if name != AS_IS and not outcomes[name].stopped and not outcomes[variant.against].stopped
    }


def table(works: Sequence[Work], found: Sequence[Mapping[str, Outcome]]) -> str:
    """Return a Markdown table with a row for each variant and a column for each work."""
    columns = [(work, outcomes, ratios_of(outcomes)) for work, outcomes in zip(works, found, strict=True)]

    def cell(name: str, work: Work, outcomes: Mapping[str, Outcome], ratios: Mapping[str, Ratio]) -> str:
        if outcomes[name].stopped:
            return outcomes[name].stopped
        if name == AS_IS:
            return f"{work.batch_size / outcomes[name].median:,.1f} images/s"
        return _text(ratios[name]) if name in ratios else ""

    rows = [[variant.title, *(cell(name, *column) for column in columns)] for name, variant in VARIANTS.items()]
    return markdown_table(["", *(work.name for work in works)], rows)


def _text(ratio: Ratio) -> str:
    interval = f" ({ratio.interval[0]:.2f} to {ratio.interval[1]:.2f})" if ratio.interval else ""
    return f"{ratio.of_medians:.2f}{interval}{' ?' if ratio.noisy else ''}"


def plain(work: Work, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return all numbers of a work for JSON."""
    ratios = {name: vars(ratio) | {"noisy": ratio.noisy} for name, ratio in ratios_of(outcomes).items()}
    variants = {
        name: {"title": variant.title, "against": variant.against, "ratio": ratios.get(name), **vars(outcomes[name])}
        for name, variant in VARIANTS.items()
    }
    return {"name": work.name, "title": title_of(work), "batch_size": work.batch_size, "variants": variants}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every variant on every work, report, and return 1 where the step as it is failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; default: {' '.join(USUAL)}")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="processes of each variant (default: 5)")
    parser.add_argument("--seconds", type=duration, default=0.4, help="of a process, at least (default: 0.4)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--worker", choices=VARIANTS, help="be the process of this variant")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        works = [get_work(name, options.set) for name in options.works or USUAL]
        check_writable(options.json, options.markdown)
    if options.worker:
        print(json.dumps(measure(VARIANTS[options.worker], works[0], options.seconds)), flush=True)
        return 0

    where, versions = surroundings(), minivit_side.versions()
    head = heading(where, versions, options.rounds)
    about = {"surroundings": where, "versions": versions, "rounds": options.rounds}
    passed_on = ["--seconds", str(options.seconds), *(text for a in options.set for text in ("--set", a))]
    found: list[dict[str, Outcome]] = []
    for work in works:
        run = functools.partial(run_worker, work=work.name, options=passed_on, command=COMMAND)
        tell = functools.partial(print, work.name, file=sys.stderr, flush=True)
        found.append(run_rounds({name: [name] for name in VARIANTS}, options.rounds, run, tell))
        done = works[: len(found)]
        listed = "\n".join(f"- {title_of(work)}" for work in done)
        text = "\n\n".join([LEGEND, table(done, found), listed, head]) + "\n"
        write_text(options.markdown, text)  # after each work, so that Ctrl-C loses one at most
        write_json(options.json, about | {"works": list(map(plain, done, found))})
    print(text)
    return 1 if any(outcomes[AS_IS].stopped for outcomes in found) else 0


if __name__ == "__main__":
    sys.exit(ended(main))
