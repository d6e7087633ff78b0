"""The systemd agent: a unit, started and stopped over D-Bus by a process for each action (systemd_unit.py).

Its processes are systemd's, in the unit's own control group, which the guardian knows and ends with the lease
(runtime/units.py). All else is as with an OCF agent.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hasnmp.agents.ocf import OcfAgent

PROGRAM = (sys.executable, "-I", str(Path(__file__).with_name("systemd_unit.py")))


class SystemdAgent(OcfAgent):
    def _program(self, action: str) -> tuple[str, ...]:
        return (*PROGRAM, action, self._service.unit)

    def _environment(self, action: str, limit_s: float, probe: bool) -> dict[str, str]:
        return {}
