"""Training: the loop, the optimisers, the schedules and the recipes."""

from minivit.train.optim import SGD, Adam, AdamW, clip_gradients
from minivit.train.schedules import learning_rate
from minivit.train.updates import Group

__all__ = ["SGD", "Adam", "AdamW", "Group", "clip_gradients", "learning_rate"]
