"""`ViTConfig`: the configuration of a Vision Transformer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from minivit.errors import UserError
from minivit.nn.config_checks import (
    check_conv_stem,
    check_patches,
    check_positions,
    check_resnet,
    check_sizes,
    check_values,
    counts,
    pair,
    plain,
)


@dataclass(frozen=True)
class ViTConfig:
    """The configuration of a Vision Transformer, with timm's names. docs/models.md has their sources.

    Parameters
    ----------
    img_size, patch_size : int or tuple of int
        Size in pixels: (height, width), or one number for a square.
    in_chans, num_classes : int
        Number of channels of an image; number of classes. With 0 classes there is no head, and the model returns
        features.
    embed_dim, depth, num_heads : int
        Width D, number of blocks L, number of heads H of each block.
    head_dim : int
        Width K of a head; 0 for D / H.
    mlp_ratio : float
        Width F of the MLP, as a multiple of D.
    patch_stride : int or tuple of int
        Distance between patches in pixels; 0 for `patch_size`. Patches overlap if it is smaller.
    conv_stem : tuple of int
        Numbers of channels of 3 x 3 convolutions in place of the patches; () for patches. The first log2(patch_size)
        convolutions have a stride of 2.
    resnet : tuple of int
        Numbers of blocks of the stages of a ResNet whose features are cut into patches, at most four; () for none, (0,)
        for the stem of the ResNet alone. `patch_size` is a multiple of 4 pixels with one stage or the stem alone, of 8
        with two stages, of 16 with three, of 32 with four.
    embed_norm : str
        Layer norms of the patch embedding: "none", "after" the projection, or "both" before and after it.
    qkv_bias, proj_bias, mlp_bias : bool
        Whether queries, keys and values, the projection of attention, and the MLP have biases.
    qk_norm : bool
        Whether queries and keys pass a layer norm in each head.
    init_values : float
        Initial values of a learned factor of each branch (LayerScale); 0 for none.
    act_layer : str
        The activation of the MLP: "gelu", "gelu_tanh", "quick_gelu" or "relu".
    norm_eps : float
        Added to the variance in every layer norm.
    class_token : bool
        Whether a learned class token is prepended to the patch tokens.
    reg_tokens : int
        Number of learned register tokens between the class token and the patch tokens.
    pos_embed : str
        "learn": a learned vector for each token; "learn_2d" and "learn_2d_concat": the sum, or the concatenation, of
        learned vectors for rows and columns; "sincos_2d" and "sincos_2d_mae": fixed sines and cosines of rows and
        columns, in the forms of SimpleViT and MAE; "relative": learned vectors for the distance of two tokens, in
        attention; or "none".
    no_embed_class : bool
        Whether class and register tokens have no learned position.
    pos_embed_layers : str
        Where the learned positions are added: before the "first" block; before "each" block, with vectors of its own;
        or before each block, with "shared" vectors.
    pre_norm, final_norm : bool
        Whether a layer norm (`norm_pre`) precedes the blocks, and one follows them.
    fc_norm : bool or None
        Whether the final norm is applied to the pooled vector (`fc_norm`) or to the tokens (`norm`); None: to the
        vector if `global_pool` is "avg".
    global_pool : str
        Input of the head: "token", the class token; "avg", the mean of the patch tokens; "map", attention pooling.
    pool_include_prefix : bool
        Whether the mean or attention pooling reads class and register tokens too.
    representation_size : int
        Width of a hidden layer before the head; 0 for none.
    representation_act : str
        Its activation: "tanh" or "relu".
    drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate : float
        Dropout rates: of the pooled vector, after adding the position embedding, after the projections of attention and
        MLP and the activation of the MLP, and of the attention weights.
    patch_drop_rate : float
        Fraction of the patch tokens that are left out in training.
    drop_path_rate : float
        Stochastic depth rate of the last block; it increases linearly from 0 at the first block. A single block has 0.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    zero_head : bool
        Whether the head starts at zero, with either `init`.

    Raises
    ------
    UserError
        The sizes are inconsistent, or a value is out of range.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    global_pool: str = "token"
    act_layer: str = "gelu"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init: str = "timm"
    head_dim: int = 0
    patch_stride: int | tuple[int, int] = 0
    conv_stem: tuple[int, ...] = ()
    resnet: tuple[int, ...] = ()
    embed_norm: str = "none"
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    init_values: float = 0.0
    reg_tokens: int = 0
    pos_embed: str = "learn"
    no_embed_class: bool = False
    pos_embed_layers: str = "first"
    patch_drop_rate: float = 0.0
    pre_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = None
    pool_include_prefix: bool = False
    representation_size: int = 0
    representation_act: str = "tanh"
    zero_head: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))
        for name in ("img_size", "patch_size"):
            object.__setattr__(self, name, pair(name, getattr(self, name)))
        stride = 0 if self.patch_stride in (0, (0, 0), [0, 0]) else pair("patch_stride", self.patch_stride)
        object.__setattr__(self, "patch_stride", 0 if stride == self.patch_size else stride)
        object.__setattr__(self, "conv_stem", counts("conv_stem", self.conv_stem))
        stem_alone = not isinstance(self.resnet, bool) and self.resnet in (0, (0,), [0])
        object.__setattr__(self, "resnet", (0,) if stem_alone else counts("resnet", self.resnet))
        check_values(vars(self))
        self._expect_consistent()

    def _expect_consistent(self) -> None:
        """Check the fields that depend on each other; `check_values` has checked each by itself."""
        patch = self.patch_height, self.patch_width
        if self.conv_stem:
            check_conv_stem(self.conv_stem, patch)
            if self.patch_stride or self.embed_norm != "none":
                raise UserError(
                    "conv_stem has convolutions and norms of its own: leave out patch_stride and embed_norm"
                )
        if self.resnet:
            check_resnet(self.resnet_depths, patch)
            if self.conv_stem or self.patch_stride or self.embed_norm != "none":
                raise UserError("resnet takes the place of conv_stem, patch_stride and embed_norm: leave them out")
        in_patch = self.patch_height * self.patch_width * self.in_chans
        check_patches((self.height, self.width), patch, self.stride)
        stem = 9 * max((self.in_chans, *self.conv_stem))
        rows = self.num_tokens, self.num_classes, in_patch, stem
        inner = 3 * self.num_heads * self.head_width
        check_sizes(self.embed_dim, self.mlp_ratio, (inner, self.representation_size, *self.conv_stem), rows)
        check_positions(
            self.pos_embed, self.pos_embed_layers, self.embed_dim, self.no_embed_class, bool(self.patch_drop_rate)
        )
        if not self.head_dim and self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} cannot be split evenly among num_heads {self.num_heads}")
        if self.hidden_dim < 1:
            raise UserError(f"mlp_ratio {self.mlp_ratio} leaves the MLP without units")
        if self.global_pool == "token" and not self.class_token:
            raise UserError("global_pool 'token' reads the class token; set class_token=True or global_pool='avg'")
        if self.global_pool == "map" and self.embed_dim % self.num_heads:
            raise UserError(
                f"global_pool 'map' splits embed_dim {self.embed_dim} evenly among num_heads {self.num_heads}"
            )
        if self.pool_include_prefix and self.global_pool == "token":
            raise UserError("pool_include_prefix belongs to global_pool 'avg' or 'map'")

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return pair("img_size", self.img_size)[0]

    @property
    def width(self) -> int:
        """Width of an image in pixels."""
        return pair("img_size", self.img_size)[1]

    @property
    def patch_height(self) -> int:
        """Height of a patch in pixels."""
        return pair("patch_size", self.patch_size)[0]

    @property
    def patch_width(self) -> int:
        """Width of a patch in pixels."""
        return pair("patch_size", self.patch_size)[1]

    @property
    def stride(self) -> tuple[int, int]:
        """Distance between patches in pixels, (vertical, horizontal)."""
        return pair("patch_stride", self.patch_stride or self.patch_size)

    @property
    def resnet_depths(self) -> tuple[int, ...]:
        """Numbers of blocks of the stages of the ResNet; () for its stem alone."""
        return () if self.resnet == (0,) else self.resnet

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows and columns of patches."""
        S, R = self.stride
        return (self.height - self.patch_height) // S + 1, (self.width - self.patch_width) // R + 1

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens in front of the patches: class and register tokens."""
        return int(self.class_token) + self.reg_tokens

    @property
    def first_pooled(self) -> int:
        """Number of the first token that the mean or attention pooling reads."""
        return 0 if self.pool_include_prefix else self.num_prefix_tokens

    @property
    def num_tokens(self) -> int:
        """Number of tokens N: the patches and what is in front of them."""
        return self.num_patches + self.num_prefix_tokens

    @property
    def head_width(self) -> int:
        """Width K of a head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width F of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def num_outputs(self) -> int:
        """Number of values that the model returns for an image: the classes, or the features without a head."""
        return self.num_classes or self.representation_size or self.embed_dim

    @property
    def norms_pooled(self) -> bool:
        """Whether the final norm is `fc_norm`, of the pooled vector, and not `norm`, of the tokens."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def micro_batch(self) -> int:
        """Number of images in a micro-batch: as many as fit the cache of a core, as a function of the model only."""
        fitting = 1040 * min(1.0, 192 / self.embed_dim) / self.num_tokens
        return 1 << min(6, max(0, round(math.log2(fitting))))

    @property
    def reduction_groups(self) -> int:
        """Number of groups in which the gradients of micro-batches are added, and the most workers that can train.

        Eight groups occupy eight cores. They need up to four gradient vectors on one or two workers, and four groups
        need three. A model of 100 million weights or more has four groups: each of its gradient vectors takes 400 MB.
        """
        weights = self.depth * self.embed_dim * (4 * self.embed_dim + 2 * self.hidden_dim)
        return 8 if weights < 100_000_000 else 4

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values for a JSON file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViTConfig:
        """Return the configuration from the dict that `to_dict` returns.

        Raises
        ------
        UserError
            A field is unknown or its value is not allowed.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(f"unknown fields of a model: {', '.join(sorted(unknown))}")
        return cls(**values)
