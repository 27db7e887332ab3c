"""The mutation test: does a test fail for every wrong sign, term, factor, axis or index, in backward passes and CUDA?

    python -m tests.mutants                  # all mutants, and the score
    python -m tests.mutants softmax MLP      # those of some ops and layers
    python -m tests.mutants gelu.cu          # those of some files, or of a folder: minivit/kernels/cuda
    python -m tests.mutants softmax --list   # print the mutants and run nothing
    python -m tests.mutants --part 2/3       # the second, fifth, eighth, ... of them

A mutant is killed if a test of its op fails within the time limit, which counts the tests alone. A mutant of a CUDA
source is also killed if a kernel takes longer or crashes; it does not count if it cannot be compiled.
mutants_equivalent.toml lists the mutants that no test can kill, each with a proof. For an equivalent mutant of a CUDA
source, only as many tests run as the limit allows. The exit status is 1 if a mutant survives or more than 3 percent are
equivalent, and 2 if there can be no score: an unknown op, tests that fail without a mutant, or an entry of that list
without a mutant or whose mutant is killed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .cuda_trial import CAN_RUN, find_cuda_mutants
from .operators import Mutant
from .python_trial import find_mutants
from .trial import run_trials
from .verdicts import Trial, Verdict

EQUIVALENT = Path(__file__).parent.parent / "mutants_equivalent.toml"
MOST_EQUIVALENT = 3.0  # percent
BASELINE_LIMIT = 240.0  # seconds


class CannotJudgeError(Exception):
    """There can be no score; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        everything = [*find_mutants(), *find_cuda_mutants()]
        proofs = read_equivalent(EQUIVALENT, everything)
        part, parts = options.part
        chosen = _chosen(everything, options.ops)[part - 1 :: parts]
        if options.list:
            _say(*map(str, chosen), f"{len(chosen)} mutants")
            return 0
        # Threads do not survive a fork, and two processes share the cores.
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
        verdicts = judge(_possible(chosen), proofs, options.limit, options.workers)
    except (CannotJudgeError, RuntimeError) as error:
        sys.stderr.write(f"mutants: {error}\n")
        return 2
    result = summary(verdicts, proofs)
    if options.ops:  # the bar on equivalent mutants is for all together
        result["passed"] = not result["survived"]
    _report(verdicts, proofs, result)
    if options.json:
        _say(json.dumps(result))
    return 0 if result["passed"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops, layers, CUDA files and folders; all by default")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds for the tests of a mutant (default: 2)")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help="every N-th mutant from the I-th on")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: up to 2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    return parser


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def _chosen(mutants: list[Mutant], ops: Sequence[str]) -> list[Mutant]:
    unknown = [op for op in ops if not any(_is_of(mutant, op) for mutant in mutants)]
    if unknown:
        known = ", ".join(dict.fromkeys(mutant.op for mutant in mutants))
        raise CannotJudgeError(f"unknown op {', '.join(unknown)}; the ops and layers are {known}")
    return [mutant for mutant in mutants if not ops or any(_is_of(mutant, op) for op in ops)]


def _is_of(mutant: Mutant, op: str) -> bool:
    return op in (mutant.op, mutant.path) or mutant.path.startswith(f"{op.rstrip('/')}/")


def _possible(mutants: list[Mutant]) -> list[Mutant]:
    of_python = [mutant for mutant in mutants if mutant.path.endswith(".py")]
    if CAN_RUN or len(of_python) == len(mutants):
        return mutants
    if not of_python:
        raise CannotJudgeError("CUDA sources need Linux and g++ to run on a CPU")
    sys.stderr.write(f"mutants: without g++, {len(mutants) - len(of_python)} mutants of CUDA sources are left out\n")
    return of_python


