"""Convolutions beside PyTorch: python -m benchmarks.convolution [--threads N] [--batch-size N] [--json FILE]

Forward and backward pass of the standardised convolutions of the ResNet that feeds a hybrid, at the shapes of the stem
and of the first block of each stage for images of 224 pixels, in float32. PyTorch computes on channels_last and on its
own layout, of which the faster counts. minivit's images are divided among threads, as a training step divides them
among workers. The speed is PyTorch's time over minivit's.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell, write_json
from benchmarks.ratios import ratio_of_times
from benchmarks.report import heading, records_table, surroundings
from benchmarks.systems import versions
from minivit.arrays import Array
from minivit.engine.machine import cores, keeping_freed_pages, single_threaded_blas
from minivit.engine.threads import on_threads
from minivit.nn.std_convolution import StdConvolution, padding_of

# Side of the images, channels before and after, kernel, stride.
SHAPES = (
    (224, 3, 64, 7, 2),
    (56, 64, 64, 1, 1),
    (56, 64, 64, 3, 1),
    (56, 64, 256, 1, 1),
    (56, 256, 128, 1, 1),
    (56, 128, 128, 3, 2),
    (28, 128, 512, 1, 1),
    (28, 256, 256, 3, 2),
    (14, 256, 1024, 1, 1),
    (14, 512, 512, 3, 2),
    (7, 512, 2048, 1, 1),
)
_REPEATS = 3  # steps of each in a round


def ours(side: int, C: int, D: int, kernel: int, stride: int, x: Array, dy: Array, threads: int) -> Callable[[], Array]:
    """Return a function that computes the passes of minivit, and returns the gradient of the images."""
    parts = [part for part in np.array_split(np.arange(len(x)), threads) if len(part)]
    layers = [StdConvolution(C, D, kernel, stride).initialize(seed=0, dtype="float32") for _ in parts]
    dx = np.empty_like(x)

    def run(number: int) -> None:
        part, layer = slice(parts[number][0], parts[number][-1] + 1), layers[number]
        _, cache = layer.forward(x[part])
        dx[part] = layer.backward(dy[part], cache)

    def step() -> Array:
        with single_threaded_blas():
            on_threads(run, len(parts))
        return dx

    return step


def theirs(
    side: int, C: int, D: int, kernel: int, stride: int, x: Array, dy: Array, channels_last: bool
) -> Callable[[], Array]:
    """Return a function that computes the passes of PyTorch on one of its layouts, and returns the same gradient."""
    import torch

    layer = StdConvolution(C, D, kernel, stride).initialize(seed=0, dtype="float32")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    (top, bottom), (left, right) = padding_of((side, side), kernel, stride, "same")
    images, gradient = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (x, dy))
    images = torch.nn.functional.pad(images, (left, right, top, bottom)).contiguous(memory_format=layout)
    gradient = gradient.contiguous(memory_format=layout)
    weight = torch.from_numpy(layer.weight.value.reshape(kernel, kernel, C, D)).permute(3, 2, 0, 1)
    weight = weight.contiguous(memory_format=layout).requires_grad_()
    images.requires_grad_()

    def step() -> Array:
        images.grad = weight.grad = None
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        standardized = (weight - mean) * torch.rsqrt(variance + layer.eps)
        torch.nn.functional.conv2d(images, standardized, stride=stride).backward(gradient)
        assert images.grad is not None
        dx: Array = images.grad[:, :, top : top + side, left : left + side].permute(0, 2, 3, 1).numpy()
        return dx

    return step


def measure(batch_size: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each shape."""
    rows = []
    generator = np.random.default_rng(0)
    for side, C, D, kernel, stride in SHAPES:
        x = generator.standard_normal((batch_size, side, side, C), dtype=np.float32)
        dy = generator.standard_normal((batch_size, -(-side // stride), -(-side // stride), D), dtype=np.float32)
        shape = side, C, D, kernel, stride, x, dy
        steps = [ours(*shape, threads), theirs(*shape, True), theirs(*shape, False)]
        expected, *others = (step() for step in steps)
        for other in others:
            np.testing.assert_allclose(other, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
        seconds: list[list[list[float]]] = [[] for _ in steps]
        draw = random.Random(0)
        with keeping_freed_pages():
            for _ in range(rounds):
                for i in draw.sample(range(len(steps)), len(steps)):
                    seconds[i].append([_timed(steps[i]) for _ in range(_REPEATS)])
        mine, *layouts = seconds
        fastest = min(layouts, key=lambda own: statistics.median(map(statistics.median, own)))
        ratio = ratio_of_times(mine, fastest)
        flops = 6.0 * dy[..., 0].size * kernel * kernel * C * D
        median = statistics.median(map(statistics.median, mine))
        rows.append(
            {
                "convolution": f"{kernel} x {kernel}{' / 2' * (stride == 2)}, {C} to {D}",
                "images": f"{side} x {side}",
                "ms": 1e3 * median,
                "GFLOP/s": 1e-9 * flops / median,
                "speed": f"{ratio.of_medians:.2f}",
                "95 % interval": ratio.interval_text,
            }
        )
        tell(f"{rows[-1]['convolution']}: {rows[-1]['speed']}")
    return rows


def _timed(step: Callable[[], Array]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write its numbers where --json says."""
    import torch

    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=at_least_one, default=cores(), help="default: the machine's")
    parser.add_argument("--batch-size", type=at_least_one, default=8, help="default: 8")
    parser.add_argument("--rounds", type=at_least_one, default=7, help="default: 7")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    torch.set_num_threads(options.threads)
    where, used = surroundings(options.threads), {**versions(), "torch": torch.__version__}
    rows = measure(options.batch_size, options.threads, options.rounds)
    print(f"forward and backward, batch {options.batch_size}, {options.threads} threads\n")
    print(records_table(rows) + "\n")
    print(heading(where, used, 1, f"one process, {options.rounds} rounds in turn"))
    write_json(options.json, {"surroundings": where, "versions": used, "convolutions": rows})


if __name__ == "__main__":
    sys.exit(ended(main))
