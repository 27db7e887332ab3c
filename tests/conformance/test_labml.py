"""labml's annotated Vision Transformer is read, computed and written back, in float64 and float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.nn.presets import get_config
from minivit.weights import load_model

from .originals import (
    assert_all_gradients_equal,
    assert_export_equal,
    assert_float32_as_close,
    images_of,
    randomise,
)
from .test_timm import assert_equal, channels_first

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("tracker"),
]


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """labml_nn records its attention with a function that newer versions of labml lack."""
    try:
        from labml import tracker
    except ImportError as error:  # its dependencies do not install beside a current PyTorch
        pytest.fail(f"pip install --no-deps labml-nn==0.5.1 labml==0.5.3 labml-helpers==0.4.89 ({error})")
    monkeypatch.setattr(tracker, "debug", lambda *args: None, raising=False)


def their_vit(
    torch: Any, D: int, depth: int, num_heads: int, d_ff: int, hidden: int, classes: int, patch: Any, channels: int,
    act: Any = None,
) -> Any:  # fmt: skip
    """Return their model, built as their experiment builds it."""
    from labml_nn.transformers import MultiHeadAttention, TransformerLayer
    from labml_nn.transformers.feed_forward import FeedForward
    from labml_nn.transformers.vit import (
        ClassificationHead,
        LearnedPositionalEmbeddings,
        PatchEmbeddings,
        VisionTransformer,
    )

    layer = TransformerLayer(
        d_model=D,
        self_attn=MultiHeadAttention(num_heads, D, dropout_prob=0.1),
        src_attn=None,
        feed_forward=FeedForward(D, d_ff, dropout=0.1, activation=act or torch.nn.ReLU()),
        dropout_prob=0.1,
    )
    return VisionTransformer(
        layer, depth, PatchEmbeddings(D, patch, channels), LearnedPositionalEmbeddings(D),
        ClassificationHead(D, hidden, classes),
    )  # fmt: skip


@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_their_model_is_computed_and_written_as_they_do(timm: Any, torch: Any, tmp_path: Path, act: str) -> None:
    from safetensors.torch import load_file, save_file

    def build() -> Any:
        return their_vit(torch, 39, 2, 3, 70, 34, 5, (11, 3), 2, torch.nn.GELU() if act == "gelu" else None)

    theirs = randomise(torch, build())
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    given: dict[str, Any] = {"num_heads": 3, "img_size": (22, 21), "norm_eps": 1e-5, "act_layer": act}
    model = load_model(tmp_path, dtype="float64", **given)
    assert model.unused["pos_emb.positional_encodings"].shape == (5000 - 15, 1, 39)
    if act == "gelu":
        with pytest.warns(UserWarning, match="models of labml have act_layer='relu'"):
            written = assert_export_equal(tmp_path / "model.safetensors", tmp_path / "ours", "labml", model)
    else:
        written = assert_export_equal(tmp_path / "model.safetensors", tmp_path / "ours", "labml", model)
    again = build().double().eval()
    again.load_state_dict(load_file(written), strict=True)
    images = images_of(model)
    assert_equal(model(images), again(channels_first(torch, images)), 1e-10, "logits of our export")
    assert_all_gradients_equal(torch, theirs, theirs, model, "labml")
    assert_float32_as_close(torch, theirs, theirs, model)


def test_the_model_of_their_cifar10_experiment(timm: Any, torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = randomise(torch, their_vit(torch, 512, 6, 8, 2048, 2048, 10, 4, 3)).float()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"assumed img_size=\(32, 32\), act_layer='relu', norm_eps=1e-05"):
        model = load_model(tmp_path, num_heads=8)
    rates: dict[str, Any] = {"proj_drop_rate": 0.1, "attn_drop_rate": 0.1}  # of their configuration, not in the file
    assert replace(model.config, **rates, init="jax") == get_config("labml_vit_cifar10")
    images = images_of(model).astype(np.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert np.linalg.norm(model(images) - logits) <= 1e-5 * np.linalg.norm(logits)
