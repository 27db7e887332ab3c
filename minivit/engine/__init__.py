"""The step engine: a batch in; a loss and gradients, or logits, out."""

from minivit.engine.engine import Engine

__all__ = ["Engine"]
