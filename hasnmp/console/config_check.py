"""What check-config sees on this machine beside the text: what fence agents say of their options, and which programs are there.

Faults are of the configuration; notes are not, for they may be right: an agent that only the other nodes have, a program on
the disk that comes with its group. Runs the fence agents (`-o metadata`, nothing else): never called from the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hasnmp.agents import fence_metadata
from hasnmp.config import Places
from hasnmp.config_fence import PILL, is_secret
from hasnmp.console import ocf_check
from hasnmp.errors import Fault
from hasnmp.settings import Config, FenceLevel

ASK_S = 5.0  # a fence agent that has not told of itself by then is not waited for


def look(config: Config, places: Places) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """Faults, and notes of the same form."""
    faults: list[Fault] = []
    notes: list[Fault] = [*_programs(config, places)]
    asked: dict[str, fence_metadata.Metadata | str] = {}
    for node in config.nodes:
        for index, level in enumerate(node.fence):
            path: tuple[str | int, ...] = ("nodes", node.name, "fence", index)
            if level.agent == PILL:
                notes += (places.fault(text, *path, "agent") for text in _pill(config, node.name))
                continue
            if level.agent in fence_metadata.NO_FENCE:
                faults.append(places.fault(f"{level.agent}: {fence_metadata.NO_FENCE[level.agent]}", *path, "agent"))
                continue
            if level.agent not in asked:
                asked[level.agent] = _ask(level.agent)
                said = asked[level.agent]
                if isinstance(said, str):
                    notes.append(places.fault(f"{said}; its options were not looked at", *path, "agent"))
            said = asked[level.agent]
            if not isinstance(said, str):
                faults += (places.fault(text, *path, *where) for where, text in _options(level, said))
                notes += (places.fault(text, *path, *where) for where, text in _old_names(level, said))
    for faulty, fault in ocf_check.look(config, places):
        (faults if faulty else notes).append(fault)
    return tuple(faults), tuple(notes)


def _ask(agent: str) -> fence_metadata.Metadata | str:
    try:
        return fence_metadata.read(agent, ASK_S)
    except fence_metadata.MetadataError as error:
        return str(error)


def _given(level: FenceLevel) -> dict[str, str]:
    """The agent's option -> the key that gives it."""
    return {**{name: name for name in level.options}, **{name: f"{name}_file" for name in level.secrets}}


def _options(level: FenceLevel, metadata: fence_metadata.Metadata) -> Iterator[tuple[tuple[str, ...], str]]:
    known = {p.name for p in metadata.parameters}
    given = _given(level)
    for name, key in given.items():
        if name not in known:
            listed = ", ".join(p.name + "_file" * is_secret(p.name) for p in metadata.parameters
                               if not p.deprecated and p.name not in ("action", "help", "version"))  # fmt: skip
            yield ("options", key), f"{level.agent} has no option {name}; it has: {listed}"
    for needed in metadata.required():
        older = {p.name for p in metadata.parameters if p.instead == needed.name}
        if not needed.default and not ({needed.name} | older) & given.keys():
            key = needed.name + "_file" * is_secret(needed.name)
            meaning = f" ({needed.description})" if needed.description else ""
            yield ("options", key), f"missing, and {level.agent} needs it{meaning}"
    missing = [action for action in ("off", "status") if metadata.actions and action not in metadata.actions]
    if missing:
        why = "no fence by it can be confirmed: hasnmp switches off, and then looks whether it is off"
        yield (
            ("agent",),
            f"{level.agent} has no action {' and no '.join(missing)}, so {why}; it has: {', '.join(metadata.actions)}",
        )


def _pill(config: Config, node: str) -> Iterator[str]:
    """What a poison pill does not confirm: a victim's guardian knows of what it mounted itself, and of nothing else."""
    for group in config.groups:
        if group.disk and node in group.nodes:
            own = [s.name for s in group.services if s.mounts]
            mounts = f"of {group.name} these: {', '.join(own)}" if own else f"and of {group.name} hasnmp mounts none"
            yield (
                f"confirms only file systems that hasnmp mounts (agent filesystem), {mounts}; what is mounted otherwise may still "
                f"be written by {node} after it; give {node} a level that cuts its power for that"
            )


def _old_names(level: FenceLevel, metadata: fence_metadata.Metadata) -> Iterator[tuple[tuple[str, ...], str]]:
    given = _given(level)
    for parameter in metadata.parameters:
        if parameter.name in given and parameter.deprecated and parameter.instead:
            newer = parameter.instead + "_file" * is_secret(parameter.name)
            yield ("options", given[parameter.name]), f"an old name of {level.agent}'s; write {newer}"


def _programs(config: Config, places: Places) -> Iterator[Fault]:
    """Programs by their absolute path that are not there. By name they were looked up with the text."""
    for group in config.groups:
        for index, service in enumerate(group.services):
            path: tuple[str | int, ...] = ("groups", group.name, "services", index)
            words = {("options", k): service.options.get(k) or () for k in ("command", "stop_command")}
            words["check", "command"] = service.check.command
            for where, command in words.items():
                if command and (missing := _missing(command[0])):
                    yield places.fault(
                        f"{missing} now; right only if it comes with the group, on its disk", *path, *where
                    )
    for number, hook in enumerate(config.hooks):
        if missing := _missing(hook.run[0]):
            then = "no group that it is for starts on" if hook.required and hook.on == "before_start" else "it fails on"
            yield places.fault(f"{missing}: {then} a node without it", "hooks", number, "run")


def _missing(program: str) -> str:
    """What hinders an absolute path from being run, "" if nothing does."""
    if not program.startswith("/") or os.access(program, os.X_OK):
        return ""
    state = "can't be executed" if os.path.exists(program) else "is not on this machine"
    return f"{program} {state}"
