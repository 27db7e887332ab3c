"""The explorer: a page of all that flows through a model, and what training runs did.

`explore` and `write_page` make the page. The other functions measure and draw the metrics, kept steps and predictions
of runs.
"""

from minivit.explorer.explore import PageData, explore
from minivit.explorer.figures import plot_calibration, plot_confusion, plot_curves, plot_update_ratios
from minivit.explorer.images import LIMITS, Limits
from minivit.explorer.measures import (
    Calibration,
    Pair,
    UpdateRatios,
    calibration,
    confusion,
    curves,
    update_ratios,
    worst_pairs,
)
from minivit.explorer.page import write_page

__all__ = [
    "LIMITS",
    "Calibration",
    "Limits",
    "PageData",
    "Pair",
    "UpdateRatios",
    "calibration",
    "confusion",
    "curves",
    "explore",
    "plot_calibration",
    "plot_confusion",
    "plot_curves",
    "plot_update_ratios",
    "update_ratios",
    "worst_pairs",
    "write_page",
]
