"""Where the time of a step goes, op by op: python -m benchmarks.breakdown [WORK] [--set field=value] [--json FILE]

The ops of minivit.ops are timed while the step engine runs, with one worker and with one for each core, the times of
all workers added up. Beside each stands what its matrix products take alone, in the layouts that the op has them in and
with as many workers at once: an op near that is bound by products, the others by memory and by calls. The kernel that
takes a whole block in one piece is set aside, so that there are ops to be seen; with it, the step is shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock
from benchmarks.command import at_least_one, ended, refused_by
from benchmarks.output import check_writable, markdown_table, write_json
from benchmarks.recorded_products import Notes, Product, plain, seconds_alone
from benchmarks.sides import minivit as minivit_side
from benchmarks.surroundings import surroundings
from benchmarks.tables import title_of
from benchmarks.task import Task, make_task
from benchmarks.works import WORKS, get_work
from minivit import AdamW, Parameter, ops
from minivit.cli.reporters import percent
from minivit.engine import engine, parallel
from minivit.engine.machine import cores
from minivit.engine.worker_pool import WorkerPool

ADDING, OPTIMISER, ELSE, WAITING = "adding gradients", "optimiser", "everything else", "waiting"
OPS = [name for name in ops.__all__ if name.endswith("_backward") or f"{name}_backward" in ops.__all__]


@contextmanager
def replaced(owner: Any, names: list[str], change: Callable[[str, Any], Any]) -> Iterator[None]:
    """Let the attributes `names` of `owner` be what `change` makes of them, while the block lasts."""
    before = {name: getattr(owner, name) for name in names}
    try:
        for name, value in before.items():
            setattr(owner, name, change(name, value))
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def timing(clock: Clock) -> Iterator[None]:
    """Let `clock` time the ops, the optimiser, the sums of gradients and what each worker does; forks inherit that."""

    def under(name: str) -> Callable[[str, Any], Any]:
        return lambda _, function: clock.timed(name, function)

    def turns(turn: Callable[[int, int], AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
        @contextmanager
        def timed_turn(index: int, count: int) -> Iterator[None]:
            with ExitStack() as stack:
                with clock.section(WAITING):
                    stack.enter_context(turn(index, count))
                with clock.section(ADDING):
                    yield

        return timed_turn

    def share(name: str, function: Callable[..., None]) -> Callable[..., None]:
        """Time a worker's share of a step; the last argument of two of them waits for the others."""
        if name == "train":
            return clock.timed(ELSE, lambda *args: function(*args[:-1], turns(args[-1])))
        if name == "predict_by_tokens":
            return clock.timed(ELSE, lambda *args: function(*args[:-1], clock.timed(WAITING, args[-1])))
        return clock.timed(ELSE, function)

    with ExitStack() as stack:
        stack.enter_context(ops.reference_only("EncoderBlock"))
        stack.enter_context(replaced(ops, OPS, clock.timed))
        stack.enter_context(replaced(Parameter, ["add_grad"], under(ADDING)))
        stack.enter_context(replaced(AdamW, ["step"], under(OPTIMISER)))
        stack.enter_context(replaced(WorkerPool, ["run"], under(WAITING)))
        for module in (engine, parallel):
            stack.enter_context(replaced(module, ["train", "predict", "predict_by_tokens"], share))
        yield


def timed_steps(task: Task, steps: int) -> list[tuple[dict[str, float], dict[str, int]]]:
    """Return the seconds of each step by name, which sum to its time on all workers, and the calls."""
    clock = Clock([*OPS, ADDING, OPTIMISER, ELSE, WAITING])
    found = []
    with timing(clock):
        step = clock.timed(ELSE, minivit_side.prepare(task, ""))
        step()  # the first one starts the workers and allocates
        clock.take()
        for _ in range(steps):
            begun = time.perf_counter()
            step()
            total = task.threads * (time.perf_counter() - begun)
            seconds, calls = clock.take()
            seconds[WAITING] = total - sum(own for name, own in seconds.items() if name != WAITING)
            found.append((seconds, calls))
    return found


