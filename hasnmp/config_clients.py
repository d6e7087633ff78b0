"""What `clients` and `hooks` must be to the rest of the file; and the file that a client has of its own (hasnmp.client)."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any

from hasnmp import config_schema as schema
from hasnmp.config_kinds import IP, RECEIVER, Secret, split_endpoint
from hasnmp.config_read import (
    BAD,
    REQUIRED,
    Context,
    Key,
    Section,
    integer,
    list_of,
    named,
    read_section,
    section,
    suggest,
)
from hasnmp.config_yaml import MAX_SIZE, compose, show
from hasnmp.errors import ConfigError

BLOCKING = ("before_start", "before_stop")


def judge_clients(root: Section, context: Context) -> None:
    clients = root["clients"]
    if clients is BAD or not clients.good("listen", "keys"):
        return
    if clients["listen"] and not clients["keys"]:
        context.tell(clients, ["listen"], "is given, but no keys are: nobody could ask; give clients.keys")
    if clients["keys"] and not clients["listen"]:
        context.tell(clients, ["keys"], "are given, but listen is not: nobody is answered; give clients.listen")
    services = {s["name"]: s["agent"] for s in _services(root) if s.good("name", "agent")}
    lines: dict[str, int] = {}
    heartbeat = root["heartbeat"]
    heartbeats = (
        {s.octets for s in heartbeat["key_files"]} if heartbeat is not BAD and heartbeat.good("key_files") else set()
    )
    seen: dict[bytes, str] = {}
    for key in clients["keys"]:
        line, path = key.at("name")
        if key.good("name"):
            if key["name"] in lines:
                context.fault(line, path, f"{key['name']} is given twice, first on line {lines[key['name']]}; "
                              "a key's name is unique")  # fmt: skip
            lines.setdefault(key["name"], line)
        for name in key["report"] if key.good("report") else ():
            agent = services.get(name)
            if agent is None:
                known = ", ".join(s for s, a in services.items() if a == "passive") or "none"
                context.tell(key, ["report"], f"{show(name)} is no service of this file{suggest(name, services)}; "
                             f"passive services: {known}")  # fmt: skip
            elif agent != "passive":
                context.tell(key, ["report"], f"{name} has agent {agent}, which looks after it itself; only services of agent "
                             "passive are reported on")  # fmt: skip
        for secret in key["key_files"] if key.good("key_files") else ():
            if secret.octets and secret.octets in heartbeats:
                context.tell(key, ["key_files"], f"{secret.path} holds a key of heartbeat.key_files: a client that has it could "
                             "sign heartbeats, and a heartbeat is a node's word; make another")  # fmt: skip
            if secret.octets and seen.setdefault(secret.octets, key["name"]) != key["name"]:
                context.tell(key, ["key_files"], f"{secret.path} holds a key of {seen[secret.octets]} too; whoever has it could "
                             "pass for both; make another")  # fmt: skip


def judge_ports(root: Section, context: Context) -> None:
    """All three are UDP, and of two at one address and port only the first gets its socket."""
    taken: dict[tuple[Any, int], str] = {}
    heartbeat = root["heartbeat"]
    if root.good("nodes") and heartbeat is not BAD and heartbeat.good("port"):
        for name, node in root["nodes"].items():
            for link, address in node["links"].items() if node is not BAD and node.good("links") else ():
                if address is not BAD:
                    whose = f"the heartbeat of {name} on link {link}"
                    taken.setdefault((ipaddress.ip_address(address), heartbeat["port"]), whose)
    for part in ("snmp", "clients"):
        section = root[part]
        for text in section["listen"] if section is not BAD and section.good("listen") else ():
            host, digits = split_endpoint(text)
            address, port = ipaddress.ip_address(host), int(digits)
            for (other, at), whose in taken.items():
                anywhere = (address.is_unspecified or other.is_unspecified) and address.version == other.version
                if at == port and (address == other or anywhere):
                    context.tell(
                        section, ["listen"], f"{text} is taken by {whose}, which is UDP too; choose another port"
                    )
                    break
            taken.setdefault((address, port), f"{part}.listen")


def judge_hooks(root: Section, context: Context) -> None:
    groups = list(root["groups"]) if root.good("groups") else []
    for hook in root["hooks"] if root.good("hooks") else ():
        if hook.good("on", "required") and hook["required"] and hook["on"] not in BLOCKING:
            context.tell(hook, ["required", "on"], f"is true, but {hook['on']} has happened when the hook runs: nothing is left "
                         f"that it could stop; allowed with: {', '.join(BLOCKING)}")  # fmt: skip
        for name in hook["groups"] if groups and hook.good("groups") else ():
            if name not in groups:
                context.tell(hook, ["groups"], f"{show(name)} is no group of this file{suggest(name, groups)}; "
                             f"its groups: {', '.join(map(show, groups))}")  # fmt: skip


def _services(root: Section) -> list[Section]:
    groups = root["groups"].values() if root.good("groups") else ()
    return [s for g in groups if g is not BAD and g.good("services") for s in g["services"] if s is not BAD]


# ------------------------------------------------------------------------------------------------- a client's own file


@dataclass(frozen=True, slots=True)
class ClientFile:
    """Whom a client asks, and how. nodes: name -> "ADDRESS:PORT" of its `clients.listen`. places: service -> (host, port) where
    they are not as the nodes tell; host "" and port 0: as they tell."""

    cluster: str
    nodes: dict[str, str]
    key: str
    secret: bytes = field(default=b"", repr=False)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)


_PLACE = section(
    Key("host", IP, "", "where clients reach it; default: what the nodes tell"),
    Key("port", integer(0, 65535), 0, "0: what the nodes tell"),
)
CLIENT_FORM = (
    Key("cluster", schema.CLUSTER, REQUIRED, "as in the nodes' configuration"),
    Key(
        "nodes", named(RECEIVER, schema.NAME, 1, 32), REQUIRED, "each node's name, and an address of its clients.listen"
    ),
    Key("key", schema.NAME, REQUIRED, "name of one of the nodes' clients.keys"),
    Key("key_files", list_of(schema.HEARTBEAT_KEY, 1, 1), REQUIRED, "the file that holds the key"),
    Key("services", named(_PLACE, schema.NAME, 0, 1000), {}, "where services are, if not as the nodes tell"),
)


def load_client(path: str) -> ClientFile:
    """Read a client's file. Raises ConfigError: with every fault."""
    context = Context(path, os.path.dirname(os.path.abspath(path)), True)
    text = ""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_SIZE).decode("utf-8-sig", "replace")
    except OSError as error:
        context.fault(1, "file", f"can't be read ({os.strerror(error.errno or 0)}); allowed: a text file")
    top = compose(text, context.fault) if text else None
    root = BAD
    if top is not None and top.value is not None:
        root = read_section(top, "", context, CLIENT_FORM)
    elif not context.faults:
        context.fault(1, "file", "is empty; a client's file has: cluster, nodes, key, key_files")
    if context.faults:
        raise ConfigError(tuple(sorted(context.faults, key=lambda fault: fault.line)))
    secret: Secret = root["key_files"][0]
    places = {name: (place["host"], place["port"]) for name, place in root["services"].items()}
    return ClientFile(root["cluster"], dict(root["nodes"]), root["key"], secret.octets, places)
