"""The ops: each is a forward and a backward function in one file, for any array library."""

from minivit.ops import augment, grad_scaler, metrics, update_rules
from minivit.ops.attention import attention, attention_backward
from minivit.ops.cross_entropy import cross_entropy, cross_entropy_backward
from minivit.ops.dropout import dropout, dropout_backward, keep_mask
from minivit.ops.erf import erf
from minivit.ops.gelu import gelu, gelu_backward
from minivit.ops.layer_norm import layer_norm, layer_norm_backward
from minivit.ops.linear import linear, linear_backward
from minivit.ops.patches import patches, patches_backward
from minivit.ops.registry import Kernel, OpCall, observe, reference_only, register_kernel
from minivit.ops.softmax import softmax, softmax_backward
from minivit.ops.tokens import embed, embed_backward, pool, pool_backward

__all__ = [
    "Kernel",
    "OpCall",
    "attention",
    "attention_backward",
    "augment",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embed",
    "embed_backward",
    "erf",
    "gelu",
    "gelu_backward",
    "grad_scaler",
    "keep_mask",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "metrics",
    "observe",
    "patches",
    "patches_backward",
    "pool",
    "pool_backward",
    "reference_only",
    "register_kernel",
    "softmax",
    "softmax_backward",
    "update_rules",
]