def products_of(task: Task) -> dict[str, Counter[Product]]:
    """Return the matrix products of each op in a step; on one worker, since each of several would note its own."""
    found: defaultdict[str, Counter[Product]] = defaultdict(Counter)

    def noted(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            notes = Notes()
            result = op(*map(notes.noting, args), **{key: notes.noting(value) for key, value in kwargs.items()})
            found[name].update(notes.products)
            return plain(result)

        return wrapper

    step = minivit_side.prepare(dataclasses.replace(task, threads=1), "")
    with ops.reference_only("EncoderBlock"), replaced(ops, OPS, noted):
        step()
    return {name: products for name, products in found.items() if products}


def breakdown(task: Task, steps: int) -> dict[str, Any]:
    """Return the rows of a task, the longest first, from the medians of several steps."""
    products = products_of(task)
    alone = seconds_alone(sorted(set().union(*products.values())), task.threads)
    measured = timed_steps(task, steps)
    calls = measured[0][1]
    images = task.work.batch_size
    seconds = {name: statistics.median(own[name] for own, _ in measured) for name in measured[0][0]}
    total = sum(seconds.values())
    rows = []
    for name in sorted(seconds, key=lambda name: -seconds[name]):
        counted = products.get(name, Counter()).items()
        product_seconds = sum(count * alone[product] for product, count in counted)
        flops = sum(count * product.flops for product, count in counted)
        rows.append(
            {
                "name": name,
                "calls": calls[name] if name in OPS else None,
                "ms_an_image": 1e3 * seconds[name] / images,
                "share": seconds[name] / total,
                "products_ms_an_image": 1e3 * product_seconds / images,
                "products_gflops": flops / product_seconds / 1e9 if product_seconds else None,
            }
        )
    return {"threads": task.threads, "steps": steps, "ms_an_image": 1e3 * total / images, "rows": rows}


def table(figures: dict[str, Any]) -> str:
    """Return a Markdown table of the rows of `breakdown`."""
    threads = "1 thread" if figures["threads"] == 1 else f"{figures['threads']} threads"
    head = [threads, "calls", "ms an image", "share", "products alone, ms", "part of the op", "GFLOP/s"]
    rows = []
    for row in figures["rows"]:
        products = ["", "", ""]
        if row["products_gflops"]:
            part = percent(row["products_ms_an_image"] / row["ms_an_image"])
            products = [f"{row['products_ms_an_image']:.3f}", part, f"{row['products_gflops']:.0f}"]
        calls = str(row["calls"] or "")
        rows.append([row["name"], calls, f"{row['ms_an_image']:.3f}", percent(row["share"]), *products])
    alone = sum(row["products_ms_an_image"] for row in figures["rows"])
    whole = figures["ms_an_image"]
    rows.append(["all", "", f"{whole:.3f}", percent(1.0), f"{alone:.3f}", percent(alone / whole), ""])
    return markdown_table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for one thread and one for all, and write all numbers where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="train-tiny", help=f"of {', '.join(WORKS)} (default: train-tiny)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the work")
    parser.add_argument("--threads", type=at_least_one, nargs="+", default=sorted({1, cores()}), help="default: 1, all")
    parser.add_argument("--steps", type=at_least_one, default=5, help="how many are measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        work = get_work(options.work, options.set)
        check_writable(options.json)
    where, versions = surroundings(max(options.threads)), minivit_side.versions()
    about = {"surroundings": where, "versions": versions, "work": work.name, "changes": options.set}
    print(f"{title_of(work)}; time of all threads added up, medians of {options.steps} steps\n")
    found = []
    for threads in options.threads:
        found.append(breakdown(make_task(work, threads), options.steps))
        print(table(found[-1]) + "\n", flush=True)
        write_json(options.json, about | {"batch_size": work.batch_size, "breakdowns": found})
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{where['processor']}; {used}; commit {where['commit']}, {where['date']}")


if __name__ == "__main__":
    sys.exit(ended(main))
