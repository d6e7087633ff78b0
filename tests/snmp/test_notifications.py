"""Every kind of notification, at Debian's snmptrapd; and receivers that are away, for a while or for good."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasnmp.model import EventRow, Kind, ReceiverState, Severity
from hasnmp.settings import Community, Config, Group, MibView, NodeSettings, Receiver, Service, Throttle
from hasnmp.snmp import ha_objects, identity, receivers, standard
from hasnmp.snmp.engine_link import EngineLink
from hasnmp.snmp.notices import NOTICES
from hasnmp.snmp.notification import SYS_UP_TIME as UP
from hasnmp.snmp.notifier import AUTHENTICATION_FAILURE, receiver_names
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.told import Told
from tests.snmp.snmp_lab import (
    AUTH,
    GET,
    PRIV,
    SYS_UP_TIME,
    V2C_READ,
    V2C_WRITE,
    AgentProcess,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    an_event,
    binding,
    dotted,
    free_port,
    now_ns,
    rows_of,
    running,
    trap_receiver,
    v2c,
    wait_for,
)

TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"
TEXT = next(dotted((*t.entry_oid, c.number)) for t in ha_objects.TABLES for c in t.columns if c.name == "haEventText")
COLUMNS = {c.name: dotted((*t.entry_oid, c.number)) for t in receivers.all_tables(receivers.Board()) for c in t.columns}
NO_LIMIT = Throttle(same_within_ms=0, per_minute=100_000)


def texts(output: Path) -> list[str]:
    """haEventText of every notification of ours that came, in the order in which they came."""
    return re.findall(rf'\.{re.escape(TEXT)}\.\d+ = STRING: "(.*?)"', output.read_text(errors="replace"))


def count(output: Path, trap: tuple[int, ...]) -> int:
    return len(
        re.findall(rf"\.{re.escape(TRAP_OID)} = OID: \.{re.escape(dotted(trap))}(?:~|$)", output.read_text(), re.M)
    )


def config_of(folder: Path, *to: Receiver, **more: Any) -> Config:
    return a_config(folder, notify=to, **{"throttle": NO_LIMIT, **more})


def told(*numbers: int) -> list[str]:
    return [f"what happened, {number}" for number in numbers]


def column(process: AgentProcess, name: str) -> dict[str, str]:
    """haReceiverTable's or a target table's column: the instance's octets -> the value."""
    walk = rows_of(process.ask("snmpbulkwalk", V2C_READ, COLUMNS[name]))
    return {oid.removeprefix(COLUMNS[name] + "."): value.partition(": ")[2].strip('"') for oid, value in walk.items()}


class Heard:
    """In a notifier's place: notes which events it was given."""

    def __init__(self, path: Path) -> None:
        self.told, self.heard = Told(path), list[int]()

    def event(self, event: EventRow) -> None:
        self.heard.append(event.id)

    def note(self, number: int, at_ms: int) -> None:
        self.told.note(number, (), 0, at_ms)

    def begin_anew(self) -> None:
        self.told.note(0, (), 0)


def only(process: AgentProcess, name: str) -> str:
    [value] = column(process, name).values()
    return value


INFORM_USERS = (f"createUser noc SHA-256 {AUTH} AES {PRIV}", f"createUser plain SHA-256 {AUTH}",
                "authUser log noc authPriv", "authUser log plain authNoPriv", "authCommunity log secret")  # fmt: skip


