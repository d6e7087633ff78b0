"""`hasnmp agents`, and the question of `hasnmp fence confirm`. Looks at this machine only, asks no daemon."""

from __future__ import annotations

import sys

from hasnmp.agents import fence_metadata
from hasnmp.agents.fence_metadata import MetadataError, Parameter
from hasnmp.config_ocf import is_external
from hasnmp.config_read import REQUIRED
from hasnmp.config_schema import OPTIONS
from hasnmp.console import ocf_agents
from hasnmp.console.tables import Cell, Screen, clean, table, wrap
from hasnmp.errors import Code, Refused

# What runs a service -> what it is. Their options are the configuration's own.
BUILT_IN = {
    "exec": "runs a program in the foreground and owns all that it starts",
    "address": "adds, checks and announces an IP address",
    "filesystem": "mounts a file system, and unmounts it",
    "passive": "an outside agent reports in",
}
PILL = ("pill", "the poison pill over the lease disk: the victim's guardian ends everything and writes that it has")
# Options that every agent of the package has, and that are about its own command line or how it waits.
COMMON = frozenset((
    "action", "version", "help", "quiet", "verbose", "verbose_level", "debug", "debug_file", "separator", "delay",
    "disable_timeout", "login_timeout", "power_timeout", "power_wait", "shell_timeout", "stonith_status_sleep", "retry_on",
    "plug_separator",
))  # fmt: skip


def certain(node: str) -> bool:
    """Ask for the word on which safety then rests. Raises Refused: there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refused(
            Code.NOT_ALLOWED, f"fence confirm {node}: there is no terminal to ask at; if {node} is off, add --yes"
        )
    print(
        f"Is {node} off for certain - looked at, or its power cord pulled? Its groups are then started elsewhere at once.\n"
        f"If it still runs, two nodes write to one disk, and what is on it is lost. No answer over the network is no proof."
    )
    try:
        return input(f"Type the node's name to confirm that {node} is off: ").strip() == node
    except EOFError:
        return False


def listing(screen: Screen) -> list[str]:
    """Every agent that a configuration can name on this machine."""
    rows: list[list[Cell]] = [[name, text] for name, text in BUILT_IN.items() if name in OPTIONS]
    lines = table(screen, ["AGENT", "OF A SERVICE"], rows)
    lines += ["", *ocf_agents.listing(screen), "", *ocf_agents.units(screen)]
    lines += ["", *table(screen, ["AGENT", "OF A FENCE LEVEL, BUILT IN"], [list(PILL)]), ""]
    found = fence_metadata.installed()
    if not found:
        return [*lines, "no fence agents are installed here; Debian has them in the package fence-agents"]
    lines.append(f"fence agents installed here ({len(found)}):")
    lines += wrap("  " + " ".join(found), screen.width, "  ")
    return [*lines, "", "the options of one: hasnmp agents show NAME"]


def show(name: str, screen: Screen) -> list[str]:
    """An agent's options. Raises Refused: there is none of this name, or it does not tell."""
    if name == PILL[0]:
        return [*wrap(f"pill: {PILL[1]}", screen.width, "  "), "", "it has no options"]
    if is_external(name):
        return ocf_agents.show(name, screen)
    if name in OPTIONS:
        rows: list[list[Cell]] = [
            [
                key.name,
                "REQUIRED" if key.default is REQUIRED else _shown(key.default),
                f"{key.doc} ({key.kind.allowed})",
            ]
            for key in OPTIONS[name]
        ]
        lines = [f"{name}: {BUILT_IN.get(name, 'built in')}", ""]
        return lines + (table(screen, ["OPTION", "DEFAULT", "WHAT IT IS"], rows) or ["it has no options"])
    if reason := fence_metadata.NO_FENCE.get(name):
        raise Refused(Code.NOT_FOUND, f"{name} can't be a fence level: {reason}")
    try:
        found = fence_metadata.read(name)
    except MetadataError as error:
        raise Refused(Code.NOT_FOUND, f"no agent {name!r} to show: {error}{ocf_agents.meant(name)}") from None
    own = [p for p in found.parameters if not p.deprecated and p.name not in COMMON]
    rows = [[p.name, _default(p), _what(p)] for p in sorted(own, key=lambda p: not p.required)]
    lines = wrap(f"{clean(found.name or name)}: {clean(found.description)}", screen.width, "  ")
    able = [action for action in found.actions if action in ("off", "on", "reboot", "status", "monitor")]
    lines += wrap(f"it is able to: {', '.join(able)}", screen.width, "  ")
    if "off" not in able:
        lines += wrap("without off hasnmp uses reboot, and can't verify that the node was off", screen.width, "  ")
    elif "status" not in able:
        lines += wrap("without status hasnmp can't verify that the node is off", screen.width, "  ")
    return [*lines, "", *table(screen, ["OPTION", "DEFAULT", "WHAT IT IS"], rows)]


def _default(parameter: Parameter) -> str:
    if parameter.required and parameter.name != "action":
        return "REQUIRED"
    return parameter.default or ""


def _what(parameter: Parameter) -> str:
    form = "|".join(parameter.choices) or ("" if parameter.type == "string" else parameter.type)
    return parameter.description + (f" ({form})" if form else "")


def _shown(value: object) -> str:
    if value in ("", (), {}, None):
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
