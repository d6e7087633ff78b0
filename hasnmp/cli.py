"""The command line. Exit status: 0 done, 1 failed, 2 usage, else the refusal's code, as in errors.Code and in the MIB.

What a command does not need is not imported, so that `status` answers at once. Local commands use the control socket, so
that they work while SNMP is down; `--host` gives the same verbs to any node over SNMP.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hasnmp.console import report, tools
from hasnmp.console.control import Control
from hasnmp.console.tables import Screen, clean, word, wrap
from hasnmp.console.usage import Parser, StartTimes, count, known, number, out, out_json, seconds
from hasnmp.console.where import connect, load, local, not_remote, options
from hasnmp.errors import Code, ConfigError, HasnmpError, Refused, Unreachable
from hasnmp.model import CommandRow, CommandState, ConfigRow, EventRow, GroupRow, NodeRow, ServiceRow, SystemRow, Verb

if TYPE_CHECKING:
    from hasnmp.console.remote import Remote

STATUS_TABLES = ("system", "nodes", "links", "groups", "services", "arbiters", "alarms")
STATS_TABLES = ("statistics", "config", "nodes", "links", "groups", "services")

Args = argparse.Namespace


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

        return watch.events(lambda: connect(args), args.n, args.json, Screen())
    kept = report.events(connect(args).view())
    screen = Screen()
    for event in kept[-args.n :] if args.n else []:
        print(json.dumps(report.row_json(event), ensure_ascii=False) if args.json else report.event_line(event, screen))
    return 0


def watch(args: Args) -> int:
    from hasnmp.console import watch

    return watch.status(lambda: connect(args), Screen())


def why(args: Args) -> int:
    control = connect(args)
    known("group", args.group, [row.name for row in report.rows_of(control.view(), "groups", GroupRow)])
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
        known(kind, target, nodes)
    elif kind == "group":
        known(kind, target, [row.name for row in report.rows_of(view, "groups", GroupRow)])
    else:
        known(kind, target, [row.name for row in report.rows_of(view, "services", ServiceRow)])
    known("node", to, nodes)
    row = control.command(verb, target, to=to, reason=args.reason, up=up, message=message)
    if args.no_wait and row.state is not CommandState.REFUSED:
        if not args.quiet:
            print(f"accepted as command {row.id}; see: hasnmp commands")
        return 0
    return _follow(control, row, args)


def _follow(
    control: Control | Remote, row: CommandRow, args: Args, story: Iterable[CommandRow | EventRow | None] | None = None
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
    if not isinstance(control, Control):  # another machine's file
        return _reconfigure(control, Verb.RELOAD, args)
    found = report.first(control.view(), "config", ConfigRow)
    # Whoever may command the daemon need not be able to read its secrets: then the daemon alone judges.
    if found and os.geteuid() == 0 and os.path.exists(found.source):
        try:
            tools.look_at(found.source, load(found.source, secrets=True))
        except ConfigError as error:
            print(error, file=sys.stderr)
            print(f"hasnmp: {count(len(error.faults), 'fault')}; the daemon goes on with what it has "
                  f"[{Code.CONFIG_INVALID.name}={int(Code.CONFIG_INVALID)}]", file=sys.stderr)  # fmt: skip
            return int(Code.CONFIG_INVALID)
    return _reconfigure(control, Verb.RELOAD, args)


def apply(args: Args) -> int:
    """Have every node judge a file, and then all of them go by it at once."""
    import base64
    import zlib

    from hasnmp.config import load as load_config
    from hasnmp.config import parse

    not_remote(args, "apply")
    load_config(args.file, strict_files=False)  # is it a text file of a good form?
    with open(args.file, encoding="utf-8-sig") as file:
        text = file.read()
    control = local(args)
    found = report.first(control.view(), "config", ConfigRow)
    if found and os.geteuid() == 0:  # as what it will be: relative paths count from that folder
        parse(text, found.source, os.path.dirname(os.path.abspath(found.source)))
    control.stage(base64.b64encode(zlib.compress(text.encode(), 9)).decode())
    return _reconfigure(control, Verb.APPLY, args)


def _reconfigure(control: Control | Remote, verb: Verb, args: Args) -> int:
    from hasnmp.console.following import follow

    row = control.command(verb, "", reason=args.reason)
    if args.no_wait and row.state is not CommandState.REFUSED:
        print(f"accepted as command {row.id}; see: hasnmp commands")
        return 0
    return _follow(control, row, args, follow(control, row, args.timeout) if isinstance(control, Control) else None)


# ------------------------------------------------------------------------------------------------------------- usage


def parser() -> Parser:
    # Both before and after the command; SUPPRESS keeps the second parser from undoing what the first one found.
    where = options()
    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--json", action="store_true", help="for programs")
    order = argparse.ArgumentParser(add_help=False)
    order.add_argument("--reason", metavar="TEXT", default="", help="kept with the command, shown in events")
    order.add_argument("--no-wait", action="store_true", help="do not wait for the outcome")
    order.add_argument("--timeout", metavar="S", type=seconds, default=300.0, help="wait so long (300)")
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
    made.add_argument("-n", metavar="N", type=number, default=20, help="the newest N (20)")
    add("alarms", alarms, "the alarms that stand", where, shape)
    add("stats", stats, "counters, and the timings in force", where, shape)
    made = add("commands", commands, "the commands given at this node, and what became of them", where, shape)
    made.add_argument("-n", metavar="N", type=number, default=20, help="the newest N (20)")
    made = add("why", why, "what was decided last for a group, why, and whether it may move now", where)
    made.add_argument("group", metavar="GROUP")

    made = add("failover", failover, "move a group, or every group that runs here", where, order)
    made.add_argument("group", metavar="GROUP", nargs="?", default="")
    made.add_argument("--to", metavar="NODE", default="", help="where to; else the first node that is able")
    made.add_argument(
        "--force",
        action="store_true",
        help="also one that is frozen or being started, and to a node that is excluded or recovering",
    )
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
        "apply",
        apply,
        "have all nodes go by a file at once: for times, nodes, links, the port and the lease disk, which a reload may not change",
        where,
        order,
    )
    made.add_argument("file", metavar="FILE")
    made = add("check-config", tools.check_config, "every fault of a configuration file")
    made.add_argument("file", metavar="FILE")
    made.add_argument("--no-secrets", action="store_true", help="look at the text only: no key files, no programs")
    actions = add(
        "arbiter", tools.arbiter, "the lease disk: make it, show it, end a dead node's record"
    ).add_subparsers(metavar="ACTION", dest="action", required=True, parser_class=Parser)
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
    made = add("agents", tools.agents, "the agents that run services, and the fence agents that are installed here")
    made.set_defaults(action="list")
    actions = made.add_subparsers(metavar="ACTION", dest="action", parser_class=Parser)
    made = actions.add_parser("show", help="an agent's options", description="An agent's options.")
    made.add_argument("name", metavar="NAME")
    made = add(
        "simulate", tools.simulate, "what would happen: who ends up running what, when and why, after faults", shape
    )
    made.add_argument("config_file", metavar="CONFIG")
    made.add_argument("faults", metavar="FAULT", nargs="*",
                      help="as \"primary-a off\", \"lan cut\", \"wait 30s\", \"failover nfs\", or several joined by +, which strike "
                      "together; a wrong one is answered with all that are known")  # fmt: skip
    made.add_argument("--start-ms", metavar="SERVICE=MS", action=StartTimes, default={},
                      help="how long that service's start takes (100 ms)")  # fmt: skip
    made = add("mib", tools.mib, "print HASNMP-MIB")
    made.add_argument("--root", metavar="OID", default="", help="under your own enterprise number")
    made = add("demo", tools.demo, "a whole pair on this machine: service, failure, takeover, trap")
    made.add_argument("--once", action="store_true", help="play it once, check it, and exit 0 or 1")
    add("version", tools.version, "the version of this program")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    # A cron job's shell may have closed them; what is said is lost then, and nothing else.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    Parser.words = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(Parser.words)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        print(f"hasnmp: {count(len(error.faults), 'fault')}", file=sys.stderr)
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
    except OSError as error:
        print(f"hasnmp: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        if not error.filename:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(Code.FAILED)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
