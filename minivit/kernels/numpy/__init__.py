"""Kernels for NumPy: in-place passes over pieces that fit in cache. Importing a module registers its kernel."""

from minivit.kernels.numpy import attention, conv_stem, encoder_block, gelu, layer_norm, unfold

__all__ = ["attention", "conv_stem", "encoder_block", "gelu", "layer_norm", "unfold"]
