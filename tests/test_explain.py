"""``minivit explain``: formulas, code and derivations of every op, layer and optimiser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minivit import ops
from minivit.cli import main
from minivit.explorer.explained import Explained, everything, find, page_path

OPS = [item for item in everything() if item.kind == "op"]
LEARNED_FROM = [item for item in OPS if hasattr(ops, f"{item.name}_backward") or "_step" in item.name]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("item", LEARNED_FROM, ids=lambda item: item.name)
def test_every_op_with_a_gradient_names_a_page_that_derives_it(item: Explained) -> None:
    assert [page for page in item.pages if page_path(page).is_file()]


def test_every_op_is_found() -> None:
    assert {name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")} <= {
        item.name for item in OPS
    }
    assert {"sgd_step", "adam_step", "average_step", "update_grad_scaler"} <= {item.name for item in OPS}
    assert find("intercepted") is None  # a context manager of the tracer


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("EncoderBlock", "residual.md"),
        ("residual", "residual.md"),
        ("positions", "embeddings.md"),
        ("patches", "embeddings.md"),
        ("PatchEmbed", "embeddings.md"),
        ("AdamW", "optimizers.md"),
        ("adam-w", "optimizers.md"),
        ("layernorm", "layer_norm.md"),
        ("ops.softmax", "softmax_cross_entropy.md"),
        ("DropPath", "dropout.md"),
        ("GradScaler", "grad_scaler.md"),
        ("clip_factor", "grad_scaler.md"),
        ("ResNetFeatures", "convolutions.md"),
        ("Bottleneck", "convolutions.md"),
    ],
)
def test_a_name_is_found_however_it_is_written(name: str, page: str) -> None:
    found = find(name)
    assert found is not None
    assert page in found.pages


def test_the_lines_are_those_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "layer_norm", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [function["name"] for function in values["functions"]][:2] == ["layer_norm", "layer_norm_backward"]
    for function in values["functions"]:
        lines = Path(function["path"]).read_text(encoding="utf-8").splitlines()
        lines = lines[function["first_line"] - 1 : function["last_line"]]
        assert lines[0] == function["source"].splitlines()[0]
        assert lines[-1] == function["source"].splitlines()[-1]
    assert "dx = inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))" in values["formula"]


def test_the_formula_stands_beside_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "attention")
    assert "dscores = weights * (dweights - sum(dweights * weights))" in text
    assert re.search(r"attention_backward  \S*ops/attention.py:\d+-\d+", text)
    assert "dproducts = softmax_backward(dweights, softmax_cache)" in text  # in a function that it calls
    assert '"""' not in text


def test_a_layer_of_a_model_is_explained_by_its_ops(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "blocks.3.mlp.act")
    assert text.startswith("blocks.3.mlp.act of vit_tiny_patch4_32: GELU(")
    assert "phi its density" in text
    assert "weight (192, 576)" in shown(capsys, "blocks.3.attn.qkv.weight")
    assert "made of: Dropout, LayerNorm, Linear" in shown(capsys, "blocks.0.attn", "--model", "vit_base_patch16_224")


def test_the_page_is_printed_and_of_a_page_about_several_ops_the_sections_about_this_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = Path(__file__).parent.parent / "docs" / "derivations" / "layer_norm.md"
    assert shown(capsys, "layer_norm", "--derivation").strip() == page.read_text(encoding="utf-8").strip()
    text = shown(capsys, "AdamW", "--derivation")
    assert "bias correction" in text
    assert "decoupled" in text
    assert "## Momentum" not in text
    text = shown(capsys, "softmax", "--derivation")
    assert re.findall(r"(?m)^## .*", text) == ["## Softmax, forward", "## Softmax, backward"]


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert all(item.name in text for item in everything())
    assert main(["explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == len(everything())


def test_a_name_of_a_trace_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "blocks.3.attn.softmax"]) == 0
    assert shown(capsys).startswith("ops.softmax:")
    assert main(["explain", "model"]) == 0
    assert shown(capsys).startswith("ViT:")


def test_the_title_of_a_layer_has_a_line_for_each_part_and_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "blocks.3.attn"]) == 0
    text = shown(capsys)
    assert "\\n" not in text
    assert "\n  (qkv): Linear" in text
    assert main(["explain", "AdamW"]) == 0
    assert shown(capsys).count("Adam with decoupled weight decay.") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["atention"], "did you mean 'attention'?"),
        (["blocks.3.atn"], "did you mean 'blocks.3.attn'?"),
        (["blocks.99.attn"], "no layer of vit_tiny_patch4_32"),
        (["Identity", "--derivation"], "Identity has no derivation"),
        (["MLP", "--derivation"], "it is made of Dropout"),
        (["--derivation"], "--derivation needs a name"),
        (["blocks.0", "--model", "no_such_model"], "there is no run or model no_such_model"),
    ],
)
def test_a_wrong_name_is_answered_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_wheel_has_the_pages() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["docs/derivations"] == "minivit/derivations"


def test_a_page_on_another_drive_is_named_by_its_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_drive(path: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", other_drive)
    assert main(["explain", "softmax", "--json"]) == 0
