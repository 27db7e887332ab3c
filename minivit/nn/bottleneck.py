"""The blocks of a ResNet: three convolutions beside a shortcut, with the activations after them or before."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array
from minivit.nn.activations import ReLU
from minivit.nn.cost import Cost, total_cost
from minivit.nn.group_norm import GroupNorm
from minivit.nn.identity import Identity
from minivit.nn.in_turn import backward_in_turn, cost_in_turn, forward_in_turn
from minivit.nn.layer import Layer
from minivit.nn.std_convolution import StdConvolution
from minivit.random import Key, fold

_NARROWING = 4  # channels of a block over those of its 3 x 3 convolution


class Downsample(Layer):
    """The shortcut of the first block of a stage: a 1 x 1 convolution, and a group norm after it, or none."""

    def __init__(
        self, in_chans: int, out_chans: int, stride: int, norm: bool, num_groups: int = 32, **options: Any
    ) -> None:
        self.conv = StdConvolution(in_chans, out_chans, 1, stride, **options)
        self.norm = GroupNorm(out_chans, num_groups) if norm else Identity()

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the shortcut (B, rows, columns, O)."""
        return forward_in_turn((self.conv, self.norm), x, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return backward_in_turn((self.conv, self.norm), dy, self.kept(cache))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C)."""
        return cost_in_turn((self.conv, self.norm), shape)


class _Block(Layer):
    """Three convolutions, of which the 3 x 3 one has a stride, their norms and activations, and a shortcut."""

    is_preact = False

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        first: bool = False,
        num_groups: int = 32,
        **options: Any,
    ) -> None:
        inner = out_chans // _NARROWING
        self.conv1 = StdConvolution(in_chans, inner, 1, **options)
        self.conv2 = StdConvolution(inner, inner, 3, stride, **options)
        self.conv3 = StdConvolution(inner, out_chans, 1, **options)
        self.act1, self.act2, self.act3 = ReLU(), ReLU(), ReLU()
        self.downsample: Layer = Identity()
        if first:
            self.downsample = Downsample(in_chans, out_chans, stride, not self.is_preact, num_groups, **options)
        normed = (in_chans, inner, inner) if self.is_preact else (inner, inner, out_chans)
        self.norm1, self.norm2, self.norm3 = (GroupNorm(channels, num_groups) for channels in normed)
        self.first = first

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (rows, columns, O) of the result for an image of `shape`."""
        return (*self.conv2.grid(*shape[:2]), self.conv3.weight.shape[1])


class Bottleneck(_Block):
    """A block with its last activation after the sum: ``relu(branch(x) + shortcut(x))``.

    The branch is conv1, norm1, act1, conv2, norm2, act2, conv3, norm3; act3 follows the sum. Activations are ReLUs.
    The steps are in docs/derivations/convolutions.md.

    Parameters
    ----------
    in_chans, out_chans : int
        Channels before and after the block.
    stride : int
        Of the 3 x 3 convolution and the shortcut.
    first : bool
        Whether the block is the first of its stage, and has a convolution as its shortcut.
    num_groups : int
        Of the group norms.
    **options
        ``padding`` and ``eps`` of the convolutions.
    """

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the result (B, rows, columns, O)."""
        shortcut, cache1 = self.downsample.forward(x, fold(rng, "downsample"), keep)
        h, cache2 = forward_in_turn(self._branch(), x, fold(rng, "branch"), keep)
        y, cache3 = self.act3.forward(h + shortcut, fold(rng, "act3"), keep)
        return y, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3 = self.kept(cache)
        dh = self.act3.backward(dy, cache3)
        return self.downsample.backward(dh, cache1) + backward_in_turn(self._branch(), dh, cache2)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C)."""
        branch = cost_in_turn(self._branch(), shape)
        return total_cost([branch, self.downsample.cost(shape), self.act3.cost(self.result(shape))])

    def _branch(self) -> tuple[Layer, ...]:
        return self.conv1, self.norm1, self.act1, self.conv2, self.norm2, self.act2, self.conv3, self.norm3


class PreActBottleneck(_Block):
    """A block with an activation before each convolution: ``branch(h) + shortcut``, with ``h = relu(norm1(x))``.

    The branch is conv1, norm2, act2, conv2, norm3, act3, conv3. The shortcut is `x`, or the convolution of `h` in the
    first block of a stage. The parameters are those of `Bottleneck`. The steps are in
    docs/derivations/convolutions.md.
    """

    is_preact = True

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the result (B, rows, columns, O)."""
        h, cache1 = forward_in_turn((self.norm1, self.act1), x, rng, keep)
        shortcut, cache2 = self.downsample.forward(h if self.first else x, fold(rng, "downsample"), keep)
        y, cache3 = forward_in_turn(self._branch(), h, fold(rng, "branch"), keep)
        return y + shortcut, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3 = self.kept(cache)
        dshortcut = self.downsample.backward(dy, cache2)
        dh = backward_in_turn(self._branch(), dy, cache3)
        if self.first:
            return backward_in_turn((self.norm1, self.act1), dh + dshortcut, cache1)
        return backward_in_turn((self.norm1, self.act1), dh, cache1) + dshortcut

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C)."""
        parts = [
            cost_in_turn((self.norm1, self.act1), shape),
            cost_in_turn(self._branch(), shape),
            self.downsample.cost(shape),
        ]
        return total_cost(parts)

    def _branch(self) -> tuple[Layer, ...]:
        return self.conv1, self.norm2, self.act2, self.conv2, self.norm3, self.act3, self.conv3
