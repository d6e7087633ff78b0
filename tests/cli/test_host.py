"""`hasnmp --host`: the same verbs, words and exit codes over SNMP, against a running agent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hasnmp import protocol
from hasnmp.console.remote import Remote
from hasnmp.console.remote_rows import Rows, subtrees
from hasnmp.errors import Code, Refused, Unreachable
from hasnmp.model import TABLES, CommandRow, CommandState, Verb
from hasnmp.settings import SnmpUser
from hasnmp.snmp import ber, cells, ha_objects, objects
from hasnmp.snmp.manager import Answered, Credentials, Manager
from hasnmp.snmp.objects import Oid, Value, text_index
from hasnmp.snmp.whys import AGE, TEXT
from tests.snmp.snmp_lab import AUTH, PRIV, READ, AgentProcess, FakeEngine, a_config, a_view, running, wait_for


class Engine(FakeEngine):
    """Every command that it accepts is done a moment later; its row is in the table, as the real engine's is."""

    code: Code = Code.DONE
    last = 100

    def _say(self, message: dict[str, Any]) -> None:
        super()._say(message)
        if message["type"] == "reply" and message["command"]["id"]:
            row: CommandRow = protocol.row_from_json(CommandRow, message["command"])
            over = CommandState.DONE if row.state is CommandState.ACCEPTED else row.state
            wall = self.view.wall_ms
            self.last += 1
            row = dataclasses.replace(
                row,
                id=self.last,
                state=over,
                code=self.code,
                text="so it is",
                asked_wall_ms=wall,
                ended_wall_ms=wall,
            )
            self.change({"commands": {str(row.id): row}})

    def _recorded(self, message: dict[str, Any]) -> None:
        self.last += 1
        row = CommandRow(
            self.last, message["requester"], message["address"], Verb.SET, message["target"], "", "", CommandState.REFUSED,
            Code(message["code"]), message["message"],
        )  # fmt: skip
        self.change({"commands": {str(row.id): row}})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentProcess, Engine, Path]]:
    folder = tmp_path_factory.mktemp("host")
    secrets = {"auth_secret": AUTH.encode(), "priv_secret": PRIV.encode()}
    by_access = {"noc": "operate", "watch": "read", "chief": "admin"}
    users = tuple(SnmpUser(name, "sha256", "aes128", access, **secrets) for name, access in by_access.items())
    config = a_config(folder, users=users)
    engine = Engine(Path(config.control.socket), a_view())
    for name, word in (("auth", AUTH), ("priv", PRIV), ("look", READ.decode()), ("wrong", "not-the-word")):
        (folder / name).write_text(word + "\n")
        (folder / name).chmod(0o600)
    with running(config) as agent:
        yield agent, engine, folder
    engine.stop()


Lab = tuple[AgentProcess, Engine, Path]


class Others(Manager):
    """An agent whose command table the test makes, as others' commands and ours would."""

    def __init__(self, error: Answered | None = None) -> None:
        self.place = "192.0.2.1:161"
        self.error = error

    def set(self, assignments: Any) -> None:
        if self.error is not None:
            raise self.error


class Watching(Remote):
    def __init__(self, rows: list[CommandRow], error: Answered | None = None, user: str = "noc") -> None:
        super().__init__(Others(error), Credentials(user=user))
        self.looks = [[], rows]  # before the SET, and after it

    def _commands(self) -> list[CommandRow]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def a_row(number: int, verb: Verb, target: str, state: CommandState, to: str = "", who: str = "snmp:noc") -> CommandRow:
    return CommandRow(number, who, "192.0.2.9", verb, target, to, "", state)


def test_an_operator_is_told_of_what_was_asked_and_not_of_anothers_command() -> None:
    refused = CommandState.REFUSED
    rows = [
        a_row(7, Verb.FAILOVER, "web", CommandState.ACCEPTED),
        a_row(8, Verb.FAILOVER, "db", refused),
        a_row(9, Verb.FAILOVER, "web", refused, to="beta"),
        a_row(10, Verb.FAILOVER, "web", refused, who="snmp:tom"),
    ]
    assert Watching(rows).command(Verb.FAILOVER, "web").id == 7
    assert Watching(rows).command(Verb.FAILOVER, "web", to="beta").id == 9
    no_access = Answered("noAccess", 1)
    with pytest.raises(Refused, match="noAccess"):
        Watching([a_row(8, Verb.INHIBIT, "db", CommandState.DONE)], no_access).command(Verb.FAILOVER, "web")
    put_on_record = [a_row(8, Verb.SET, "haGroupAction.web", refused), a_row(9, Verb.INHIBIT, "db", CommandState.DONE)]
    assert Watching(put_on_record, no_access).command(Verb.FAILOVER, "web").id == 8


