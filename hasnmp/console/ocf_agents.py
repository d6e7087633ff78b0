"""`hasnmp agents show ocf:...`: what an OCF agent says of itself, in the screen's width. Runs its `meta-data`."""

from __future__ import annotations

from hasnmp.agents import ocf_metadata, systemd_files
from hasnmp.agents.ocf_metadata import ActionInfo, MetadataError, Parameter
from hasnmp.config_fence import is_secret
from hasnmp.config_ocf import NEEDS_PROMOTION, outlives, parts
from hasnmp.config_read import suggest
from hasnmp.console.tables import Cell, Screen, clean, table, wrap
from hasnmp.errors import Code, Refused
from hasnmp.settings import Service

ACTIONS = ("start", "stop", "monitor", "validate-all")  # those that hasnmp uses


def listing(screen: Screen) -> list[str]:
    """The names of all that are installed, by provider."""
    found = ocf_metadata.installed()
    if not found:
        return ["no OCF agents are installed here; Debian has them in the package resource-agents"]
    lines = [f"OCF resource agents installed here ({len(found)}), for a service, as ocf:PROVIDER:NAME:"]
    for provider in sorted({parts(agent)[1] for agent in found}):
        names = " ".join(parts(agent)[2] for agent in found if parts(agent)[1] == provider)
        lines += wrap(f"  ocf:{provider}: {names}", screen.width, "    ")
    return lines


def units(screen: Screen) -> list[str]:
    """The service units that there are."""
    found = systemd_files.services()
    if not found:
        return ["no systemd units are on this machine"]
    lines = [f"systemd's service units of this machine ({len(found)}), for a service, as systemd:UNIT:"]
    return lines + wrap("  " + " ".join(found), screen.width, "  ")


def show(agent: str, screen: Screen) -> list[str]:
    """Its options and actions. Raises Refused: there is none of this name, or it does not tell."""
    if agent.startswith("systemd:"):
        unit = Service("", "", agent, {}).unit
        known = "is on this machine" if systemd_files.is_known(unit) else "has no unit file on this machine"
        link = systemd_files.enabled_by(unit)
        return [
            f"{unit} {known}",
            "",
            "it has no options",
            *([f"enabled at boot, which it must not be: {link}"] if link else []),
        ]
    try:
        said = ocf_metadata.read(agent)
    except MetadataError as error:
        meant = suggest(agent, set(ocf_metadata.installed()) - {agent})
        raise Refused(Code.NOT_FOUND, f"no agent {agent!r} to show: {error}{meant}") from None
    lines = wrap(f"{agent}: {clean(said.short)}", screen.width, "  ")
    if parts(agent)[2] in NEEDS_PROMOTION:
        lines += wrap("It can't be used: it needs one of several nodes to be promoted, and hasnmp runs a service on one.",
                      screen.width, "")  # fmt: skip
    if outlives(agent):
        lines += wrap("It keeps more than processes: a group with it has a disk, if the file does not say disk: false.",
                      screen.width, "")  # fmt: skip
    if said.long:
        lines += ["", *wrap(clean(said.long), screen.width, "")]
    own = [p for p in said.parameters if not p.deprecated]
    rows: list[list[Cell]] = [
        [p.name + "_file" * is_secret(p.name), _default(p), _what(p)] for p in sorted(own, key=lambda p: not p.required)
    ]
    lines += ["", *(table(screen, ["OPTION", "DEFAULT", "WHAT IT IS"], rows) or ["it has no options"])]
    used = [action for action in said.actions if action.name in ACTIONS]
    rows = [[_name(action), _time(action.timeout_ms), _time(action.interval_ms)] for action in used]
    return [*lines, "", *table(screen, ["ACTION", "TIMEOUT", "EVERY"], rows)]


def meant(name: str) -> str:
    """ "; perhaps ... is meant", where an OCF agent is called so, whatever its provider; else nothing."""
    bare = name.rpartition(":")[2].lower()
    found = [agent for agent in ocf_metadata.installed() if parts(agent)[2].lower() == bare]
    return f"; perhaps {' or '.join(found)} is meant" if found else ""


def _default(parameter: Parameter) -> str:
    if parameter.required and not parameter.default:
        return "REQUIRED"
    return clean(parameter.default or "")


def _what(parameter: Parameter) -> str:
    text = clean(parameter.long or parameter.short)
    return text + (f" ({parameter.type})" if parameter.type != "string" else "")


def _name(action: ActionInfo) -> str:
    return action.name + (f", check.depth {action.depth}" if action.depth else "")


def _time(ms: int) -> str:
    return f"{ms / 1000:g} s" if ms else ""
