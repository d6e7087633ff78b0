"""The commands that need no daemon: they look at a file, a lease disk, or what is installed here."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hasnmp import __version__
from hasnmp.console.tables import Screen, clean
from hasnmp.console.usage import count, known, out, out_json
from hasnmp.console.where import load
from hasnmp.errors import Code, ConfigError, Refused, WireError

if TYPE_CHECKING:
    from hasnmp.settings import Config

Args = argparse.Namespace


def check_config(args: Args) -> int:
    config = load(args.file, secrets=not args.no_secrets)
    if not args.no_secrets:
        look_at(args.file, config)
    services = len(config.services())
    print(f"{args.file}: no fault: cluster {config.cluster}, {count(len(config.nodes), 'node')}, "
          f"{count(len(config.groups), 'group')}, {count(services, 'service')}")  # fmt: skip
    if args.no_secrets:
        print("the files with the secrets, and the programs, were not looked at")
    return 0


def look_at(file: str, config: Config) -> None:
    """What this machine says to a faultless file: notes on stderr. Raises ConfigError: faults."""
    from hasnmp.config import Places
    from hasnmp.console import config_check

    faults, notes = config_check.look(config, Places(file))
    for note in notes:
        print(f"note: {clean(note)}", file=sys.stderr)
    if faults:
        raise ConfigError(faults)


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

    package = Path(__file__).parent.parent
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
        known("service", name, [service.name for service in config.services()])
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
