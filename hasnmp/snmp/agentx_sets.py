"""The SETs of an AgentX session, in their phases (RFC 2741 section 7.2.4): TestSet, CommitSet, UndoSet, CleanupSet.

A SET begins with its commit and not before: what its test promised is tested once more then, for nothing is held meanwhile.
A master that stopped in the middle would else shut out every other SET.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hasnmp.snmp.agentx_pdu import Binding, Header, write_response
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.sets import SetError

MAX_TRANSACTIONS = 16  # SETs between their TestSet and their CleanupSet
# After these the engine may have done a part of it: a command before the refused one, or one that it has not answered.
_MAY_HAVE_BEGUN = (ErrorStatus.UNDO_FAILED, ErrorStatus.GEN_ERR)

Done = Callable[[int, int], None]  # error-status, error-index


class Sets(Protocol):
    """Who carries a SET out. What test() gives is what the other two are given."""

    def test(self, bindings: list[Binding]) -> Any:
        """Raises SetError: it can't be done."""

    def commit(self, tested: Any, done: Done) -> None:
        """Do it; `done` is called when it is accepted or not."""

    def undo(self, tested: Any, done: Callable[[bool], None]) -> None:
        """Take back what commit() did; `done` is told whether nothing of it is left."""


@dataclass(slots=True)
class _Transaction:
    """status: what became of its commit; None: that is not known yet."""

    tested: Any
    begun: bool = False
    status: int | None = None
    index: int = 0


class Transactions:
    """Of one subagent. send: an answer to it; clear() when its connection is gone."""

    def __init__(self, sets: Sets, send: Callable[[bytes], None], log: Any) -> None:
        self._sets = sets
        self._to_master = send
        self._log = log
        self._open: dict[tuple[int, int], _Transaction] = {}
        self._connection = 0

    def clear(self) -> None:
        """The connection is gone: what is committed goes on, and its answer has nobody to go to."""
        self._open.clear()
        self._connection += 1

    def test(self, header: Header, bindings: list[Binding]) -> None:
        """TestSet (section 7.2.4.1): everything that can be said before anything is done."""
        key = (header.session, header.transaction)
        self._open.pop(key, None)
        try:
            tested = self._sets.test(bindings)
        except SetError as refused:
            self._log.info("set_refused", requester="agentx", reason=str(refused))
            self._to_master(write_response(header, refused.status, refused.position))
            return
        except Exception as error:
            self._log.error("set_failed", requester="agentx", error=repr(error))
            self._to_master(write_response(header, ErrorStatus.GEN_ERR, 1))
            return
        while len(self._open) >= MAX_TRANSACTIONS:
            del self._open[next(iter(self._open))]
        self._open[key] = _Transaction(tested)
        self._to_master(write_response(header, 0, 0))

    def commit(self, header: Header) -> None:
        """CommitSet (section 7.2.4.2): answered when the engine has taken it."""
        one = self._open.get((header.session, header.transaction))
        if one is None:
            self._to_master(_committed(header, ErrorStatus.COMMIT_FAILED, 0))
            return
        if one.begun:
            # The master asks again because it waited for long. Doing it twice could undo it: a failover and its way back.
            if one.status is not None:
                self._to_master(_committed(header, one.status, one.index))
            return
        one.begun = True
        connection = self._connection

        def done(status: int, index: int) -> None:
            one.status, one.index = status, index
            if self._connection == connection:
                self._to_master(_committed(header, status, index))

        self._sets.commit(one.tested, done)

    def undo(self, header: Header) -> None:
        """UndoSet (section 7.2.4.3), which also comes after a commit of our own that failed."""
        one = self._open.pop((header.session, header.transaction), None)
        connection = self._connection

        def done(undone: bool) -> None:
            if self._connection == connection:
                status = ErrorStatus.NO_ERROR if undone else ErrorStatus.UNDO_FAILED
                self._to_master(write_response(header, status, 0 if undone else 1))

        if one is None or (one.begun and (one.status is None or one.status in _MAY_HAVE_BEGUN)):
            done(False)
        elif one.begun and one.status == ErrorStatus.NO_ERROR:
            self._sets.undo(one.tested, done)
        else:
            done(True)

    def clean_up(self, header: Header) -> None:
        """CleanupSet (section 7.2.4.4) has no answer."""
        self._open.pop((header.session, header.transaction), None)


def _committed(header: Header, status: int, index: int) -> bytes:
    """A CommitSet's answer, which knows one error only."""
    return write_response(header, ErrorStatus.COMMIT_FAILED if status else 0, index if status else 0)
