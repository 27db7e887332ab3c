"""The layers of a Vision Transformer, for users' imports; they are defined in `minivit.nn`."""

from minivit.nn.activations import GELU, QuickGELU, ReLU, Tanh
from minivit.nn.attention import Attention
from minivit.nn.attention_pool import AttentionPool
from minivit.nn.bottleneck import Bottleneck, Downsample, PreActBottleneck
from minivit.nn.conv_stem import Convolution, ConvStem, ConvUnit
from minivit.nn.corrupted import SimMIM
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.group_norm import GroupNorm
from minivit.nn.hidden_head import HiddenHead
from minivit.nn.hybrid_embed import HybridEmbed
from minivit.nn.identity import Identity
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.layer_scale import LayerScale
from minivit.nn.linear import Linear
from minivit.nn.mae import MAE
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.mlp import MLP
from minivit.nn.patch_dropout import PatchDropout
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.positions import GridPositions, SinCosPositions
from minivit.nn.resnet import ResNet, ResNetFeatures, Stage, Stem
from minivit.nn.std_convolution import MaxPool, StdConvolution

__all__ = [
    "GELU",
    "MAE",
    "MLP",
    "Attention",
    "AttentionPool",
    "Bottleneck",
    "ConvStem",
    "ConvUnit",
    "Convolution",
    "Downsample",
    "DropPath",
    "Dropout",
    "EncoderBlock",
    "GridPositions",
    "GroupNorm",
    "HiddenHead",
    "HybridEmbed",
    "Identity",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "MaskedPatches",
    "MaxPool",
    "PatchDropout",
    "PatchEmbed",
    "PreActBottleneck",
    "QuickGELU",
    "ReLU",
    "ResNet",
    "ResNetFeatures",
    "SimMIM",
    "SinCosPositions",
    "Stage",
    "StdConvolution",
    "Stem",
    "Tanh",
]
