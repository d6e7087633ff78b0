"""What makes the agent process a subagent: the rows of HASNMP-MIB for the master, its SETs, and its notifications.

The rows are in a store of their own, for they are read by another clock: whoever asks the master sees the master's
sysUpTime, and the times in our rows (TimeStamp, RFC 2579) must count from the same moment (RFC 2741 section 7.1.1).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hasnmp.settings import Snmp
from hasnmp.snmp import ber, ha_objects
from hasnmp.snmp.access import OPERABLE, PUBLIC, Principal
from hasnmp.snmp.agentx import Subagent
from hasnmp.snmp.agentx_lookup import Lookup
from hasnmp.snmp.agentx_outlet import AgentxOutlet
from hasnmp.snmp.agentx_pdu import Binding
from hasnmp.snmp.agentx_sets import Done
from hasnmp.snmp.cells import Store
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.objects import Reader, Scalar, TableDef
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.responder import SetOutcome
from hasnmp.snmp.sets import Assignment, SetError
from hasnmp.snmp.setting import SetRequest, Setting, Tested
from hasnmp.snmp.standard import OWN_CAPABILITY

ANOTHER_CLOCK_S = 1.0  # a smaller difference is how long the master's answer took


# Whoever the master let in: AgentX does not say who that is.
_PRINCIPAL = Principal("agentx", PUBLIC, OPERABLE)


@dataclass(frozen=True, slots=True)
class _Tested:
    """A SET that passed its TestSet. names: of its variables, in BER."""

    assignments: list[Assignment]
    plan: Tested
    names: list[bytes]


class AgentxPart:
    """reader: what is known, for a sysUpTime that was 0 at this time of CLOCK_BOOTTIME. setting: where the agent's SETs are
    done. failed: told of an object whose read raised. outlet: where notifications for the master wait. more: objects of
    HASNMP-MIB beside those of ha_objects.py. audit: told of every SET and what came of it."""

    def __init__(
        self,
        settings: Snmp,
        node: str,
        reader: Callable[[int], Reader],
        setting: Setting,
        failed: Callable[[Exception], None],
        outlet: AgentxOutlet,
        more_scalars: tuple[Scalar, ...],
        more_tables: tuple[TableDef, ...],
        log: Any,
        audit: Callable[[SetOutcome], None] = lambda _: None,
    ) -> None:
        self._address = settings.agentx
        self._reader = reader
        self._setting = setting
        self._operate = settings.agentx_access == "operate"
        self._audit = audit
        self._undoing: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.store = Store((*ha_objects.SCALARS, *more_scalars), (*ha_objects.TABLES, *more_tables), self._read)
        self._requests = Requests(self.store, failed)
        self._lookup = Lookup(self.store, ROOT)
        self._subagent = Subagent(
            settings.agentx, f"hasnmp {node}", ROOT, OWN_CAPABILITY, self._lookup, self, self._uptime, lambda: self._boot_ns, outlet, log,
        )  # fmt: skip
        self.run = self._subagent.run
        outlet.attach(self._subagent.wake)

    def _read(self) -> Reader:
        return self._reader(self._boot_ns)

    def _uptime(self, ticks: int) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10_000_000
        if abs(boot_ns - self._boot_ns) > ANOTHER_CLOCK_S * 1e9:
            self._boot_ns = boot_ns
            self.store.changed_all()

    # ------------------------------------------------------------------------------------------------------ SETs

    def test(self, bindings: list[Binding]) -> _Tested:
        names = [self._lookup.raw(name) or b"" for name, _, _ in bindings]
        try:
            if not self._operate:
                raise SetError(1, ErrorStatus.NO_ACCESS, "agentx_access is read")
            self.store.begin()
            assignments = self._requests.assignments(
                [self._binding(position, *binding) for position, binding in enumerate(bindings, 1)], _PRINCIPAL.write
            )
            return _Tested(assignments, self._setting.test(assignments), names)
        except SetError as refused:
            self._record(names, refused.status, refused.position)
            raise

    def _record(self, names: list[bytes], status: int, index: int) -> None:
        raw = names[max(index, 1) - 1] if names else b""
        self._audit(SetOutcome(_PRINCIPAL.tag, self._address, raw, len(names), status))

    def _binding(self, position: int, name: bytes, tag: int, value: ber.Value) -> tuple[bytes, int, bytes]:
        raw = self._lookup.raw(name)
        if raw is None:
            raise SetError(position, ErrorStatus.NOT_WRITABLE, "not in our region")
        try:
            encoded = ber.encode_value(tag, value) if tag < 0x80 else ber.NULL_VALUE
        except ber.BerError as error:
            raise SetError(position, ErrorStatus.WRONG_ENCODING, str(error)) from None
        _, start, stop = ber.tlv(encoded, 0, len(encoded))
        return raw, tag, encoded[start:stop]

    def commit(self, tested: _Tested, done: Done) -> None:
        """Tested once more in its turn: since the TestSet another may have passed the spin lock, or a node have died."""
        # AgentX does not say which request of which manager this is, so none is taken for the repetition of another.
        identity = (self._address, _PRINCIPAL.tag, next(self._numbers), b"")

        def told(status: int, index: int, again: bool) -> None:
            self._record(tested.names, status, index)
            done(status, index)

        self._setting.take(SetRequest(tested.assignments, _PRINCIPAL, self._address, identity), told)

    def undo(self, tested: _Tested, done: Callable[[bool], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._take_back(tested, done))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _take_back(self, tested: _Tested, done: Callable[[bool], None]) -> None:
        done(await self._setting.take_back(tested.plan, _PRINCIPAL.tag, self._address))
