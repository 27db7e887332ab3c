"""The values that a `Recipe` may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minivit.errors import UserError, did_you_mean
from minivit.nn.pretraining import TASKS
from minivit.ops.auto_augment import BINS
from minivit.ops.mixing import LARGEST_ALPHA
from minivit.train.records import COUNT, LARGEST_SEED, POSITIVE_COUNT, SHARE, Number, short
from minivit.train.schedules import DECAY_SHAPES, SCHEDULES
from minivit.weights.preprocessing import FITS, INTERPOLATIONS

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
AUTO_AUGMENTS = ("trivial", "rand")

_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "decay_shape": DECAY_SHAPES,
    "choose_by": ("accuracy", "loss"),
    "on_nan": ("stop", "rollback"),
    "dtype": ("float32", "float64"),
}
_BELOW_1 = Number(0, math.nextafter(1.0, 0.0))
_REAL = Number(0, float(2**1023))
_POSITIVE = math.nextafter(0.0, 1.0)
_NUMBERS = {
    "epochs": POSITIVE_COUNT,
    "batch_size": POSITIVE_COUNT,
    "lr": _REAL,
    "weight_decay": _REAL,
    "warmup_epochs": _REAL,
    "warmup_steps": COUNT,
    "decay_epochs": _REAL,
    "swa_lr": _REAL,
    "swa_anneal_epochs": COUNT,
    "clip_norm": _REAL,
    "crop_padding": COUNT,
    "rand_ops": COUNT,
    "rand_magnitude": Number(0, BINS - 1, whole=True),
    "color_jitter": SHARE,
    "erase_prob": SHARE,
    "mixup_alpha": Number(0, LARGEST_ALPHA),
    "cutmix_alpha": Number(0, LARGEST_ALPHA),
    "mix_prob": SHARE,
    "augment_ramp": _REAL,
    "augment_off_epochs": COUNT,
    "micro_batch": COUNT,
    "reduction_groups": COUNT,
    "seed": Number(0, LARGEST_SEED, whole=True),
}


def check_recipe(values: Mapping[str, Any]) -> None:
    """Raise UserError, which names the field, if a value is of the wrong kind or out of range, or two contradict.

    `values` are those of all fields, by name.
    """
    for name in ("dataset", "model", *_CHOICES):
        value = values[name]
        _expect(name, value, isinstance(value, str) and value and "\0" not in value, "a text")
    for name in ("model_options", "task_options"):
        _expect(name, values[name], isinstance(values[name], dict), "fields and their values")
    _check_task(values)
    for name, rule in _NUMBERS.items():
        _expect(name, values[name], rule.fits(values[name]), str(rule))
    for name in ("validation", "label_smoothing", "momentum", "muon_momentum", "ema_decay", "swa_start"):
        _expect(name, values[name], _BELOW_1.fits(values[name]), "at least 0 and below 1")
    betas = values["betas"]
    pair = isinstance(betas, tuple) and len(betas) == 2 and all(map(_BELOW_1.fits, betas))
    _expect("betas", betas, pair, "two numbers of at least 0 and below 1")
    fits = Number(_POSITIVE, 1).fits(values["layer_decay"])
    _expect("layer_decay", values["layer_decay"], fits, "a number above 0 and at most 1")
    for name, kind, words in (
        ("freeze", lambda item: isinstance(item, str) and item, "patterns of names"),
        ("mean", Number(0, 1).fits, "numbers from 0 to 1"),
        ("std", Number(_POSITIVE, 1).fits, "numbers above 0 and at most 1"),
        ("resized_crop", Number(_POSITIVE, 1).fits, "numbers above 0 and at most 1"),
    ):
        value = values[name]
        _expect(name, value, isinstance(value, tuple) and all(map(kind, value)), f"a list of {words}")
    mean, std = values["mean"], values["std"]
    if len(mean) != len(std):
        raise UserError(f"mean has {len(mean)} numbers and std {len(std)}; expected one for each channel")
    if values["ema_decay"] and values["swa_start"]:
        raise UserError("ema_decay and swa_start are two averages; a run has one of them")
    crop = values["resized_crop"]
    _expect("resized_crop", crop, not crop or (len(crop) == 2 and crop[0] <= crop[1]), "two numbers, or none")
    if crop and values["crop_padding"]:
        raise UserError("resized_crop and crop_padding are two crops; a run has one of them")
    for name, of_images in (
        ("crop_mode", tuple(FITS)),
        ("interpolation", INTERPOLATIONS),
        ("auto_augment", AUTO_AUGMENTS),
    ):
        value = values[name]
        _expect(name, value, value in ("", *of_images), f"one of {', '.join(of_images)}")
    _expect("crop_pct", values["crop_pct"], Number(0, 1).fits(values["crop_pct"]), "a number from 0 to 1")
    _expect("init", values["init"], isinstance(values["init"], str), "the fingerprint of a model file")
    _expect("flip", values["flip"], isinstance(values["flip"], bool), "true or false")
    for name, allowed in _CHOICES.items():
        value = values[name]
        _expect(name, value, value in allowed, f"one of {', '.join(allowed)};{did_you_mean(value, allowed)}")


def _check_task(values: Mapping[str, Any]) -> None:
    """Check the fields of pre-training: it has no labels to smooth or to mix."""
    task = values["task"]
    _expect("task", task, task in ("", *TASKS), f"one of {', '.join(TASKS)}")
    if not task and values["task_options"]:
        raise UserError("task_options belong to a task; give one, such as mae")
    of_labels = ("label_smoothing", "mixup_alpha", "cutmix_alpha", "init")
    if task and (given := [name for name in of_labels if values[name]]):
        raise UserError(f"{', '.join(given)} cannot be used with the task {task}")


def _expect(name: str, value: Any, fits: object, expected: str) -> None:
    if not fits:
        shown = short(list(value) if isinstance(value, tuple) else value)
        raise UserError(f"{name} is {shown}; expected {expected}".rstrip(";"))
