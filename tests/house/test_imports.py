"""The import rule: who may know whom. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "hasnmp"
STANDARD = sys.stdlib_module_names

# room -> what of hasnmp it may import: modules, or rooms (their whole content). A room is a folder or a single file.
WORDS = {"errors", "model", "settings"}
PURE = WORDS | {"config", "wire", "protocol"}
RULES: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    "settings": {"errors", "model"},
    "wire": WORDS,
    "protocol": WORDS,
    "config": WORDS,
    "core": PURE,
    "agents": PURE | {"core", "runtime", "arbiters"},
    "arbiters": PURE | {"core"},
    "runtime": PURE | {"core", "agents", "arbiters", "snmp"},
    "snmp": PURE,
    "console": PURE,
    "cli": PURE | {"console"},
    "simulator": PURE | {"core"},
    "demo": PURE | {"console"},
    "client": PURE,
}
# What goes beyond the rule, one by one, each imported only where it is used: (importer, imported) -> why.
EXCEPTIONS = {
    ("console.tools", "arbiters.admin"): "`hasnmp arbiter` is an administrator's tool, run without a daemon",
    ("console.tools", "snmp.oids"): "`hasnmp mib --root`: the one place that knows how to re-root the MIB",
    ("console.tools", "demo"): "`hasnmp demo`",
    (
        "console.config_check",
        "agents.fence_metadata",
    ): "check-config asks the fence agents for their options; no daemon does",
    (
        "console.ocf_check",
        "agents.ocf_metadata",
    ): "check-config asks OCF agents for their options; standard library only",
    ("console.ocf_agents", "agents.ocf_metadata"): "`hasnmp agents`: what OCF agents say of themselves",
    ("console.ocf_check", "agents.systemd_files"): "check-config looks for unit files; standard library only",
    ("console.ocf_agents", "agents.systemd_files"): "`hasnmp agents`: the units that there are",
    (
        "console.fence",
        "agents.fence_metadata",
    ): "`hasnmp agents`: what fence agents say of themselves; standard library only",
    ("console.tools", "simulator.spoken"): "`hasnmp simulate`: the faults that it knows",
    ("console.tools", "simulator.what_if"): "`hasnmp simulate` runs the core in a simulated world, without a daemon",
    ("client_snmp", "snmp.manager"): "the client's library over SNMP",
    ("client_snmp", "snmp.ha_objects"): "the objects' names and numbers",
    ("client_snmp", "snmp.objects"): "what they are made of",
    ("console.where", "snmp.manager"): "`--host`: the passphrases that it asks with",
    ("console.remote", "snmp.manager"): "`--host` speaks SNMP",
    ("console.remote", "snmp.ha_objects"): "the objects' names and numbers",
    ("console.remote", "snmp.objects"): "what they are made of",
    ("console.remote", "snmp.whys"): "the lines of `why`, in rows and back",
    ("console.remote_rows", "snmp.ha_objects"): "the objects' names and numbers",
    ("console.remote_rows", "snmp.objects"): "what they are made of",
    ("console.remote_rows", "snmp.oids"): "the MIB's root",
    ("demo.manager", "snmp.ber"): "the trap receiver reads BER",
    ("demo.manager", "snmp.notices"): "the names of the traps",
    ("demo.manager", "snmp.ha_objects"): "the names of the objects",
    ("demo.manager", "snmp.objects"): "what they are made of",
    ("demo.manager", "snmp.oids"): "the MIB's root",
    ("demo.story", "arbiters.admin"): "the demo makes its lease disk",
}
# The libraries that a room may use besides the standard one.
LIBRARIES = {
    "config": {"yaml"},
    "runtime": {"structlog"},
    "agents": {"structlog", "jeepney", "sqlalchemy"},
    "snmp": {"pysnmp", "pyasn1", "cryptography", "structlog"},
    "demo": {"pysnmp"},
}
# The engine's core reads no clock, draws no lot, and touches nothing outside itself.
CORE_NEVER = {"asyncio", "time", "random", "socket", "os", "logging", "threading", "subprocess", "secrets", "datetime"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """hasnmp/core/lease.py -> "core.lease"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The room of a module: its folder, and for config_read.py, config_yaml.py ... the file that they are parts of."""
    return name.partition(".")[0].partition("_")[0]


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere, for typing only as well; `from x import y` counts as x.y where that is one."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if exists(inner.partition(".")[2]) else node.module)
    return names


def exists(inner: str) -> bool:
    """Is it a module or a room of hasnmp?"""
    return bool(inner) and any((PACKAGE / Path(*inner.split("."))).with_suffix(end).exists() for end in (".py", ""))


def faults(name: str, source: str) -> list[str]:
    """What in this module breaks the rule."""
    here = room(name)
    found = []
    for full in sorted(imported(ast.parse(source))):
        top, _, inner = full.partition(".")
        if top == "hasnmp":
            if not exists(inner) or room(inner) == here or room(inner) in RULES[here] or (name, inner) in EXCEPTIONS:
                continue
            found.append(f"{name} imports hasnmp.{inner}")
        elif top not in STANDARD and top not in LIBRARIES.get(here, set()):
            found.append(f"{name} imports {top}")
        elif here == "core" and top in CORE_NEVER:
            found.append(f"core imports {top}")
    return found


@pytest.mark.parametrize("path", [path for path in files() if module(path) not in ("__init__", "")], ids=module)
def test_rule(path: Path) -> None:
    assert room(module(path)) in RULES, f"{path}: a new room needs its row in RULES"
    assert faults(module(path), path.read_text()) == []


def test_every_room_is_there() -> None:
    """A row for what no longer exists would hide a rename."""
    assert {room(module(path)) for path in files()} - {""} >= set(RULES)


def test_every_exception_is_used() -> None:
    used = set()
    for path in files():
        used |= {(module(path), full.removeprefix("hasnmp.")) for full in imported(ast.parse(path.read_text()))}
    assert set(EXCEPTIONS) - used == set()


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("core.lease", "import time", "core imports time"),
        ("core.lease", "from os import path", "core imports os"),
        ("core.lease", "def f():\n    import random", "core imports random"),
        ("core.lease", "from hasnmp.runtime import store", "core.lease imports hasnmp.runtime.store"),
        ("snmp.agent", "from hasnmp.core.events import Event", "snmp.agent imports hasnmp.core.events"),
        ("console.tables", "import hasnmp.runtime.engine", "console.tables imports hasnmp.runtime.engine"),
        ("cli", "import yaml", "cli imports yaml"),
        ("model", "from hasnmp import config", "model imports hasnmp.config"),
        ("runtime.engine", "import requests", "runtime.engine imports requests"),
    ],
)
def test_the_rule_bites(name: str, source: str, fault: str) -> None:
    assert fault in faults(name, source)
