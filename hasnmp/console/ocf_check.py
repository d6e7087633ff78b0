"""What check-config sees of OCF services and units beside the text: their agents' metadata, what an agent's validate-all says,
and whether a boot would start a unit.

Runs agents (`meta-data`, and as root `validate-all`, which changes nothing): never called from the daemon.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator

from hasnmp.agents import ocf_metadata, systemd_files
from hasnmp.agents.ocf_metadata import Metadata, MetadataError, Parameter
from hasnmp.config import Places
from hasnmp.config_ocf import WITHOUT_PROMOTION, parts
from hasnmp.config_read import suggest
from hasnmp.errors import Fault
from hasnmp.settings import Config, Service

Found = Iterator[tuple[bool, Fault]]  # is it a fault, or a note?
ASK_S = 10.0  # an agent that has not told by then is not waited for
TRUTHS = ("yes", "true", "1", "ja", "on", "no", "false", "0", "off", "nein")  # ocf_is_true, whatever the case
VALIDATED = {2: "an option is wrong", 6: "it is not configured well"}  # the statuses that are about the configuration


def look(config: Config, places: Places) -> Found:
    asked: dict[str, Metadata | str] = {}
    unique: dict[tuple[str, str, str], str] = {}
    for group in config.groups:
        for index, service in enumerate(group.services):
            at: tuple[str | int, ...] = ("groups", group.name, "services", index)
            if service.unit:
                yield from ((False, places.fault(text, *at, "agent")) for text in _unit(service.unit))
            if service.kind != "ocf":
                continue
            agent = service.agent
            if agent not in asked:
                try:
                    asked[agent] = ocf_metadata.read(agent, within_s=ASK_S)
                except MetadataError as error:
                    asked[agent] = str(error)
            said = asked[agent]
            if isinstance(said, str):
                meant = "" if os.path.exists(ocf_metadata.path(agent)) else suggest(agent, ocf_metadata.installed())
                yield False, places.fault(f"{said}{meant}; its options were not looked at", *at, "agent")
                continue
            sound = True
            for faulty, where, text in _judge(service, said, unique):
                sound &= not faulty
                yield faulty, places.fault(text, *at, *where)
            if sound and os.geteuid() == 0 and any(action.name == "validate-all" for action in said.actions):
                if text := _validated(service):
                    yield False, places.fault(text, *at, "options")


def _unit(unit: str) -> Iterator[str]:
    if unit.endswith("@.service"):
        yield f"{unit} is a template, which systemd starts nothing by; name one of it, as {unit.removesuffix('.service')}NAME"
    elif not systemd_files.is_known(unit):
        yield f"{unit} has no unit file on this machine; right only if the others have it, or a generator makes it"
    if link := systemd_files.enabled_by(unit):
        yield f"{unit} is enabled ({link}): a boot would start it here without a lease; run: systemctl disable {unit}"


def _judge(
    service: Service, said: Metadata, unique: dict[tuple[str, str, str], str]
) -> Iterator[tuple[bool, tuple[str, ...], str]]:
    agent, known = service.agent, {p.name: p for p in said.parameters}
    if said.promotable and parts(agent)[2] not in WITHOUT_PROMOTION:
        yield (
            True,
            ("agent",),
            f"{agent} has to run on several nodes with one of them promoted, and hasnmp runs a service on one node",
        )
    for name, value in {**service.options, **service.secrets}.items():
        key = f"{name}_file" if name in service.secrets else name
        parameter = known.get(name)
        if parameter is None:
            listed = ", ".join(p.name for p in said.parameters if not p.deprecated)
            yield True, ("options", key), f"{agent} has no option {name}{suggest(name, known)}; it has: {listed}"
            continue
        if problem := _problem(parameter, str(value)):
            yield True, ("options", key), problem
        if parameter.deprecated:
            newer = f"; write {parameter.instead}" if parameter.instead else ""
            yield False, ("options", key), f"{agent} calls this option deprecated{newer}"
        first = unique.setdefault((agent, name, str(value)), service.name)
        if parameter.unique and first != service.name:
            yield False, ("options", key), f"service {first} has the same, and {agent} wants one of its own for each"
    given = service.options.keys() | service.secrets.keys()
    for parameter in said.parameters:
        older = {p.name for p in said.parameters if p.instead == parameter.name}
        if (
            parameter.required
            and not parameter.default
            and not parameter.deprecated
            and not ({parameter.name} | older) & given
        ):
            meaning = f" ({parameter.short})" if parameter.short else ""
            yield True, ("options", parameter.name), f"missing, and {agent} needs it{meaning}"


def _problem(parameter: Parameter, value: str) -> str:
    """What is wrong with a value, by the type that the agent gives it; "": nothing that can be seen."""
    if not value or value == parameter.default:
        return ""  # an agent takes an empty one for none given
    if parameter.type == "boolean" and value.lower() not in TRUTHS:
        return f"{value!r} is no truth value; allowed: true, false"
    if (
        parameter.type == "integer"
        and not re.fullmatch(r"[-+]?[0-9]+", value)
        and value.upper() not in ("INFINITY", "-INFINITY")
    ):
        return f"{value!r} is no whole number"
    return ""


def _validated(service: Service) -> str:
    """What the agent's own look at its options came to, "" if it is content or can't tell here."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="hasnmp-")  # where it may think that its state is
    except OSError:
        return ""
    with folder as run_dir:
        return _validated_in(run_dir, service)


def _validated_in(run_dir: str, service: Service) -> str:
    env = ocf_metadata.environment(service, "validate-all", run_dir, "node", (), int(ASK_S * 1000))
    try:
        os.mkdir(env["HA_RSCTMP"])
        done = subprocess.run(
            [ocf_metadata.path(service.agent), "validate-all"], env={**os.environ, **env},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=ASK_S, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode not in VALIDATED:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reasons = [line.partition(":")[2] for line in lines if line.startswith("ocf-exit-reason:")]
    if not reasons and not lines:
        return ""
    why = (reasons or lines)[-1]
    return f"{service.agent} validate-all, on this node and without the group's disk: {VALIDATED[done.returncode]}: {why[:300]}"
