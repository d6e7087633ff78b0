"""The passive agent: an outside program starts, stops and watches the service, and reports it up or down
(`hasnmp report`). The engine counts reports and their silence by itself, so that there is nothing to do here."""

from __future__ import annotations

from hasnmp import settings
from hasnmp.agents.checks import Verdict
from hasnmp.agents.host import Host
from hasnmp.core.events import Act, Outcome


class PassiveAgent:
    def __init__(self, service: settings.Service, host: Host) -> None:
        pass

    async def start(self, act: Act) -> Verdict:
        return Verdict(Outcome.OK, "waits for reports")

    async def stop(self, act: Act) -> Verdict:
        return Verdict(Outcome.OK, "its own agent stops it")

    def glance(self, act: Act) -> Verdict | None:
        return Verdict(Outcome.OK, "reported from outside")

    async def check(self, act: Act) -> Verdict:
        return Verdict(Outcome.OK, "reported from outside")
