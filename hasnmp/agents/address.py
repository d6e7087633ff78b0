"""The address agent: an IP address that moves with its group. The guardian adds and removes it, bound to the lease; here
it is announced to the neighbours, and the interface is checked.

Options: ip ("192.0.2.100/24"), interface, reach (optional addresses). With `reach:` the check also wants an answer, by
ARP or neighbour discovery, from *one* of the addresses named: it tells the loss of the clients' network from the loss
of one router. A node that does not own the group does the same check without the address, so that the group only moves
to where the clients are. What is sent to the address after it has gone is kept for the next owner (holding.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from hasnmp import settings
from hasnmp.agents import neighbours
from hasnmp.agents.checks import Verdict
from hasnmp.agents.holding import Holding
from hasnmp.agents.host import Host
from hasnmp.core.events import Act, Outcome
from hasnmp.runtime.messages import AddressOp, HeldAddress

ANNOUNCE_AT_S = (0.0, 1.0, 3.0)  # again, for a switch port or a client that was not ready for the first one


class AddressAgent:
    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host = service, host
        self._ip, self._prefix = _address(service.options)
        self._interface = str(service.options["interface"])
        self._reach = tuple(ipaddress.ip_address(str(ip)) for ip in service.options.get("reach") or ())
        self._neighbours = neighbours.Neighbours()
        self._holding = Holding(self._ip)
        self._up = False
        self._announcements: list[asyncio.TimerHandle] = []
        self._had_carrier = True
        host.on_address_lost(service.name, self._lost)

    def adopt(self, _: HeldAddress) -> None:
        """The guardian still holds it from before this engine's start. The engine before may have died after it was added and
        before it was announced: without a word the clients would stay with the former owner for as long as they remember it."""
        self._up = True
        self._announce()

    async def start(self, act: Act) -> Verdict:
        self._holding.end()
        done = await self._host.address(self._service, AddressOp.ADD, str(self._ip), self._prefix, self._interface)
        if not done.ok:
            outcome = Outcome.REFUSED if done.text.startswith("refused") else Outcome.FAILED
            return Verdict(outcome, f"{self._ip} on {self._interface}: {done.text}")
        self._up = True
        self._announce()
        return Verdict(Outcome.OK, f"{self._ip} is on {self._interface}")

    async def stop(self, act: Act) -> Verdict:
        was_up, self._up = self._up, False
        self._stop_announcing()
        if was_up:
            self._hold()
        done = await self._host.address(self._service, AddressOp.REMOVE, str(self._ip), self._prefix, self._interface)
        self._holding.forget()
        if not done.ok:
            self._holding.end()
            return Verdict(Outcome.FAILED, f"{self._ip} on {self._interface}: {done.text}")
        return Verdict(Outcome.OK, f"{self._ip} is off {self._interface}")

    def glance(self, act: Act) -> Verdict | None:
        try:
            where = neighbours.interface(self._interface)
        except OSError as error:
            return Verdict(Outcome.FAILED, f"{self._interface}: {error.strerror}")
        if not where.running:
            self._had_carrier = False
            return Verdict(Outcome.FAILED, f"{self._interface}: {'no carrier' if where.up else 'is set down'}")
        if act.owned:
            if not self._up or not neighbours.present(self._ip, where.number):
                return Verdict(Outcome.NOT_RUNNING, f"{self._ip} is not on {self._interface}")
            if not self._had_carrier:
                self._announce()  # a switch may have forgotten us while the cable was out
        self._had_carrier = True
        if not self._reach:
            return Verdict(Outcome.OK, f"{self._interface} has a carrier")
        if not where.mac:
            return Verdict(Outcome.FAILED, f"{self._interface} is no Ethernet: nobody can be asked by ARP or ND")
        return None

    async def check(self, act: Act) -> Verdict:
        """Ask the neighbours: all else was seen at a glance."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        time_s = max(0.05, act.timeout_ms / 1000 - 0.05)
        names = ", ".join(str(ip) for ip in self._reach)
        try:
            where = neighbours.interface(self._interface)
            heard = await self._neighbours.probe(self._reach, where, time_s)
        except OSError as error:
            return Verdict(Outcome.FAILED, f"{self._interface}: asking {names}: {error.strerror}")
        took_ms = (loop.time() - began_s) * 1000
        if heard is None:
            return Verdict(Outcome.FAILED, f"{self._interface}: none of {names} answered within {took_ms:.0f} ms")
        return Verdict(Outcome.OK, f"{self._interface}: {heard} answered after {took_ms:.1f} ms")

    def _announce(self) -> None:
        self._stop_announcing()
        loop = asyncio.get_running_loop()
        self._announce_once()
        self._announcements = [loop.call_later(at_s, self._announce_once) for at_s in ANNOUNCE_AT_S[1:]]

    def _announce_once(self) -> None:
        try:
            where = neighbours.interface(self._interface)
            # ARP by a packet socket passes no packet filter: nothing but this look keeps an engine that was frozen past
            # its lease from drawing the clients away from the new owner.
            if self._host.lease_alive(self._service.group):
                self._neighbours.announce(self._ip, where)
        except OSError as error:
            # The check says what is wrong with the interface; a lost announcement is repeated anyway.
            self._host.log.warning("announcement_failed", service=self._service.name, ip=str(self._ip), why=str(error))

    def _hold(self) -> None:
        try:
            self._holding.begin(neighbours.interface(self._interface))
        except OSError as error:
            self._host.log.warning("frames_not_held", service=self._service.name, ip=str(self._ip), why=str(error))

    def _stop_announcing(self) -> None:
        for timer in self._announcements:
            timer.cancel()
        self._announcements = []

    def _lost(self, text: str) -> None:
        if self._up:
            self._up = False
            self._stop_announcing()
            self._host.exited_by_itself(self._service, 0, text)


def _address(options: dict[str, Any]) -> tuple[neighbours.IP, int]:
    spelt = ipaddress.ip_interface(str(options["ip"]))
    return spelt.ip, spelt.network.prefixlen
