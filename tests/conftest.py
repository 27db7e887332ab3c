"""Settings that every test shares."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("contract")

import devices  # noqa: E402 - after the rewriting of asserts
import strict  # noqa: E402 - as above
from small_vit import needs_fork  # noqa: E402 - as above

from minivit import team  # noqa: E402 - as above

settings.register_profile(
    "minivit", derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("minivit")
strict.register()
devices.register_kernels()


@pytest.fixture(params=[pytest.param("processes", marks=needs_fork), "threads"])
def members(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an engine's workers beside the caller are; threads where a system cannot fork."""
    if request.param == "threads":
        monkeypatch.setattr(team, "can_fork", lambda: False)
    return str(request.param)
