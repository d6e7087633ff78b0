"""`--host`: the same verbs over SNMP to any node's agent, in the place of the control socket (console/control.py).

A command is a SET of HASNMP-MIB; what became of it is its row in that node's haCommandTable, so that the words and the
exit status are those of a local command. Only apply is refused: its file names programs that run as root, and no SET may
write those (haConfigAction says so, too).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hasnmp.console.control import ENDED
from hasnmp.console.remote_rows import Rows, subtrees
from hasnmp.errors import Code, Refused, Unreachable
from hasnmp.model import TABLES, CommandRow, CommandState, EventRow, Verb, View
from hasnmp.snmp.ha_objects import OBJECTS, SCALARS
from hasnmp.snmp.ha_objects import TABLES as MIB_TABLES
from hasnmp.snmp.manager import Answered, Credentials, Manager
from hasnmp.snmp.objects import Oid, Syntax, Value, text_index
from hasnmp.snmp.whys import AGE as WHY_AGE
from hasnmp.snmp.whys import TEXT as WHY_TEXT
from hasnmp.snmp.whys import lines

SYS_UP_TIME = (1, 3, 6, 1, 2, 1, 1, 3, 0)
POLL_S = 0.1  # of a command's row: the engine tells its agent of a change within this
LOOK_S = 1.0  # of everything, for watch
BACK_S = 10.0  # an agent that begins anew answers within a second or two
OLD_MS = 6000  # from when on it is said how old a `why` is: an agent that is well asks again each 5 s
ROW_S = 2.0  # until a command's row is in the agent's table
_OID = {scalar.name: (*scalar.oid, 0) for scalar in SCALARS} | {
    column.name: (*table.entry_oid, column.number) for table in MIB_TABLES for column in table.columns
}
# An error-status that no row of the command table explains: the code that says it best.
_CODES = {"noCreation": Code.NOT_FOUND, "resourceUnavailable": Code.NO_ENGINE, "genErr": Code.FAILED,
          "commitFailed": Code.FAILED, "undoFailed": Code.FAILED}  # fmt: skip

Assignment = tuple[Oid, Syntax, int | bytes]


def assign(name: str, value: int | str, row: str = "") -> Assignment:
    oid = (*_OID[name], *text_index(row)) if row else _OID[name]
    return oid, OBJECTS[name].syntax, _fitting(value, OBJECTS[name].size) if isinstance(value, str) else value


def _fitting(text: str, size: int) -> bytes:
    """A text as an object takes it: whole characters, as many as fit, none of them for the control of a terminal."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain.encode()[:size].decode(errors="ignore").encode()


def assignments(verb: Verb, target: str, to: str, reason: str, up: bool, message: str) -> list[Assignment]:
    """The SET that gives a command."""
    given: list[Assignment]
    if verb in (Verb.FAILOVER, Verb.FORCE_FAILOVER) and target:
        given = [assign("haGroupAction", int(verb), target)]
        given += [assign("haGroupActionTarget", to, target)] if to else []
    elif verb in (Verb.FAILOVER, Verb.FORCE_FAILOVER, Verb.RECOVER, Verb.STANDBY, Verb.ONLINE):
        given = [assign("haAction", int(verb))]
        given += [assign("haActionTarget", target)] if target else []
        given += [assign("haActionTo", to)] if to else []
    elif verb in (Verb.INHIBIT, Verb.PERMIT):
        value = 1 if verb is Verb.INHIBIT else 2
        given = [assign("haGroupInhibit", value, target) if target else assign("haInhibit", value)]
    elif verb in (Verb.FREEZE, Verb.THAW):
        given = [assign("haGroupFreeze", 1 if verb is Verb.FREEZE else 2, target)]
    elif Verb.SERVICE_START <= verb <= Verb.SERVICE_CLEAR:
        given = [assign("haServiceAction", verb - Verb.SERVICE_START + 2, target)]
    elif verb is Verb.FENCE_TEST:
        given = [assign("haNodeFenceAction", 2, target)]
    elif verb is Verb.FENCE_CONFIRM:
        given = [assign("haNodeFenceConfirm", target, target)]
    elif verb is Verb.REPORT:
        given = [assign("haServiceReport", 2 if up else 3, target)]
        return given + ([assign("haServiceReportMessage", message, target)] if message else [])
    else:
        assert verb is Verb.RELOAD, verb  # apply has been refused before
        given = [assign("haConfigAction", 2)]
    return given + ([assign("haActionReason", reason)] if reason else [])


