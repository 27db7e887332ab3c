"""Typical mistakes on the explorer's page: each is applied to a real backward pass, and the gradient check finds it."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from bare_vit import images, model, shaken

import minivit
from minivit import ViT
from minivit.explorer import edits, mistakes
from minivit.explorer.edits import EDITS, Edit, Edited
from minivit.explorer.heat_maps import HeatMaps
from minivit.explorer.mistakes import Mistake, typical_mistakes
from minivit.layers import GELU
from minivit.tracing import Trace

# Which model has the layer that an edit is for, where that of the paper has not.
FIELDS: dict[str, dict[str, Any]] = {
    "gelu:_gelu_tanh": {"act_layer": "gelu_tanh"},
    "gelu:_tanh_derivative": {"act_layer": "gelu_tanh"},
    "quick_gelu:_derivative": {"act_layer": "quick_gelu"},
    "layer_scale:layer_scale_backward": {"init_values": 0.4},
}


def traced(vit: ViT, **options: Any) -> Trace:
    return minivit.trace(vit, images(1, str(vit.parameters.store.values.dtype)), [3], **options)


def found_in(vit: ViT) -> list[Mistake]:
    found, note = typical_mistakes(vit, traced(vit))
    assert note == ""
    return found


def name_of(edit: Edit) -> str:
    return f"{edit.kind}, {edit.title}"


class Found(NamedTuple):
    """The mistakes in a trace of a model, and their maps."""

    trace: Trace
    maps: HeatMaps
    mistakes: list[Mistake]


@pytest.fixture(scope="module")
def of_paper() -> Found:
    vit, maps = shaken(model()), HeatMaps()
    trace = traced(vit)
    found, note = typical_mistakes(vit, trace, maps)
    assert note == ""
    return Found(trace, maps, found)


@pytest.fixture(scope="module")
def paper(of_paper: Found) -> list[Mistake]:
    return of_paper.mistakes


@pytest.mark.parametrize("edit", EDITS, ids=name_of)
def test_each_mistake_changes_a_gradient_and_is_found(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "EDITS", (edit,))
    (mistake,) = found_in(shaken(model(**FIELDS.get(edit.function, {}))))
    assert (mistake["kind"], mistake["title"], mistake["category"]) == (edit.kind, edit.title, edit.category)
    assert any(array["changed"] for array in mistake["arrays"])
    assert mistake["found"]
    failed = [row for row in mistake["verdict"] if row["verdict"] == "FAILED"]
    assert failed
    assert min(row["error"] for row in failed) > 1e-6
    assert mistake["sentence"].startswith("FAILED: ")
    assert failed[-1]["array"] in mistake["sentence"]


@pytest.mark.parametrize("edit", EDITS, ids=name_of)
def test_the_lines_shown_are_those_of_the_source_and_of_the_code_that_ran(edit: Edit) -> None:
    module = importlib.import_module(edit.module)
    assert [line.strip() for line in inspect.getsource(module).splitlines()].count(edit.before) >= 1
    edited = Edited(edit)
    assert not edited.ran
    with pytest.raises(ValueError, match=r"has 0 lines 'dx = 7'; expected one"):
        Edited(replace(edit, before="dx = 7"))


def test_there_are_enough_mistakes_of_each_category(paper: list[Mistake]) -> None:
    assert len(paper) >= 12
    assert len({mistake["kind"] for mistake in paper}) >= 6
    assert {mistake["category"] for mistake in paper} == set(get_args(edits.Category))
    wanted = {"dropped term", "wrong axis", "missing scale", "exchanged product", "transposed product"}
    assert wanted <= set(get_args(edits.Category))


def test_a_mistake_that_the_model_cannot_have_is_not_listed(paper: list[Mistake]) -> None:
    kinds = {mistake["kind"] for mistake in paper}
    assert kinds == {
        "PatchEmbed", "embed", "EncoderBlock", "LayerNorm", "Attention", "softmax", "Linear", "MLP", "GELU",
    }  # fmt: skip
    assert "the derivative is that of the exact form" not in {mistake["title"] for mistake in paper}
    relative = {mistake["kind"] for mistake in found_in(shaken(model(pos_embed="relative")))}
    assert "Attention" not in relative  # another op computes it
    assert "embed" in relative  # the class token
    narrow = found_in(shaken(model(head_dim=5)))  # NumPy refuses the shapes of a wrong product with `proj`
    assert {mistake["title"] for mistake in narrow if mistake["kind"] == "Linear"} == {
        "the gradient of the bias is a mean over the tokens, not a sum"
    }


def test_the_check_names_what_it_can_recognise(paper: list[Mistake]) -> None:
    sentences = {(mistake["kind"], mistake["title"]): mistake["sentence"] for mistake in paper}
    for kind, title, words in (
        ("LayerNorm", "the term through the variance is missing", "the term through the variance is missing or wrong"),
        ("softmax", "the subtracted sum is missing", "softmax's row sum, the term y * sum(dy * y)"),
        ("Linear", "the weight is not transposed for dx", "a transpose of weight is missing or extra"),
        ("embed", "the gradient of the positions is not summed over the images", "not summed over"),
        ("embed", "the class token has the gradient of the first image alone", "only from index 0 of the output's"),
    ):
        assert words in sentences[kind, title]


def test_what_is_shown_is_the_right_gradient_of_the_trace_beside_the_wrong_one(of_paper: Found) -> None:
    trace, maps, found = of_paper
    by_title = {(mistake["kind"], mistake["title"]): mistake for mistake in found}
    attention = by_title["Attention", "the scale 1/sqrt(K) is missing"]
    record = trace["blocks.0.attn"]
    assert attention["layer"] == "blocks.0.attn"
    arrays = {array["array"]: array for array in attention["arrays"]}
    assert arrays["dx"]["right_norm"] == pytest.approx(np.linalg.norm(record.dx))
    weight = trace["blocks.0.attn.qkv"].dweight
    wrong = weight.copy()
    wrong[:, :12] *= np.sqrt(3)  # the columns of q and k; a head has 3 features
    assert arrays["qkv.dweight"]["right_norm"] == pytest.approx(np.linalg.norm(weight))
    assert arrays["qkv.dweight"]["wrong_norm"] == pytest.approx(np.linalg.norm(wrong))
    cosine = np.vdot(weight, wrong) / np.linalg.norm(weight) / np.linalg.norm(wrong)
    assert arrays["qkv.dweight"]["cosine"] == pytest.approx(cosine)
    verdicts = {row["array"]: row["verdict"] for row in attention["verdict"]}
    assert verdicts["qkv.weight[q]"] == verdicts["qkv.weight[k]"] == "FAILED"
    assert verdicts["qkv.weight[v]"] == "ok"
    index = arrays["qkv.dweight"]["difference"]  # of both arrays, not of their maps
    assert index is not None
    assert maps.table[index]["high"] == pytest.approx(np.abs(wrong - weight).max())
    for mistake in found:
        for array in mistake["arrays"]:
            assert array["right"] is not None
            assert array["wrong"] is not None
            assert maps.table[array["right"]]["rows"] >= 1
            assert array["changed"] == (array["error"] > 0)
            assert (array["difference"] is None) == (array["error"] == float("inf"))
            if not array["changed"]:
                assert array["right"] == array["wrong"]
                assert array["difference"] is not None
                assert maps.table[array["difference"]]["high"] == 0
                assert array["cosine"] in (None, pytest.approx(1))


def test_mistakes_of_sums_over_the_batch_have_two_images(paper: list[Mistake]) -> None:
    (mistake,) = (each for each in paper if each["title"] == "the gradient of the positions is a mean over the images, "
                  "not a sum")  # fmt: skip
    (array,) = (each for each in mistake["arrays"] if each["array"] == "dpos_embed")
    assert array["wrong_norm"] == pytest.approx(array["right_norm"] / 2)
    assert array["cosine"] == pytest.approx(1)


def test_nothing_of_a_mistake_remains() -> None:
    vit = shaken(model("float32"))
    before, values = traced(vit), vit.parameters.store.values.copy()
    typical_mistakes(vit, before)
    after = traced(vit)
    assert np.array_equal(vit.parameters.store.values, values)
    assert not vit.parameters.store.gradients.any()
    for name in before.names:
        for quantity, array in before[name].quantities.items():
            assert np.array_equal(array, after[name].quantities[quantity])


def test_what_prevents_the_mistakes_is_said(paper: list[Mistake], monkeypatch: pytest.MonkeyPatch) -> None:
    vit = shaken(model())
    assert typical_mistakes(vit, traced(vit, statistics=True)) == (
        [], "typical mistakes are left out: the trace has statistics and no arrays",
    )  # fmt: skip
    monkeypatch.setattr(mistakes, "MOST_WORK", 6e5)
    found, note = typical_mistakes(vit, traced(vit))
    names = note.removeprefix("typical mistakes are left out where they take too long: ").split(", ")
    assert {*names, *(mistake["layer"] for mistake in found)} == {mistake["layer"] for mistake in paper}
    assert "blocks.0" in names
    assert not {mistake["layer"] for mistake in found} & set(names)
    assert found

    def no_source(thing: Any) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", no_source)
    assert typical_mistakes(vit, traced(vit)) == (
        [], "typical mistakes are left out: the source files of minivit are not installed",
    )  # fmt: skip


def test_a_class_of_a_users_with_the_name_of_ours_has_no_typical_mistakes() -> None:
    vit = shaken(model())
    other = type("GELU", (GELU,), {})
    vit.blocks[0].mlp.act = other()
    found = {mistake["layer"] for mistake in found_in(vit) if mistake["kind"] == "GELU"}
    assert found == {"blocks.1.mlp.act"}
