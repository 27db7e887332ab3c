"""What each gain is worth: python -m benchmarks.ablations [WORKLOAD ...] [--rounds N] [--seconds S] [--json FILE]

The step as it is beside the step without one gain, measured as `benchmarks.compare` measures baselines. The ratio is
the time without the gain over the time with it: above 1 the gain pays. The kernel of a whole block contains GELU and
layer norm, so the ablations of these two kernels are compared with the step without that kernel.
"""

import sys
from collections.abc import Sequence

from benchmarks import compare
from benchmarks.baselines import ABLATED
from benchmarks.command import ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every ablation on every workload, report, and return 1 where one failed."""
    usual = ("train-tiny", "train-w96", "train-w64", "predict-224")
    return compare.main(arguments, __doc__, ABLATED, usual, seconds=0.4)


if __name__ == "__main__":
    sys.exit(ended(main))