def words(lab: Lab, user: str = "noc") -> list[str]:
    agent, _, folder = lab
    return ["--host", f"127.0.0.1:{agent.port}", "--user", user, "--auth-file", str(folder / "auth"), "--priv-file",
            str(folder / "priv")]  # fmt: skip


@pytest.fixture(autouse=True)
def forget(lab: Lab) -> None:
    _, engine, _ = lab
    engine.commands.clear()
    engine.verdict, engine.code = CommandState.ACCEPTED, Code.DONE
    engine.whys = {}


# ------------------------------------------------------------------------------------------------------------ what it is


def test_the_rows_are_the_rows_that_the_agent_was_given() -> None:
    """Through the MIB's cells and back: every field of every row that the MIB shows at all."""
    picture = a_view()
    reader = objects.Reader(picture, picture.now_ns - 3600 * 10**9, picture.now_ns, node="alpha")
    store = cells.Store(ha_objects.SCALARS, ha_objects.TABLES, lambda: reader)
    found: dict[tuple[int, ...], Any] = {}
    cursor: Any = (store.columns[0], 0)
    while (place := store.settle(cursor)) is not None:
        varbind, column, at = place
        start, end = ber.expect(varbind, 0, len(varbind), ber.SEQUENCE)
        _, start = ber.expect(varbind, start, end, ber.OID)[0], ber.expect(varbind, start, end, ber.OID)[1]
        tag, start, stop = ber.tlv(varbind, start, end)
        found[(*column.oid, *column.rows.keys[at])] = ber.decode_value(tag, varbind[start:stop])
        cursor = (column, at + 1)
    wanted = subtrees(tuple(TABLES))
    found = {oid: value for oid, value in found.items() if any(oid[: len(s)] == s for s in wanted)}
    view = Rows(found, 360_000).view
    shift = picture.now_ns - view.now_ns
    not_shown = {"holder"}
    for table, rows in picture.tables.items():
        assert view.tables[table].keys() == rows.keys(), table
        for key, row in rows.items():
            got = view.tables[table][key]
            for field in dataclasses.fields(row):
                given, came = getattr(row, field.name), getattr(got, field.name)
                if field.name in not_shown:
                    continue
                if field.name == "ns" or field.name.endswith("_ns"):
                    # Hundredths of a second; tenths, and the wall clock, where it was before the agent's start.
                    assert (not given and not came) or abs(given - came - shift) < 2 * 10**9, (table, field.name)
                elif field.name.endswith("wall_ms"):
                    assert abs(given - came) < 101, (table, field.name)
                elif table == "statistics" and isinstance(given, int):
                    assert came == given % 2**32, field.name
                else:
                    assert came == given, (table, key, field.name)


def test_status_and_the_others_show_what_the_node_shows(lab: Lab, run) -> None:
    for shown in ("status", "stats", "alarms", "events", "commands"):
        ran = run(*words(lab, "watch"), shown)
        assert ran.status == 0 and ran.out, (shown, ran)
    ran = run("status", *words(lab, "watch"), "--json")
    status = json.loads(ran.out)
    assert status["system"]["node"] == "alpha" and [row["name"] for row in status["services"]] == [
        "httpd", "address", "postgres",
    ]  # fmt: skip
    assert {row["owner"] for row in status["groups"]} == {"alpha"}
    ran = run(*words(lab, "watch"), "fence", "show", "--json")
    assert json.loads(ran.out)["fences"][0]["agent"] == "fence_ipmilan"


def test_by_a_community(lab: Lab, run) -> None:
    agent, _, folder = lab
    ran = run("--host", f"127.0.0.1:{agent.port}", "--community-file", str(folder / "look"), "status")
    assert ran.status == 0 and "this node alpha: primary" in ran.out, ran


# ------------------------------------------------------------------------------------------------------ what is commanded


