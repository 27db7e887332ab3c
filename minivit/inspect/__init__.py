"""Insight into a model and a run: traces, summaries and figures."""