class Remote:
    """A node's agent, as console/control.Control is its engine."""

    def __init__(self, manager: Manager, who: Credentials, tables: tuple[str, ...] = ()) -> None:
        self._manager = manager
        self._who = who
        self._tables = tables or tuple(TABLES)
        self.path = manager.place
        self.mirror: Any = SimpleNamespace(view=View(), complete=False)

    def close(self) -> None:
        self._manager.close()

    def view(self) -> View:
        if not self.mirror.complete:
            self._look()
        view: View = self.mirror.view
        return view

    def _look(self, *tables: str) -> View:
        """Read tables anew; all that are wanted if none is named."""
        cells: dict[Oid, Value] = {}
        try:
            up, name = self._manager.get([SYS_UP_TIME, _OID["haClusterName"]])
            for subtree in subtrees(tables or self._tables):
                cells |= self._manager.walk(subtree)
        except Answered as error:
            raise Refused(Code.NOT_ALLOWED, f"{self.path} refuses to be read: {error}") from None
        view = Rows(cells, up if isinstance(up, int) else 0).view
        if not tables:
            if not cells and not isinstance(name, bytes):
                raise Unreachable(f"{self.path} answers, and shows nothing of HASNMP-MIB: it is another agent, or this "
                                  "user's view has nothing of it")  # fmt: skip
            self.mirror.view, self.mirror.complete = view, True
        return view

    def receive(self, deadline: float | None = None) -> dict[str, Any] | None:
        """Look again after LOOK_S, as a message would come: for watch and events --follow."""
        time.sleep(LOOK_S)
        self._look()
        return {"type": "delta"}

    def why(self, group: str) -> list[str]:
        try:
            cells = self._manager.walk((*WHY_TEXT, *text_index(group)))
            ages = self._manager.walk((*WHY_AGE, *text_index(group)))
        except Answered as error:
            raise Refused(Code.NOT_ALLOWED, f"{self.path} refuses to be read: {error}") from None
        if not cells:
            raise Unreachable(f"{self.path} has nothing to say of {group} yet, or this user's view has no haGroupWhyTable; "
                              f"try again, or on the node itself: hasnmp why {group}")  # fmt: skip
        said = lines(text.decode(errors="replace") for _, text in sorted(cells.items()) if isinstance(text, bytes))
        age = next((age for age in ages.values() if isinstance(age, int)), 0)
        return (
            said if age < OLD_MS else [*said, f"all this as of {age / 1000:.1f} s ago, when {self.path} was told last"]
        )

    def _commands(self) -> list[CommandRow]:
        rows = self._look("commands").tables["commands"].values()
        return sorted((row for row in rows if isinstance(row, CommandRow)), key=lambda row: row.id)

    def command(
        self, verb: Verb, target: str, *, to: str = "", reason: str = "", up: bool = True, message: str = ""
    ) -> CommandRow:
        """Give a command by a SET. Returns its row of haCommandTable, accepted or refused."""
        given = assignments(verb, target, to, reason, up, message)
        last = max((row.id for row in self._commands()), default=0)
        error: Answered | None = None
        try:
            self._manager.set(given)
        except Answered as answered:
            error = answered
        if verb is Verb.REPORT and error is None:  # it has no row: they come every few seconds
            return CommandRow(0, "", "", verb, target, "", "", CommandState.DONE)
        row = self._row(verb, target, to, last, error)
        if row is not None:
            return replace(row, verb=verb, target=target) if verb is Verb.REPORT else row
        what = f"{verb.name.lower().replace('_', ' ')} {target}".strip()
        if error is None:
            raise Unreachable(f"{self.path} took {what}, and no row of haCommandTable says what became of it; this user's "
                              "view may not have that table")  # fmt: skip
        code = _CODES.get(error.status, Code.NOT_ALLOWED)
        raise Refused(code, f"{what} refused by the agent of {self.path}: {error}; may this user SET it?")

    def _row(self, verb: Verb, target: str, to: str, last: int, error: Answered | None) -> CommandRow | None:
        """The row that a SET of ours made: the newest of us, after `last`, with what was asked, or one by which the agent
        put on record that it refused a SET. A refused one may have none. Others command at the same time."""
        deadline = time.monotonic() + (ROW_S if error is None else ROW_S / 4)
        while True:
            for row in reversed(self._commands()):
                ours = not self._who.user or row.requester == f"snmp:{self._who.user}"
                asked = (row.verb, row.target, row.to) == (verb, target, to)
                refused = error is not None and row.verb is Verb.SET and row.state is CommandState.REFUSED
                if row.id > last and ours and (asked or refused):
                    return row
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)

    def follow(self, row: CommandRow, timeout_s: float) -> Iterator[CommandRow | EventRow | None]:
        """What becomes of a command: its row at each change. None last: it had not ended within timeout_s."""
        heard_s = time.monotonic()
        deadline = heard_s + timeout_s
        yield row
        while row.state not in ENDED:
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(POLL_S)
            try:
                newest = next((new for new in self._commands() if new.id == row.id), None)
                heard_s = time.monotonic()
            except Unreachable:
                # A reload may have the agent begin anew, too.
                if time.monotonic() - heard_s > BACK_S:
                    raise
                continue
            if newest is not None and newest != row and newest.state is not CommandState.ACCEPTED:
                row = newest
                yield row