def read_equivalent(path: Path, mutants: Sequence[Mutant]) -> dict[Mutant, str]:
    """Return the proofs of the mutants that are equivalent to the original."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    by_change: dict[tuple[str, ...], list[Mutant]] = {}
    for mutant in mutants:
        by_change.setdefault((mutant.path, mutant.function, mutant.before, mutant.after), []).append(mutant)
    proofs: dict[Mutant, str] = {}
    for entry in entries:
        before, after = entry["before"], entry["after"]
        if entry["path"].endswith(".py"):
            before, after = (ast.unparse(ast.parse(side)) for side in (before, after))
        found = by_change.get((entry["path"], entry["function"], before, after))
        if found is None:
            raise CannotJudgeError(f"{path.name} is stale: {entry['function']} has no mutant\n    + {entry['after']}")
        if not entry["proof"] or "\n" in entry["proof"]:
            raise CannotJudgeError(f"{path.name}: the proof must be one line\n    + {entry['after']}")
        proofs.update(dict.fromkeys(found, entry["proof"]))
    return proofs


def judge(mutants: Sequence[Mutant], proofs: dict[Mutant, str], limit: float, workers: int) -> dict[Mutant, Verdict]:
    """Return the verdict on each mutant, after the tests have passed without a mutant."""
    verdicts: dict[Mutant, Verdict] = {}
    of_python = dict.fromkeys((m.op, m.path) for m in mutants if m.path.endswith(".py"))
    baseline = [Trial(op, path, BASELINE_LIMIT) for op, path in of_python]
    trials = [Trial(mutant.op, mutant.path, limit, mutant, mutant in proofs) for mutant in mutants]

    def note(trial: Trial, verdict: Verdict) -> None:
        if trial.mutant is None:
            if verdict.killer or verdict.late:
                what = verdict.killer or f"they took longer than {trial.limit:.0f} s"
                raise CannotJudgeError(f"the tests of {trial.op} fail without a mutant: {what}")
            return
        verdicts[trial.mutant] = verdict
        if trial.mutant in proofs and verdict.killer:
            raise CannotJudgeError(f"{EQUIVALENT.name} lists a mutant that {verdict.killer} kills: {trial.mutant}")
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{len(verdicts)} of {len(trials)} mutants" + "\n" * (len(verdicts) == len(trials)))

    run_trials([*baseline, *trials], workers, note)
    return verdicts


def summary(verdicts: dict[Mutant, Verdict], proofs: dict[Mutant, str]) -> dict[str, object]:
    """Return the score and the counts as plain values."""
    refused = sum(not verdict.compiles for verdict in verdicts.values())
    verdicts = {mutant: verdict for mutant, verdict in verdicts.items() if verdict.compiles}
    survivors = [mutant for mutant, verdict in verdicts.items() if not verdict.killer and mutant not in proofs]
    equivalent = sum(mutant in proofs for mutant in verdicts)
    percent = 100.0 * equivalent / max(len(verdicts), 1)
    return {
        "mutants": len(verdicts),
        "refused": refused,
        "killed": len(verdicts) - equivalent - len(survivors),
        "equivalent": equivalent,
        "equivalent_percent": round(percent, 1),
        "survived": len(survivors),
        "slowest_kill": round(max((v.seconds for v in verdicts.values() if v.killer), default=0.0), 3),
        "survivors": [str(mutant) for mutant in survivors],
        "passed": not survivors and percent <= MOST_EQUIVALENT,
    }


def _report(verdicts: dict[Mutant, Verdict], proofs: dict[Mutant, str], result: dict[str, object]) -> None:
    for mutant, verdict in verdicts.items():
        if not verdict.killer and mutant not in proofs:
            why = "the time limit was reached" if verdict.late else "all tests passed"
            _say(f"survived, {why} after {verdict.seconds:.1f} s: {mutant}")
    _say(f"{'':14}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'survived':>10}{'slowest kill':>14}")
    for op in dict.fromkeys(mutant.op for mutant in verdicts):
        of = summary({mutant: verdict for mutant, verdict in verdicts.items() if mutant.op == op}, proofs)
        counts = f"{of['mutants']:9}{of['killed']:9}{of['equivalent']:12}{of['survived']:10}"
        _say(f"{op:14}{counts}{of['slowest_kill']:12.2f} s")
    _say(
        f"mutation score: {result['killed']} of {result['mutants']} killed, {result['equivalent']} equivalent "
        f"({result['equivalent_percent']} percent), {result['survived']} survived"
    )
    if result["refused"]:
        _say(f"{result['refused']} more could not be compiled")


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
