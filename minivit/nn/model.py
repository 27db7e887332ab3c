"""`Model`: the base class of what an engine runs."""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.nn.config import ViTConfig
from minivit.nn.input_check import check_input
from minivit.nn.layer import Layer, takes


class Model(Layer):
    """Images (B, height, width, C) to the logits of each, or to the loss of each.

    The backward pass takes ``release=True``, with which the cache is used up, block by block.

    Attributes
    ----------
    config : ViTConfig
        The configuration of the Vision Transformer in it.
    gives_losses : bool
        Whether the result is the loss (B,) of each image, in place of logits: such a model needs no labels.
    """

    config: ViTConfig
    gives_losses = False

    @property
    def num_outputs(self) -> int:
        """The numbers that an engine returns for each image: its logits, or its loss."""
        return 1 if self.gives_losses else self.config.num_outputs

    @property
    def micro_batch(self) -> int:
        """The number of images that a worker takes at a time on the host, unless another is given."""
        return self.config.micro_batch

    def is_standard(self) -> bool:
        """Return whether this is a ViT of its original layers, so that workers may share its tokens."""
        return False

    @property
    def takes_release(self) -> bool:
        """Whether `backward` takes `release`, to free what it has read: that of a user's own class may not."""
        return takes(type(self).backward, "release")

    @property
    def takes_first_block(self) -> bool:
        """Whether `backward` takes `first_block`, to end at that block: of a masked model it does not."""
        return takes(type(self).backward, "first_block")

    def check_images(self, x: Array) -> None:
        """Raise ValueError or TypeError unless `x` are images that the model takes."""
        values = self.parameters.store.values  # the layers may have been replaced
        namespace(x, values)
        check_input(x, self.config, values.dtype)
