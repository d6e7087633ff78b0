"""The notifications, as Debian's snmptrapd receives them."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp.model import EventRow, Kind, PartState, Severity
from hasnmp.settings import Config, Receiver, Throttle
from hasnmp.snmp import ber, ha_objects, identity, objects, standard
from hasnmp.snmp.notices import NOTICES, notification_varbinds
from hasnmp.snmp.objects import Reader
from tests.cluster.control import control
from tests.cluster.watch import spent_ms
from tests.snmp.mibs import net_snmp_environment
from tests.snmp.snmp_lab import (
    AUTH,
    GET,
    PRIV,
    SYS_UP_TIME,
    V2C_READ,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    an_event,
    binding,
    dotted,
    free_port,
    now_ns,
    running,
    trap_receiver,
    v2c,
    wait_for,
)  # fmt: skip

TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"
ENGINE_STATE = next(dotted((*s.oid, 0)) for s in ha_objects.SCALARS if s.name == "haEngineState")


def traps_in(output: Path, trap: tuple[int, ...]) -> list[dict[str, str]]:
    """The traps of one kind that snmptrapd wrote: OID -> value as it prints it."""
    found = []
    for line in output.read_text(errors="replace").splitlines():
        values = dict(re.findall(r"\.([\d.]+) = (.*?)(?:~|$)", line))
        if values.get(TRAP_OID) == "OID: ." + dotted(trap):
            found.append(values)
    return found


def shown(value: int | bytes | tuple[int, ...], syntax: objects.Syntax) -> str:
    """A value as snmptrapd prints it."""
    match value:
        case bytes():
            return f'STRING: "{value.decode()}"' if value else '""'
        case int():
            return f"{ {2: 'INTEGER', 0x42: 'Gauge32'}[syntax] }: {value}"
    raise AssertionError(syntax)


def config_of(folder: Path, port: int, *receivers: Receiver, **more: object) -> Config:
    to = f"127.0.0.1:{port}"
    both = (Receiver(to, "2c", community=b"secret"), Receiver(to, "3", user="noc"), Receiver(to, "3", user="plain"))
    return a_config(folder, notify=receivers or both, **more)


def test_an_event_becomes_a_whole_trap_by_v2c_and_v3(fake: FakeEngine, tmp_path: Path) -> None:
    # The engine ID must be known to snmptrapd beforehand: a trap's sender is its authoritative engine.
    port = free_port()
    config = config_of(tmp_path, port)
    engine_id, _, _ = identity.start(config.state_dir, "alpha")
    users = (
        f"createUser -e 0x{engine_id.hex()} noc SHA-256 {AUTH} AES {PRIV}",
        f"createUser -e 0x{engine_id.hex()} plain SHA-256 {AUTH}",
        "authUser log noc authPriv", "authUser log plain authNoPriv", "authCommunity log secret",
    )  # fmt: skip
    with trap_receiver(tmp_path, port, *users) as output, running(config) as process:
        wait_for(lambda: len(traps_in(output, standard.COLD_START)) == 3)
        control()  # it must have been there before anything is judged by it
        event = an_event(6, peer="beta", link="", service="")
        trap = NOTICES[Kind.TAKEOVER_COMPLETED]

        def told(event: EventRow, count: int) -> float:
            begun_ns = time.monotonic_ns()
            fake.happen(event)
            wait_for(lambda: len(traps_in(output, trap)) == count)
            return spent_ms(begun_ns, time.monotonic_ns()) / 1000

        first_s = told(event, 3)
        traps = traps_in(output, trap)
        later_s = [told(an_event(6 + n, group=f"group-{n}"), 3 + 3 * n) for n in range(1, 5)]
        # Loaded only then, it took half a second more.
        assert first_s < 0.3 + 2 * max(later_s), "the first event's trap must not wait for anything to be loaded"
        assert min(later_s) < 1, "nor any for anything else"
        reader = Reader(fake.view, 0, now_ns())
        wanted = {dotted(oid): shown(value, syntax) for oid, syntax, value in notification_varbinds(event, reader)[1]}
        assert len(wanted) >= 10
        for got in traps:
            assert list(got)[:2] == [SYS_UP_TIME, TRAP_OID]
            assert {oid: value for oid, value in got.items() if oid not in (SYS_UP_TIME, TRAP_OID)} == wanted
            ticks = int(re.search(r"\((\d+)\)", got[SYS_UP_TIME])[1])  # type: ignore[index]
            assert 0 <= ticks <= int(process.value([*V2C_READ, "-Ot"], SYS_UP_TIME))
        assert "notifications_ready" in process.log.read_text()


def test_a_receiver_that_knows_the_mib_prints_names_for_everything(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    known = net_snmp_environment(tmp_path)
    with trap_receiver(tmp_path, port, mibs=known) as output, running(config_of(tmp_path, port, receiver)):
        wait_for(lambda: "SNMPv2-MIB::coldStart" in output.read_text())
        fake.happen(an_event(6, Kind.NODE_LOST, severity=Severity.MAJOR, alarm="node/beta", group="", service=""))
        line = wait_for(lambda: next((x for x in output.read_text().splitlines() if "::haNodeLost" in x), ""))
    fields = dict(field.split(" = ", 1) for field in line.split("~"))
    assert next(iter(fields)) == "SNMPv2-MIB::sysUpTime.0"
    assert dict(list(fields.items())[1:]) == {
        "SNMPv2-MIB::snmpTrapOID.0": "OID: HASNMP-MIB::haNodeLost",
        "HASNMP-MIB::haClusterName.0": "STRING: bank", "HASNMP-MIB::haEventId.6": "Gauge32: 6",
        "HASNMP-MIB::haEventSeverity.6": "INTEGER: major(4)", "HASNMP-MIB::haEventNode.6": "STRING: alpha",
        "HASNMP-MIB::haEventOwnState.6": "INTEGER: primary(1)", "HASNMP-MIB::haEventPeer.6": "STRING: beta",
        "HASNMP-MIB::haEventPeerState.6": "INTEGER: lost(2)", "HASNMP-MIB::haEventPreviousState.6": "Gauge32: 4",
        "HASNMP-MIB::haEventState.6": "Gauge32: 5", "HASNMP-MIB::haEventReason.6": "INTEGER: nodeLost(5)",
        "HASNMP-MIB::haEventGroup.6": "STRING: ", "HASNMP-MIB::haEventService.6": "STRING: ",
        "HASNMP-MIB::haEventLink.6": "STRING: ", "HASNMP-MIB::haEventAlarmKey.6": "STRING: node/beta",
        "HASNMP-MIB::haEventCommonId.6": "STRING: c6", "HASNMP-MIB::haEventText.6": "STRING: what happened, 6",
    }  # fmt: skip


def test_every_kind_of_event_can_be_sent(tmp_path: Path) -> None:
    port = free_port()
    fake = FakeEngine(tmp_path / "control.sock", a_view(0))
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with trap_receiver(tmp_path, port) as output, running(config_of(tmp_path, port, receiver)) as process:
        wait_for(lambda: traps_in(output, standard.COLD_START))
        for number, kind in enumerate(Kind, 1):
            fake.happen(an_event(number, kind, node="älpha", group="", peer="", peer_state=0))
        wait_for(lambda: all(traps_in(output, trap) for trap in NOTICES.values()))
        assert "notification_failed" not in process.log.read_text()
    fake.stop()


def test_coldstart_warmstart_enginedown_engineup_and_what_happened_meanwhile(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    down, up = NOTICES[Kind.ENGINE_DOWN], NOTICES[Kind.ENGINE_UP]
    config = config_of(tmp_path, port, receiver)
    with trap_receiver(tmp_path, port) as output:
        with running(config) as process:
            wait_for(lambda: process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.UP)))
            wait_for(lambda: traps_in(output, standard.COLD_START))
            fake.stop()
            wait_for(lambda: traps_in(output, down))
            missed = an_event(6, Kind.NODE_LOST)
            fake.view.tables["events"]["6"] = missed
            fake.start()
            wait_for(lambda: traps_in(output, up) and traps_in(output, NOTICES[Kind.NODE_LOST]))
            fake.happen(an_event(7, Kind.NODE_JOINED))
            wait_for(lambda: traps_in(output, NOTICES[Kind.NODE_JOINED]))
        # What happens while no agent runs is for the next one to tell, unless it is no news any more.
        old = int((time.time() - 3600) * 1000)
        fake.view.tables["events"]["8"] = an_event(8, Kind.LINK_DOWN, wall_ms=old, ns=now_ns() - 3600 * 10**9)
        fake.view.tables["events"]["9"] = an_event(9, Kind.LINK_UP)
        with running(config, warm=True):
            wait_for(lambda: traps_in(output, standard.WARM_START) and traps_in(output, NOTICES[Kind.LINK_UP]))
            fake.happen(an_event(10, Kind.ARBITER_LOST))
            wait_for(lambda: traps_in(output, NOTICES[Kind.ARBITER_LOST]))
            wait_for(lambda: traps_in(output, NOTICES[Kind.EVENTS_LOST]))
        # Each once, and nothing of what was there before the agent came.
        missed_kinds = NOTICES[Kind.NODE_LOST], NOTICES[Kind.LINK_UP]
        for trap in (standard.COLD_START, standard.WARM_START, down, up, *missed_kinds):
            assert len(traps_in(output, trap)) == 1
        assert not traps_in(output, NOTICES[Kind.LINK_DOWN])
        assert not traps_in(output, NOTICES[Kind.TAKEOVER_COMPLETED])


def test_what_happened_meanwhile_is_told_though_the_wall_clock_was_set_forward(
    fake: FakeEngine, tmp_path: Path
) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with trap_receiver(tmp_path, port) as output, running(config_of(tmp_path, port, receiver)) as process:
        wait_for(lambda: process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.UP)))
        fake.happen(an_event(6, Kind.NODE_JOINED))
        wait_for(lambda: traps_in(output, NOTICES[Kind.NODE_JOINED]))
        fake.stop()
        hour_ago_ms = time.time_ns() // 1_000_000 - 3_600_000  # what the clock said then
        fake.view.tables["events"]["7"] = an_event(7, Kind.NODE_LOST, wall_ms=hour_ago_ms)
        fake.start()
        wait_for(lambda: traps_in(output, NOTICES[Kind.NODE_LOST]))
        assert not traps_in(output, NOTICES[Kind.EVENTS_LOST])


def test_what_the_engine_says_before_its_agent_is_up_is_told_and_nothing_of_its_last_run(tmp_path: Path) -> None:
    """Both are started together, and the engine is there first; its events of a last run are in its view too."""
    port = free_port()
    view = a_view(2)
    started = now_ns() + 10**7
    earlier, later = time.time_ns() // 1_000_000 - 5000, time.time_ns() // 1_000_000 + 20
    view.tables["system"][""] = replace(view.tables["system"][""], started_ns=started)  # type: ignore[type-var, assignment]
    kinds = (Kind.NODE_LOST, earlier), (Kind.ROLE_CHANGE, later), (Kind.RECOVERY_NEEDED, later)
    for number, (kind, wall_ms) in enumerate(kinds, 1):
        view.tables["events"][str(number)] = an_event(number, kind, wall_ms=wall_ms)
    fake = FakeEngine(tmp_path / "control.sock", view)
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with trap_receiver(tmp_path, port) as output:
        for status in (0, 1):  # the second agent finds its mark, and has nothing to tell
            with running(config_of(tmp_path, port, receiver)):
                wait_for(lambda: len(traps_in(output, standard.COLD_START)) > status)  # noqa: B023
                wait_for(lambda: traps_in(output, NOTICES[Kind.RECOVERY_NEEDED]))
        for kind in (Kind.ROLE_CHANGE, Kind.RECOVERY_NEEDED):
            assert len(traps_in(output, NOTICES[kind])) == 1
        assert not traps_in(output, NOTICES[Kind.NODE_LOST])
    fake.stop()


def test_what_comes_to_the_port_that_traps_leave_from_is_ignored(tmp_path: Path) -> None:
    discovery = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\2\5\xdc\4\1\4\2\1\3")
                           + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                           + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
    large = v2c(a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, 3, 0))] * 4000), b"wrong")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        port = receiver.getsockname()[1]
        receivers = (
            Receiver(f"127.0.0.1:{port}", "2c", community=b"secret"),
            Receiver(f"127.0.0.1:{port}", "3", user="noc"),
        )
        with running(config_of(tmp_path, port, *receivers)) as process:
            sources = {receiver.recvfrom(65535)[1] for _ in receivers}
            receiver.settimeout(0.5)
            for source in sources:
                receiver.sendto(discovery, source)
                with pytest.raises(TimeoutError):
                    receiver.recvfrom(65535)
            # 200 a second, which a parser of pysnmp's speed would never catch up with.
            took_s = []
            for _ in range(50):
                for source in sources:
                    receiver.sendto(large, source)
                begun = time.monotonic()
                assert process.datagram(v2c(a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, 3, 0))])), 5.0)
                took_s.append(time.monotonic() - begun)
                time.sleep(0.005)
            assert sorted(took_s)[-5] < 0.5  # that parser would be behind by more with each


def test_alive_is_said_as_often_as_configured(tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    with trap_receiver(tmp_path, port) as output, running(config_of(tmp_path, port, receiver, alive_s=1)):
        wait_for(lambda: len(traps_in(output, NOTICES[Kind.ALIVE])) >= 2)
        # No engine was ever there: what the configuration knows is said all the same.
        name = next(dotted((*s.oid, 0)) for s in ha_objects.SCALARS if s.name == "haClusterName")
        assert traps_in(output, NOTICES[Kind.ALIVE])[0][name] == 'STRING: "bank"'


def test_a_receiver_that_cannot_be_reached_keeps_nothing_from_the_others(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    receivers = (
        Receiver("[fe80::1]:162", "2c", community=b"secret"),  # no interface: can't be sent to
        Receiver(f"127.0.0.1:{free_port()}", "2c", community=b"secret"),  # nobody there: an ICMP error comes back
        Receiver(f"127.0.0.1:{port}", "2c", community=b"secret"),
    )
    with trap_receiver(tmp_path, port) as output, running(config_of(tmp_path, port, *receivers)):
        wait_for(lambda: traps_in(output, standard.COLD_START))
        for number in range(6, 12):
            fake.happen(an_event(number, group=f"group-{number}"))
        wait_for(lambda: len(traps_in(output, NOTICES[Kind.TAKEOVER_COMPLETED])) == 6)


def test_a_storm_is_held_back_and_ends_with_the_last_word(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    config = config_of(tmp_path, port, receiver, throttle=Throttle(same_within_ms=500, per_minute=600))
    text = next(
        dotted((*t.entry_oid, c.number)) for t in ha_objects.TABLES for c in t.columns if c.name == "haEventText"
    )
    with trap_receiver(tmp_path, port) as output, running(config):
        wait_for(lambda: traps_in(output, standard.COLD_START))
        begun = time.monotonic()
        for number in range(6, 106):
            fake.happen(an_event(number))
        took_s = time.monotonic() - begun

        def told() -> list[str]:
            """What each trap told of."""
            traps = traps_in(output, NOTICES[Kind.TAKEOVER_COMPLETED])
            return [value for trap in traps for oid, value in trap.items() if oid.startswith(f"{text}.")]

        wait_for(lambda: told()[-1:] == ['STRING: "what happened, 105"'])
        assert told()[0] == 'STRING: "what happened, 6"' and len(told()) <= 2 + took_s // 0.5, told()


def test_requests_get_their_turn_while_a_storm_of_notifications_is_sent(fake: FakeEngine, tmp_path: Path) -> None:
    asked = v2c(a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, 3, 0))]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        port = ear.getsockname()[1]
        receivers = [Receiver(f"127.0.0.1:{port}", "3", user="noc")] * 2
        with running(config_of(tmp_path, port, *receivers)) as process:
            wait_for(lambda: "notifications_ready" in process.log.read_text())

            def heard() -> int:
                count = 0
                with contextlib.suppress(BlockingIOError):
                    while ear.recv(65535):
                        count += 1
                return count

            wait_for(heard)  # coldStart
            for number in range(6, 406):  # each of another object, so that the throttle keeps none back
                fake.happen(an_event(number, group=f"group-{number}"))
            answers = traps = 0
            while traps < 600:  # of 800, or a few more; the last are waited for by nobody
                assert process.datagram(asked, 20.0)
                traps += (came := heard())
                answers += bool(came)
            assert answers >= 5, "while the storm went on"


def test_what_is_too_much_for_a_minute_is_told_of_in_one_notification(fake: FakeEngine, tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver(f"127.0.0.1:{port}", "2c", community=b"secret")
    config = config_of(tmp_path, port, receiver, throttle=Throttle(same_within_ms=0, per_minute=60))
    with trap_receiver(tmp_path, port) as output, running(config):
        wait_for(lambda: traps_in(output, standard.COLD_START))
        for number in range(6, 106):
            fake.happen(an_event(number))
        [lost] = wait_for(lambda: traps_in(output, NOTICES[Kind.EVENTS_LOST]))
        sent = len(traps_in(output, NOTICES[Kind.TAKEOVER_COMPLETED]))
        assert 58 <= sent <= 62
        assert any(f"{100 - sent} notifications were held back" in value for value in lost.values())


def test_requests_are_answered_where_no_notification_can_be_sent(tmp_path: Path) -> None:
    """A receiver that pysnmp can't take (config.py refuses it; a later one may slip through) costs the traps alone."""
    receiver = Receiver("no-address", "2c", community=b"secret")
    with running(a_config(tmp_path, notify=(receiver,))) as process:
        wait_for(lambda: "notifications_unavailable" in process.log.read_text())
        assert process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.DOWN))
