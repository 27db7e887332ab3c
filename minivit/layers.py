"""The layers of a Vision Transformer, for users' imports; each is defined in a file of its own in `minivit.nn`."""

from minivit.nn.attention import Attention
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.gelu import GELU
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.mlp import MLP
from minivit.nn.patch_embed import PatchEmbed

__all__ = ["GELU", "MLP", "Attention", "DropPath", "Dropout", "EncoderBlock", "LayerNorm", "Linear", "PatchEmbed"]
