"""What holds for every test: hypothesis judges by what comes out, never by how long an example took or how slowly it was made.

And the report tells of every test that was measured twice.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.cluster.bounds import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")
