"""The command line. Exit status: 0 done, 1 failed, 2 usage, else the refusal's code, as in errors.Code and in the MIB.

What a command does not need is not imported, so that `status` answers at once. Local commands use the control socket, so
that they work while SNMP is down.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hasnmp import __version__
from hasnmp.console import report
from hasnmp.console.control import Control
from hasnmp.console.tables import Screen, clean, word, wrap
from hasnmp.errors import Code, ConfigError, HasnmpError, Refused, Unreachable, WireError
from hasnmp.model import CommandRow, CommandState, ConfigRow, EventRow, GroupRow, NodeRow, ServiceRow, SystemRow, Verb

if TYPE_CHECKING:
    from hasnmp.settings import Config

DEFAULT_SOCKET = "/run/hasnmp/control.sock"
STATUS_TABLES = ("system", "nodes", "links", "groups", "services", "arbiters", "alarms")
STATS_TABLES = ("statistics", "config", "nodes", "links", "groups", "services")
LATER = ("console", "--host")  # what versions to come will have

Args = argparse.Namespace


# --------------------------------------------------------------------------------------------------------- the socket


def load(file: str, secrets: bool) -> Config:
    """Raises ConfigError: every fault of the file. secrets: read the files with the secrets too."""
    from hasnmp.config import load as load_config  # takes the YAML library along

    return load_config(file, strict_files=secrets)


def socket_path(args: Args) -> str:
    """--socket, else control.socket of --config, else $HASNMP_SOCKET, else where a daemon listens by default."""
    path: str | None = getattr(args, "socket", None)
    if not path and getattr(args, "config", None):
        path = load(args.config, secrets=False).control.socket
    return path or os.environ.get("HASNMP_SOCKET") or DEFAULT_SOCKET


def connect(args: Args, *tables: str) -> Control:
    return Control(socket_path(args), tables)


def out(lines: Iterable[str]) -> None:
    print("\n".join(lines))


def out_json(value: object) -> None:
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def _known(what: str, name: str, names: list[str]) -> None:
    """Raises Refused: no such thing here. The engine would refuse it too; here the names are at hand."""
    if name and name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names) or 'none'}"
        raise Refused(Code.NOT_FOUND, f"no {what} {name!r}{hint}")


# ------------------------------------------------------------------------------------------------------ what is shown


def status(args: Args) -> int:
    view = connect(args, *STATUS_TABLES).view()
    if args.json:
        out_json(report.view_json(view, STATUS_TABLES))
    else:
        out(report.status(view, Screen()))
    return 0


def stats(args: Args) -> int:
    view = connect(args, *STATS_TABLES).view()
    if args.json:
        out_json(report.view_json(view, STATS_TABLES))
    else:
        out(report.stats(view, Screen()))
    return 0


def alarms(args: Args) -> int:
    view = connect(args).view()
    if args.json:
        out_json(report.view_json(view, ("alarms",)))
    else:
        out(report.alarms(view, Screen()))
    return 0


def commands(args: Args) -> int:
    kept = report.commands(connect(args).view())
    kept = kept[-args.n :] if args.n else []
    if args.json:
        out_json([report.row_json(row) for row in kept])
    else:
        out(report.command_lines(kept, Screen()) or ["no command is on record"])
    return 0


def events(args: Args) -> int:
    if args.follow:
        from hasnmp.console import watch

        return watch.events(socket_path(args), args.n, args.json, Screen())
    kept = report.events(connect(args).view())
    screen = Screen()
    for event in kept[-args.n :] if args.n else []:
        print(json.dumps(report.row_json(event), ensure_ascii=False) if args.json else report.event_line(event, screen))
    return 0


def watch(args: Args) -> int:
    from hasnmp.console import watch

    return watch.status(socket_path(args), Screen())


def why(args: Args) -> int:
    control = connect(args)
    _known("group", args.group, [row.name for row in report.rows_of(control.view(), "groups", GroupRow)])
    screen = Screen()
    for line in control.why(args.group):
        text = line.lstrip(" ")
        indent = " " * (len(line) - len(text))
        out(wrap(indent + text, screen.width, indent + "  "))
    return 0


def fence_show(args: Args) -> int:
    view = connect(args, "fences").view()
    if args.json:
        out_json(report.view_json(view, ("fences",)))
    else:
        out(report.fences(view, Screen()))
    return 0


# -------------------------------------------------------------------------------------------------- what is commanded


def failover(args: Args) -> int:
    return command(args, Verb.FORCE_FAILOVER if args.force else Verb.FAILOVER, "group", args.group, to=args.to)


def of_group(verb: Verb) -> Callable[[Args], int]:
    return lambda args: command(args, verb, "group", args.group)


def of_node(verb: Verb) -> Callable[[Args], int]:
    return lambda args: command(args, verb, "node", args.node)


def fence_confirm(args: Args) -> int:
    """The administrator's word that a node is off. Asked for on a terminal; without one it takes --yes."""
    if not args.yes:
        from hasnmp.console.fence import certain

        if not certain(args.node):
            raise Refused(Code.NOT_ALLOWED, f"fence confirm {args.node}: not confirmed, nothing was done")
    return command(args, Verb.FENCE_CONFIRM, "node", args.node)