@pytest.mark.parametrize(
    ("given", "verb", "target", "to"),
    [
        (["failover", "web", "--to", "beta"], Verb.FAILOVER, "web", "beta"),
        (["failover", "web", "--force"], Verb.FORCE_FAILOVER, "web", ""),
        (["failover"], Verb.FAILOVER, "", ""),
        (["inhibit"], Verb.INHIBIT, "", ""),
        (["permit", "web"], Verb.PERMIT, "web", ""),
        (["freeze", "web"], Verb.FREEZE, "web", ""),
        (["thaw", "web"], Verb.THAW, "web", ""),
        (["standby", "beta"], Verb.STANDBY, "beta", ""),
        (["online"], Verb.ONLINE, "alpha", ""),
        (["recover", "beta"], Verb.RECOVER, "beta", ""),
        (["service", "restart", "httpd"], Verb.SERVICE_RESTART, "httpd", ""),
        (["service", "clear", "httpd"], Verb.SERVICE_CLEAR, "httpd", ""),
        (["fence", "test", "beta"], Verb.FENCE_TEST, "beta", ""),
        (["reload"], Verb.RELOAD, "", ""),
    ],
)  # fmt: skip
def test_every_verb_by_a_set(lab: Lab, run, given: list[str], verb: Verb, target: str, to: str) -> None:
    _, engine, _ = lab
    ran = run(*words(lab), *given, "--reason", "new kernel")
    assert ran.status == 0 and "done in" in ran.out and "so it is" in ran.out, ran
    [asked] = engine.commands
    assert (asked["verb"], asked["target"], asked["to"], asked["reason"]) == (int(verb), target, to, "new kernel")
    assert asked["requester"] == "snmp:noc" and asked["address"] == "127.0.0.1"


def test_a_refusal_of_the_engine_has_its_code_and_words(lab: Lab, run) -> None:
    _, engine, _ = lab
    engine.verdict, engine.code = CommandState.REFUSED, Code.TARGET_EXCLUDED
    ran = run(*words(lab), "failover", "web", "--to", "beta")
    assert ran.status == Code.TARGET_EXCLUDED and "so it is [TARGET_EXCLUDED=12]" in ran.err, ran


def test_what_is_unknown_or_not_allowed(lab: Lab, run, tmp_path: Path) -> None:
    _, engine, _ = lab
    assert run(*words(lab), "failover", "wob").status == Code.NOT_FOUND
    ran = run(*words(lab, "watch"), "inhibit")
    assert ran.status == Code.NOT_ALLOWED and "authorization error; what may be SET is said by `access`" in ran.err, ran
    # A configuration names programs that run as root: no access lets anybody hand one in.
    ran = run(*words(lab, "chief"), "apply", str(tmp_path / "new.yaml"))
    assert ran.status == Code.UNSUPPORTED and "copy it to a node and give the command there" in ran.err, ran
    assert engine.commands == []


def test_the_word_that_a_node_is_off_takes_an_administrator(lab: Lab, run) -> None:
    _, engine, _ = lab
    ran = run(*words(lab, "noc"), "fence", "confirm", "beta", "--yes")
    assert ran.status == Code.NOT_ALLOWED and "haNodeFenceConfirm.beta answered with no access" in ran.err, ran
    assert engine.commands == []
    ran = run(*words(lab, "chief"), "fence", "confirm", "beta", "--yes", "--reason", "its cord is in my hand")
    assert ran.status == 0 and "fence confirm beta: done in" in ran.out, ran
    [asked] = engine.commands
    assert (asked["verb"], asked["target"]) == (Verb.FENCE_CONFIRM, "beta")
    assert (asked["requester"], asked["reason"]) == ("snmp:chief", "its cord is in my hand")


def test_a_report_of_an_outside_agent(lab: Lab, run) -> None:
    _, engine, _ = lab
    rows = dict(engine.view.tables["commands"])
    for state, up in (("up", True), ("down", False)):
        ran = run(*words(lab), "report", "httpd", state, "queue", "is\tfull")
        assert ran.status == 0 and ran.out == "report httpd: done\n", ran
        assert engine.commands[-1].items() >= {
            "verb": int(Verb.REPORT), "target": "httpd", "up": up, "message": "queue is full", "requester": "snmp:noc",
        }.items()  # fmt: skip
    assert engine.view.tables["commands"] == rows, "one every few seconds would drive everything else out of the table"
    engine.verdict, engine.refusal = CommandState.REFUSED, (Code.NOT_PASSIVE, "httpd is checked by its agent exec")
    ran = run(*words(lab), "report", "httpd", "up")
    assert ran.status == Code.NOT_PASSIVE, ran
    assert ran.err == "hasnmp: report httpd refused: httpd is checked by its agent exec [NOT_PASSIVE=27]\n"
    assert engine.records[-1].items() >= {"target": "haServiceReport.httpd", "code": int(Code.NOT_PASSIVE)}.items()


def test_why_a_group_is_where_it_is(lab: Lab, run) -> None:
    _, engine, _ = lab
    reason = "excluded: start failed: " + " ".join(f"/usr/lib/a-long-path/{number}" for number in range(40))
    engine.whys = {"web": ["group web: running on alpha", f"beta: {reason}"], "database": []}

    def asked() -> list[str]:
        ran = run(*words(lab, "watch"), "why", "web")
        return ran.out.split() if ran.status == 0 else []

    said = " ".join(engine.whys["web"]).split()
    wait_for(lambda: asked() == said)
    ran = run(*words(lab, "watch"), "why", "database")
    assert ran.status == Code.NO_ENGINE and "has nothing to say of database" in ran.err, ran