@pytest.mark.parametrize(
    "receiver",
    [
        {"version": "2c", "community": b"secret"},
        {"version": "3", "user": "noc"},
        {"version": "3", "user": "plain"},
    ],
    ids=["v2c", "v3 authPriv", "v3 authNoPriv"],
)
def test_an_inform_arrives_once_and_is_acknowledged(receiver: dict[str, Any], fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", type="inform", **receiver)
    with (
        trap_receiver(tmp_path, port, *INFORM_USERS, form="%a %s %V~%v\\n") as output,
        running(config_of(tmp_path, to)) as process,
    ):
        for number in range(6, 26):
            fake.happen(an_event(number, group=f"g{number}"))
        wait_for(lambda: len(texts(output)) >= 20)
        wait_for(lambda: only(process, "haReceiverAcknowledged") == "21")  # coldStart too
        assert texts(output) == told(*range(6, 26)) and count(output, standard.COLD_START) == 1
        assert only(process, "haReceiverState") == str(int(ReceiverState.UP))
        assert [only(process, f"haReceiver{x}") for x in ("Sent", "Repeated", "Errors", "Queued", "Lost")] == [
            "21", "0", "0", "0", "0",
        ]  # fmt: skip


@pytest.mark.parametrize("user", ["", "noc"], ids=["v2c", "v3"])
def test_a_receiver_of_informs_that_was_away_gets_what_it_missed_in_order(
    user: str, fake: FakeEngine, tmp_path: Path
) -> None:
    """And its own restart, by which a v3 receiver's boots rise and its time begins anew, costs nothing."""
    port = free_port()
    version = {"version": "3", "user": user} if user else {"version": "2c", "community": b"secret"}
    to = Receiver(f"127.0.0.1:{port}", type="inform", timeout_ms=1000, retries=1, **version)
    with running(config_of(tmp_path, to)) as process:
        with trap_receiver(tmp_path, port, *INFORM_USERS) as output:
            fake.happen(an_event(6))
            wait_for(lambda: texts(output) == told(6))
        for number in range(7, 27):
            fake.happen(an_event(number))
        wait_for(lambda: only(process, "haReceiverState") == str(int(ReceiverState.DOWN)))
        assert only(process, "haReceiverQueued") == "20"
        assert "refused" in only(process, "haReceiverLastError") and int(only(process, "haReceiverOldest")) > 100
        with trap_receiver(tmp_path, port, *INFORM_USERS) as output:
            wait_for(lambda: len(texts(output)) >= 20)
            wait_for(lambda: only(process, "haReceiverQueued") == "0")
            assert texts(output) == told(*range(7, 27))
        log = process.log.read_text()
        assert "receiver_down" in log and "receiver_back" in log


def test_a_receiver_of_traps_that_refused_them_gets_what_it_missed_in_order(fake: FakeEngine, tmp_path: Path) -> None:
    """Nothing acknowledges a trap, but the receiver's kernel says that nobody listens."""
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with running(config_of(tmp_path, to)) as process:
        for number in range(6, 36):
            fake.happen(an_event(number))
        wait_for(lambda: only(process, "haReceiverState") == str(int(ReceiverState.DOWN)))
        assert only(process, "haReceiverLastError") == "refused: no program listens at its port"
        with trap_receiver(tmp_path, port) as output:
            wait_for(lambda: len(texts(output)) >= 30)
            assert texts(output) == told(*range(6, 36)) and count(output, standard.COLD_START) == 1
            wait_for(lambda: only(process, "haReceiverState") == str(int(ReceiverState.UNKNOWN)))
            fake.happen(an_event(36))
            wait_for(lambda: texts(output)[-1:] == told(36))
            assert len(texts(output)) == 31


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_what_waits_outlives_the_agent(ending: int, fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform", timeout_ms=3000, retries=0)
    config = config_of(tmp_path, to)
    agent = AgentProcess(config)
    try:
        wait_for(lambda: agent.run("snmpget", V2C_READ, SYS_UP_TIME).returncode == 0)
        for number in range(6, 16):
            fake.happen(an_event(number))
        wait_for(lambda: only(agent, "haReceiverQueued") == "11")
    finally:
        agent.stop(ending)
    fake.happen(an_event(16))  # while no agent is there
    with trap_receiver(tmp_path, port) as output, running(config, warm=True):
        wait_for(lambda: len(texts(output)) >= 11 and count(output, standard.WARM_START))
        assert texts(output) == told(*range(6, 17))
        assert count(output, standard.COLD_START) == count(output, standard.WARM_START) == 1
    with trap_receiver(tmp_path, port) as output, running(config, warm=True):
        fake.happen(an_event(17))
        wait_for(lambda: texts(output))
        assert texts(output) == told(17)  # and nothing comes twice


def test_events_whose_numbers_an_unsaved_engine_gives_anew_are_told(fake: FakeEngine, tmp_path: Path) -> None:
    """An engine dies with events that its disk never had: the next one gives their numbers to others, its own end among them."""
    port = free_port()
    config = config_of(tmp_path, Receiver(f"127.0.0.1:{port}", "2c", community=b"secret"))
    with trap_receiver(tmp_path, port) as output, running(config):
        fake.happen(an_event(6))
        fake.happen(an_event(7))
        wait_for(lambda: texts(output) == told(6, 7))
        fake.stop()
        system: Any = fake.view.tables["system"][""]
        fake.view.tables["system"][""] = replace(system, started_ns=now_ns())
        for number in (6, 7, 8):
            fake.view.tables["events"][str(number)] = an_event(number, message=f"of the next engine, {number}")
        fake.start()
        fake.happen(an_event(9))
        wait_for(lambda: texts(output)[-1:] == told(9))
        assert texts(output) == [*told(6, 7), *(f"of the next engine, {number}" for number in (6, 7, 8)), *told(9)]


@pytest.mark.parametrize("newest", [5, 8], ids=["fewer than were told", "more than were told"])
def test_an_agent_that_was_there_before_its_engine_tells_all_that_this_one_said(newest: int, tmp_path: Path) -> None:
    """And nothing of what former ones said, whatever numbers there are."""
    notifier = Heard(tmp_path / "told")
    notifier.told.note(6, (), 0, 1234)
    view = a_view(2)
    system: Any = view.tables["system"][""]
    view.tables["system"][""] = replace(system, started_ns=view.now_ns - 10**9)  # type: ignore[index]
    for number in range(3, newest + 1):
        view.tables["events"][str(number)] = an_event(number)  # type: ignore[index]
    for number in (1, 2):
        earlier = replace(an_event(number), wall_ms=view.wall_ms - 5000)
        view.tables["events"][str(number)] = earlier  # type: ignore[index]
    lock: Any = threading.RLock()
    link = EngineLink("", 1000, view.now_ns - 3600 * 10**9, now_ns, lock, None, notifier, None, print, None)  # type: ignore[arg-type]
    link._mirror.view = view
    link._tell_missed()
    assert notifier.heard == list(range(3, newest + 1)) and notifier.told.last == newest


def test_beyond_the_bound_the_oldest_give_way_and_the_receiver_is_told_how_many(
    fake: FakeEngine, tmp_path: Path
) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform", timeout_ms=3000, retries=0)
    config = config_of(tmp_path, to, backlog=20)
    with running(config) as process:
        for number in range(6, 106):
            fake.happen(an_event(number))
        wait_for(lambda: only(process, "haReceiverQueued") == "20")
        # coldStart and all but the newest 19: their place is kept by what tells of them.
        wait_for(lambda: only(process, "haReceiverLost") == "82")
    with trap_receiver(tmp_path, port) as output, running(config):
        wait_for(lambda: texts(output)[-1:] == told(105))
        first, *rest = texts(output)  # one more gave way to the second coldStart
        assert first.startswith("83 notifications for this receiver were dropped")
        assert rest == told(*range(88, 106)) and count(output, NOTICES[Kind.EVENTS_LOST]) == 1


def test_a_dead_receiver_delays_no_other(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        to = (
            Receiver(dead, "2c", community=b"secret", type="inform"),
            Receiver(dead, "3", user="noc", type="inform"),
            Receiver("[fe80::1]:162", "2c", community=b"secret", type="inform"),
            Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform"),
            Receiver(f"127.0.0.1:{port}", "2c", community=b"secret"),
        )
        with (
            trap_receiver(tmp_path, port) as output,
            running(config_of(tmp_path, *to)) as process,
        ):
            took_s: list[float] = []
            while (
                min(took_s, default=9.0) >= 1.0
            ):  # the machine may be slow once; a receiver that waits is it each time
                sent = 10 * len(took_s)
                begun = time.monotonic()
                for number in range(6 + sent, 16 + sent):
                    fake.happen(an_event(number))
                wait_for(lambda sent=sent: len(texts(output)) == 20 + 2 * sent)
                took_s.append(time.monotonic() - begun)
                assert len(took_s) <= 5, took_s
            waiting = str(1 + 10 * len(took_s))
            assert sorted(column(process, "haReceiverQueued").values()) == ["0", "0", *[waiting] * 3]


def test_an_snmpv1_trap_is_of_the_right_numbers(fake: FakeEngine, tmp_path: Path) -> None:
    """RFC 3584 section 3.2: coldStart is generic 0 of our sysObjectID, ours are generic 6 and their own number."""
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "1", community=b"secret")
    with (
        trap_receiver(tmp_path, port, form="%A|%N|%w|%q|%P|%T|%v\\n") as output,
        running(config_of(tmp_path, to)) as process,
    ):
        wait_for(lambda: "|0|0|" in output.read_text())
        fake.happen(an_event(6, Kind.NODE_LOST, severity=Severity.MAJOR))
        line = wait_for(lambda: next((x for x in output.read_text().splitlines() if "|6|.5|" in x), ""))
        address, enterprise, _, _, community, ticks, variables = line.split("|")
        assert address == "127.0.0.1" and enterprise == "." + dotted(ROOT) and "SNMP v1, community secret" in community
        assert 0 < int(ticks) <= int(process.value([*V2C_READ, "-Ot"], SYS_UP_TIME))
        assert f'.{TEXT}.6 = STRING: "what happened, 6"' in variables
        assert TRAP_OID not in variables and dotted(UP) not in variables
        cold = next(x for x in output.read_text().splitlines() if "|0|0|" in x)
        assert cold.split("|")[:2] == ["127.0.0.1", "." + dotted(ROOT)]


def test_a_receiver_by_ipv6(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = (
        Receiver(f"[::1]:{port}", "2c", community=b"secret", type="inform"),
        Receiver(f"[::1]:{port}", "1", community=b"secret"),
    )
    with (
        trap_receiver(tmp_path, port, host="[::1]", form="%a|%A|%v\\n") as output,
        running(config_of(tmp_path, *to)) as process,
    ):
        fake.happen(an_event(6))
        wait_for(lambda: len(texts(output)) == 2)
        # SNMPv1 has room for an IPv4 address only: one of the node's, by which a console knows it.
        assert any("|192.0.2.11|" in line for line in output.read_text().splitlines())
        assert sorted(column(process, "snmpTargetAddrTDomain").values()) == [".1.3.6.1.2.1.100.1.2"] * 2


def test_a_floor_holds_back_what_is_less_severe_and_lets_the_clear_of_an_alarm_through(
    fake: FakeEngine, tmp_path: Path
) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform", min_severity="major")
    kinds = (
        (Kind.ROLE_CHANGE, Severity.INFO), (Kind.LINK_DOWN, Severity.MINOR), (Kind.NODE_LOST, Severity.MAJOR),
        (Kind.LINK_UP, Severity.CLEARED), (Kind.NODE_JOINED, Severity.CLEARED), (Kind.GROUP_FAILED, Severity.CRITICAL),
    )  # fmt: skip
    with (
        trap_receiver(tmp_path, port) as output,
        running(config_of(tmp_path, to)) as process,
    ):
        for number, (kind, severity) in enumerate(kinds, 6):
            fake.happen(an_event(number, kind, severity=severity))
        wait_for(lambda: len(texts(output)) >= 3)
        assert texts(output) == told(8, 10, 11) and count(output, standard.COLD_START) == 1
        assert only(process, "haReceiverFloor") == str(int(Severity.MAJOR))


def test_a_receiver_that_is_disabled_gets_nothing_and_nothing_is_kept_for_it(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    on = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    off = Receiver(f"127.0.0.1:{port}", "1", community=b"secret", enabled=False)
    with (
        trap_receiver(tmp_path, port) as output,
        running(config_of(tmp_path, off, on)) as process,
    ):
        fake.happen(an_event(6))
        wait_for(lambda: texts(output))
        fake.happen(an_event(7))
        wait_for(lambda: len(texts(output)) > 1)
        assert texts(output) == told(6, 7)
        assert sorted(column(process, "haReceiverState").values()) == ["3", "4"]
        assert sorted(column(process, "snmpTargetAddrRowStatus").values()) == ["1", "2"]


def test_receivers_are_shown_and_cannot_be_written(tmp_path: Path) -> None:
    to = (
        Receiver("127.0.0.1:1622", "3", user="noc", type="inform", timeout_ms=2500, retries=3),
        Receiver("127.0.0.1:1622", "2c", community=b"look"),
        Receiver("127.0.0.1:1622", "1", community=b"other"),
        Receiver("127.0.0.1:1622", "1", community=b"other"),
    )
    with running(config_of(tmp_path, *to)) as process:
        names = {bytes(map(int, oid.split("."))).decode(): oid for oid in column(process, "snmpTargetAddrTagList")}
        assert len(names) == 4 and {"127.0.0.1:1622/3/inform", "127.0.0.1:1622/2c/trap"} < set(names)
        noc = names["127.0.0.1:1622/3/inform"]
        walk = rows_of(process.ask("snmpbulkwalk", V2C_READ, "1.3.6.1.6.3.12"))
        assert {name: walk[f"{COLUMNS[name]}.{noc}"] for name in COLUMNS if name.startswith("snmpTarget")} == {
            "snmpTargetAddrTDomain": "OID: .1.3.6.1.6.1.1", "snmpTargetAddrTAddress": 'Hex-STRING: 7F 00 00 01 06 56 ',
            "snmpTargetAddrTimeout": "INTEGER: 250", "snmpTargetAddrRetryCount": "INTEGER: 3",
            "snmpTargetAddrTagList": 'STRING: "inform"', "snmpTargetAddrParams": 'STRING: "127.0.0.1:1622/3/inform"',
            "snmpTargetAddrStorageType": "INTEGER: 5", "snmpTargetAddrRowStatus": "INTEGER: 1",
            "snmpTargetParamsMPModel": "INTEGER: 3", "snmpTargetParamsSecurityModel": "INTEGER: 3",
            "snmpTargetParamsSecurityName": 'STRING: "noc"', "snmpTargetParamsSecurityLevel": "INTEGER: 3",
            "snmpTargetParamsStorageType": "INTEGER: 5", "snmpTargetParamsRowStatus": "INTEGER: 1",
        }  # fmt: skip
        others = sorted(f"notify-{name}" for name in receiver_names(to)[2:])  # of communities that nobody asks by
        assert sorted(column(process, "snmpTargetParamsSecurityName").values()) == ["community-1", "noc", *others]
        assert column(process, "snmpNotifyType") == {
            ".".join(map(str, b"inform")): "2", ".".join(map(str, b"trap")): "1",
        }  # fmt: skip
        whole = process.ask("snmpbulkwalk", V2C_READ, "1.3.6.1")
        assert "other" not in whole and "secret" not in whole
        for oid, kind, value in (
            (f"{COLUMNS['snmpTargetAddrRowStatus']}.{noc}", "i", "6"),
            (f"{COLUMNS['snmpTargetAddrRetryCount']}.{noc}", "i", "1"),
            (f"{COLUMNS['snmpTargetAddrRowStatus']}.97", "i", "4"),
            (f"{COLUMNS['snmpNotifyFilterRowStatus']}.97.1.3", "i", "4"),
            ("1.3.6.1.6.3.12.1.1.0", "i", "0"),
        ):
            refused = process.run("snmpset", V2C_WRITE, oid, kind, value)
            assert refused.returncode and "notWritable" in refused.stderr, (oid, refused.stderr)


def test_uptime_and_counters_outlive_the_agent_and_its_boots_tell(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform")
    config = config_of(tmp_path, to)
    boots, time_s = "1.3.6.1.6.3.10.2.1.2.0", "1.3.6.1.6.3.10.2.1.3.0"
    packets = "1.3.6.1.2.1.11.1.0"
    discontinuity = next(dotted((*s.oid, 0)) for s in ha_objects.SCALARS if s.name == "haStatDiscontinuityTime")
    with trap_receiver(tmp_path, port):
        first = AgentProcess(config)
        try:
            wait_for(lambda: first.run("snmpget", V2C_READ, SYS_UP_TIME).returncode == 0)
            fake.happen(an_event(6))
            wait_for(lambda: only(first, "haReceiverAcknowledged") == "2")
            wait_for(lambda: first.counter(time_s) >= 1)
            before = {
                oid: int(first.value([*V2C_READ, "-Ot"], oid)) for oid in (SYS_UP_TIME, boots, discontinuity, packets)
            }
        finally:
            first.stop(signal.SIGKILL)
        with running(config, warm=True) as second:
            after = {oid: int(second.value([*V2C_READ, "-Ot"], oid)) for oid in before}
            assert after[SYS_UP_TIME] >= before[SYS_UP_TIME] and after[packets] > before[packets]
            assert after[boots] == before[boots] + 1 and second.counter(time_s) < after[SYS_UP_TIME] // 100 + 1
            assert after[discontinuity] == before[discontinuity]
            wait_for(lambda: only(second, "haReceiverAcknowledged") == "3")  # warmStart
        with running(config) as third:  # another daemon
            assert int(third.value([*V2C_READ, "-Ot"], SYS_UP_TIME)) < after[SYS_UP_TIME]
            assert third.counter(packets) < after[packets]


def test_a_v3_trap_after_a_restart_is_in_its_receivers_time_window(fake: FakeEngine, tmp_path: Path) -> None:
    """snmptrapd keeps our boots and time; a trap from our next life must carry higher boots."""
    port = free_port()
    config = config_of(tmp_path, Receiver(f"127.0.0.1:{port}", "3", user="noc"))
    engine_id, _, _ = identity.start(config.state_dir, "alpha")
    users = (f"createUser -e 0x{engine_id.hex()} noc SHA-256 {AUTH} AES {PRIV}", "authUser log noc authPriv")
    with trap_receiver(tmp_path, port, *users) as output:
        for number in (6, 7, 8):
            with running(config, warm=number > 6):
                fake.happen(an_event(number))
                wait_for(lambda: texts(output)[-1:] == told(number))  # noqa: B023
        assert texts(output) == told(6, 7, 8)


def test_a_receiver_that_does_not_know_the_user_is_said_by_name(tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "3", user="noc", type="inform", timeout_ms=100, retries=0)
    with trap_receiver(tmp_path, port, "authCommunity log secret"), running(config_of(tmp_path, to)) as process:
        wait_for(lambda: only(process, "haReceiverLastError") == "it does not know the user")
        assert only(process, "haReceiverAcknowledged") == "0"


def test_a_receiver_is_told_of_what_is_in_its_view_and_of_nothing_else(fake: FakeEngine, tmp_path: Path) -> None:
    """RFC 3413 section 3.3: the notification and all its variables, or it is not sent."""
    port = free_port()
    everything = MibView("everything", ("internet",))
    no_events = MibView("no-events", ("internet",), ("haEventTable",))
    communities = (
        Community("read", (), b"look"), Community("read", (), b"all", view=everything),
        Community("read", (), b"less", view=no_events),
    )  # fmt: skip
    to = tuple(Receiver(f"127.0.0.1:{port}", "2c", community=name, type="inform") for name in (b"all", b"less"))
    with (
        trap_receiver(tmp_path, port, form="%P %V~%v\\n") as output,
        running(config_of(tmp_path, *to, communities=communities)),
    ):
        wait_for(lambda: count(output, standard.COLD_START) == 2)
        fake.happen(an_event(6))
        fake.happen(an_event(7))
        wait_for(lambda: len(texts(output)) == 2)
        lines = [line for line in output.read_text().splitlines() if TEXT in line]
        assert texts(output) == told(6, 7) and all("community all" in line for line in lines)


@pytest.mark.parametrize("wanted", [True, False])
def test_requests_that_are_not_authentic_are_told_of_once_in_a_while(
    wanted: bool, fake: FakeEngine, tmp_path: Path
) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with (
        trap_receiver(tmp_path, port) as output,
        running(config_of(tmp_path, to, authentication_traps=wanted)) as process,
    ):
        assert process.value(V2C_READ, "1.3.6.1.2.1.11.30.0") == ("1" if wanted else "2")
        for _ in range(20):
            process.datagram(v2c(a_pdu(GET, [binding(UP)]), b"wrong"))
        wait_for(lambda: process.counter("1.3.6.1.2.1.11.4.0") == 20)  # snmpInBadCommunityNames
        fake.happen(an_event(6))
        wait_for(lambda: texts(output))
        assert count(output, AUTHENTICATION_FAILURE) == int(wanted)


def test_what_the_throttle_keeps_back_outlives_a_killed_agent(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform")
    config = config_of(tmp_path, to, throttle=Throttle(same_within_ms=60_000, per_minute=600))
    suppressed = next(
        dotted((*s.oid, 0)) for s in receivers.scalars(receivers.Board()) if s.name == "haNotifySuppressed"
    )
    with trap_receiver(tmp_path, port) as output:
        agent = AgentProcess(config)
        try:
            wait_for(lambda: count(output, standard.COLD_START))
            wait_for(lambda: agent.run("snmpget", V2C_READ, SYS_UP_TIME).returncode == 0)
            for number in (6, 7, 8):
                fake.happen(an_event(number))
            wait_for(lambda: texts(output) == told(6) and agent.counter(suppressed) == 1)
        finally:
            agent.stop(signal.SIGKILL)
        with running(config, warm=True) as process:
            wait_for(lambda: len(texts(output)) > 1)
            assert texts(output) == told(6, 8)
            assert process.counter(suppressed) == 1


def test_notifications_leave_from_an_address_of_the_nodes_own_and_not_from_a_groups(
    fake: FakeEngine, tmp_path: Path
) -> None:
    """Routing would take 127.0.0.1, which is a virtual address here; the node's own is what consoles know it by."""
    port = free_port()
    to = (
        Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform"),
        Receiver(f"127.0.0.1:{port}", "1", community=b"secret"),
    )
    config = config_of(tmp_path, *to)
    address = Service("address", "web", "address", {"ip": "127.0.0.1/8", "interface": "lo"})
    links = {"gone": "192.0.2.11", "lan": "127.0.0.5"}  # this machine does not have the first
    config = replace(
        config, groups=(Group("web", ("alpha", "beta"), (address,)),),
        nodes=(NodeSettings("alpha", links), *config.nodes[1:]),
    )  # fmt: skip
    with (
        trap_receiver(tmp_path, port, form="%b|%A|%v\\n") as output,
        running(config),
    ):
        fake.happen(an_event(6))
        wait_for(lambda: len(texts(output)) == 2)
        lines = [line for line in output.read_text().splitlines() if TEXT in line]
        assert all(line.startswith("UDP: [127.0.0.5]:") for line in lines)
        assert any("|127.0.0.5|" in line for line in lines)  # SNMPv1's agent-addr


def test_a_lower_floor_sends_nothing_that_was_below_the_old_one(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    to = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret", type="inform", min_severity="major")
    config = config_of(tmp_path, to)
    with trap_receiver(tmp_path, port) as output:
        with running(config):
            wait_for(lambda: count(output, standard.COLD_START))
            fake.happen(an_event(6))
            fake.happen(an_event(7, Kind.NODE_LOST, severity=Severity.MAJOR))
            fake.happen(an_event(8))
            wait_for(lambda: texts(output) == told(7))
        lower = config_of(tmp_path, replace(to, min_severity="info"))
        with running(lower, warm=True):
            wait_for(lambda: count(output, standard.WARM_START))
            fake.happen(an_event(9))
            wait_for(lambda: texts(output)[-1:] == told(9))
            assert texts(output) == told(7, 9)


def test_another_engine_id_than_before_is_told_once(fake: FakeEngine, tmp_path: Path) -> None:
    """A console that keeps keys by engine ID would else only see the node fall silent."""
    port = free_port()
    config = config_of(tmp_path, Receiver(f"127.0.0.1:{port}", "2c", community=b"secret"))
    state = Path(config.state_dir) / "snmp-engine-alpha.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text('{"engine_id": "8000000000ff"}')  # torn: the boots are not in it
    with trap_receiver(tmp_path, port) as output:
        for starts in (1, 2):
            with running(config):
                wait_for(lambda seen=starts: count(output, standard.COLD_START) == seen)
        [said] = texts(output)
        assert count(output, NOTICES[Kind.ENGINE_ID_CHANGED]) == 1
        assert re.match(rf"the SNMP engine ID is 80007ed905[0-9a-f]{{24}} from now on: {state}: ", said), said
