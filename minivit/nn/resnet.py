"""The ResNet of Big Transfer (Kolesnikov et al. 2020): standardised convolutions, group norms, bottlenecks.

Its features feed the hybrid models of the ViT paper, with the activation after each sum as in the first ResNet
(`Bottleneck`); as a classifier it has one before each convolution (`PreActBottleneck`). The names are timm's.
"""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.activations import ReLU
from minivit.nn.bottleneck import Bottleneck, PreActBottleneck
from minivit.nn.cost import Cost, total_cost
from minivit.nn.group_norm import GroupNorm
from minivit.nn.identity import Identity
from minivit.nn.in_turn import backward_in_turn, cost_in_turn, forward_in_turn, result_in_turn
from minivit.nn.initializers import zeros
from minivit.nn.layer import Layer
from minivit.nn.linear import Linear
from minivit.nn.std_convolution import MaxPool, StdConvolution
from minivit.random import Key, fold

CHANNELS = (256, 512, 1024, 2048)  # of the stages
STEM_CHANNELS = 64


class Stem(Layer):
    """The start of a ResNet: a 7 x 7 convolution of stride 2, group norm and ReLU unless `preact`, max pooling."""

    def __init__(
        self, in_chans: int, out_chans: int, preact: bool = False, num_groups: int = 32, **options: Any
    ) -> None:
        self.conv = StdConvolution(in_chans, out_chans, 7, 2, **options)
        self.norm = Identity() if preact else GroupNorm(out_chans, num_groups)
        self.act = Identity() if preact else ReLU()
        self.pool = MaxPool(padding=options.get("padding", "same"))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the features (B, rows, columns, O) of images."""
        return forward_in_turn(self._layers(), x, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        return backward_in_turn(self._layers(), dy, self.kept(cache))

    def _layers(self) -> tuple[Layer, ...]:
        return self.conv, self.norm, self.act, self.pool

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the result for an image of `shape`."""
        return result_in_turn(self._layers(), shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        return cost_in_turn(self._layers(), shape)


class Stage(Layer):
    """The blocks of a ResNet that have one number of channels; the first has a stride and a shortcut of its own."""

    def __init__(
        self, in_chans: int, out_chans: int, depth: int, stride: int, preact: bool = False, **options: Any
    ) -> None:
        block = PreActBottleneck if preact else Bottleneck
        first = block(in_chans, out_chans, stride, first=True, **options)
        self.blocks: list[Layer] = [first, *(block(out_chans, out_chans, **options) for _ in range(depth - 1))]

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Pass images (B, h, w, C) through the blocks."""
        return forward_in_turn(self.blocks, x, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return backward_in_turn(self.blocks, dy, self.kept(cache))

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the result for an image of `shape`."""
        return result_in_turn(self.blocks, shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C)."""
        return cost_in_turn(self.blocks, shape)


class ResNetFeatures(Layer):
    """A ResNet without its head: images (B, height, width, C) to features (B, rows, columns, O).

    The steps are in docs/derivations/convolutions.md.

    Parameters
    ----------
    in_chans : int
        C.
    depths : tuple of int
        Numbers of blocks of the stages, at most four; () for the stem alone. Each stage but the first halves the rows
        and columns; the stem quarters them.
    preact : bool
        Whether the blocks are `PreActBottleneck`. Then a norm and an activation follow the last one, and not the first
        convolution.
    width_factor : float
        A factor of all numbers of channels, 64 after the first convolution and `CHANNELS` after the stages.
    num_groups : int
        Of the group norms.
    padding, eps
        Of the convolutions; see `StdConvolution`.
    """

    def __init__(
        self,
        in_chans: int,
        depths: tuple[int, ...],
        preact: bool = False,
        width_factor: float = 1,
        num_groups: int = 32,
        padding: str = "same",
        eps: float = 1e-8,
    ) -> None:
        if len(depths) > len(CHANNELS) or any(depth < 1 for depth in depths):
            raise ValueError(f"depths are {depths}; expected at most {len(CHANNELS)} numbers of at least 1")
        channels = [int(width_factor * count) for count in (STEM_CHANNELS, *CHANNELS[: len(depths)])]
        options: dict[str, Any] = {"num_groups": num_groups, "padding": padding, "eps": eps}
        self.stem = Stem(in_chans, channels[0], preact, **options)
        self.stages = [
            Stage(before, after, depth, 2 if i else 1, preact, **options)
            for i, (before, after, depth) in enumerate(zip(channels, channels[1:], depths, strict=False))
        ]
        self.norm = GroupNorm(channels[-1], num_groups) if preact else Identity()
        self.act = ReLU() if preact else Identity()

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the features of images."""
        return forward_in_turn(self._layers(), x, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        return backward_in_turn(self._layers(), dy, self.kept(cache))

    def _layers(self) -> tuple[Layer, ...]:
        return self.stem, *self.stages, self.norm, self.act

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (rows, columns, O) of the features of an image of `shape`."""
        return result_in_turn(self._layers(), shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        return cost_in_turn(self._layers(), shape)


class ResNet(Layer):
    """A ResNet with group norm as a classifier, the baseline of the ViT paper: images to logits (B, num_classes).

    The steps of its blocks are in docs/derivations/convolutions.md.

    Parameters
    ----------
    num_classes : int
        Number of classes. The head starts at zero.
    depths : tuple of int
        Numbers of blocks of the stages; (3, 4, 6, 3) is ResNet-50.
    in_chans : int
        Channels of an image.
    **options
        ``width_factor``, ``num_groups``, ``padding`` and ``eps`` of `ResNetFeatures`; by default those of BiT.
    """

    def __init__(
        self, num_classes: int, depths: tuple[int, ...] = (3, 4, 6, 3), in_chans: int = 3, **options: Any
    ) -> None:
        self.features = ResNetFeatures(in_chans, depths, preact=True, **{"padding": "half", **options})
        norm = self.features.norm
        assert isinstance(norm, GroupNorm)
        self.head = Linear(norm.weight.shape[0], num_classes, zeros, zeros)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the logits of images: the head reads the mean of the features over all pixels."""
        h, cache1 = self.features.forward(x, fold(rng, "features"), keep)
        shape = h.shape
        h, cache2 = ops.pool(h.reshape(len(h), shape[1] * shape[2], shape[3]), "avg", 0, keep=keep)
        y, cache3 = self.head.forward(h, fold(rng, "head"), keep)
        return y, (cache1, cache2, cache3, shape) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        cache1, cache2, cache3, shape = self.kept(cache)
        dh = self.head.backward(dy, cache3)
        dh = ops.pool_backward(dh, cache2)
        return self.features.backward(dh.reshape(shape), cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        return total_cost([self.features.cost(shape), self.head.cost(self.head.weight.shape[:1])])
