"""Models for masked pre-training of transformers: read with their decoder, and their encoders as a plain ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_files import (
    DD,
    FOREIGN,
    TASKS,
    C,
    Change,
    D,
    assert_equal_models,
    encoder_of,
    foreign_folder,
    made,
    positions,
    rows_first,
)
from model_files import assert_same

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.ops.sincos_positions import sincos_table
from minivit.weights import (
    load_masked_model,
    load_model,
    read_tensors,
    save_masked_model,
)

every_foreign = pytest.mark.parametrize("task", FOREIGN)


@every_foreign
def test_a_folder_of_transformers_holds_the_same_model(tmp_path: Path, task: str) -> None:
    model = made(task)
    found = load_masked_model(foreign_folder(tmp_path, task), ratio=np.float64(TASKS[task]["ratio"]))
    assert_equal_models(found, model)
    assert load_masked_model(tmp_path).ratio == 0.6  # of its config.json, and SimMIM's default
    save_masked_model(found, tmp_path / "ours")
    assert_equal_models(load_masked_model(tmp_path / "ours"), model)


def test_names_in_memory_and_a_prefix_are_those_in_files(tmp_path: Path) -> None:
    newer = {
        "vit.encoder.layer.": "vit.layers.", "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip

    def rename(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            new = name
            for older, other in newer.items():
                new = new.replace(older, other)
            tensors["module." + new] = tensors.pop(name)

    foreign_folder(tmp_path, "mae", rename)
    assert_equal_models(load_masked_model(tmp_path), made("mae"))
    assert_same(load_model(tmp_path), encoder_of("mae"))


def test_the_decoder_of_transformers_5_24_is_read(tmp_path: Path) -> None:
    def rename(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            tensors[name.replace("decoder_layers.", "decoder_encoder.layer.")] = tensors.pop(name)

    foreign_folder(tmp_path, "mae", rename)
    assert "decoder.decoder_encoder.layer.2.output.dense.bias" in read_tensors(tmp_path / "model.safetensors")[0]
    assert_equal_models(load_masked_model(tmp_path), made("mae"))
    assert_same(load_model(tmp_path), encoder_of("mae"))


@every_foreign
def test_the_encoder_of_transformers_is_a_plain_vit(tmp_path: Path, task: str) -> None:
    found = load_model(foreign_folder(tmp_path, task))
    assert_same(found, encoder_of(task))
    assert list(found.unused) == ["vit.embeddings.mask_token"] * (task == "simmim")
    with_head = load_model(tmp_path, num_classes=4, img_size=32)
    assert with_head(np.ones((1, 32, 32, C), np.float32)).shape == (1, 4)


def test_the_encoder_of_mae_alone_has_no_prefix(tmp_path: Path) -> None:
    def alone(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            value = tensors.pop(name)
            if name.startswith("vit."):
                tensors[name.removeprefix("vit.")] = value

    foreign_folder(tmp_path, "mae", alone)
    assert_same(load_model(tmp_path), encoder_of("mae"))
    with pytest.raises(UserError, match="it has no mask token; load_model reads it as a plain ViT"):
        load_masked_model(tmp_path)


def test_a_file_of_mae_alone_is_read_with_what_the_family_has(tmp_path: Path) -> None:
    foreign_folder(tmp_path, "mae")
    (tmp_path / "config.json").unlink()
    known: dict[str, Any] = {"num_heads": 3, "norm_eps": 1e-5, "act_layer": "gelu", "decoder_heads": 2}
    with pytest.warns(UserWarning, match=r"assumed ratio=0\.75, norm_pixels=False \(as in Hugging Face transformers\)"):
        model: Any = load_masked_model(tmp_path, **known)
    assert (model.ratio, model.norm_pixels, model.options["decoder_heads"]) == (0.75, False, 2)
    assert_equal_models(load_masked_model(tmp_path, **known, ratio=0.6, norm_pixels=True), made("mae"))


def test_positions_of_16_bits_are_those_of_the_decoder(tmp_path: Path) -> None:
    foreign_folder(tmp_path, "mae", put(POSITIONS, positions(sincos_table).astype(np.float16)))
    assert_equal_models(load_masked_model(tmp_path), made("mae"))


def put(name: str, value: Array) -> Change:
    return lambda tensors: tensors.update({name: value})


def without(prefix: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


def without_biases(tensors: dict[str, Array]) -> None:
    for name in [name for name in tensors if name.endswith(("query.bias", "key.bias", "value.bias"))]:
        del tensors[name]


POSITIONS = "decoder.decoder_pos_embed"
BAD: dict[str, tuple[str, Change, dict[str, Any], str]] = {
    "other positions": (
        "mae", put(POSITIONS, positions(rows_first)), {},
        "decoder_pos_embed holds other positions than the sines and cosines of He et al",
    ),
    "no positions": ("mae", without(POSITIONS), {}, r"has no decoder.decoder_pos_embed of shape \(1, 17, 8\)"),
    "no decoder": ("simmim", without("decoder."), {}, "it has a mask token but no decoder; load_model reads it"),
    "half a decoder": ("mae", without("decoder.decoder_embed"), {}, "has no decoder.decoder_embed.weight of its shape"),
    "no prediction": ("mae", without("decoder.decoder_pred"), {}, "tensors missing.*decoder.decoder_pred"),
    "no biases": (
        "mae", without_biases, {"qkv_bias": False}, "a decoder without biases of queries, keys and values",
    ),
    "no token": ("mae", without("decoder.mask_token"), {}, "tensor missing.*decoder.mask_token"),
    "a tensor too many": ("mae", put("decoder.x", np.ones(2)), {}, r"tensor unknown \(vit.decoder.x\)"),
    "NaN": ("mae", put("decoder.mask_token", np.full((1, 1, DD), np.nan)), {}, "mask_token holds NaN or infinity"),
    "another stride": ("simmim", lambda tensors: None, {"encoder_stride": 8}, "encoder_stride 8; expected the 48"),
    "too many pixels": ("simmim", put("decoder.0.weight", np.ones((192, D, 1, 1))), {}, "predicts 192 numbers"),
    "another width": ("mae", lambda tensors: None, {"decoder_hidden_size": 9}, "has decoder_hidden_size 9, and .* 8"),
    "a word": ("mae", lambda tensors: None, {"mask_ratio": "x"}, "its ratio is 'x'; expected a number"),
    "a number": ("mae", lambda tensors: None, {"norm_pix_loss": 1}, "its norm_pixels is 1; expected true or false"),
    "heads": ("mae", lambda tensors: None, {"decoder_num_attention_heads": 3}, "cannot be loaded as a model of"),
    "another type": ("mae", lambda tensors: None, {"model_type": "vit_x"}, "holds a model of the type 'vit_x'"),
}  # fmt: skip


def test_a_field_that_the_layout_cannot_store_is_named_by_its_parameters(tmp_path: Path) -> None:
    foreign_folder(tmp_path, "mae")
    words = r"its layout has no \d+ parameters \(encoder\.blocks\.0\.attn\.q_norm\.weight, "
    with pytest.raises(UserError, match=words):
        load_masked_model(tmp_path, qk_norm=True)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_masked_model_of_transformers_is_named(tmp_path: Path, bad: str) -> None:
    task, change, said, words = BAD[bad]
    foreign_folder(tmp_path, task, change, **said)
    with pytest.raises(UserError, match=words) as raised:
        load_masked_model(tmp_path)
    assert "\n" not in str(raised.value)
