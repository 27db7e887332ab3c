"""The step engine: a batch in; a loss and gradients, or logits, out."""

from minivit.engine.engine import Engine, check_labels

__all__ = ["Engine", "check_labels"]
