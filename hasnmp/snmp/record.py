"""What is put on record of a SET that the agent refused: a row of haCommandTable and an event, by way of the engine.

An engine's own refusal has its row already. Of a flood only some are told of, and how many were not.
"""

from __future__ import annotations

from typing import Any

from hasnmp.errors import Code
from hasnmp.model import CommandRow, CommandState, Verb
from hasnmp.snmp import ber
from hasnmp.snmp.cells import Cells
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.responder import SetOutcome

AT_ONCE, A_MINUTE = 10, 10  # a bucket that fills evenly
TARGET_SIZE = 63  # haCommandTarget
_CODES = {
    ErrorStatus.NO_CREATION: Code.NOT_FOUND, ErrorStatus.RESOURCE_UNAVAILABLE: Code.BUSY,
    ErrorStatus.GEN_ERR: Code.FAILED, ErrorStatus.COMMIT_FAILED: Code.FAILED, ErrorStatus.UNDO_FAILED: Code.FAILED,
}  # fmt: skip
_MAY_NOT = "; what may be SET is said by `access` and `write_view` of who asks (through snmpd: agentx_access) in the configuration"
_WHY = {ErrorStatus.AUTHORIZATION_ERROR: _MAY_NOT, ErrorStatus.NO_ACCESS: _MAY_NOT}


class Record:
    """known: the engine refused a command of the SET that is about to be answered, and has its row. untold: how many were
    left out since the last that was told of. now_s: monotonic."""

    def __init__(self, now_s: float) -> None:
        self.known = False
        self._why: tuple[int, str] | None = None  # what the engine said of a refusal that has no row
        self._left = float(AT_ONCE)
        self._filled_s = now_s
        self.untold = 0

    def answered(self, answer: CommandRow | str | None) -> None:
        """What the engine said to a command of the SET. Of a report it keeps no row: they come every few seconds."""
        refused = answer if isinstance(answer, CommandRow) and answer.state is CommandState.REFUSED else None
        self.known = refused is not None and refused.id > 0
        self._why = (int(refused.code), refused.text) if refused is not None and not refused.id else None

    def refused(self, outcome: SetOutcome, name: str, now_s: float) -> dict[str, Any] | None:
        """The command message that records this outcome; None: there is nothing to record, or too much."""
        known, self.known = self.known, False
        why, self._why = self._why, None
        if not outcome.status or known:
            return None
        self._left = min(float(AT_ONCE), self._left + (now_s - self._filled_s) * A_MINUTE / 60)
        self._filled_s = now_s
        if self._left < 1:
            self.untold += 1
            return None
        self._left -= 1
        text = f"SET of {name} answered with {ErrorStatus(outcome.status).name.lower().replace('_', ' ')}"
        text += _WHY.get(ErrorStatus(outcome.status), "")
        code = int(_CODES.get(ErrorStatus(outcome.status), Code.NOT_ALLOWED))
        if why is not None:
            code, text = why
        if self.untold:
            text += f"; {self.untold} more refused before it are not on record"
            self.untold = 0
        return {"verb": int(Verb.SET), "target": name[:TARGET_SIZE], "message": text, "code": code}


def shown(column: Cells | None, name: bytes) -> str:
    """A variable's name as the operator knows it: haGroupAction.web, or the OID."""
    try:
        oid = ber.decode_oid(name)
    except ber.BerError:
        return "nothing"
    if column is None:
        return ".".join(map(str, oid))
    index = oid[len(column.oid) :]
    text = bytes(number & 0xFF for number in index[1:]).decode(errors="replace") if len(index) > 1 else ""
    if text and index[0] == len(index) - 1 and text.isprintable():
        return f"{column.target.name}.{text}"
    return ".".join((column.target.name, *map(str, index)))
