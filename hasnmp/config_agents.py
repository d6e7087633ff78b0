"""The options of agents that are not built in: what they mean, only the agent knows; here they become text for it."""

from __future__ import annotations

import re
from typing import Any

from hasnmp.config_fence import is_secret, read_secret
from hasnmp.config_kinds import Secret
from hasnmp.config_read import BAD, Context, Kind, Section, string, what
from hasnmp.config_yaml import Node, join, show

OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
OPTIONS_MOST = 64

# ----------------------------------------------------------------------------------------------------------- options


def _value_problem(value: str) -> str:
    if "\0" in value:
        return "holds a zero octet"
    return "" if len(value.encode()) <= 4096 else f"has {len(value.encode())} octets"


_VALUE = string("text of up to 4096 octets, a whole number, true or false", _value_problem)


def _read_value(node: Node, path: str, context: Context) -> Any:
    """An option's value as the text that the agent gets."""
    if isinstance(node.value, bool):
        return str(node.value).lower()
    if isinstance(node.value, int):
        return str(node.value)
    return _VALUE.read(node, path, context)


def read_options(node: Node, path: str, context: Context) -> Any:
    """A Section: option -> its value as text, or the Secret out of the file that `NAME_file` names."""
    allowed = f"a mapping of up to {OPTIONS_MOST} options of the agent"
    if node.broken or not (node.value is None or isinstance(node.value, dict)):
        return BAD if node.broken else context.fault(node.line, path, f"{what(node)}; allowed: {allowed}")
    fields: dict[str, Node] = node.value or {}
    if len(fields) > OPTIONS_MOST:
        return context.fault(node.line, path, f"{len(fields)} are given; allowed: {allowed}")
    section = Section(path, node.line, {}, {name: value.line for name, value in fields.items()})
    for name, value in fields.items():
        where = join(path, name)
        stem = name.removesuffix("_file")
        if not OPTION_NAME.fullmatch(name):
            section.values[name] = context.fault(
                value.line, where, f"{show(name)} is no option's name; allowed: letters, digits and _"
            )
        elif name.startswith(("CRM_meta_", "crm_feature_set")):
            section.values[name] = context.fault(value.line, where, "belongs to hasnmp, which sets it; leave it out")
        elif name == "OCF_CHECK_LEVEL":
            section.values[name] = context.fault(value.line, where, "is how the service is checked; write check.depth")
        elif is_secret(name):
            section.values[name] = context.fault(
                value.line,
                where,
                f"holds a secret, and this file holds none; write it into a file of mode 0600, and here {name}_file: PATH",
            )
        elif stem != name and is_secret(stem):
            section.values[stem] = read_secret(value, where, context)
        else:
            section.values[name] = _read_value(value, where, context)
    return section


OPTIONS = Kind(f"a mapping of up to {OPTIONS_MOST} options of the agent", read_options)


def values(chosen: Section) -> tuple[dict[str, str], dict[str, str]]:
    """Options and secrets of a faultless section."""
    plain = {name: value for name, value in chosen.values.items() if not isinstance(value, Secret)}
    return plain, {n: v.octets.decode() for n, v in chosen.values.items() if isinstance(v, Secret)}


def unset(service: Section, check: Section) -> tuple[str, ...]:
    """The times that the file leaves to the agent's metadata."""
    if service["agent"].startswith("systemd:"):
        return ()
    own = [name for name in ("start_timeout_ms", "stop_timeout_ms") if name not in service.lines]
    asked = ("every_ms", "timeout_ms") if (check["type"] or "monitor") == "monitor" else ()
    return (*own, *(f"check.{name}" for name in asked if name not in check.lines))
