"""Kernels for NumPy: passes over pieces that fit in cache, in place. Importing them registers them."""

from minivit.kernels.numpy import attention, encoder_block, gelu, layer_norm

__all__ = ["attention", "encoder_block", "gelu", "layer_norm"]