def service(args: Args) -> int:
    return command(args, Verb[f"SERVICE_{args.action.upper()}"], "service", args.name)


def report_service(args: Args) -> int:
    return command(args, Verb.REPORT, "service", args.name, up=args.state == "up", message=" ".join(args.message))


def command(args: Args, verb: Verb, kind: str, target: str, *, to: str = "", up: bool = True, message: str = "") -> int:
    """Hand a command in and tell what becomes of it. kind: what `target` names; a node left out means this one."""
    control = connect(args)
    view = control.view()
    nodes = [row.name for row in report.rows_of(view, "nodes", NodeRow)]
    if kind == "node":
        system = report.first(view, "system", SystemRow)
        target = target or (system.node if system else "")
        _known(kind, target, nodes)
    elif kind == "group":
        _known(kind, target, [row.name for row in report.rows_of(view, "groups", GroupRow)])
    else:
        _known(kind, target, [row.name for row in report.rows_of(view, "services", ServiceRow)])
    _known("node", to, nodes)
    row = control.command(verb, target, to=to, reason=args.reason, up=up, message=message)
    if args.no_wait and row.state is not CommandState.REFUSED:
        if not args.quiet:
            print(f"accepted as command {row.id}; see: hasnmp commands")
        return 0
    return _follow(control, row, args)


def _follow(
    control: Control, row: CommandRow, args: Args, story: Iterable[CommandRow | EventRow | None] | None = None
) -> int:
    """story: what becomes of the row, if not this connection alone tells it."""
    screen = Screen()
    what = f"{word(row.verb)} {row.target or ('' if row.verb in (Verb.RELOAD, Verb.APPLY) else 'all')}".strip() + (
        f" to {row.to}" if row.to else ""
    )
    try:
        for news in story or control.follow(row, args.timeout):
            if isinstance(news, EventRow):
                if screen.terminal and not args.quiet:
                    print(screen.paint(report.event_line(news, screen, whole=False), "dim"))
            elif news is None:
                print(f"hasnmp: {what} (command {row.id}) has not ended within {args.timeout:g} s; "
                      "it goes on; see: hasnmp commands", file=sys.stderr)  # fmt: skip
                return int(Code.TIMED_OUT)
            else:
                row = news
    except Unreachable as error:
        raise Unreachable(f"{error}. What became of command {row.id} ({what}) will be in: hasnmp commands") from None
    except KeyboardInterrupt:
        print(f"\nhasnmp: command {row.id} ({what}) goes on; see: hasnmp commands", file=sys.stderr)
        return 130
    if row.state is CommandState.DONE:
        if not args.quiet:
            took = f" in {row.ended_wall_ms - row.asked_wall_ms} ms" if row.ended_wall_ms else ""
            print(screen.paint(f"{clean(what)}: done{took}", "good") + (f": {clean(row.text)}" if row.text else ""))
        return 0
    code = int(row.code) or int(Code.FAILED)
    name = row.code.name if isinstance(row.code, Code) and row.code else "FAILED"
    # The engine's words of a refusal begin with what was refused; those of a failure tell only why.
    said = row.text if " refused" in row.text else f"{what} {word(row.state)}: {row.text or 'no reason was given'}"
    print(f"hasnmp: {clean(said)} [{name}={code}]", file=sys.stderr)
    return code


