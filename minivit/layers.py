"""The layers of a Vision Transformer, for users' imports; each is defined in a file of its own in `minivit.nn`."""

from minivit.nn.activations import QuickGELU, ReLU, Tanh
from minivit.nn.attention import Attention
from minivit.nn.attention_pool import AttentionPool
from minivit.nn.conv_stem import Convolution, ConvStem, ConvUnit
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.gelu import GELU
from minivit.nn.hidden_head import HiddenHead
from minivit.nn.identity import Identity
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.layer_scale import LayerScale
from minivit.nn.linear import Linear
from minivit.nn.mlp import MLP
from minivit.nn.patch_dropout import PatchDropout
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.positions import GridPositions, SinCosPositions

__all__ = [
    "GELU",
    "MLP",
    "Attention",
    "AttentionPool",
    "ConvStem",
    "ConvUnit",
    "Convolution",
    "DropPath",
    "Dropout",
    "EncoderBlock",
    "GridPositions",
    "HiddenHead",
    "Identity",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "PatchDropout",
    "PatchEmbed",
    "QuickGELU",
    "ReLU",
    "SinCosPositions",
    "Tanh",
]
