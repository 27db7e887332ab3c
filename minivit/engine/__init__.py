"""The step engine: a batch in; a loss and gradients, or logits, out."""

from typing import TypeAlias

from minivit.engine.engine import Engine
from minivit.engine.layer_engine import LayerEngine

AnyEngine: TypeAlias = Engine | LayerEngine

__all__ = ["AnyEngine", "Engine", "LayerEngine"]