def reload(args: Args) -> int:
    """Have the daemon read its configuration anew. The file is looked at here first: here every fault can be shown."""
    control = connect(args)
    found = report.first(control.view(), "config", ConfigRow)
    # Whoever may command the daemon need not be able to read its secrets: then the daemon alone judges.
    if found and os.geteuid() == 0 and os.path.exists(found.source):
        try:
            _look(found.source, load(found.source, secrets=True))
        except ConfigError as error:
            print(error, file=sys.stderr)
            print(f"hasnmp: {_count(len(error.faults), 'fault')}; the daemon goes on with what it has "
                  f"[{Code.CONFIG_INVALID.name}={int(Code.CONFIG_INVALID)}]", file=sys.stderr)  # fmt: skip
            return int(Code.CONFIG_INVALID)
    return _reconfigure(control, Verb.RELOAD, args)


def apply(args: Args) -> int:
    """Have every node judge a file, and then all of them go by it at once."""
    import base64
    import zlib

    from hasnmp.config import load as load_config
    from hasnmp.config import parse

    load_config(args.file, strict_files=False)  # is it a text file of a good form?
    with open(args.file, encoding="utf-8-sig") as file:
        text = file.read()
    control = connect(args)
    found = report.first(control.view(), "config", ConfigRow)
    if found and os.geteuid() == 0:  # as what it will be: relative paths count from that folder
        parse(text, found.source, os.path.dirname(os.path.abspath(found.source)))
    control.stage(base64.b64encode(zlib.compress(text.encode(), 9)).decode())
    return _reconfigure(control, Verb.APPLY, args)


def _reconfigure(control: Control, verb: Verb, args: Args) -> int:
    from hasnmp.console.following import follow

    row = control.command(verb, "", reason=args.reason)
    if args.no_wait and row.state is not CommandState.REFUSED:
        print(f"accepted as command {row.id}; see: hasnmp commands")
        return 0
    return _follow(control, row, args, follow(control, row, args.timeout))


# ------------------------------------------------------------------------------------------------- without the daemon


def check_config(args: Args) -> int:
    config = load(args.file, secrets=not args.no_secrets)
    if not args.no_secrets:
        _look(args.file, config)
    services = len(config.services())
    print(f"{args.file}: no fault: cluster {config.cluster}, {_count(len(config.nodes), 'node')}, "
          f"{_count(len(config.groups), 'group')}, {_count(services, 'service')}")  # fmt: skip
    if args.no_secrets:
        print("the files with the secrets, and the programs, were not looked at")
    return 0


def _look(file: str, config: Config) -> None:
    """What this machine says to a faultless file: notes on stderr. Raises ConfigError: faults."""
    from hasnmp.config import Places
    from hasnmp.console import config_check

    faults, notes = config_check.look(config, Places(file))
    for note in notes:
        print(f"note: {clean(note)}", file=sys.stderr)
    if faults:
        raise ConfigError(faults)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def arbiter(args: Args) -> int:
    from hasnmp.arbiters import admin

    config = load(args.config, secrets=False)
    if config.arbiter.type != "disk":
        raise Refused(Code.UNSUPPORTED, f"the arbiter of {args.config} is {config.arbiter.type}, which keeps no disk")
    device = config.arbiter.device
    try:
        if args.action == "init":
            nodes, groups = tuple(n.name for n in config.nodes), tuple(g.name for g in config.groups)
            pills = any(level.agent == "pill" for node in config.nodes for level in node.fence)
            print(admin.init(device, config.cluster, groups, nodes, force=args.force, pills=pills))
        elif args.action == "show":
            out(admin.show(device))
        else:
            print(admin.clear(device, config.cluster, args.group, args.node, force=args.force))
    except OSError as error:
        raise Refused(Code.ARBITER_LOST, f"{device}: {error.strerror}; can this node reach it?") from None
    except WireError as error:
        raise Refused(Code.ARBITER_LOST, f"{device}: {error}") from None
    return 0


