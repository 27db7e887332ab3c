"""The Vision Transformer (Dosovitskiy et al. 2020): its wiring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import index
from typing import Any, Self, cast

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.errors import UserError
from minivit.nn import vit_parts as parts
from minivit.nn.config import ViTConfig
from minivit.nn.conv_stem import ConvStem
from minivit.nn.dropout import Dropout
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.identity import Identity
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.model import Model
from minivit.nn.parameters import Parameter
from minivit.nn.patch_dropout import PatchDropout
from minivit.nn.patch_embed import PatchEmbed
from minivit.ops.attention import ALL
from minivit.ops.registry import kernel_of_cache, runs_references_only
from minivit.random import Key, RngLike, as_key, fold


class ViT(Model):
    """A Vision Transformer: (B, height, width, C) images to (B, num_classes) logits.

    Its layers may be replaced by others, also by those of a user; `config` follows the number of blocks and the width
    of a linear head from the next pass, or the next use of `parameters`, on.

    Parameters
    ----------
    config : ViTConfig
        The configuration of the model.
    seed : int, np.random.Generator or None
        The seed of the initial parameters; None leaves them at zero, to be loaded.
    dtype : dtype
        The dtype of parameters, images and logits: "float32" or "float64" ("complex128" for the complex step).
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    """

    _derived = frozenset({"_made_of"})

    def __init__(self, config: ViTConfig, seed: Any = 0, dtype: Any = "float32", backend: str = "numpy") -> None:
        self._build(config)
        self.initialize(seed, dtype, backend)

    @classmethod
    def without_values(cls, config: ViTConfig) -> Self:
        """Return the layers of a model whose parameters have shapes and no values: nothing is allocated."""
        model = cls.__new__(cls)
        model._build(config)
        return model

    def _build(self, config: ViTConfig) -> None:
        self.config = config
        self.unused: dict[str, Array] = {}  # of the file it was loaded from: what the model does not use, for export
        self.patch_embed = parts.patch_embed(config)
        self.cls_token = parts.class_token(config)
        self.reg_token = parts.register_tokens(config)
        self.pos_embed = parts.positions(config)
        self.pos_embeds = parts.later_positions(config)
        self.pos_drop = Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, config.num_prefix_tokens)
        self.norm_pre = parts.layer_norm(config, config.pre_norm)
        self.blocks = [parts.encoder_block(config, i) for i in range(config.depth)]
        self.norm = parts.layer_norm(config, config.final_norm and not config.norms_pooled)
        self.attn_pool = parts.attention_pool(config)
        self.fc_norm = parts.layer_norm(config, config.final_norm and config.norms_pooled)
        self.head_drop = Dropout(config.drop_rate)
        self.pre_logits = parts.hidden_head(config)
        self.head = parts.head(config)
        self._made_of = self._classes_before_blocks()

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Return logits (B, num_classes) for images `x` (B, height, width, C), and the cache for `backward`.

        `rng` may also be a seed or a NumPy generator, which a seed is drawn from. Without classes, the result is the
        pooled vector (B, D), or that of the hidden layer.

        Raises
        ------
        ValueError, TypeError
            The images' shape or dtype is not the model's.
        """
        self.check_images(x)
        rng = as_key(rng, len(x), namespace(x))
        x, cache1 = self.embed(x, rng, keep)
        x, cache2 = self.encode(x, rng, keep)
        logits, cache3 = self.classify(x, rng, keep)
        return logits, (cache1, cache2, cache3) if keep else None

    def backward(
        self, dy: Array, cache: Any, release: bool = False, first_block: int = 0, images: bool = True
    ) -> Array:
        """Add to all gradients for the gradient `dy` (B, num_classes) of the logits; return that of the images.

        With ``release=True`` the cache is used up: the part of each block is freed when it has been read. With a
        `first_block` above 0 the pass ends at that block: what comes before it gets no gradient, and the gradient of
        its input (B, N, D) is returned. With ``images=False``, where a stem of convolutions can leave out the gradient
        of the images, that of the patch tokens is returned in its place.
        """
        cache1, cache2, cache3 = self.kept(cache)
        dx = self.classify_backward(dy, cache3)
        dx = self.encode_backward(dx, cache2 if release else list(cache2), first_block)
        return dx if first_block else self.embed_backward(dx, cache1, images)

    def embed(self, x: Array, rng: Key | None = None, keep: bool = True, tokens: slice = ALL) -> tuple[Array, Any]:
        """Return the tokens (B, N, D) that enter the first block for images `x`, and the cache (equation 1).

        With `tokens`, only the tokens in that slice are valid: the other patches are not projected. For inference.
        """
        only: tuple[slice, ...] = ()
        if tokens != ALL and type(self.patch_embed) is PatchEmbed:
            prefix = self.config.num_prefix_tokens
            only = (slice(max(0, tokens.start - prefix), max(0, tokens.stop - prefix)),)
        x, cache1 = self.patch_embed.forward(x, fold(rng, "patch_embed"), keep, *only)
        x, caches = self.embed_patches(x, rng, keep)
        return x, (cache1, *caches) if keep else None

    def embed_patches(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the tokens (B, N, D) that enter the first block for patch tokens, and the cache.

        This is `embed` without the patch embedding: positions, class and register tokens, dropout, and the norm before
        the blocks.
        """
        cache2 = None
        if isinstance(self.pos_embed, Layer):  # by rows and columns, of patch tokens alone
            x, cache2 = self.pos_embed.forward(x, fold(rng, "pos_embed"), keep)
        x, cache3 = ops.embed(x, *map(_value, self._embed_parameters()), keep=keep)
        x, cache4 = self.pos_drop.forward(x, fold(rng, "pos_drop"), keep)
        x, cache5 = self.patch_drop.forward(x, fold(rng, "patch_drop"), keep)
        x, cache6 = self.norm_pre.forward(x, fold(rng, "norm_pre"), keep)
        return x, (cache2, cache3, cache4, cache5, cache6) if keep else None

    def embed_backward(self, dy: Array, cache: Any, images: bool = True) -> Array:
        """Return the gradient of the images, see `backward`, for the gradient `dy` (B, N, D) of `embed`'s result."""
        cache1, *caches = self.kept(cache)
        dx = self.embed_patches_backward(dy, caches)
        if not images and kernel_of_cache("ConvStem", cache1) is not None:
            cast(ConvStem, self.patch_embed).add_gradients(dx, cache1)
            return dx
        return self.patch_embed.backward(dx, cache1)

    def embed_patches_backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the patch tokens for the gradient `dy` (B, N, D) of `embed_patches`' result."""
        cache2, cache3, cache4, cache5, cache6 = self.kept(cache)
        dx = self.norm_pre.backward(dy, cache6)
        dx = self.patch_drop.backward(dx, cache5)
        dx = self.pos_drop.backward(dx, cache4)
        dx, *dtokens = ops.embed_backward(dx, cache3)
        for parameter, dvalue in zip(self._embed_parameters(), dtokens, strict=True):
            if parameter is not None and dvalue is not None:
                parameter.add_grad(dvalue)
        return self.pos_embed.backward(dx, cache2) if isinstance(self.pos_embed, Layer) else dx

    def encode(self, x: Array, rng: Key | None = None, keep: bool = True, every: bool = False) -> tuple[Array, Any]:
        """Return the tokens after the last block for those before the first, and a list of caches (equations 2 and 3).

        Of the last block these are the tokens that `classify` reads, or with `every` all.
        """
        caches = []
        for i, block in enumerate(self.blocks):
            x, cache1 = self._with_positions(x, i, keep)
            queries = ALL if every else self.queries(i)
            only: dict[str, Any] = {} if queries == ALL else {"queries": queries}
            x, cache2 = block.forward(x, fold(rng, f"blocks.{i}"), keep, **only)
            caches.append((cache1, cache2))
        return x, caches if keep else None

    def encode_backward(self, dy: Array, caches: list[Any], first_block: int = 0) -> Array:
        """Return the gradient of the input of block `first_block`, for the gradient `dy` of `encode`'s result.

        The list `caches` is used up.
        """
        dx = dy
        for i in reversed(range(first_block, len(self.blocks))):
            cache1, cache2 = caches.pop()
            dx = self.blocks[i].backward(dx, cache2)
            if (positions := self.later_positions(i)) is not None:
                dx, dpositions, *_ = ops.embed_backward(dx, cache1)
                assert dpositions is not None
                positions.add_grad(dpositions)
        return dx

    def classify(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the logits (B, num_classes) for the tokens `x` after the last block, and the cache (equation 4)."""
        pools_first = self._pools_before_norm()
        cache1 = cache2 = None
        if not pools_first:
            x, cache1 = self.norm.forward(x, fold(rng, "norm"), keep)
        x, cache3 = self._pool(x, rng, keep)
        if pools_first:
            x, cache2 = self.norm.forward(x, fold(rng, "norm"), keep)
        x, cache4 = self.fc_norm.forward(x, fold(rng, "fc_norm"), keep)
        x, cache5 = self.head_drop.forward(x, fold(rng, "head_drop"), keep)
        x, cache6 = self.pre_logits.forward(x, fold(rng, "pre_logits"), keep)
        logits, cache7 = self.head.forward(x, fold(rng, "head"), keep)
        if self.config.num_classes and logits.shape != (len(x), self.config.num_classes):
            raise UserError(
                f"the head returned an array of shape {logits.shape}; expected (B, {self.config.num_classes}), "
                "as config.num_classes says: change the head, or set config to dataclasses.replace(config, ...)"
            )
        return logits, (cache1, cache2, cache3, cache4, cache5, cache6, cache7) if keep else None

    def classify_backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the tokens for the gradient `dy` (B, num_classes) of the logits."""
        cache1, cache2, cache3, cache4, cache5, cache6, cache7 = self.kept(cache)
        pools_first = self._pools_before_norm()
        dx = self.head.backward(dy, cache7)
        dx = self.pre_logits.backward(dx, cache6)
        dx = self.head_drop.backward(dx, cache5)
        dx = self.fc_norm.backward(dx, cache4)
        if pools_first:
            dx = self.norm.backward(dx, cache2)
        dx = self._pool_backward(dx, cache3)
        return dx if pools_first else self.norm.backward(dx, cache1)

    def forward_features(self, x: Array) -> Array:
        """Return all tokens (B, N, D) of images `x` after the last block and `norm`, in evaluation, as timm does."""
        return self.get_intermediate_layers(x, n=1, return_prefix_tokens=None, norm=True)[0]

    def forward_head(self, x: Array, pre_logits: bool = False) -> Array:
        """Return logits for the tokens `x` of `forward_features`, in evaluation; with `pre_logits` what the head reads.

        As in timm: pooling, the norm of the pooled vector, the hidden layer before the head, if there is one, and the
        head.
        """
        x, _ = self._pool(x, None, keep=False)
        x = self.pre_logits(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def get_intermediate_layers(
        self,
        x: Array,
        n: int | Iterable[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool | None = False,
        norm: bool = False,
    ) -> list[Any]:
        """Return the tokens after some blocks, in evaluation, as timm and DINO do.

        Parameters
        ----------
        x : Array
            (B, height, width, C).
        n : int or sequence of int
            The last `n` blocks, or the numbers of blocks, from 0; -1 is the last one.
        reshape : bool
            Return the patch tokens as (B, rows, columns, D) in place of (B, patches, D).
        return_prefix_tokens : bool or None
            Return pairs of the patch tokens and the class and register tokens; None leaves them in one array (B, N, D).
        norm : bool
            Whether to apply the final norm.

        Returns
        -------
        list
            For each block, in the order of `n`, patch tokens (B, patches, D), or what the arguments above say.

        Raises
        ------
        UserError
            There is no such block.
        ValueError, TypeError
            The images have another shape or dtype than those of the model.
        """
        self.check_images(x)
        depth, prefix = len(self.blocks), self.config.num_prefix_tokens
        try:
            chosen = list(map(index, n if isinstance(n, Iterable) else range(-index(n), 0)))
        except TypeError:
            chosen = []
        if not chosen or any(not -depth <= i < depth for i in chosen):
            raise UserError(f"n is {n!r:.60}; expected 1 to {depth} blocks, or numbers from 0 to {depth - 1}")
        wanted = [i % depth for i in chosen]
        x, _ = self.embed(x, None, keep=False)
        found: dict[int, Any] = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x, _ = self._with_positions(x, i, keep=False)
            x, _ = block.forward(x, keep=False)
            if i in wanted:
                y = self.norm(x) if norm else x
                patches = y[:, prefix:].reshape(len(y), *self.config.grid, -1) if reshape else y[:, prefix:]
                found[i] = y if return_prefix_tokens is None else patches
                if return_prefix_tokens:
                    found[i] = patches, y[:, :prefix]
        return [found[i] for i in wanted]

    def _embed_parameters(self) -> tuple[Parameter | None, Parameter | None, Parameter | None]:
        """Return the parameters that `ops.embed` adds to the patch tokens: positions, class token, register tokens."""
        return self.pos_embed if isinstance(self.pos_embed, Parameter) else None, self.cls_token, self.reg_token

    def _with_positions(self, x: Array, i: int, keep: bool) -> tuple[Array, Any]:
        """Return the tokens that enter block `i`: with positions added to them again, if there are any."""
        positions = self.later_positions(i)
        return (x, None) if positions is None else ops.embed(x, positions.value, keep=keep)

    def later_positions(self, i: int) -> Parameter | None:
        """Return the positions that are added before block `i` again, if there are any."""
        if i == 0 or self.config.pos_embed_layers == "first":
            return None
        return self.pos_embeds[i - 1] if self.pos_embeds else self._embed_parameters()[0]

    def _pools_before_norm(self) -> bool:
        """Return whether the norm of the class token is enough: `norm` acts on each token alone."""
        return self.config.global_pool == "token" and type(self.norm) in (LayerNorm, Identity)

    def _pool(self, x: Array, rng: Key | None, keep: bool) -> tuple[Array, Any]:
        first = self.config.first_pooled
        if self.attn_pool is None:
            return ops.pool(x, self.config.global_pool, first, keep=keep)
        y, cache = self.attn_pool.forward(x[:, first:], fold(rng, "attn_pool"), keep)
        return y, (cache, x.shape, first) if keep else None

    def _pool_backward(self, dy: Array, cache: Any) -> Array:
        if self.attn_pool is None:
            return ops.pool_backward(dy, cache)
        pool_cache, shape, first = cache
        dpatches = self.attn_pool.backward(dy, pool_cache)
        dx: Array = namespace(dpatches).zeros(shape, dtype=dpatches.dtype)
        dx[:, first:] = dpatches
        return dx

    def queries(self, i: int) -> slice:
        """Return the tokens whose result block `i` computes.

        These are all tokens, except in the last block before a class-token head, which reads only the class token.
        Under `ops.reference_only`, and where the block or `norm` has layers of a user's own, which may read all tokens,
        all are computed.
        """
        if i != len(self.blocks) - 1 or not self._pools_before_norm() or runs_references_only():
            return ALL
        block = self.blocks[i]
        return slice(0, 1) if isinstance(block, EncoderBlock) and block.takes_queries else ALL

    def _adapt(self) -> None:
        """Let `config` follow the blocks and a linear head."""
        config, head = self.config, self.head
        wrong = [i for i, block in enumerate(self.blocks) if not isinstance(block, Layer)]
        if wrong:
            raise UserError(f"blocks[{wrong[0]}] is a {type(self.blocks[wrong[0]]).__name__}; expected a minivit.Layer")
        classes = head.weight.shape[1] if isinstance(head, Linear) else config.num_classes
        if (classes, len(self.blocks)) != (config.num_classes, config.depth):
            self.config = replace(config, num_classes=classes, depth=len(self.blocks))

    def is_standard(self) -> bool:
        """Return whether all layers up to the last block are the original ones, so that workers may share tokens."""
        standard = all(isinstance(b, EncoderBlock) and b.is_standard() for b in self.blocks)
        standard = standard and self._classes_before_blocks() == self._made_of
        return type(self) is ViT and standard and self.config.pos_embed_layers == "first"

    def _classes_before_blocks(self) -> list[tuple[int, str, type]]:
        """Return the class of each layer before the blocks, and of each layer in it."""
        before: list[Any] = [self.patch_embed, self.pos_embed, self.pos_drop, self.patch_drop, self.norm_pre]
        named = [each.named_layers() if isinstance(each, Layer) else [("", each)] for each in before]
        return [(i, name, type(layer)) for i, layers in enumerate(named) for name, layer in layers]


def _value(parameter: Parameter | None) -> Array | None:
    return None if parameter is None else parameter.value
