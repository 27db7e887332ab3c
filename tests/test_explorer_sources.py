"""The source lines that the page shows of layers and ops, and of layers of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_vit import batch, model

import minivit
from minivit import layers, ops
from minivit.arrays import Array
from minivit.explorer.explained import known_classes, known_ops
from minivit.explorer.explore import explore
from minivit.explorer.formulas import formulas
from minivit.explorer.sources import kind_of, sources
from minivit.nn.layer import Layer

ROOT = Path(minivit.__file__).parent.parent
LAYERS = ["ViT", *layers.__all__]
OPS = [name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")]


class Twice(Layer):
    """A layer of a user."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        """Return ``2 tanh(x)``."""
        y, cache = ops.tanh(x, keep=keep)
        return self.scaled(y), cache

    def backward(self, dy: Array, cache: Any) -> Array:
        return ops.tanh_backward(self.scaled(dy), cache)

    def scaled(self, x: Array) -> Array:
        return 2 * x


class Wide(layers.MLP):
    """The passes are those of MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 8 * dim)


def names_of(kind: str | type, role: str) -> list[str]:
    (lines,) = sources([kind]).values()
    return [each["name"] for each in lines if each["role"] == role]


@pytest.mark.parametrize("kind", [*LAYERS, *OPS])
def test_every_layer_and_op_has_the_lines_of_both_passes_as_they_are_in_the_file(kind: str) -> None:
    found = sources([kind])[kind]
    assert {each["role"] for each in found} == {"forward", "backward"}
    first = "{}.forward" if kind in LAYERS else "{}"
    assert found[0]["name"] == first.format(kind)
    assert len({each["name"] for each in found}) == len(found)
    for each in found:
        lines = (ROOT / each["file"]).read_text(encoding="utf-8").splitlines()[each["line"] - 1 :]
        shown = [line.strip() for line in each["text"].splitlines()]
        assert shown[0] == lines[0].strip()
        rest = iter(line.strip() for line in lines)
        assert all(line in rest for line in shown)  # in this order
        assert '"""' not in each["text"]


def test_a_layer_has_its_methods_and_the_functions_of_the_ops_that_it_calls() -> None:
    assert names_of("Attention", "forward")[:3] == ["Attention.forward", "Attention._normed", "attention"]
    assert {"Attention.backward", "attention_backward", "products_derivative"} <= {*names_of("Attention", "backward")}
    assert {"heads", "weighted_values"} <= {*names_of("attention", "forward")}
    assert names_of("LayerNorm", "backward") == ["LayerNorm.backward", "layer_norm_backward", "sum_of_rows"]
    assert "check_attention" not in names_of("attention", "forward")
    assert "embed_backward" in names_of("ViT", "backward")


def test_a_layer_of_a_user_has_its_own_lines() -> None:
    assert names_of(Twice, "forward") == ["Twice.forward", "Twice.scaled", "tanh"]
    assert names_of(Twice, "backward") == ["Twice.backward", "tanh_backward"]
    own = sources([Twice])["Twice"][0]
    assert own["file"] == __name__
    assert own["text"].splitlines()[1].strip() == "y, cache = ops.tanh(x, keep=keep)"
    assert formulas([Twice]) == {}


def test_a_class_without_a_file_and_an_unknown_name_have_no_lines() -> None:
    namespace: dict[str, Any] = {"Layer": Layer}
    exec("class Typed(Layer):\n    def forward(self, x, rng=None, keep=True): return x, None", namespace)
    assert sources([namespace["Typed"], "nothing"]) == {"Typed": [], "nothing": []}


def test_a_class_of_a_user_with_the_name_of_ours_is_another_kind() -> None:
    own = type("Attention", (Layer,), {"__module__": "theirs"})
    assert kind_of(own) == "theirs.Attention"
    assert formulas([own]) == {}
    assert kind_of(layers.Attention) == "Attention"
    assert kind_of(Twice) == "Twice"
    assert kind_of(type("softmax", (Layer,), {"__module__": "theirs"})) == "theirs.softmax"


def test_a_class_with_the_passes_of_ours_has_our_formulas() -> None:
    assert formulas([Wide, layers.DropPath, "softmax", "nothing"]) == {
        "Wide": formulas(["MLP"])["MLP"],
        "DropPath": formulas(["DropPath"])["DropPath"],
        "softmax": formulas(["softmax"])["softmax"],
    }


def test_every_kind_with_a_gradient_has_formulas() -> None:
    assert {*formulas([*known_classes(), *known_ops()])} == {*LAYERS, *OPS}


def test_the_page_has_the_formulas_and_the_lines_of_the_kinds_of_its_layers() -> None:
    class Attention(layers.Attention):
        """Another class of this name."""

        def backward(self, dy: Array, cache: Any) -> Array:
            return super().backward(dy, cache)

    vit = model()
    vit.blocks[0].attn = Attention(12, 3).initialize(seed=0)
    data = explore(vit, batch(1)[0], [0], checks=False)
    kinds = {layer["name"]: layer["kind"] for layer in data["images"][0]["layers"]}
    assert kinds["model"] == "ViT"
    assert kinds["blocks.1.attn"] == "Attention"
    assert kinds["blocks.0.attn"] == f"{__name__}.{Attention.__qualname__}"
    assert {*data["sources"]} == {*kinds.values()}
    assert {*data["formulas"]} == {*kinds.values()} - {kinds["blocks.0.attn"]}
    files = {each["name"]: each["file"] for each in data["sources"][kinds["blocks.0.attn"]]}
    assert (files["Attention.forward"], files["Attention.backward"]) == ("minivit/nn/attention.py", __name__)
