"""Which nodes each group may have had, durable beside the state: NODE.members in state_dir, one JSON object.

A file is gone by only when this knows of its groups' nodes (config_changes.in_force): so a file that was copied by hand before a
start, or a group that was gone for a while, forgets no node that may have the group still. Whoever loses this file goes by
the configuration alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any

from hasnmp.config_changes import Webs, in_force, strangers
from hasnmp.errors import ConfigError, Fault
from hasnmp.settings import Config

FORMAT = 1


def path_of(config: Config, node: str) -> str:
    return os.path.join(config.state_dir, f"{node}.members")


def load(path: str) -> Webs:
    """{} when there is none. Raises ConfigError: it is damaged, or can't be read."""
    try:
        with open(path, "rb") as file:
            document: Any = json.load(file)
        if document["hasnmp"] != "members" or document["format"] != FORMAT:
            raise ValueError("not of this form")
        return {
            str(group): tuple(tuple(str(node) for node in web) for web in webs)
            for group, webs in document["groups"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = (
            f"can't be read ({error}): it tells by which nodes each group may still be run; bring it back from a backup, or, if no "
            "group's nodes were changed while some node was away, remove it"
        )
        raise ConfigError((Fault(path, 1, "members", text),)) from None


def save(path: str, webs: Webs) -> None:
    """Raises OSError."""
    document = {"hasnmp": "members", "format": FORMAT, "groups": webs}
    put(path, json.dumps(document, indent=1).encode() + b"\n")


def go_by(file: Config, path: str) -> tuple[Config, Webs, bool]:
    """What a node with this file goes by, what `path` has to say before, and whether it says so. Raises ConfigError."""
    before = load(path)
    config, webs = in_force(file, before)
    if gone := strangers(config):
        node, _, group = gone.partition(" of ")
        text = (
            f"{node} is gone from them, and it may still run {group}, as {path} tells; first have it taken out of "
            f"groups.{group}.nodes (hasnmp apply), or, if it is off for good, stop hasnmpd and remove {path}, on every node"
        )
        raise ConfigError((Fault(file.source, 1, "nodes", text),))
    return config, webs, webs == before


def begin(file: Config, node: str) -> Config:
    """What a daemon that starts with this file goes by, made durable. Raises ConfigError and OSError."""
    path = path_of(file, node)
    config, webs, known = go_by(file, path)
    if not known:
        save(path, webs)
    return config


def put(path: str, octets: bytes, keep: str = "") -> None:
    """Replace a file at once and for good: after a power cut it is the old or the new one, with the same owner and mode (0600
    when there was none). keep: by this name the old one stays. Raises OSError."""
    draft = f"{path}.new"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(octets)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        file.flush()
        os.fsync(file.fileno())
    if keep:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(keep)
        os.link(path, keep)  # a second name, not a rename: the file itself never ceases to exist
    os.replace(draft, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