def agents(args: Args) -> int:
    from hasnmp.console import fence

    out(fence.show(args.name, Screen()) if args.action == "show" else fence.listing(Screen()))
    return 0


def mib(args: Args) -> int:
    from pathlib import Path

    from hasnmp.snmp.oids import reroot

    package = Path(__file__).parent
    for folder in (package.parent / "mibs", package / "mibs"):  # a checkout, an installed wheel
        file = folder / "HASNMP-MIB.txt"
        if file.is_file():
            break
    else:
        raise Refused(Code.NOT_FOUND, f"HASNMP-MIB.txt is not beside {package}: the installation is not whole")
    text = file.read_text()
    if args.root:
        try:
            text = reroot(text, args.root)
        except ValueError as error:
            print(f"hasnmp: --root: {error}", file=sys.stderr)
            return int(Code.USAGE)
    sys.stdout.write(text)
    return 0


def demo(args: Args) -> int:
    from hasnmp.demo import main as play

    return play(once=args.once)


def simulate(args: Args) -> int:
    from hasnmp.console.forecast import forecast
    from hasnmp.simulator.spoken import UnknownFault
    from hasnmp.simulator.what_if import foresee

    config = load(args.config_file, secrets=False)
    for name in args.start_ms:
        _known("service", name, [service.name for service in config.services()])
    try:
        report = foresee(config, args.faults, args.start_ms)
    except UnknownFault as error:
        print(f"hasnmp: {clean(error)}{'; known:' if error.known else ''}", file=sys.stderr)
        for pattern, means in error.known:
            print(f"  {pattern:<30} {means}", file=sys.stderr)
        return int(Code.USAGE)
    if args.json:
        out_json(report)
    else:
        out(forecast(report, Screen()))
    return 0 if report["served"] else int(Code.FAILED)


def version(args: Args) -> int:
    print(f"hasnmp {__version__}")
    return 0


# ------------------------------------------------------------------------------------------------------------- usage


