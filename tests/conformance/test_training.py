"""Optimiser groups, averages and schedules beside timm's and PyTorch's own.

pip install 'minivit[test,conformance]'
pytest tests/conformance/test_training.py -m conformance
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from minivit import ViT, ViTConfig
from minivit.nn.store import FlatStore
from minivit.train import learning_rate
from minivit.train.averaging import Averaging
from minivit.train.groups import parameter_groups
from minivit.train.recipe import Recipe

pytestmark = pytest.mark.conformance

RECIPE = Recipe("digits", "vit_nano_patch4_8")
SIZES: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.mark.parametrize(
    "options",
    [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}],
    ids=["class token", "mean", "no class token"],
)
def test_layer_decay_gives_each_parameter_timm_s_rate_and_weight_decay(options: dict[str, Any], timm: Any) -> None:
    from timm.optim import param_groups_layer_decay

    theirs = timm.models.vision_transformer.VisionTransformer(**SIZES, **options)
    named = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        named[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(theirs, 0.3, theirs.no_weight_decay(), layer_decay=0.7)
        for parameter in group["params"]
    }
    ours = {
        group.name: (pytest.approx(group.lr), group.weight_decay)
        for group in parameter_groups(ViT(ViTConfig(**SIZES, **options)), 1.0, 0.3, layer_decay=0.7)
    }
    assert ours == expected


def test_polyak_averaging_is_that_of_pytorch(torch: Any) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averaged = partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    compare_averages(torch, replace(RECIPE, ema_decay=0.9), averaged)


def test_polyak_averaging_is_that_of_timm(torch: Any, timm: Any) -> None:
    theirs = torch.nn.Linear(3, 5, bias=False).double()
    ours = FlatStore(theirs.weight.detach().numpy().reshape(-1).copy())
    ema, averaging = timm.utils.ModelEmaV3(theirs, decay=0.9), Averaging(ours, replace(RECIPE, ema_decay=0.9))
    averaging.begin()
    for seed in range(5):
        set_weights(torch, theirs, ours, seed)
        ema.update(theirs)
        averaging.after_step()
    expected = ema.module.weight.detach().numpy().ravel()
    np.testing.assert_allclose(averaging.state()["average"], expected, rtol=1e-13, atol=1e-15)


def test_stochastic_weight_averaging_is_that_of_pytorch(torch: Any) -> None:
    from torch.optim.swa_utils import AveragedModel

    compare_averages(torch, replace(RECIPE, epochs=12, swa_start=0.5), AveragedModel)


def compare_averages(torch: Any, recipe: Recipe, averaged: Callable[[Any], Any]) -> None:
    """Compare the averages of random weights; PyTorch's begins with the first weights that it is given."""
    theirs = torch.nn.Linear(3, 5, bias=False).double()
    ours = FlatStore(theirs.weight.detach().numpy().reshape(-1).copy())
    average, averaging = averaged(theirs), Averaging(ours, recipe)
    if recipe.ema_decay:
        average.update_parameters(theirs)
    averaging.begin()
    for epoch in range(recipe.swa_epochs_before + 1, recipe.epochs + 1):
        set_weights(torch, theirs, ours, epoch)
        average.update_parameters(theirs)
        averaging.after_step()
        averaging.after_epoch(epoch)
    expected = average.module.weight.detach().numpy().ravel()
    np.testing.assert_allclose(averaging.state()["average"], expected, rtol=1e-13, atol=1e-15)


def set_weights(torch: Any, theirs: Any, ours: FlatStore, seed: int) -> None:
    ours.values[:] = np.random.default_rng(seed).normal(size=ours.values.shape)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(ours.values.reshape(5, 3)))


@pytest.mark.parametrize(("steps", "warmup"), [(100, 30), (37, 5), (10, 2)])
def test_one_cycle_is_that_of_pytorch(steps: int, warmup: int, torch: Any) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.7, total_steps=steps, pct_start=warmup / steps, cycle_momentum=False
    )
    expected = rates_of(optimizer, scheduler, steps)
    assert [learning_rate(step, steps, 0.7, warmup, "onecycle") for step in range(steps)] == pytest.approx(expected)


@pytest.mark.parametrize("anneal_epochs", [0, 1, 3, 10])
def test_the_rate_of_weight_averaging_is_that_of_pytorch(anneal_epochs: int, torch: Any) -> None:
    recipe = replace(
        RECIPE, epochs=16, lr=0.3, schedule="constant", warmup_epochs=0.0,
        swa_start=0.5, swa_lr=0.05, swa_anneal_epochs=anneal_epochs,
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=anneal_epochs)
    expected = rates_of(optimizer, scheduler, 8)
    assert [recipe.learning_rate(step, steps_per_epoch=1) for step in range(8, 16)] == pytest.approx(expected)


def rates_of(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    """Return the rate of each step; the scheduler is asked for one rate less than there are steps."""
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates
