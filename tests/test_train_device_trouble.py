"""Errors of training on a device, a loss that is not finite or too little memory, and how each run is resumed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_run import assert_same_course, trainer
from devices import needs_kernels
from small_run import RECIPE, Listener, ask_to_stop, make_dataset, run_at, stopped_run, train

from minivit import RunError, ViT, load_model
from minivit.arrays import to_host
from minivit.data.batches import batches
from minivit.engine.micro_batches import forward_backward
from minivit.train import step
from minivit.train.interrupt import Interrupted
from minivit.train.memory import OutOfMemoryError, images_that_fit
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("reads_every_third_step")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("lr", [1e30, 1e12])
def test_the_first_loss_that_is_not_finite_is_named_as_on_the_host(
    tmp_path: Path, lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_READ_EVERY", 100)
    said = []
    for backend in ("numpy", "strict"):
        run = run_at(tmp_path / backend, replace(RECIPE, lr=lr, optimizer="sgd", clip_norm=0.0))
        with pytest.raises(RunError, match=r"not finite at step \d+") as raised:
            train(run, make_dataset(), Listener(), backend=backend, checkpoint_seconds=1e9)
        said.append(str(raised.value).replace(backend, ""))
        for value in load_model(run.path / "last").state_dict().values():
            assert np.isfinite(value).all()
    assert said[0] == said[1]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_nothing_is_updated_from_the_first_step_on_that_is_not_finite(tmp_path: Path) -> None:
    of = trainer(tmp_path / "run")
    samples = list(batches(of.data_loader.order(0), 8))
    of._step(samples[0])
    store = of.model.parameters.store
    of.data_loader._scale[...] = float("inf")
    before = to_host(store.values), of.optimizer.state()
    of._step(samples[1])
    of.data_loader._scale[...] = 1.0
    of._step(samples[2])
    np.testing.assert_array_equal(to_host(store.values), before[0])
    for name, vector in of.optimizer.state().items():
        np.testing.assert_array_equal(vector, before[1][name])
    assert [step.stopped for step in of.train_step.metrics.read()] == [False, True, True]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_no_checkpoint_follows_a_step_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = trainer(tmp_path / "run")
    real = of.data_loader.batch

    def batch(samples: Any, step: int, dtype: Any) -> Any:
        made = real(samples, step, dtype)
        if step == 5:
            made[0][0] *= float("nan")
        return made

    monkeypatch.setattr(of.data_loader, "batch", batch)
    with pytest.raises(RunError, match="not finite at step 6: the images themselves hold NaN"):
        of.fit(Listener(), False, 0.0)  # a checkpoint after every step
    assert of.run.load_state(of.model, of.optimizer, of.fingerprint, of.averaging).step == 5


def test_the_first_gradient_that_is_not_finite_is_named_although_later_steps_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = trainer(tmp_path / "run")
    real = of.engine.training_step

    def overflow(images: Any, labels: Any, key: Any, *rest: Any) -> Any:
        came = real(images, labels, key, *rest)
        if key.step == 1:
            of.model.parameters["blocks.1.norm2.weight"].grad[...] = float("inf")
        return came

    monkeypatch.setattr(of.engine, "training_step", overflow)
    with pytest.raises(RunError, match=r"not finite at step 2: .* in the gradient of blocks\.1\.norm2\.weight"):
        of.fit(Listener(), False, 1e9)


def test_too_little_memory_for_the_model_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivit.train.training.DataLoader", out_of_memory)
    monkeypatch.setattr("minivit.train.memory.free_memory", lambda library: 3 << 20)
    with pytest.raises(OutOfMemoryError, match=r"before the first step; 3 MiB are free\. Take a smaller --model"):
        trainer(tmp_path / "run")


def test_out_of_memory_says_what_fits_and_the_advice_works(
    tmp_path: Path, on_host: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This device holds the activations of five images; those of a failed step must be freed before the advice."""
    of = trainer(tmp_path / "run")
    held: list[Any] = []

    def free_memory(library: Any) -> int:
        assert held.pop()() is None
        return 5 * of.bytes_per_image

    monkeypatch.setattr("minivit.train.memory.free_memory", free_memory)

    def limited(replica: Any, batch: Any, options: Any, parts: Any, index: int) -> None:
        if options.rng.step >= 5 and parts[index].stop - parts[index].start > 5:
            activations = options.rng.bits((8, 3))
            held.append(weakref.ref(activations))
            raise MemoryError("Out of memory allocating 1,024 bytes")
        forward_backward(replica, batch, options, parts, index)

    monkeypatch.setattr("minivit.engine.micro_batches.forward_backward", limited)
    with pytest.raises(OutOfMemoryError) as raised:
        of.fit(Listener(), False, 1e9)
    assert raised.value.micro_batch == 4
    words = str(raised.value)
    assert "ran out of memory at step 6, taking 8 images at a time" in words
    assert "--micro-batch 4 cuts each step into such pieces" in words
    assert str(of.run.path / "last") in words
    listener = Listener()
    train(of.run, make_dataset(), listener, resume=True, backend="strict", micro_batch=4)
    assert listener.started_with[0] == 4
    assert_same_course(of.run, on_host)


def test_out_of_memory_with_one_image_gives_other_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = trainer(tmp_path / "run", micro_batch=1)
    monkeypatch.setattr(of.engine, "training_step", out_of_memory)
    with pytest.raises(OutOfMemoryError, match=r"at step 1, .* or with --backend numpy; a new run can") as raised:
        of.fit(Listener(), False, 1e9)
    assert raised.value.micro_batch is None


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError("Out of memory allocating 1,024 bytes")


@pytest.mark.parametrize(
    "place",
    [
        "train.step.DataLoader.order",
        "train.step.MetricsBuffer.read",
        "train.optimizers.AdamW.state",
        "train.run_folder.load_model",
    ],
)
def test_too_little_memory_outside_of_a_step_says_how_to_go_on(
    tmp_path: Path, on_host: RunFolder, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = trainer(tmp_path / "run")
    with pytest.raises(Interrupted):
        of.fit(Listener(2, ask_to_stop), False, 1e9)
    of = Trainer(of.run, make_dataset(), backend="strict")
    with monkeypatch.context() as patch:
        patch.setattr(f"minivit.{place}", out_of_memory)
        with pytest.raises(OutOfMemoryError, match=r"outside of a step.*run/last, and --resume goes on") as raised:
            of.fit(Listener(), True, 1e9)
    assert raised.value.micro_batch is None
    train(of.run, make_dataset(), Listener(), resume=True, backend="strict")
    assert_same_course(of.run, on_host)


def test_too_little_memory_for_a_run_from_another_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_run(tmp_path / "run")
    monkeypatch.setattr("minivit.train.training.DataLoader", out_of_memory)
    with pytest.raises(
        OutOfMemoryError, match=r"before the first step\. .* --resume goes on .* --backend numpy"
    ) as raised:
        Trainer(run, make_dataset(), backend="strict")
    assert "Take a smaller" not in str(raised.value)


def test_too_little_memory_for_an_evaluation_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivit.train.training.score", out_of_memory)
    monkeypatch.setattr("minivit.train.trainer.DEVICE_BATCH", 5)
    for micro_batch, words in ((None, "taking 5 images at a time. About 2"), (4, "taking 4 images at a time. About 2")):
        of = trainer(tmp_path / f"run{micro_batch}", micro_batch=micro_batch)
        monkeypatch.setattr("minivit.train.memory.free_memory", lambda library, of=of: 3 * of.bytes_per_image)
        with pytest.raises(OutOfMemoryError, match="on the validation images after step 4") as raised:
            of.fit(Listener(), False, 1e9)
        assert words in str(raised.value).replace("; 0 MiB are free without them", "")


class SmallDevice:
    """A device with memory for the activations of three images; with ``predicts=False`` prediction fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, predicts: bool = True) -> None:
        forward = ViT.forward

        def checked(model: ViT, x: Any, rng: Any = None, keep: bool = True) -> Any:
            return out_of_memory() if len(x) > 3 or (not predicts and not keep) else forward(model, x, rng, keep)

        monkeypatch.setattr(ViT, "forward", checked)


DIVERGING = replace(RECIPE, lr=1e30, optimizer="sgd", clip_norm=0.0)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_device_that_needs_micro_batches_says_where_a_loss_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(monkeypatch)
    of = trainer(tmp_path / "run", DIVERGING, micro_batch=3)
    with pytest.raises(RunError, match=r"not finite at step \d+: it shows first in the result of ") as raised:
        of.fit(Listener(), False, 1e9)
    assert "a new run with a smaller --lr often helps" in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_too_little_memory_does_not_hide_that_a_loss_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(monkeypatch, predicts=False)
    of = trainer(tmp_path / "run", DIVERGING, micro_batch=3)
    with pytest.raises(
        RunError, match=r"not finite at step \d+: there is too little memory to find out where\. The last"
    ):
        of.fit(Listener(), False, 1e9)


def in_the_parameters(of: Trainer, name: str, value: float) -> Callable[[], None]:
    """Return a function that makes a parameter so large that a later step or evaluation overflows."""

    def fill() -> None:
        of.model.parameters[name].value[...] = value

    return fill


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("at", [3, 4], ids=["a step", "an evaluation"])
@pytest.mark.parametrize("micro_batch", [2, 3])
def test_the_layer_is_named_on_a_device_that_needs_micro_batches(
    tmp_path: Path, at: int, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(monkeypatch)
    of = trainer(tmp_path / "run", micro_batch=micro_batch)
    with pytest.raises(RunError, match=r"at step 4: .*it shows first in the result of blocks\.0\.norm2\."):
        of.fit(Listener(at, in_the_parameters(of, "blocks.0.norm2.weight", 3e38)), False, 1e9)


@needs_kernels
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    ("parameter", "value", "where"),
    [
        ("blocks.1.mlp.fc2.bias", 1e5, "the parameter blocks.1.mlp.fc2.bias holds NaN or infinity"),
        ("blocks.0.norm2.weight", 6e4, "it shows first in the result of blocks.0.norm2"),
    ],
)
@pytest.mark.parametrize(("at", "when"), [(3, "at step 4: "), (4, "at step 4: on the validation images after it, ")])
def test_float16_names_what_is_too_large_for_it(
    tmp_path: Path, parameter: str, value: float, where: str, at: int, when: str
) -> None:
    of = trainer(tmp_path / "run", precision="float16")
    with pytest.raises(RunError, match=f"not finite {when}{where}") as raised:
        of.fit(Listener(at, in_the_parameters(of, parameter, value)), False, 1e9)
    assert "float16 holds nothing above 65504, while bfloat16 does: --resume --precision bfloat16 (or" in str(
        raised.value
    )


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = trainer(tmp_path / "run")

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(of.engine, "training_step", broken)
    with pytest.raises(ZeroDivisionError):
        of.fit(Listener(), False, 1e9)


@pytest.mark.parametrize(
    ("tried", "per_image", "free", "expected"),
    [
        (256, 10, 10_000, 128),  # half of what did not fit, although more would fit by the estimate
        (256, 10, 1000, 64),
        (256, 10, 640, 64),
        (256, 10, 639, 32),
        (256, 10, 10, 1),
        (256, 10, 9, None),
        (100, 10, None, 32),
        (2, 10, None, 1),
        (1, 10, 1000, None),
        (0, 10, 1000, None),
    ],
)
def test_images_that_fit(tried: int, per_image: int, free: int | None, expected: int | None) -> None:
    assert images_that_fit(tried, per_image, free) == expected
