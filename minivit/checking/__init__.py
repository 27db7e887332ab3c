"""The gradient check with its explanations, the table of cases, and assertions for tests."""

from minivit.checking.checks import Options, gradcheck, gradcheck_layer, gradcheck_model
from minivit.checking.compare import compare
from minivit.checking.comparison import Comparison, Quantity
from minivit.checking.report import Report, Row

__all__ = [
    "Comparison",
    "Options",
    "Quantity",
    "Report",
    "Row",
    "compare",
    "gradcheck",
    "gradcheck_layer",
    "gradcheck_model",
]
