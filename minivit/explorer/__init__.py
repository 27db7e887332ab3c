"""What training runs did: measures and figures of their metrics, their kept steps and their predictions."""

from minivit.explorer.figures import plot_calibration, plot_confusion, plot_curves, plot_update_ratios
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

__all__ = [
    "Calibration",
    "Pair",
    "UpdateRatios",
    "calibration",
    "confusion",
    "curves",
    "plot_calibration",
    "plot_confusion",
    "plot_curves",
    "plot_update_ratios",
    "update_ratios",
    "worst_pairs",
]
