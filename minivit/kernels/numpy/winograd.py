"""3 x 3 convolutions of stride 1: 16 multiplications for 2 x 2 pixels and a pair of channels, where windows take 36.

This is Winograd's F(2 x 2, 3 x 3), after Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"
(arXiv:1509.09308). A tile d is the 4 x 4 pixels of a channel that 2 x 2 pixels of the result depend on, and g the 3 x 3
weights from one channel of the input to one of the result. The product of U and V is taken place by place:

    U = G g G^T        V = B^T d B        M = sum over channels of U V        y = A^T M A

         1   0   0            1  0 -1  0
    G = 1/2 1/2 1/2     B^T = 0  1  1  0     A^T = 1  1  1  0
        1/2 -1/2 1/2          0 -1  1  0           0  1 -1 -1
         0   0   1            0  1  0 -1

At each of the 16 places, the sum over channels is a product of two matrices. Each step is linear in its two factors, so
that the backward pass takes the transposes:

    dM = A dy A^T      dU = sum over tiles of V dM     dV = sum over channels of U dM
    dg = G^T dU G      dd = B dV B^T, added over the tiles that share a pixel

Pixels are stored by the parity of their row and column: (2 r + f, 2 c + g) stands at [:, f, g, r, c]. A tile begins
one pixel above and left of the 2 x 2 pixels of its result. In shapes, B is the number of images, and T the number of
tiles of all images.
"""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_BY_G = np.kron(_G, _G)  # (16, 9): G g G^T for a flat g


def filter_transform(weight: Array) -> Array:
    """Return U (16, C, O) of a convolution's matrix (9 C, O)."""
    U: Array = _G_BY_G.astype(weight.dtype) @ weight.reshape(9, -1)
    return U.reshape(16, -1, weight.shape[1])


def filter_transform_backward(dU: Array) -> Array:
    """Return the gradient (9 C, O) of the matrix."""
    dweight: Array = _G_BY_G.T.astype(dU.dtype) @ dU.reshape(16, -1)
    return dweight.reshape(-1, dU.shape[2])


def input_transform(padded: Array) -> Array:
    """Return V (16, C, T) of images (C, 2, 2, rows + 2, columns + 2, B) whose border is zero."""
    C, _, _, below, right, B = padded.shape
    half = np.empty((4, C, 2, below - 2, right, B), padded.dtype)
    V = np.empty((4, 4, C, below - 2, right - 2, B), padded.dtype)
    even, odd = padded[:, 0], padded[:, 1]
    _times_b(odd[:, :, :-2], even[:, :, 1:-1], odd[:, :, 1:-1], even[:, :, 2:], half)
    even, odd = half[:, :, 0], half[:, :, 1]
    _times_b(odd[..., :-2, :], even[..., 1:-1, :], odd[..., 1:-1, :], even[..., 2:, :], V.swapaxes(0, 1))
    return V.reshape(16, C, -1)


def _times_b(above: Array, even: Array, odd: Array, below: Array, out: Array) -> None:
    """Set the four arrays of `out` to B^T times the four rows of each tile."""
    np.subtract(above, odd, out=out[0])
    np.add(even, odd, out=out[1])
    np.subtract(odd, even, out=out[2])
    np.subtract(even, below, out=out[3])


def input_transform_backward(dV: Array, rows: int, columns: int) -> Array:
    """Return the gradient (C, 2, 2, rows, columns, B) of the images, without a border."""
    dV = dV.reshape(4, 4, dV.shape[1], rows, columns, -1)
    half = np.empty((2, *dV.shape[1:]), dV.dtype)
    dx = np.empty((dV.shape[2], 2, 2, *dV.shape[3:]), dV.dtype)
    _times_b_backward(dV, half, axis=-3)
    _times_b_backward(half.swapaxes(0, 1), dx.transpose(2, 1, 0, 3, 4, 5), axis=-2)
    return dx


def _times_b_backward(d: Array, out: Array, axis: int) -> None:
    """Set `out`, the even and the odd rows, to B times the four arrays of `d`, added over tiles along `axis`."""
    shared = np.moveaxis(d, axis, 1)
    even, odd = out
    np.subtract(d[1], d[2], out=even)
    even += d[3]
    np.moveaxis(even, axis, 0)[1:] -= shared[3, :-1]
    np.add(d[1], d[2], out=odd)
    odd -= d[0]
    np.moveaxis(odd, axis, 0)[:-1] += shared[0, 1:]


def output_transform(M: Array) -> Array:
    """Return y (O, 2, 2, T) of M (16, O, T)."""
    _, channels, T = M.shape
    half, y = np.empty((2, 4, channels, T), M.dtype), np.empty((channels, 2, 2, T), M.dtype)
    _times_a(M.reshape(4, 4, channels, T), half)
    _times_a(half.swapaxes(0, 1), y.transpose(2, 1, 0, 3))
    return y


def _times_a(m: Array, out: Array) -> None:
    """Set the two arrays of `out` to A^T times the four of `m`."""
    np.add(m[1], m[2], out=out[0])
    out[0] += m[0]
    np.subtract(m[1], m[2], out=out[1])
    out[1] -= m[3]


def output_transform_backward(dy: Array) -> Array:
    """Return dM (16, O, T) for ``dy`` (O, 2, 2, T)."""
    channels, _, _, T = dy.shape
    half, dM = np.empty((4, channels, 2, T), dy.dtype), np.empty((4, 4, channels, T), dy.dtype)
    _times_a_backward(dy[:, 0], dy[:, 1], half)
    _times_a_backward(half[:, :, 0], half[:, :, 1], dM.transpose(1, 0, 2, 3))
    return dM.reshape(16, channels, T)


def _times_a_backward(even: Array, odd: Array, out: Array) -> None:
    """Set the four arrays of `out` to A times the two."""
    out[0] = even
    np.add(even, odd, out=out[1])
    np.subtract(even, odd, out=out[2])
    np.negative(odd, out=out[3])
