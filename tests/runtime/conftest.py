"""The log is one for a whole process: what one test sets up must not write where the next one listens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from hasnmp.runtime import processes


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    processes._logger = None
