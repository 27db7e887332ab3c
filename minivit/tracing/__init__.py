"""What flows through a model for one batch, recorded by `trace`; measures such as attention rollout; their figures."""

from minivit.tracing.attention import attention_distance, attention_rollout
from minivit.tracing.figures import (
    plot_attention_distance,
    plot_attention_rollout,
    plot_filter_components,
    plot_gradient_flow,
    plot_position_similarity,
    save_figure,
)
from minivit.tracing.measures import (
    FilterComponents,
    GradientFlow,
    filter_components,
    gradient_flow,
    position_similarity,
)
from minivit.tracing.record import Record, Records
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import Effect, Row
from minivit.tracing.trace import Trace, load_trace, trace

__all__ = [
    "Effect",
    "FilterComponents",
    "GradientFlow",
    "Record",
    "Records",
    "Row",
    "Statistics",
    "Trace",
    "attention_distance",
    "attention_rollout",
    "filter_components",
    "gradient_flow",
    "load_trace",
    "plot_attention_distance",
    "plot_attention_rollout",
    "plot_filter_components",
    "plot_gradient_flow",
    "plot_position_similarity",
    "position_similarity",
    "save_figure",
    "trace",
]
