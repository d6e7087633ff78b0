"""A view in which every table has rows, for the tests of what the agent shows and takes."""

from __future__ import annotations

import asyncio

from hasnmp import model as m
from hasnmp.errors import Code
from hasnmp.snmp.whys import Whys

BOOT_NS = 1_000_000_000_000  # when the agent started, on the machine's clock
NOW_NS = BOOT_NS + 60_000_000_000
WALL_MS = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC


def a_view() -> m.View:
    """Cluster bank: node-a shows it and runs web; node-b is up, node-c lost; db is home on node-b and may run there alone."""
    second = 1_000_000_000
    rows: dict[str, dict[str, m.Row]] = {
        "system": {"": m.SystemRow(
            "bank", "node-a", "1.0", m.Role.SHARED, m.Condition.OK, m.Condition.DEGRADED, BOOT_NS + 5 * second, 3,
            m.PartState.UP, m.PartState.UP, m.PartState.ABSENT, BOOT_NS - 2 * second)},
        "nodes": {
            "node-a": m.NodeRow("node-a", True, m.NodeState.UP, m.Role.SHARED, m.Condition.OK, "00000000000000aa"),
            "node-b": m.NodeRow("node-b", False, m.NodeState.UP, m.Role.SHARED, m.Condition.OK, "00000000000000bb",
                                last_heard_ns=NOW_NS - 150_000_000, transitions=2**32 + 5),
            "node-c": m.NodeRow("node-c", False, m.NodeState.LOST, m.Role.OFFLINE, m.Condition.FAILED,
                                last_heard_ns=NOW_NS - 9 * second)},
        "links": {
            "node-b/lan": m.LinkRow("node-b", "lan", "192.0.2.12", m.LinkState.UP, 10, 9, 1, 180),
            "node-b/cross": m.LinkRow("node-b", "cross", "2001:db8::12", m.LinkState.DOWN)},
        "groups": {
            "web": m.GroupRow("web", m.GroupState.RUNNING, m.Condition.OK, "node-a", 7, NOW_NS + 800_000_000,
                              m.Proof.PROMISES, "node-a", ("node-a", "node-b", "node-c"), excluded=("node-c", "node-b"),
                              last_change_ns=BOOT_NS + 30 * second, data_ns=NOW_NS - 20_000_000),
            "db": m.GroupRow("db", m.GroupState.RUNNING, m.Condition.OK, "node-b", 2, 0, m.Proof.PROMISES, "node-b",
                             ("node-b",))},
        "services": {"http": m.ServiceRow("http", "web", "node-a", "exec", m.ServiceState.RUNNING, pid=4242,
                                          message="status 200", data_ns=NOW_NS - 20_000_000)},
        "arbiters": {"disk": m.ArbiterRow("disk", m.ArbiterState.RESTING, "/dev/disk/by-id/lease", "a-uuid")},
        "fences": {
            "node-b/1": m.FenceRow("node-b", 1, "fence_ipmilan", "power", "fenced: off, verified by its status",
                                   BOOT_NS + 40 * second, BOOT_NS + 50 * second),
            # Last used before this machine was started.
            "node-b/2": m.FenceRow("node-b", 2, "pill", "disk", "failed: no acknowledgement", -3600 * second, 0)},
        "config": {"": m.ConfigRow("00ff00ff00ff00ff", "hasnmp.yaml", BOOT_NS, "", 200, 500, 1000, 5000, 150, 3000, 500)},
        "statistics": {"": m.StatisticsRow(takeovers=4, since_wall_ms=WALL_MS - 1000)},
        "events": {
            "11": m.EventRow(11, m.Kind.NODE_LOST, m.Severity.MAJOR, WALL_MS - 2000, NOW_NS - 2 * second, "node-a",
                             "node-c silent for 1000 ms", "node-c", own_state=m.Role.SHARED,
                             peer_state=m.NodeState.LOST, previous_state=1, state=2, reason=m.Reason.HEARTBEAT,
                             alarm="node/node-c", common_id="node-c/3"),
            "12": m.EventRow(12, m.Kind.ALIVE, m.Severity.INFO, WALL_MS, NOW_NS, "node-a", "up for 60 s")},
        "alarms": {"node/node-c": m.AlarmRow("node/node-c", m.Kind.NODE_LOST, m.Severity.MAJOR, "node-a", "node-c",
                                             NOW_NS - 2 * second, WALL_MS - 2000, 11, "node-c silent for 1000 ms")},
        "commands": {"3": m.CommandRow(3, "noc", "192.0.2.50", m.Verb.FAILOVER, "web", "node-b", "kernel update",
                                       m.CommandState.REFUSED, Code.TARGET_DOWN, "node-b last heard 4.2 s ago",
                                       WALL_MS - 500, WALL_MS - 400, NOW_NS, NOW_NS)},
    }  # fmt: skip
    return m.View(NOW_NS - 40_000_000, WALL_MS, 9, rows)


WHY = {"web": ["group web: running on node-a", "node-b: able to take it"], "db": ["group db: running on node-b"]}


def some_whys() -> Whys:
    """What an engine said of the groups."""

    async def asked() -> Whys:
        told = asyncio.Event()
        said: list[str] = []

        async def ask(group: str) -> list[str]:
            said.append(group)
            return WHY[group]

        whys = Whys(lambda: WHY, ask, lambda: told.set() if len(said) == len(WHY) else None, lambda: NOW_NS)
        keeping = asyncio.create_task(whys.keep())
        await asyncio.wait_for(told.wait(), 20)
        keeping.cancel()
        return whys

    return asyncio.run(asked())
