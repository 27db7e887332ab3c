"""`minivit gradcheck`: ops, layers, models and model files, and a wrong gradient."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Minivit, assert_refused

import minivit
from minivit import ops
from minivit.checking.cases import CASES
from minivit.cli.gradcheck import affordable_depth


@pytest.mark.parametrize("target", ["linear", "attention-mask", "Dropout", "vit_micro_patch4_8"])
def test_gradcheck_passes(cli: Minivit, target: str) -> None:
    said = cli("gradcheck", target, "--depth", 1, "--batch", 1, "--seed", 5, "--json")
    assert said.status == 0
    assert len(said.out.splitlines()) == 1
    assert said.json()["passed"] is True
    assert 0 <= said.json()["max_error"] <= 1e-11
    verdicts = {row["verdict"] for check in said.json()["checks"] for row in check["rows"]}
    assert verdicts <= {"ok", "zero"}
    assert "ok" in verdicts


def test_gradcheck_of_a_model_has_no_zero_gradients_except_that_of_the_key_bias(cli: Minivit) -> None:
    (check,) = cli("gradcheck", "vit_micro_patch4_8", "--depth", 1, "--json").json()["checks"]
    zero = [f"{row['layer']}.{row['name']}" for row in check["rows"] if row["verdict"] == "zero"]
    assert zero == ["blocks.0.attn.qkv.bias[k]"]
    assert "vit_micro_patch4_8 (1 of its 4 blocks)" in check["title"]


def test_gradcheck_of_a_model_file_or_its_folder_uses_its_own_weights(cli: Minivit, tmp_path: Path) -> None:
    model = minivit.create_model("vit_micro_patch4_8", seed=3)
    model.parameters["head.weight"].value[...] = np.random.default_rng(0).standard_normal((model.config.embed_dim, 10))
    bias = model.parameters["blocks.0.attn.qkv.bias"].value
    bias[...] = np.random.default_rng(1).standard_normal(bias.shape)  # one of zeros would get random values
    for name in ("weight", "bias"):  # without queries the scores are 0, and the keys have no gradient
        model.parameters[f"blocks.0.attn.qkv.{name}"].value[..., : model.config.embed_dim] = 0
    minivit.save_model(model, tmp_path / "model.safetensors")
    for target in (tmp_path, tmp_path / "model.safetensors"):
        said = cli("gradcheck", target, "--depth", 1, "--batch", 1, "--json")
        assert said.status == 0
        (check,) = said.json()["checks"]
        assert f"{target} (1 of its {model.config.depth} blocks) with cross-entropy, 1 image" in check["title"]
        zero = {row["name"] for row in check["rows"] if row["verdict"] == "zero"}
        assert "weight[k]" in zero


def test_gradcheck_limits_the_blocks_of_a_large_model_by_their_cost() -> None:
    small, large = minivit.PRESETS["vit_micro_patch4_8"], minivit.PRESETS["vit_base_patch16_224"]
    assert affordable_depth(small, 2) == small.depth
    assert affordable_depth(large, 2) == 1
    hybrid = minivit.get_config("vit_small_r26_s32_224", img_size=64)
    assert affordable_depth(hybrid, 2) == 1  # its ResNet has most of the parameters


def test_gradcheck_needs_a_head_and_says_how_long_a_hybrid_takes(
    cli: Minivit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = minivit.create_model("vit_micro_patch4_8", num_classes=0)
    minivit.save_model(model, tmp_path / "model.safetensors")
    assert_refused(cli("gradcheck", tmp_path), 2, "has no head, and so no loss to check")
    monkeypatch.setattr("minivit.cli.gradcheck._LONG", 0)
    said = cli("gradcheck", "vit_micro_patch4_8", "--depth", 1)
    assert "20 parameters are checked, which takes some 0 minutes" in said.err + said.out


def test_gradcheck_of_all_ops_prints_a_table(cli: Minivit) -> None:
    said = cli("gradcheck", "ops")
    assert said.status == 0
    assert all(case.name in said.out for case in CASES if case.op.islower())
    assert re.search(r"^passed: \d+ gradients", said.out, re.MULTILINE)


def test_gradcheck_detects_a_wrong_gradient(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.softmax_backward
    monkeypatch.setattr(ops, "softmax_backward", lambda dy, cache: 1.001 * right(dy, cache))
    said = cli("gradcheck", "softmax", "--json")
    assert said.status == 1
    assert said.json()["passed"] is False
    assert said.json()["max_error"] > 1e-4
    shown = cli("gradcheck", "ops")
    assert shown.status == 1
    assert "FAILED" in shown.out
