"""What most tests of the agent process begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snmp.snmp_lab import FakeEngine, a_view


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    """An engine where a_config(tmp_path) says that it is, with a_view()."""
    engine = FakeEngine(tmp_path / "control.sock", a_view())
    yield engine
    engine.stop()
