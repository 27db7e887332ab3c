"""What the statistics of watched steps say is wrong: a sentence that names the layer and the likely cause.

    dead        the gradient of a parameter is exactly zero at two watched steps in a row
    frozen      a parameter does not change although it has a gradient, or belongs to no group of the optimiser
    vanish      the gradient of a layer is less than 1e-4 of that of the same layer in other blocks
    explode     it is more than 1e4 of theirs, or 100 times as large as before
    rate        one step changes the matrices by more than a fifth of their norm, one of them by more than half, or
                all by more than 5 % at three watched steps in a row; or the loss has doubled while steps are large;
                or the norm of the matrices has grown 30-fold
    overflow    a value is within a factor of 1000 of the point at which its square, or in float16 the value itself,
                overflows; or it grows towards it at a pace that leads there soon

The limits are wide: what they name is not a matter of taste. A run of the recipe of digits reaches none.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivit.train.symptoms.common import Line, Watched
from minivit.train.symptoms.depth import by_depth, jump
from minivit.train.symptoms.scale import overflow, rate
from minivit.train.symptoms.still import dead, frozen

__all__ = ["Line", "Watched", "symptoms"]


def symptoms(lines: Sequence[Line], watched: Watched) -> dict[str, str]:
    """Return a sentence for each thing that is wrong, by a key that is the same whenever it is found again.

    Parameters
    ----------
    lines : sequence of dict
        The last lines of watch.jsonl, the newest last.
    watched : Watched
        The run.
    """
    if found := dict(overflow(lines, watched)):
        return found  # whatever else is wrong follows from it
    if lines[-1]["gradient_norm"] is None:  # a step of float16 that was skipped
        return {}
    found = dict(rate(lines, watched))
    if not found:  # likewise
        found |= dict(by_depth(lines[-1], watched)) or dict(jump(lines))
    return found | dict(dead(lines, watched)) | dict(frozen(lines, watched))
