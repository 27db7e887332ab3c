"""What models, parameters, optimisers, engines and keys are made of is seen where they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_vit import model

from minivit import SGD, AdamW, Engine, Key, Layer, ViT, create_model, layers
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder


def test_a_model_is_a_tree_in_which_equal_blocks_are_one_entry() -> None:
    vit = create_model("vit_tiny_patch4_32", drop_path_rate=0.1, drop_rate=0.5)
    lines = repr(vit).splitlines()
    assert lines[0] == "ViT(cls_token (1, 1, 192), pos_embed (1, 65, 192))"
    assert "  # 5,362,762 parameters, float32 on numpy" in lines
    assert "  (blocks.0-11): 12 x EncoderBlock()" in lines
    assert "    (drop_path2): DropPath(rate=0 to 0.1, per_sample=True)" in lines
    assert "      (qkv): Linear(weight (192, 576), bias (576,))" in lines
    assert "  (head_drop): Dropout(rate=0.5, per_sample=False)" in lines
    assert "num_classes=10" in repr(vit)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    vit.blocks[3].norm1.eps = 0.5
    assert "(blocks.0-2): 3 x EncoderBlock()" in repr(vit)
    assert "(blocks.4-11): 8 x EncoderBlock()" in repr(vit)


def test_a_layer_shows_its_attributes_and_whether_it_has_values() -> None:
    class Own(Layer):
        def __init__(self) -> None:
            self.rates, self.act, self.table, self._hidden = (0.1, 2), np.tanh, np.zeros((2, 3)), 5

    assert repr(Own()) == "Own(rates=(0.1, 2), act=tanh, table: float64 (2, 3))"
    assert repr(layers.Linear(2, 3)) == "Linear(weight (2, 3), bias (3,))  # 9 parameters, no values yet"
    assert repr(layers.GELU("tanh")) == "GELU(approximate='tanh')"


def test_parameters_optimisers_engines_and_keys_say_what_they_hold() -> None:
    vit = model("float32")
    assert repr(vit.head.weight) == "Parameter(head.weight, shape=(6, 7), float32 on numpy)"
    assert repr(layers.Linear(2, 3).bias) == "Parameter(unnamed, shape=(3,), no value yet)"
    lines = repr(vit.parameters).splitlines()
    assert lines[0] == "Parameters: 44 with 1,753 numbers, float32 on numpy"
    assert lines[-1] == "  head.bias: (7,)"
    assert "  ... 24 more ..." in lines
    assert "with gradients" not in repr(vit.parameters.store)
    assert repr(AdamW(vit, lr=0.01)) == (
        "AdamW(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05; 1,753 numbers in 44 groups, 0 steps)"
    )
    assert repr(SGD([vit.head.bias])) == "SGD(lr=0.1, momentum=0.9, weight_decay=0.0; 7 numbers in 1 groups, 0 steps)"
    assert repr(Engine(vit, 1, 4)) == "Engine(ViT of 1,753 parameters, threads=1, micro_batch=4, precision=float32)"
    assert repr(Key(1, 2, np.arange(300)).fold("mlp")) == "Key(seed=1, step=2, 300 samples, place='mlp')"


def test_a_run_folder_says_whether_the_run_is_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "one", Recipe("digits", model="vit_micro_patch4_8", epochs=3))
    assert repr(folder).endswith("one', vit_micro_patch4_8, 3 epochs, without a checkpoint)")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").touch()
    assert "3 epochs, finished" in repr(folder)


def optimiser(vit: ViT) -> Any:
    return SGD(vit)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda vit: vit.train(),
            AttributeError,
            r"ViT has no attribute 'train': a model has no mode: forward\(x, rng=",
        ),
        (lambda vit: vit.eval(), AttributeError, "a model has no mode"),
        (lambda vit: vit.named_parameters(), AttributeError, r"use parameters\.items\(\)"),
        (lambda vit: vit.head.weigth, AttributeError, "Linear has no attribute 'weigth'; did you mean 'weight'"),
        (lambda vit: vit.parameters(), TypeError, "`parameters` is a mapping of names, not a method"),
        (lambda vit: optimiser(vit).zero_grad(), AttributeError, r"use model\.zero_grad\(\)"),
        (lambda vit: optimiser(vit).param_groups, AttributeError, "SGD has no attribute 'param_groups'"),
    ],
)
def test_names_of_other_libraries_are_answered_with_those_of_this_one(use: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        use(model())
