"""Training: the loop, the optimisers, the schedules and the recipes."""

from minivit.train.optim import SGD, Adam, AdamW
from minivit.train.schedules import learning_rate
from minivit.train.updates import Group

__all__ = ["SGD", "Adam", "AdamW", "Group", "learning_rate"]
