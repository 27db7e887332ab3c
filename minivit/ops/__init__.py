"""The ops: each is a forward and a backward function in one file, for any array library.

A cache may hold the arguments and the result of its op. Do not change these in place before the backward pass.
"""

from minivit.ops import augment, grad_scaler, metrics, update_rules
from minivit.ops.attention import attention, attention_backward
from minivit.ops.cross_attention import cross_attention, cross_attention_backward
from minivit.ops.cross_entropy import cross_entropy, cross_entropy_backward
from minivit.ops.dropout import dropout, dropout_backward, keep_mask
from minivit.ops.erf import erf
from minivit.ops.fill_tokens import fill_tokens, fill_tokens_backward
from minivit.ops.gelu import gelu, gelu_backward
from minivit.ops.grid_positions import grid_positions, grid_positions_backward
from minivit.ops.group_norm import group_norm, group_norm_backward
from minivit.ops.layer_norm import layer_norm, layer_norm_backward
from minivit.ops.layer_scale import layer_scale, layer_scale_backward
from minivit.ops.linear import linear, linear_backward
from minivit.ops.max_pool import max_pool, max_pool_backward
from minivit.ops.patches import patches, patches_backward
from minivit.ops.pixel_error import pixel_error, pixel_error_backward
from minivit.ops.quick_gelu import quick_gelu, quick_gelu_backward
from minivit.ops.registry import Kernel, OpCall, observe, reference_only, register_kernel
from minivit.ops.relative_attention import relative_attention, relative_attention_backward
from minivit.ops.relu import relu, relu_backward
from minivit.ops.sincos_positions import sincos_positions, sincos_positions_backward
from minivit.ops.softmax import softmax, softmax_backward
from minivit.ops.standardize import standardize, standardize_backward
from minivit.ops.take_tokens import take_tokens, take_tokens_backward
from minivit.ops.tanh import tanh, tanh_backward
from minivit.ops.token_cross_entropy import token_cross_entropy, token_cross_entropy_backward
from minivit.ops.tokens import embed, embed_backward, pool, pool_backward
from minivit.ops.unfold import unfold, unfold_backward

__all__ = [
    "Kernel",
    "OpCall",
    "attention",
    "attention_backward",
    "augment",
    "cross_attention",
    "cross_attention_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embed",
    "embed_backward",
    "erf",
    "fill_tokens",
    "fill_tokens_backward",
    "gelu",
    "gelu_backward",
    "grad_scaler",
    "grid_positions",
    "grid_positions_backward",
    "group_norm",
    "group_norm_backward",
    "keep_mask",
    "layer_norm",
    "layer_norm_backward",
    "layer_scale",
    "layer_scale_backward",
    "linear",
    "linear_backward",
    "max_pool",
    "max_pool_backward",
    "metrics",
    "observe",
    "patches",
    "patches_backward",
    "pixel_error",
    "pixel_error_backward",
    "pool",
    "pool_backward",
    "quick_gelu",
    "quick_gelu_backward",
    "reference_only",
    "register_kernel",
    "relative_attention",
    "relative_attention_backward",
    "relu",
    "relu_backward",
    "sincos_positions",
    "sincos_positions_backward",
    "softmax",
    "softmax_backward",
    "standardize",
    "standardize_backward",
    "take_tokens",
    "take_tokens_backward",
    "tanh",
    "tanh_backward",
    "token_cross_entropy",
    "token_cross_entropy_backward",
    "unfold",
    "unfold_backward",
    "update_rules",
]