class Agent:
    """Answers as an agent that has these cells and no others."""

    place = "192.0.2.11:161"

    def __init__(self, name: bytes | None, cells: dict[Oid, Value]) -> None:
        self.name, self.cells = name, cells

    def get(self, names: list[Oid]) -> list[Value | None]:
        return [4711, self.name]

    def walk(self, subtree: Oid) -> dict[Oid, Value]:
        return {oid: value for oid, value in self.cells.items() if oid[: len(subtree)] == subtree}


def test_an_agent_without_rows_of_a_table_is_no_other_agent() -> None:
    remote = Remote(cast(Any, Agent(b"bank", {})), cast(Any, None), ("fences",))
    assert remote.view().tables["fences"] == {}
    with pytest.raises(Unreachable, match="it is another agent"):
        Remote(cast(Any, Agent(None, {})), cast(Any, None), ("fences",)).view()


def test_a_why_that_is_old_says_so() -> None:
    row = (*text_index("web"), 1)
    for age_ms, more in ((5900, []), (7310, ["all this as of 7.3 s ago, when 192.0.2.11:161 was told last"])):
        agent = Agent(b"bank", {(*TEXT, *row): b"group web: running on a", (*AGE, *row): age_ms})
        assert Remote(cast(Any, agent), cast(Any, None)).why("web") == ["group web: running on a", *more]


def test_a_reload_that_has_the_agent_begin_anew() -> None:
    """Nobody answers for a while: that is no end of the command."""
    running, done = (a_row(7, Verb.RELOAD, "", state) for state in (CommandState.RUNNING, CommandState.DONE))

    class Restarting(Watching):
        silent = 3

        def _commands(self) -> list[CommandRow]:
            if self.silent:
                self.silent -= 1
                raise Unreachable("no answer")
            return super()._commands()

    remote = Restarting([done])
    remote.looks = [[done]]
    assert [row.state for row in remote.follow(running, 60.0) if isinstance(row, CommandRow)] == [
        CommandState.RUNNING, CommandState.DONE,
    ]  # fmt: skip


def test_nobody_answers_or_does_not_know_us(lab: Lab, run) -> None:
    agent, _, folder = lab
    ran = run(*words(lab, "nobody"), "status")
    assert ran.status == Code.NO_ENGINE and "knows no such user" in ran.err, ran
    wrong = ["--host", f"127.0.0.1:{agent.port}", "--user", "noc", "--auth-file", str(folder / "wrong"), "--priv-file",
             str(folder / "priv")]  # fmt: skip
    ran = run(*wrong, "status")
    assert ran.status == Code.NO_ENGINE and "passphrase" in ran.err, ran
    ran = run("--host", "127.0.0.1:1", "--community-file", str(folder / "look"), "status")
    assert ran.status == Code.NO_ENGINE, ran


def test_a_node_by_its_name_with_the_configurations_user(lab: Lab, run, tmp_path: Path) -> None:
    agent, _, folder = lab
    key = tmp_path / "key"
    key.write_text("k" * 44)
    key.chmod(0o600)
    file = tmp_path / "hasnmp.yaml"
    file.write_text(f"""
cluster: bank
nodes:
  alpha: {{links: {{lan: 127.0.0.1}}}}
  beta: {{links: {{lan: 127.0.0.2}}}}
heartbeat: {{key_files: [{key}]}}
arbiter: {{type: none, accept_split_brain: true}}
groups: {{web: {{services: [{{name: httpd, agent: exec, options: {{command: [/bin/true]}}}}]}}}}
snmp:
  listen: ["127.0.0.1:{agent.port}"]
  users:
    - {{name: watch, auth_file: {folder}/auth, priv: aes128, priv_file: {folder}/priv}}
    - {{name: noc, auth_file: {folder}/auth, priv: aes128, priv_file: {folder}/priv, access: operate}}
""")
    ran = run("--config", str(file), "--host", "alpha", "inhibit")
    assert ran.status == 0 and "done" in ran.out, ran
    ran = run("--config", str(file), "--host", "beta", "status")
    assert ran.status == Code.USAGE and "has none of its addresses" in ran.err, ran
    ran = run("--config", str(file), "--host", "gamma", "status")
    assert ran.status == Code.NOT_FOUND and "there are: alpha, beta" in ran.err, ran
