"""hasnmpd: reads the configuration, makes the folders, and becomes the guardian (guardian.py) of this node.

Exit status: 0 left in order, 1 failed, 2 the arguments or the configuration are at fault (every fault is printed),
75 another hasnmpd runs this node.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence

from hasnmp import __version__, config, settings
from hasnmp.errors import ConfigError
from hasnmp.runtime import (
    engine,
    guardian,
    handover,
    lease_io,
    loader,
    log,
    members,
    pills,
    processes,
    rehearsal,
    store,
)
from hasnmp.runtime.lease_board import LeaseBoard


def _store(config: settings.Config, node: str, sock: socket.socket) -> int:
    return store.main(sock, engine.state_path(config, node))


def _lease_io(config: settings.Config, node: str, sock: socket.socket) -> int:
    return lease_io.main(sock, config, node)


def _snmp(config: settings.Config, node: str, warm: bool, beat: Callable[[], None]) -> int:
    # Imported in its own process: neither the guardian nor the engine carries SNMP code.
    from hasnmp.snmp import agent

    log.set_up(config.log, node, "snmp")
    return agent.main(config, node, warm=warm, beat=beat)


def _clients(config: settings.Config, node: str, board: LeaseBoard) -> int:
    from hasnmp.runtime import clients

    log.set_up(config.log, node, "clients")
    return clients.main(config, node, board)


def _open_standard_streams() -> None:
    """Whoever starts us may have closed some: the next file or socket would take that number, and the log would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _node(wanted: str, config: settings.Config) -> str:
    """The node that this daemon is. Raises KeyError: with a text that says which there are."""
    names = [node.name for node in config.nodes]
    host = socket.gethostname()
    candidates = [wanted] if wanted else [host, host.partition(".")[0]]
    for name in candidates:
        if name in names:
            return name
    given = f"--node {wanted}" if wanted else f"host name {host}"
    raise KeyError(f"{given} is no node of {config.source}; its nodes: {', '.join(names)}; give one with --node")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM. Returns its exit status."""
    _open_standard_streams()
    parser = argparse.ArgumentParser(prog="hasnmpd", description="keeps services running when a server fails")
    parser.add_argument("--config", metavar="FILE", default="/etc/hasnmp/hasnmp.yaml", help="default: %(default)s")
    parser.add_argument("--node", metavar="NAME", default="", help="which node this is; default: the host name")
    parser.add_argument("--check", action="store_true", help="only say whether the configuration is good")
    parser.add_argument("--handover", action="store_true",
                        help="have the daemon that runs become this code, without a restart of what it runs")  # fmt: skip
    parser.add_argument("--rehearse", metavar="FORM", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"hasnmpd {__version__}")
    arguments = parser.parse_args(argv)
    try:
        before = rehearsal.read_before()
        # By its whole path: a reload reads it again, wherever the process is then.
        loaded = before or config.load(os.path.abspath(arguments.config))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        node = _node(arguments.node, loaded)
    except KeyError as error:
        print(f"hasnmpd: {error.args[0]}", file=sys.stderr)
        return 2
    if arguments.check:
        print(f"{arguments.config}: good; cluster {loaded.cluster}, node {node}, {len(loaded.nodes)} nodes, "
              f"{len(loaded.groups)} groups, {len(loaded.services())} services")  # fmt: skip
        return 0
    if arguments.rehearse:
        # By now all that the daemon needs has been imported but this.
        from hasnmp.runtime import clients  # noqa: F401
        from hasnmp.snmp import agent  # noqa: F401

        if arguments.rehearse != handover.FORM:
            return 2
        try:
            loaded, _, _ = members.go_by(loader.complete(loaded), members.path_of(loaded, node))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        if why := rehearsal.rehearsed(loaded):
            print(why, file=sys.stderr)
        return 2 if why else 0
    if arguments.handover:
        given = len(sys.argv if argv is None else argv) - (argv is None)
        program = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - given]]
        try:
            loaded, _, _ = members.go_by(loaded, members.path_of(loaded, node))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        return handover.ask(loaded, node, program, arguments.config)
    try:
        loader.make_folders(loaded)
        loaded = before or members.begin(loader.complete(loaded), node)
        children = processes.Children(
            engine=engine.main,
            lease_io=_lease_io if loaded.arbiter.type == "disk" else None,
            store=_store,
            snmp=_snmp,
            pills=pills.main if pills.used(loaded) else None,
            clients=_clients,
        )
        return guardian.run(loaded, node, children)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hasnmpd: {error.filename + ': ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
