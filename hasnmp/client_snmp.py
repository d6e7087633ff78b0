"""hasnmp.client over SNMP, for where no datagram of its own gets through: the same rules, from HASNMP-MIB of every node.

    client = SnmpClient(Cluster("bank", {"a": ("192.0.2.11", 161), "b": ("192.0.2.12", 161)}, "", b""), Credentials(community=b"..."))

An agent's picture is up to a second old (haDataAge), and its words on a lease are of that moment: so each answer is believed for
that much less, and often not at all where leases are short; it is asked again then. What the agent shows may also lag behind a
planned move, by some 200 ms in which the former owner's service has stopped already. The MIB does not tell where clients reach a
service: give it in `places`, or it is the address that the node was asked at. Reports can't be made this way.
"""

from __future__ import annotations

import threading
import time

from hasnmp import wire_clients as wire
from hasnmp.client import Client, Cluster, Place, Question, Search, now_ns
from hasnmp.errors import Unreachable
from hasnmp.model import GroupState, ServiceState
from hasnmp.snmp.ha_objects import SCALARS, TABLES
from hasnmp.snmp.manager import Answered, Credentials, Manager
from hasnmp.snmp.objects import Oid, Value, text_index

PAUSE_S = 0.1  # between two rounds: the agent hears of a change within this
_OID = {scalar.name: (*scalar.oid, 0) for scalar in SCALARS} | {
    column.name: (*table.entry_oid, column.number) for table in TABLES for column in table.columns
}


class SnmpClient(Client):
    """As Client, with the agents' addresses as the cluster's nodes; its key is not used. One request at a time."""

    def __init__(self, cluster: Cluster, who: Credentials, timeout_s: float = 0.5) -> None:
        super().__init__(cluster)
        self._who, self._timeout_s = who, timeout_s
        self._managers: dict[str, Manager] = {}
        self._one = threading.Lock()

    def _look(self, search: Search, timeout_s: float) -> Place | None:
        deadline = time.monotonic() + timeout_s
        while True:
            for question in search.questions:
                with self._one:
                    self._question(search, question)
                if place := search.best():
                    return place
            if time.monotonic() + PAUSE_S >= deadline:
                return None
            time.sleep(PAUSE_S)

    def _question(self, search: Search, question: Question) -> None:
        try:
            if question.node not in self._managers:
                self._managers[question.node] = Manager(*question.address, self._who, self._timeout_s, 0)
            found, sent_ns = self._found(self._managers[question.node], search.name)
        except (Unreachable, Answered) as error:
            question.said = str(error)
            return
        if found is None:
            question.said = f"shows no service and no group {search.name}"
        elif (found.cluster, found.node) != (search.cluster.name, question.node):
            question.said = f"it is node {found.node} of cluster {found.cluster}"
        else:
            search.learn(question, found, sent_ns)

    @staticmethod
    def _found(manager: Manager, name: str) -> tuple[wire.Found | None, int]:
        """What the agent says of itself, and when it was asked."""

        def cell(column: str, row: str = "") -> Oid:
            return (*_OID[column], *text_index(row)) if row else _OID[column]

        of_service = manager.get([cell("haServiceGroup", name)])[0]
        group = _text(of_service) if of_service is not None else name
        sent_ns = now_ns()
        cluster, node, age, owner, token, lease, group_state, service_state = manager.get([
            cell("haClusterName"), cell("haNodeName"), cell("haDataAge"), cell("haGroupOwner", group), cell("haGroupToken", group),
            cell("haGroupLeaseRemaining", group), cell("haGroupState", group), cell("haServiceState", name),
        ])  # fmt: skip
        if owner is None:
            return None, sent_ns
        state = (
            ServiceState(_number(service_state)).name
            if of_service is not None
            else GroupState(_number(group_state)).name
        )
        age_ms, own = _number(age), _text(owner) == _text(node)
        left_ms = max(0, _number(lease) - age_ms) if own else 0
        return wire.Found("", "", _text(cluster), _text(node), name, group, _text(owner), _number(token), left_ms,
                          state.lower().replace("_", "-"), age_ms), sent_ns  # fmt: skip


def _text(value: Value | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _number(value: Value | None) -> int:
    return value if isinstance(value, int) else 0