class Parser(argparse.ArgumentParser):
    """argparse, with a hint for what is misspelt and a clear word for what a later version has."""

    words: Sequence[str] = ()  # the command line, also for the parsers of the commands

    def error(self, message: str) -> NoReturn:
        given = next((word for word in Parser.words if f"'{word}'" in message), "")
        later = next((word for word in Parser.words if word.split("=")[0] in LATER), "")
        if later and ("invalid choice" in message or "unrecognized" in message or "required" in message):
            message = f"{later.split('=')[0]} is not in version {__version__}; a later one has it"
        elif "invalid choice" in message and "choose from" in message:
            names = [part.strip(" '") for part in message[message.index("choose from") + 12 :].rstrip(")").split(",")]
            close = difflib.get_close_matches(given, names, 2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
            message = f"{given or 'this'} is none of its words; {hint}"
        print(f"{self.prog}: {message}\nsee: {self.prog} --help", file=sys.stderr)
        raise SystemExit(int(Code.USAGE))


def parser() -> Parser:
    # Both before and after the command; SUPPRESS keeps the second parser from undoing what the first one found.
    where = argparse.ArgumentParser(add_help=False)
    which = where.add_mutually_exclusive_group()
    which.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's control socket")
    which.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="find the socket by this file")
    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--json", action="store_true", help="for programs")
    order = argparse.ArgumentParser(add_help=False)
    order.add_argument("--reason", metavar="TEXT", default="", help="kept with the command, shown in events")
    order.add_argument("--no-wait", action="store_true", help="do not wait for the outcome")
    order.add_argument("--timeout", metavar="S", type=_seconds, default=300.0, help="wait so long (300)")
    order.add_argument("--quiet", "-q", action="store_true", help="say nothing when all is well")

    top = Parser(prog="hasnmp", description="Watch and command a hasnmp cluster from one of its nodes.", parents=[where],
                 epilog="Exit status: 0 done, 1 failed, 2 usage, else the refusal's code, the same number as in the MIB."
                 )  # fmt: skip
    verbs = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, run: Callable[[Args], int], text: str, *parents: Any) -> Parser:
        made: Parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents)
        made.set_defaults(run=run)
        return made

    add("status", status, "the cluster as this node sees it", where, shape)
    add("watch", watch, "follow the status live, until Ctrl-C", where)
    made = add("events", events, "what happened, the newest last", where, shape)
    made.add_argument("--follow", "-f", action="store_true", help="go on with what happens")
    made.add_argument("-n", metavar="N", type=_number, default=20, help="the newest N (20)")
    add("alarms", alarms, "the alarms that stand", where, shape)
    add("stats", stats, "counters, and the timings in force", where, shape)
    made = add("commands", commands, "the commands given at this node, and what became of them", where, shape)
    made.add_argument("-n", metavar="N", type=_number, default=20, help="the newest N (20)")
    made = add("why", why, "what was decided last for a group, why, and whether it may move now", where)
    made.add_argument("group", metavar="GROUP")

    made = add("failover", failover, "move a group, or every group that runs here", where, order)
    made.add_argument("group", metavar="GROUP", nargs="?", default="")
    made.add_argument("--to", metavar="NODE", default="", help="where to; else the first node that is able")
    made.add_argument("--force", action="store_true", help="also where it is inhibited, or excluded there")
    for name, verb, text in (
        ("inhibit", Verb.INHIBIT, "no automatic failover of a group, or of any"),
        ("permit", Verb.PERMIT, "end inhibit"),
    ):
        made = add(name, of_group(verb), text, where, order)
        made.add_argument("group", metavar="GROUP", nargs="?", default="")
    for name, verb, text in (
        ("freeze", Verb.FREEZE, "keep a group where it is and act on no check"),
        ("thaw", Verb.THAW, "end freeze"),
    ):
        add(name, of_group(verb), text, where, order).add_argument("group", metavar="GROUP")
    for name, verb, text in (
        ("standby", Verb.STANDBY, "drain a node (default: this one): its groups move away"),
        ("online", Verb.ONLINE, "end standby"),
        ("recover", Verb.RECOVER, "take a node that had failed back as a standby"),
    ):
        made = add(name, of_node(verb), text, where, order)
        made.add_argument("node", metavar="NODE", nargs="?", default="")
    actions = add(
        "fence", fence_show, "the fence devices: show them, test one, or say that a node is off"
    ).add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    parents: Any = ((where, shape), (where, order))
    text = "every fence level of every node, and what came of its last use and test"
    actions.add_parser("show", help=text, description=text[0].upper() + text[1:] + ".", parents=parents[0])
    for name, run, text in (
        ("test", of_node(Verb.FENCE_TEST), "ask a node's fence devices for their status, now"),
        ("confirm", fence_confirm, "your word that a node is off: its groups may be taken without fencing it"),
    ):
        made = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents[1])
        made.set_defaults(run=run)
        made.add_argument("node", metavar="NODE")
        if name == "confirm":
            made.add_argument("--yes", action="store_true", help="do not ask")
    made = add("service", service, "start, stop, restart a service by hand, or clear its failures", where, order)
    made.add_argument("action", choices=("start", "stop", "restart", "clear"))
    made.add_argument("name", metavar="NAME")
    made = add("report", report_service, "tell the state of a passive service", where, order)
    made.add_argument("name", metavar="NAME")
    made.add_argument("state", choices=("up", "down"))
    made.add_argument("message", metavar="MESSAGE", nargs="*", default=[])

    add("reload", reload, "have the daemon read its configuration file anew; what did not change runs on", where, order)
    made = add(
        "apply", apply, "have all nodes go by a file at once: for times, which a reload may not change", where, order
    )
    made.add_argument("file", metavar="FILE")
    made = add("check-config", check_config, "every fault of a configuration file")
    made.add_argument("file", metavar="FILE")
    made.add_argument("--no-secrets", action="store_true", help="look at the text only: no key files, no programs")
    actions = add("arbiter", arbiter, "the lease disk: make it, show it, end a dead node's record").add_subparsers(
        metavar="ACTION", dest="action", required=True, parser_class=Parser
    )
    for action, text in (
        ("init", "make the lease disk, or give new nodes and groups their places; right on every node"),
        ("show", "what the lease disk holds"),
        ("clear", "end the record of a node that is known to be down, so that its group may be taken"),
    ):
        made = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("--config", metavar="FILE", required=True)
        if action == "clear":
            made.add_argument("group", metavar="GROUP")
            made.add_argument("--node", metavar="NODE", default="", help="the record of this node only")
        if action != "show":
            made.add_argument("--force", action="store_true",
                              help="over foreign data" if action == "init" else "that node is powered off, by your word")  # fmt: skip
    made = add("agents", agents, "the agents that run services, and the fence agents that are installed here")
    made.set_defaults(action="list")
    actions = made.add_subparsers(metavar="ACTION", dest="action", parser_class=Parser)
    made = actions.add_parser("show", help="an agent's options", description="An agent's options.")
    made.add_argument("name", metavar="NAME")
    made = add("simulate", simulate, "what would happen: who ends up running what, when and why, after faults", shape)
    made.add_argument("config_file", metavar="CONFIG")
    made.add_argument("faults", metavar="FAULT", nargs="*",
                      help="as \"primary-a off\", \"lan cut\", \"wait 30s\", \"failover nfs\", or several joined by +, which strike "
                      "together; a wrong one is answered with all that are known")  # fmt: skip
    made.add_argument("--start-ms", metavar="SERVICE=MS", action=StartTimes, default={},
                      help="how long that service's start takes (100 ms)")  # fmt: skip
    made = add("mib", mib, "print HASNMP-MIB")
    made.add_argument("--root", metavar="OID", default="", help="under your own enterprise number")
    made = add("demo", demo, "a whole pair on this machine: service, failure, takeover, trap")
    made.add_argument("--once", action="store_true", help="play it once, check it, and exit 0 or 1")
    add("version", version, "the version of this program")
    return top


