"""Images a second of training steps and of prediction: python -m benchmarks.step [PRESET ...] [--batch-size N]

The median and the spread of several timed steps in one process. Compare ratios of one run, not figures of two.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

import minivit


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return seconds


def report(name: str, batch_size: int, threads: int | None, repeats: int) -> None:
    model = minivit.create_model(name)
    config = model.config
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch_size, config.height, config.width, config.in_chans), dtype=np.float32)
    labels = generator.integers(0, config.num_classes, batch_size)
    optimizer = minivit.AdamW(model)
    with minivit.Engine(model, threads) as engine:

        def step() -> None:
            engine.loss_and_gradients(images, labels)
            optimizer.step()

        works: dict[str, Callable[[], object]] = {"training": step, "prediction": lambda: engine.predict(images)}
        for kind, work in works.items():
            rates = [batch_size / seconds for seconds in timed(work, repeats)]
            print(
                f"{name:20} {kind:10} {engine.threads} threads, micro-batch {engine.micro_batch:2}: "
                f"{statistics.median(rates):6.0f} images/s ({min(rates):.0f} to {max(rates):.0f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    presets = ["vit_micro_patch4_8", "vit_mini_patch4_32", "vit_tiny_patch4_32"]
    parser.add_argument("presets", nargs="*", default=presets)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    machine = f"NumPy {np.__version__}, {platform.machine()}"
    print(f"{machine}, batch {options.batch_size}, float32: median (slowest to fastest)")
    for name in options.presets:
        report(name, options.batch_size, options.threads, options.repeats)


if __name__ == "__main__":
    main()
