"""What every test here gets: a log of its own, and, among real daemons, eyes for what they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from hasnmp.runtime import processes
from tests.cluster.control import attentive, control


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """The log is one for a whole process: what one test sets up must not write where the next one listens."""
    yield
    structlog.reset_defaults()
    processes._logger = None


@pytest.fixture(autouse=True)
def watching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests with real daemons say when something was over: they must not be told late themselves."""
    if not request.node.get_closest_marker("serial"):
        yield
        return
    control()  # it must have been there before anything is judged by it
    with attentive():
        yield
