"""Parameters that stay as they are: gradients of zero, and updates of zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minivit.train.symptoms.common import BLOCK, Line, Watched, gradient_norm, innermost, listed

_FACTORS = ("weight", "gamma")


def dead(lines: Sequence[Line], watched: Watched) -> Iterator[tuple[str, str]]:
    """Gradients that stay exactly zero. The head of zeros of a new model stops them at the first step alone."""
    line = lines[-1]
    if len(lines) == 1:
        return
    zero = [name for name in watched.trained if all(gradient_norm(each, name) == 0 for each in lines[-2:])]
    by_layer: dict[str, list[str]] = {}
    for name in zero:
        block = BLOCK.match(name)
        parts = block[0].count(".") + 1 if block else 1 + name.startswith("encoder.")  # of the name of a layer
        by_layer.setdefault(".".join(name.split(".")[:parts]), []).append(name)
    causes: dict[str, list[str]] = {}
    for layer in by_layer:
        causes.setdefault(_cause_of_zero(line, layer), []).append(layer)
    for cause, layers in causes.items():
        names = [name for layer in layers for name in by_layer[layer]]
        yield (
            f"dead {cause}",
            f"step {line['step']}: the gradient of {listed(names)} is exactly zero, as at step {lines[-2]['step']}: "
            f"{cause}",
        )


def _cause_of_zero(line: Line, layer: str) -> str:
    """Return why the gradients in a layer, such as "blocks.1.mlp", may be zero."""
    block = BLOCK.match(layer)
    place = block[0] if block else layer
    # A factor of zeros; biases and tokens are none.
    silent = [name for name, of in line["parameters"].items() if of["value"] == 0 and name.endswith(_FACTORS)]
    dead = [name for name, of in line["activations"].items() if of["zeros"] == 1.0]
    for within in (place, ""):
        if names := [name for name in silent if name.startswith(within)]:
            return f"{names[0]} is zero, and stops the gradient"
        if names := [name for name in dead if name.startswith(within)]:
            return (
                f"the result of {innermost(names)} is zero for every image, so the layer is dead; a bias before it "
                "that is far below zero, or a step that was too large"
            )
    return "the backward pass does not reach it, or does not add to its gradient"


def frozen(lines: Sequence[Line], watched: Watched) -> Iterator[tuple[str, str]]:
    """Parameters that do not change, and are not named by `Recipe.freeze`."""
    line = lines[-1]
    every = watched.model.parameters
    asked = every.matching(*watched.recipe.freeze) if watched.recipe.freeze else {}
    left_out = [name for name in every if name not in watched.trained and name not in asked]
    if left_out:
        yield (
            "frozen groups",
            f"step {line['step']}: {listed(left_out)} is not trained, although --freeze does not name it: it is in no "
            "group of the optimizer that has a learning rate",
        )
    if len(lines) == 1:
        return
    still = [
        name
        for name in watched.trained
        if name in line["parameters"] and all(_is_still(each, name) for each in lines[-2:])
    ]
    if still:
        norm = gradient_norm(line, still[0])
        yield (
            "frozen",
            f"step {line['step']}: {listed(still)} does not change although its gradient has the norm {norm:.3g}: "
            "something sets it back after each step, its optimizer leaves it out, or the learning rate "
            f"({line['learning_rate']:.3g}) is too small for a change in {watched.model.parameters.store.values.dtype}",
        )


def _is_still(line: Line, name: str) -> bool:
    return line["parameters"][name]["update"] == 0 and bool(gradient_norm(line, name)) and bool(line["learning_rate"])