class StartTimes(argparse.Action):
    """--start-ms SERVICE=MS, any number of times -> {service: ms}."""

    def __call__(self, parser: argparse.ArgumentParser, args: Args, value: Any, option: str | None = None) -> None:
        name, _, ms = str(value).rpartition("=")
        if not name or not ms.isdigit() or not 0 < int(ms) <= 3_600_000:
            parser.error(f"argument --start-ms: {value!r} is not SERVICE=MS with 1 to 3600000 ms")
        setattr(args, self.dest, {**getattr(args, self.dest), name: int(ms)})


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    Parser.words = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(Parser.words)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        print(f"hasnmp: {_count(len(error.faults), 'fault')}", file=sys.stderr)
        return int(Code.FAILED)
    except Refused as error:
        print(f"hasnmp: {clean(error)}", file=sys.stderr)
        return int(error.code)
    except Unreachable as error:
        print(f"hasnmp: {clean(error)} [{Code.NO_ENGINE.name}={int(Code.NO_ENGINE)}]", file=sys.stderr)
        return int(Code.NO_ENGINE)
    except HasnmpError as error:
        print(f"hasnmp: {clean(error)}", file=sys.stderr)
        return int(Code.FAILED)
    except BrokenPipeError:
        # The reader (head, less) had enough. The interpreter would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(Code.FAILED)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
