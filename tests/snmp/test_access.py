"""Views and who has which (RFC 3415): the model by itself, and as Net-SNMP's tools find it in a running agent."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.config_views import SUBTREES as NAMES
from hasnmp.settings import Community, Config, MibView, Receiver, Snmp, SnmpUser
from hasnmp.snmp import access, access_tables, ber, cells, ha_objects, objects
from hasnmp.snmp.access import SUBTREES, Communities, View, may_tell, notify_view, view_of
from hasnmp.snmp.record import AT_ONCE, Record
from hasnmp.snmp.responder import SetOutcome
from tests.snmp.mibs import MODULES, net_snmp_environment
from tests.snmp.snmp_lab import (
    AUTH,
    PRIV,
    V3,
    AgentProcess,
    FakeEngine,
    a_config,
    a_view,
    dotted,
    rows_of,
    running,
    wait_for,
)  # fmt: skip

GROUPS, SERVICES = SUBTREES["haGroupTable"], SUBTREES["haServiceTable"]
WEB = objects.text_index("web")
INHIBIT = (*GROUPS, 1, next(c.number for t in ha_objects.TABLES for c in t.columns if c.name == "haGroupInhibit"))


def view(*include: str, exclude: tuple[str, ...] = ()) -> View:
    return view_of(MibView("v", include, exclude))


def numbers(folder: Path) -> dict[str, str]:
    """The OID of every name in the MIBs, as Net-SNMP reads them."""
    line = ["snmptranslate", "-m", f"{MODULES}:SNMP-COMMUNITY-MIB", "-On", "-Tz"]
    said = subprocess.run(
        line, env=net_snmp_environment(folder), capture_output=True, text=True, timeout=60, check=True
    )
    return {m[1]: m[2] for m in re.finditer(r'^"(\S+)"\s+"([\d.]+)"', said.stdout, re.M)}


# ------------------------------------------------------------------------------------------------------------ the model


def test_every_subtree_has_a_number_and_it_is_the_mibs(tmp_path: Path) -> None:
    assert set(SUBTREES) == set(NAMES)
    found = numbers(tmp_path)
    assert {name: dotted(oid) for name, oid in SUBTREES.items()} == {name: found[name] for name in NAMES}


def test_the_longest_subtree_decides_and_of_equal_ones_the_greater() -> None:
    v = view("1.3.6.1.4", "1.3.6.1.4.1.9.5", exclude=("1.3.6.1.4.1.9",))
    assert v.has((1, 3, 6, 1, 4, 1, 8)) and not v.has((1, 3, 6, 1, 4, 1, 9)) and v.has((1, 3, 6, 1, 4, 1, 9, 5, 0))
    assert not v.has((1, 3, 6, 1, 4, 1, 9, 4, 99)) and not v.has((1, 3, 6, 1)) and not v.has((1, 3, 6, 1, 2, 1))
    # Two families of five that both fit: 1.3.6.*.7 shows as 1.3.6.0.7, and 1.3.6.5.* as 1.3.6.5.0, which is the greater.
    assert view("1.3.6.5.*", exclude=("1.3.6.*.7",)).has((1, 3, 6, 5, 7))
    assert not view("1.3.6.*.7", exclude=("1.3.6.5.*",)).has((1, 3, 6, 5, 7))


def test_what_is_included_and_excluded_is_excluded() -> None:
    v = view("internet", "haServiceTable", exclude=(dotted(SERVICES),))
    assert not v.has((*SERVICES, 1, 2, 1)) and v.has(INHIBIT) and v.covers(SERVICES) is False
    assert [family.included for family in v.families if family.subtree == SERVICES] == [False]


def test_what_may_be_set_is_what_may_be_read_unless_another_view_is_named() -> None:
    small, other = MibView("small", ("haSystem",)), MibView("other", ("haGroupTable",))
    for rights in ("operate", "admin"):
        user = SnmpUser("noc", "sha256", "", rights, view=small)
        write = access.principal_of(user, "noc").write
        assert write is not None and not write.has(INHIBIT) and write.has(SUBTREES["haSystem"])
        named = access.principal_of(dataclasses.replace(user, write_view=other), "noc").write
        assert named is not None and named.has(INHIBIT) and not named.has(SUBTREES["haSystem"])
        whole = access.principal_of(dataclasses.replace(user, view=None), "noc").write
        assert whole is not None and whole.has(INHIBIT)
        assert access.principal_of(user, "noc", may_set=False).write is None
    assert access.principal_of(SnmpUser("noc", "sha256", "", "read", view=small), "noc").write is None


def test_a_wildcard_takes_one_row_of_a_table() -> None:
    v = view(f"{dotted(GROUPS)}.1.*.{dotted(WEB)}")
    assert v.has((*INHIBIT, *WEB)) and not v.has((*INHIBIT, *objects.text_index("db"))) and not v.has(INHIBIT)
    assert v.covers(INHIBIT) is None and v.covers(SERVICES) is False and view("haGroupTable").covers(INHIBIT) is True
    family = v.families[0]
    bits = "".join(f"{octet:08b}" for octet in family.mask)
    assert [n for n, bit in enumerate(bits[: len(family.subtree)]) if bit == "0"] == [family.subtree.index(access.ANY)]
    assert set(bits[len(family.subtree) :]) <= {"1"} and len(bits) % 8 == 0


def test_a_window_on_a_store_shows_what_the_view_has() -> None:
    picture = a_view()
    reader = objects.Reader(picture, 0, picture.now_ns)
    store = cells.Store(ha_objects.SCALARS, ha_objects.TABLES, lambda: reader)

    def names(window: cells.Window | None) -> set[tuple[int, ...]]:
        store.begin()
        found, cursor = set(), (store.columns[0], 0)
        while (place := store.settle(cursor, window)) is not None:
            _, column, at = place
            found.add((*column.oid, *column.rows.keys[at]))
            cursor = (column, at + 1)
        return found

    whole = names(None)
    for chosen in (
        view("internet"), view("1.3.6.1.2"), view("haGroupTable"), view("internet", exclude=("haServiceTable",)),
        view(f"{dotted(GROUPS)}.1.*.{dotted(WEB)}", "haSystem"), view("internet", exclude=(f"{dotted(INHIBIT)}.{dotted(WEB)}",)),
    ):  # fmt: skip
        window = store.window(chosen)
        assert store.window(chosen) is window
        assert names(window) == {name for name in whole if chosen.has(name)}
        for name in whole:
            assert (store.find(ber.encode_oid(name), window) is not None) == chosen.has(name)
    assert names(None) == whole and len(whole) > 100
    # A change is seen through a window too.
    window = store.window(view("haGroupTable"))
    picture.tables["groups"].pop("web")
    store.changed(("groups",))
    assert names(window) == {name for name in whole if name[: len(GROUPS)] == GROUPS and name[-len(WEB) :] != WEB}


def test_a_community_is_looked_up_by_its_network_and_may_write_only_where_it_may() -> None:
    settings = Snmp(
        communities=(
            Community("read", (), b"word"), Community("operate", ("192.0.2.0/24", "2001:db8::/32"), b"word", "touch"),
            Community("admin", ("::1/128",), b"other"),
        ),
        allow_insecure_set=True,
    )  # fmt: skip
    found = Communities(settings)
    near, far = found.find(b"word", "192.0.2.9"), found.find(b"word", "192.0.3.9")
    assert near is not None and near.tag == "touch" and near.operate
    assert far is not None and far.tag == "community-1" and not far.operate
    assert found.find(b"word", "2001:db8::5") == near == found.find(b"word", "::ffff:192.0.2.9")
    assert found.find(b"other", "::2") is None and found.known(b"other") and not found.known(b"nobody")
    lax = Communities(dataclasses.replace(settings, allow_insecure_set=False)).find(b"word", "192.0.2.9")
    assert lax is not None and not lax.operate


def test_a_receiver_is_told_of_what_its_view_has() -> None:
    small = MibView("small", ("haNotifications", "haSystem"))
    settings = Snmp(
        users=(SnmpUser("noc", "sha256", "", "read", view=small), SnmpUser("tom", "sha256", "", "operate")),
        communities=(Community("read", (), b"word", "", small),),
    )
    event = [(*SUBTREES["haNotifications"], 1), (*SUBTREES["haSystem"], 1, 0)]
    more = [*event, (*SUBTREES["haEventTable"], 1, 2, 7)]
    for receiver, whole in (
        (Receiver("127.0.0.1:1", "3", "noc"), False), (Receiver("127.0.0.1:1", "3", "tom"), True),
        (Receiver("127.0.0.1:1", "2c", "", b"word"), False), (Receiver("127.0.0.1:1", "2c", "", b"traps"), True),
    ):  # fmt: skip
        told = notify_view(settings, receiver)
        assert may_tell(told, event) and may_tell(told, more) is whole
    assert not may_tell(notify_view(settings, Receiver("127.0.0.1:1", "3", "nobody")), event)


# ------------------------------------------------------------------------------------------------------ a running agent

WEB_VIEW = MibView(
    "web", ("system", f"{dotted(GROUPS)}.1.*.{dotted(WEB)}", "haServiceTable"), (f"{dotted(SERVICES)}.1.19",)
)
WEB_ACTIONS = MibView("web-actions", (f"{dotted(GROUPS)}.1.*.{dotted(WEB)}",))


def user(name: str) -> list[str]:
    return [*V3, "-u", name]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentProcess, FakeEngine, Config]]:
    folder = tmp_path_factory.mktemp("access")
    config = a_config(folder)
    secrets = {"auth_secret": AUTH.encode(), "priv_secret": PRIV.encode()}
    more = (
        SnmpUser("root", "sha256", "aes128", "admin", **secrets),
        SnmpUser("web", "sha256", "aes128", "operate", **secrets, view=WEB_VIEW, write_view=WEB_ACTIONS),
        SnmpUser("away", "sha256", "aes128", "admin", **secrets, networks=("192.0.2.0/24",)),
    )
    snmp = dataclasses.replace(config.snmp, users=config.snmp.users + more, views=(WEB_VIEW, WEB_ACTIONS))
    config = dataclasses.replace(config, snmp=snmp)
    engine = FakeEngine(Path(config.control.socket), a_view())
    with running(config) as process:
        yield process, engine, config
    engine.stop()


Lab = tuple[AgentProcess, FakeEngine, Config]


def test_each_user_walks_its_own_view(agent: Lab) -> None:
    process, _, _ = agent
    walks = {name: set(rows_of(process.ask("snmpbulkwalk", user(name), "1.3"))) for name in ("root", "watch", "web")}
    hidden = {name for name in walks["root"] if not access.PUBLIC.has(tuple(map(int, name.split("."))))}
    assert walks["watch"] == walks["root"] - hidden and len(hidden) > 60
    has = view_of(WEB_VIEW).has
    assert walks["web"] == {name for name in walks["root"] if has(tuple(map(int, name.split("."))))}
    assert (
        dotted((*INHIBIT, *WEB)) in walks["web"]
        and dotted((*INHIBIT, *objects.text_index("database"))) not in walks["web"]
    )
    plain = set(rows_of(process.ask("snmpwalk", user("web"), "1.3")))  # by GETNEXT the same as by GETBULK
    assert plain == walks["web"]


def test_what_is_outside_of_the_view_does_not_exist(agent: Lab) -> None:
    process, _, _ = agent
    other = dotted((*INHIBIT, *objects.text_index("database")))
    said = process.ask("snmpget", user("web"), dotted((*INHIBIT, *WEB)), other, dotted((*SUBTREES["haSystem"], 1, 0)))
    assert [line.partition(" = ")[2] for line in said.splitlines()] == [
        "INTEGER: 2", "No Such Instance currently exists at this OID", "No Such Object available on this agent at this OID",
    ]  # fmt: skip


def test_a_set_outside_of_the_write_view_is_no_access(agent: Lab) -> None:
    process, engine, _ = agent
    before = len(engine.commands)
    engine.records.clear()
    own, other = dotted((*INHIBIT, *WEB)), dotted((*INHIBIT, *objects.text_index("database")))
    for words in ((other, "i", "1"), (own, "i", "1", other, "i", "1"), ("1.3.6.1.9.9.9", "i", "1")):
        said = process.run("snmpset", user("web"), *words)
        assert said.returncode == 2 and "Reason: noAccess" in said.stderr, said
    assert engine.commands[before:] == []
    # Each is put on record: whose it was, from where, what, and how it was answered.
    told = [
        (r["requester"], r["address"], r["target"], r["code"])
        for r in wait_for(lambda: engine.records[2:] and engine.records)
    ]
    assert told == [("snmp:web", "127.0.0.1", name, 28) for name in
                    ("haGroupInhibit.database", "haGroupInhibit.database", "1.3.6.1.9.9.9")]  # fmt: skip
    assert engine.records[0]["message"] == (
        "SET of haGroupInhibit.database answered with no access; what may be SET is said by `access` and `write_view` of who asks "
        "(through snmpd: agentx_access) in the configuration"
    )
    process.ask("snmpset", user("web"), own, "i", "1")
    assert engine.commands[-1]["target"] == "web" and engine.commands[-1]["requester"] == "snmp:web"
    refused = process.run("snmpset", user("watch"), own, "i", "1")
    assert "authorizationError" in refused.stderr
    wait_for(lambda: engine.records[-1]["requester"] == "snmp:watch")


def test_a_flood_of_refused_sets_is_told_of_with_its_number() -> None:
    record = Record(0.0)
    outcome = SetOutcome("tom", "192.0.2.7", b"", 1, 6)
    rows = [record.refused(outcome, "haInhibit.0", 0.01 * n) for n in range(100)]
    assert sum(row is not None for row in rows) == AT_ONCE
    later = record.refused(outcome, "haInhibit.0", 30.0)
    assert later is not None and f"; {100 - AT_ONCE} more refused" in later["message"]
    assert record.refused(SetOutcome("tom", "192.0.2.7", b"", 1, 0), "haInhibit.0", 99.0) is None  # it was done
    record.known = True
    assert record.refused(outcome, "haInhibit.0", 99.0) is None  # the engine refused it, and has its row
    assert record.refused(outcome, "haInhibit.0", 99.0) is not None


def test_a_user_from_another_network_may_do_nothing(agent: Lab) -> None:
    process, _, _ = agent
    said = process.run("snmpget", user("away"), "1.3.6.1.2.1.1.3.0")
    assert said.returncode != 0 and "authorizationError" in said.stdout + said.stderr


def test_the_tables_say_what_the_configuration_says_and_no_secret(agent: Lab) -> None:
    process, _, config = agent
    walk = rows_of(process.ask("snmpwalk", [*user("root"), "-Ob"], "1.3.6.1.6.3"))
    users = {name: value for name, value in walk.items() if name.startswith("1.3.6.1.6.3.15.1.2.2.1.3.")}
    assert sorted(users.values()) == sorted(f'STRING: "{u.name}"' for u in config.snmp.users)
    auth = {value for name, value in walk.items() if name.startswith("1.3.6.1.6.3.15.1.2.2.1.5.")}
    assert auth == {"OID: .1.3.6.1.6.3.10.1.1.5"}  # usmHMAC192SHA256AuthProtocol
    said = " ".join(walk.values())
    assert not any(word in said for word in (AUTH, PRIV, *(c.secret.decode() for c in config.snmp.communities)))
    # vacmAccessTable's group "web": reads `web`, writes `web-actions`.
    prefix = f"1.3.6.1.6.3.16.1.4.1.%d.{dotted(WEB)}.0.3.3"
    assert [walk[prefix % column] for column in (5, 6, 7)] == [
        'STRING: "web"',
        'STRING: "web-actions"',
        'STRING: "web"',
    ]
    mask = f"1.3.6.1.6.3.16.1.5.2.1.3.{dotted(WEB)}"
    assert any(name.startswith(mask) and value.startswith("Hex-STRING: FF") for name, value in walk.items())
    assert walk["1.3.6.1.6.3.16.1.1.1.1.0"] == '""' and walk["1.3.6.1.6.3.16.1.5.1.0"] == "INTEGER: 0"
    assert {v for n, v in walk.items() if n.startswith("1.3.6.1.6.3.18.1.1.1.3.")} == {
        'STRING: "community-1"', 'STRING: "community-2"',
    }  # fmt: skip
    assert "notWritable" in process.run("snmpset", user("root"), "1.3.6.1.6.3.16.1.5.1.0", "i", "0").stderr


def test_the_tables_are_the_mibs(tmp_path: Path) -> None:
    """Every column that is served is in its MIB, under that number and with that type."""
    settings = Snmp(users=(SnmpUser("u", "sha256", "aes128", "read"),), communities=(Community("read", (), b"x"),))
    found = numbers(tmp_path)
    served = {s.name: s.oid for s in access_tables.scalars()}
    for table in access_tables.tables(settings, b"\x80\0~\xd9\5abc"):
        served |= {c.name: (*table.entry_oid, c.number) for c in table.columns}
        picture = a_view()
        for _, row in table.rows(picture):
            for column in table.columns:
                value = column.read(objects.Reader(picture, 0, 0), row)
                assert isinstance(value, {0x02: int, 0x04: bytes, 0x06: tuple}[int(column.syntax)]), column.name
    assert {name: dotted(oid) for name, oid in served.items()} == {name: found[name] for name in served}
