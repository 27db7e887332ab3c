"""The gradient check with its explanations, the table of cases, and assertions for tests."""

from minivit.checking.checks import Options, gradcheck, gradcheck_layer, gradcheck_model
from minivit.checking.report import Report, Row

__all__ = ["Options", "Report", "Row", "gradcheck", "gradcheck_layer", "gradcheck_model"]
