"""Every layer keeps the contract."""

from __future__ import annotations

import pytest
from contract import *  # noqa: F403

from minivit.cases import LAYERS, Case


@pytest.fixture(scope="module", params=LAYERS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
