"""Settings that every test shares."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("contract")

import strict  # noqa: E402 - after the rewriting of asserts

settings.register_profile(
    "minivit", derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("minivit")
strict.register()
