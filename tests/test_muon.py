"""Muon against its formula in plain float64 NumPy, matrix by matrix; what it leaves to AdamW; runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from device_run import assert_same_course
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit import AdamW, Muon, UserError, ViT, ViTConfig
from minivit.arrays import Array
from minivit.ops.muon import muon_step, orthogonalized
from minivit.ops.update_rules import Group

pytestmark = pytest.mark.usefixtures("reads_every_third_step")

CONFIG = ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7)
MUON = replace(RECIPE, optimizer="muon")


def vit(dtype: str = "float64") -> ViT:
    return ViT(CONFIG, seed=1, dtype=dtype)


def set_gradients(model: ViT, step: int) -> None:
    for number, parameter in enumerate(model.parameters.values()):
        parameter.grad[...] = 0.1 * normal(parameter.value, 100 * step + number)


def newton_schulz(u: Array) -> Array:
    x = u / (np.sqrt((u**2).sum()) + 1e-7)
    if u.shape[0] > u.shape[1]:
        x = x.T
    for _ in range(5):
        A = x @ x.T
        x = 3.4445 * x + (-4.7750 * A + 2.0315 * A @ A) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def muon(p: Array, gradients: list[Array], lr: float, decay: float, momentum: float) -> Array:
    b = np.zeros_like(p)
    for g in gradients:
        b = momentum * b + g
        x = newton_schulz(g + momentum * b)
        p = p - lr * decay * p
        p = p - lr * 0.2 * max(p.shape) ** 0.5 * x
    return p


@pytest.mark.parametrize("threads", [2, 3, 100])
def test_threads_change_no_bit(threads: int) -> None:
    model, other = vit("float32"), vit("float32")
    one, many = Muon(model, lr=0.01), Muon(other, lr=0.01, threads=threads)
    for step in range(3):
        set_gradients(model, step)
        set_gradients(other, step)
        one.step()
        many.step()
    assert_same_bits([model.parameters.store.values], [other.parameters.store.values])


def test_threads_keep_the_settings_of_the_caller() -> None:
    """Such as what happens at an overflow."""
    model = vit("float32")
    optimizer = Muon(model, threads=2)
    set_gradients(model, 0)
    gradients = model.parameters.store.gradients
    gradients *= np.float32(1e30)
    with np.errstate(over="ignore", invalid="ignore"):
        optimizer.step()
    assert not np.isnan(model.parameters["head.weight"].value).any()


def test_a_failure_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    optimizer = Muon(model, threads=2)
    set_gradients(model, 0)
    caller = current_thread()

    def fails_elsewhere(u: Array) -> Array:
        if current_thread() is not caller:
            raise MemoryError("no memory in the second thread")
        return orthogonalized(u)

    monkeypatch.setattr("minivit.ops.muon.orthogonalized", fails_elsewhere)
    with pytest.raises(MemoryError, match="second thread"):
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_matrices_of_blocks_follow_the_formula_and_all_else_is_that_of_adamw(
    dtype: str, tolerance: float, layer_decay: float
) -> None:
    model, other = vit(dtype), vit(dtype)
    before = {name: value.astype("float64") for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "layer_decay": layer_decay}
    optimizer, adamw = Muon(model, momentum=0.9, **options), AdamW(other, **options)
    gradients: dict[str, list[Array]] = {name: [] for name in before}
    for step in range(4):
        for each in (model, other):
            set_gradients(each, step)
        for name, parameter in model.parameters.items():
            gradients[name].append(parameter.grad.astype("float64"))
        optimizer.step()
        adamw.step()
    rates = {group.name: group.lr for group in optimizer.groups}
    matrices = [name for name in before if name.startswith("blocks.") and before[name].ndim == 2]
    assert len(matrices) == 8
    for name, parameter in model.parameters.items():
        if name not in matrices:
            assert_same_bits([parameter.value], [other.parameters[name].value])
            continue
        count = 3 if "qkv" in name else 1
        expected = [
            muon(p, list(gs), rates[name], 0.3, 0.9)
            for p, *gs in zip(
                np.split(before[name], count, axis=1),
                *(np.split(g, count, axis=1) for g in gradients[name]),
                strict=True,
            )
        ]
        assert_close([parameter.value], [np.concatenate(expected, axis=1)], tolerance)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    U, _, V = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    u = (U * np.geomspace(1.0, 0.02, len(V))) @ V
    x = orthogonalized(u[None])[0]
    values = U.T @ x @ V.T
    assert_close([values], [np.diag(np.diag(values))], 1e-10)
    assert np.diag(values).min() > 0.6
    assert np.diag(values).max() < 1.3


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1e30])
def test_the_size_of_a_gradient_does_not_matter_and_none_gives_nan(scale: float) -> None:
    """Too small or too large for float32 when it is squared, it moves nothing."""
    g = np.random.default_rng(0).standard_normal((1, 4, 6)).astype("float32")
    with np.errstate(over="ignore", under="ignore"):
        x = orthogonalized(np.float32(scale) * g)
    if scale == 1e-3:
        assert_close([x], [orthogonalized(g)], 1e-4)
    else:
        assert np.abs(x).max() < 1e-15


def test_a_pattern_chooses_the_matrices() -> None:
    model, other = vit(), vit()
    before = model.state_dict()
    optimizer = Muon(model, lr=0.1, matrices="head.weight")
    adamw = AdamW(other, lr=0.1)
    for each, rule in ((model, optimizer), (other, adamw)):
        set_gradients(each, 0)
        rule.step()
    differ = {name for name, p in model.parameters.items() if (p.value != other.parameters[name].value).any()}
    assert differ == {"head.weight"}
    Muon(model.parameters.matching("blocks.0.mlp.fc1.weight")).step()  # nothing is left to AdamW
    assert before.keys() == model.state_dict().keys()


def test_the_convolutions_of_a_stem_are_matrices() -> None:
    config = replace(CONFIG, img_size=8, patch_size=4, conv_stem=(3, 5))
    model, other = ViT(config, seed=1, dtype="float64"), ViT(config, seed=1, dtype="float64")
    for each, rule in ((model, Muon(model)), (other, AdamW(other))):
        set_gradients(each, 0)
        rule.step()
    stem = [name for name in model.parameters if name.startswith("patch_embed.")]
    differ = [name for name in stem if (model.parameters[name].value != other.parameters[name].value).any()]
    assert differ == ["patch_embed.convs.0.conv.weight", "patch_embed.convs.1.conv.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; expected a number of at least 0 and below 1"),
        ({"threads": 0}, "threads is 0; expected a whole number of at least 1"),
        (
            {"matrices": ["head.weight", 3]},
            "matrices is ['head.weight', 3]; expected patterns of names such as 'blocks.*.weight'",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        Muon(vit(), **options)
    assert str(raised.value) == message


def test_the_weights_of_other_spans_stay() -> None:
    values, gradients, m = (np.arange(1.0, 31.0) for _ in range(3))
    before = values.copy(), m.copy()
    muon_step(values, gradients, m, (Group(slice(6, 18), 0.1, 0.0, "w", (3, 4)),), lr_scale=1.0, momentum=0.5)
    changed = np.arange(30)[(values != before[0]) | (m != before[1])]
    assert changed.tolist() == list(range(6, 18))
    assert (gradients == np.arange(1.0, 31.0)).all()


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.7, "freeze": ("blocks.0.attn.*",), "ema_decay": 0.5}])
def test_a_killed_run_ends_in_the_same_bits_with_any_number_of_threads(options: dict[str, Any], tmp_path: Path) -> None:
    recipe = replace(MUON, **options)
    whole, killed = run_at(tmp_path / "whole", recipe), run_at(tmp_path / "killed", recipe)
    train(whole, make_dataset(), Listener())
    with pytest.raises(Killed):
        train(killed, make_dataset(), Listener(6, kill), checkpoint_seconds=0.0)
    train(killed, make_dataset(), Listener(), resume=True, threads=2)
    assert bits(killed) == bits(whole)


def test_a_run_on_a_device_takes_the_same_course(tmp_path: Path) -> None:
    runs = [run_at(tmp_path / backend, MUON) for backend in ("numpy", "strict")]
    for run, backend in zip(runs, ("numpy", "strict"), strict=True):
        train(run, make_dataset(), Listener(), backend=backend)
    assert_same_course(runs[1], runs[0], 1e-3)
