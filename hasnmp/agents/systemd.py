"""The systemd agent: a unit, started and stopped over D-Bus by a process for each action (systemd_unit.py).

Its processes are systemd's, in the unit's own control group, which the guardian knows and ends with the lease
(runtime/units.py). All else is as with an OCF agent.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hasnmp import settings
from hasnmp.agents import systemd_files
from hasnmp.agents.host import Host
from hasnmp.agents.ocf import OcfAgent
from hasnmp.runtime.cgroups import find_mount
from hasnmp.runtime.units import leave_of

PROGRAM = (sys.executable, "-I", str(Path(__file__).with_name("systemd_unit.py")))


class SystemdAgent(OcfAgent):
    def __init__(self, service: settings.Service, host: Host) -> None:
        super().__init__(service, host)
        self._mount = find_mount()
        if link := systemd_files.enabled_by(service.unit):
            host.log.warning(
                "unit_enabled_at_boot", service=service.name, link=link, next=f"systemctl disable {service.unit}"
            )

    def _program(self, action: str) -> tuple[str, ...]:
        return (*PROGRAM, action, self._service.unit)

    def _environment(self, action: str, limit_s: float, probe: bool) -> dict[str, str]:
        leave = leave_of(self._host.here.run_dir, self._host.here.node, self._service.unit)
        asks = {"HASNMP_PROBE": "1"} if probe else {}
        return {"HASNMP_UNIT_LEAVE": str(leave), "HASNMP_CGROUPS": str(self._mount or ""), **asks}
