"""Data sets of images, stored as uint8 on the host, and the batches, augmentation and normalisation of training."""

from minivit.data.batches import batches, epoch_order
from minivit.data.dataset import Dataset, ProgressCallback, channel_statistics, check_images, split_validation
from minivit.data.load import load_dataset
from minivit.data.read import read_images
from minivit.ops.augment import augment, normalize, random_crop, random_flip

__all__ = [
    "Dataset",
    "ProgressCallback",
    "augment",
    "batches",
    "channel_statistics",
    "check_images",
    "epoch_order",
    "load_dataset",
    "normalize",
    "random_crop",
    "random_flip",
    "read_images",
    "split_validation",
]
