"""The marker of tests that need forked processes."""

from __future__ import annotations

import pytest

from minivit.engine import worker_pool

needs_fork = pytest.mark.skipif(not worker_pool.can_fork(), reason="this system, or this process, cannot fork")
