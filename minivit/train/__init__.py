"""Training: the training step and run, the optimisers, the schedules and the recipes."""

from minivit.ops.update_rules import Group
from minivit.train.muon import Muon
from minivit.train.optimizers import SGD, Adam, AdamW, clip_gradients
from minivit.train.schedules import learning_rate

__all__ = ["SGD", "Adam", "AdamW", "Group", "Muon", "clip_gradients", "learning_rate"]
