"""What every test here gets: a log of its own, and, among real daemons, eyes for what they do."""

from __future__ import annotations

import gc
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
def collector_as_it_was() -> Iterator[None]:
    """An engine's loop turns the garbage collector off and freezes what there is, for its process has nothing else to do. In a test it
    is the process of all tests that follow: nothing that lies in a circle would ever be closed there, nor what waits for that end."""
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture(autouse=True)
def watching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests with real daemons say when something was over: they must not be told late themselves."""
    if not request.node.get_closest_marker("serial"):
        yield
        return
    control()  # it must have been there before anything is judged by it
    with attentive():
        yield
