"""The layout of our own files of models for masked pre-training, of which `load_model` reads the encoder.

The tensors have the names and shapes of ``state_dict()``; those of the encoder begin with ``encoder.``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from minivit.arrays import Array
from minivit.nn.vit import ViT
from minivit.weights.deduce import expect_axes
from minivit.weights.entries import Entry, same
from minivit.weights.layout import Layout, WeightsFile

ENCODER = "encoder."
_HEAD = ("head.", "pre_logits.")  # which pre-training does not use
_PATCH = "patch_embed.proj.weight"


class MaskedLayout(Layout):
    """The encoder, without a head, in a file that `save_masked_model` wrote."""

    name = "masked"
    program = "minivit"
    always: ClassVar[Mapping[str, Any]] = {"num_classes": 0, "representation_size": 0}

    def recognises(self, names: Collection[str]) -> bool:
        """Return False: the metadata of the file name its layout."""
        return False

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors of the encoder alone."""
        bare = {name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)}
        return {name: value for name, value in bare.items() if not name.startswith(_HEAD)}

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the width and the number of blocks; `check_shapes` compares the others."""
        shapes = file.shapes
        expect_axes(file, self.program, shapes, {_PATCH: 2})
        blocks = {match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
        return {"embed_dim": shapes[_PATCH][1], "depth": len(blocks)}

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: the configuration is part of the file."""
        return {}

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter, which is equal in the file."""
        return [same(name) for name in model.declared()]
