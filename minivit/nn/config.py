"""`ViTConfig`: the configuration of a Vision Transformer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from minivit.errors import UserError
from minivit.nn.initializers import SCHEMES

ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


@dataclass(frozen=True)
class ViTConfig:
    """The configuration of a Vision Transformer, with timm's names.

    Parameters
    ----------
    img_size, patch_size : int or tuple of int
        Size in pixels: (height, width), or one number for a square.
    in_chans, num_classes : int
        Number of channels of an image; number of classes.
    embed_dim, depth, num_heads : int
        Width D, number of blocks L, number of heads H of each block.
    mlp_ratio : float
        Width F of the MLP, as a multiple of D.
    class_token : bool
        Whether a learned class token is prepended to the patch tokens.
    global_pool : str
        Input of the head: "token" is the class token after `norm`; "avg" is the mean of the patch tokens after
        `fc_norm`.
    act_layer : str
        "gelu" or "gelu_tanh".
    norm_eps : float
        Added to the variance in every layer norm.
    drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate : float
        Dropout rates: before the head, after adding the position embedding, after the projections of attention and MLP,
        and of the attention weights.
    drop_path_rate : float
        Stochastic depth rate of the last block; it increases linearly from 0 at the first block.
    init : str
        "timm" or "jax": the initialisation of the parameters.

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

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in ("in_chans", "num_classes", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least 1")
        for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
            if not 0.0 <= _number(name, getattr(self, name)) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)!r}; expected at least 0 and below 1")
        for name in ("mlp_ratio", "norm_eps"):
            if not 0.0 < _number(name, getattr(self, name)) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)!r}; expected a number above 0")
        _one_of("global_pool", self.global_pool, ("token", "avg"))
        _one_of("act_layer", self.act_layer, tuple(ACTIVATIONS))
        _one_of("init", self.init, tuple(SCHEMES))
        if self.height % self.patch_height or self.width % self.patch_width:
            raise UserError(
                f"images of {self.height} x {self.width} pixels cannot be cut into patches of "
                f"{self.patch_height} x {self.patch_width}; choose a patch_size that divides img_size"
            )
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} cannot be split evenly among num_heads {self.num_heads}")
        if self.hidden_dim < 1:
            raise UserError(f"mlp_ratio {self.mlp_ratio} leaves the MLP without units")
        if self.global_pool == "token" and not self.class_token:
            raise UserError("global_pool 'token' reads the class token; set class_token=True or global_pool='avg'")

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return _pair("img_size", self.img_size)[0]

    @property
    def width(self) -> int:
        """Width of an image in pixels."""
        return _pair("img_size", self.img_size)[1]

    @property
    def patch_height(self) -> int:
        """Height of a patch in pixels."""
        return _pair("patch_size", self.patch_size)[0]

    @property
    def patch_width(self) -> int:
        """Width of a patch in pixels."""
        return _pair("patch_size", self.patch_size)[1]

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.height // self.patch_height) * (self.width // self.patch_width)

    @property
    def num_tokens(self) -> int:
        """Number of tokens N: the patches, and the class token if there is one."""
        return self.num_patches + int(self.class_token)

    @property
    def hidden_dim(self) -> int:
        """Width F of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

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
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in pair):
        raise UserError(f"{name} is {value!r}; expected pixels, one whole number or (height, width)")
    return pair[0], pair[1]


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; expected a number")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}")
