"""A configuration file -> settings.Config, or every fault of it at once.

    config = load("/etc/hasnmp/hasnmp.yaml")       # ConfigError: all faults, in the file's order

The steps, a file each: YAML with lines (config_yaml); the kinds of values (config_read, config_kinds); the form's keys
(config_schema); what keys must be to each other (config_judge); and here the values. `known_keys()` gives the form to
the documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Any

from hasnmp import config_agents
from hasnmp import config_fence as fence
from hasnmp import config_ocf as ocf
from hasnmp import config_schema as schema
from hasnmp.config_judge import judge
from hasnmp.config_kinds import Secret
from hasnmp.config_read import BAD, REQUIRED, Context, Key, Section, read_section
from hasnmp.config_yaml import MAX_SIZE, compose, join
from hasnmp.errors import ConfigError, Fault
from hasnmp.model import Failback
from hasnmp.settings import (
    Arbiter,
    Check,
    ClientKey,
    Clients,
    Community,
    Config,
    Control,
    Fencing,
    Group,
    Heartbeat,
    Hook,
    Log,
    MibView,
    NodeSettings,
    OnFailure,
    Receiver,
    Service,
    Snmp,
    SnmpUser,
    Throttle,
    Watchdog,
)

__all__ = ["REQUIRED", "Key", "Places", "known_keys", "load", "parse"]


def load(path: str, *, strict_files: bool = True) -> Config:
    """Read the configuration of a file.

    Args:    strict_files: also look at secrets, accounts and programs of this machine; False for a file that is meant
             for another one: every secret is then b"".
    Raises:  ConfigError: the file has faults, or can't be read.
    """
    context = Context(path, ".", strict_files)
    allowed = f"a text file of at most {MAX_SIZE} octets"
    text = ""
    try:
        status = os.stat(path)  # before it is opened: a pipe would block, a device would act
        if not stat.S_ISREG(status.st_mode):
            context.fault(1, "file", f"is no regular file; allowed: {allowed}")
        elif status.st_size > MAX_SIZE:
            context.fault(1, "file", f"has {status.st_size} octets; allowed: {allowed}")
        else:
            with open(path, "rb") as file:
                text = file.read(MAX_SIZE + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        context.fault(line, "file", f"octet {error.start} is not UTF-8 ({error.reason}); allowed: UTF-8 text")
    except OSError as error:
        context.fault(1, "file", f"can't be read ({os.strerror(error.errno or 0)}); allowed: {allowed}")
    except ValueError:
        context.fault(1, "file", "the path holds a zero octet, which no path has")
    if context.faults:
        raise ConfigError(tuple(context.faults))
    return parse(text, path, os.path.dirname(os.path.abspath(path)), strict_files=strict_files)


def parse(text: str, source: str, base_dir: str, *, strict_files: bool = True) -> Config:
    """Read a configuration's text. source: what faults name as the file; base_dir: what relative paths count from.

    Raises:  ConfigError: with every fault, in the order of their lines.
    """
    context = Context(source, os.path.abspath(base_dir), strict_files)
    top = None
    if len(text) > MAX_SIZE:
        context.fault(1, "file", f"has {len(text)} characters; allowed: {MAX_SIZE}")
    else:
        top = compose(text, context.fault)
    if top is None or top.value is None:
        if not context.faults:
            required = ", ".join(
                key.name for key in schema.FORM if key.default is REQUIRED or key.name in ("heartbeat", "arbiter")
            )
            context.fault(1, "file", f"is empty; a configuration has at least: {required}")
        raise ConfigError(tuple(context.faults))
    root = read_section(top, "", context, schema.FORM)
    options = judge(root, context) if root is not BAD else {}
    if context.faults:
        raise ConfigError(tuple(sorted(context.faults, key=lambda fault: fault.line)))
    return _build(root, options, source)


class Places:
    """Where a faultless file gives its keys, for what is found out about them after it was read."""

    def __init__(self, path: str) -> None:
        self.source = path
        try:
            with open(path, "rb") as file:
                self._top = compose(file.read(MAX_SIZE).decode("utf-8-sig", "replace"), lambda *fault: None)
        except OSError:
            self._top = None  # gone since it was read: line 1 has to do

    def fault(self, text: str, *steps: str | int) -> Fault:
        """A fault of the key at the end of these steps (keys, and places in lists), or of the nearest one above it."""
        node, key = self._top, ""
        line = 1
        for step in steps:
            key = f"{key}[{step}]" if isinstance(step, int) else join(key, step)
            value = node.value if node is not None else None
            if isinstance(value, list) and isinstance(step, int) and step < len(value):
                node = value[step]
                name = node.value.get("name") if isinstance(node.value, dict) else None
                if name is not None and isinstance(name.value, str):  # as the reader calls it
                    key = join(key.rpartition("[")[0], name.value)
            else:
                node = value.get(step) if isinstance(value, dict) and isinstance(step, str) else None
            line = node.line if node is not None else line
        return Fault(self.source, line, key, text)


def known_keys() -> dict[str, Key]:
    """Every key of this version's form, by its path ("groups.NAME.services[].check.every_ms"), in the form's order.

    An agent's options are under "groups.NAME.services[].options(AGENT)". Key.default is REQUIRED for a key without one,
    None where it depends on others (Key.doc then says how) or where the key holds further keys.
    """
    found: dict[str, Key] = {}

    def walk(path: str, keys: tuple[Key, ...]) -> None:
        for key in keys:
            if key.kind.later:
                continue
            where = f"{path}.{key.name}" if path else key.name
            found[where] = key
            walk(where + key.kind.step, key.kind.keys)
            for variant, others in key.kind.variants:
                walk(f"{where}({variant})", others)

    walk("", schema.FORM)
    return found


# ---------------------------------------------------------------------------------------------------- faultless: build


def _build(root: Section, options: dict[str, Section], source: str) -> Config:
    nodes = tuple(
        NodeSettings(name, dict(node["links"]), fence.levels_of(node["fence"])) for name, node in root["nodes"].items()
    )
    everybody = tuple(node.name for node in nodes)
    beat = {**root["heartbeat"].values}
    keys: tuple[Secret, ...] = beat.pop("key_files")
    heartbeat = Heartbeat(**beat, keys=tuple(k.octets for k in keys if k.octets), key_files=tuple(k.path for k in keys))
    arbiter = Arbiter(**_given(root["arbiter"]))
    watchdog = Watchdog(**root["watchdog"].values)
    groups = tuple(
        Group(
            name,
            group["nodes"] or everybody,
            tuple(_service(name, service, options) for service in group["services"]),
            Failback.AUTOMATIC if group["failback"] == "automatic" else Failback.MANUAL,
            group["failover_limit"]["times"],
            group["failover_limit"]["within_s"],
            fence.has_disk(group),
            group["accept_unfenced_disk"],
            fence.stop_failure(group, root["nodes"]),
        )
        for name, group in root["groups"].items()
    )
    return Config(
        cluster=root["cluster"],
        nodes=nodes,
        heartbeat=heartbeat,
        arbiter=arbiter,
        groups=groups,
        recovery_automatic=root["recovery"] == "automatic",
        fencing=Fencing(**root["fencing"].values),
        watchdog=watchdog,
        snmp=_snmp(root["snmp"]),
        clients=_clients(root["clients"]),
        hooks=tuple(Hook(**hook.values) for hook in root["hooks"] or ()),
        control=Control(root["control"]["socket"] or f"{root['run_dir']}/control.sock", root["control"]["group"]),
        events_keep=root["events"]["keep"],
        state_dir=root["state_dir"],
        run_dir=root["run_dir"],
        log=Log(**root["log"].values),
        source=source,
        digest=_digest(root["cluster"], nodes, heartbeat, arbiter, groups, watchdog),
    )


def _given(section: Section) -> dict[str, Any]:
    """A section's values without those that are None: absent, and with a default that depends on something else."""
    return {name: value for name, value in section.values.items() if value is not None}


def _service(group: str, service: Section, options: dict[str, Section]) -> Service:
    given = _given(service["check"])
    given.setdefault("type", schema.CHECK_TYPES[ocf.parts(service["agent"])[0]][0])
    given.setdefault("timeout_ms", min(Check().timeout_ms, given["every_ms"]))
    if secret := given.pop("password_file", None):
        given["password"] = secret.octets
    check = Check(**given)
    rest = {name: service[name] for name in ("critical", "start_timeout_ms", "stop_timeout_ms")}
    on_failure = OnFailure(**service["on_failure"].values)
    if ocf.is_external(service["agent"]):
        plain, secrets = config_agents.values(options[service["name"]])
        unset = config_agents.unset(service, service["check"])
        return Service(service["name"], group, service["agent"], plain, check=check, on_failure=on_failure, secrets=secrets,
                       unset=unset, **rest)  # fmt: skip
    chosen = {**options[service["name"]].values}
    if "env" in chosen:
        chosen["env"] = dict(chosen["env"])  # not the schema's own default
    port = service["endpoint"]["port"]
    return Service(
        service["name"], group, service["agent"], chosen, check=check, on_failure=on_failure, endpoint_port=port, **rest
    )  # fmt: skip


def _clients(clients: Section) -> Clients:
    keys = tuple(
        ClientKey(k["name"], tuple(s.octets for s in k["key_files"] if s.octets), k["from"], k["report"])
        for k in clients["keys"]
    )
    return Clients(clients["listen"], keys)


def _snmp(snmp: Section) -> Snmp:
    views = {name: MibView(name, v["include"], v["exclude"]) for name, v in (snmp["views"] or {}).items()}
    users = tuple(
        SnmpUser(
            u["name"],
            u["auth"],
            u["priv"],
            u["access"],
            u["auth_file"].octets,
            u["priv_file"].octets if u["priv"] else b"",
            views.get(u["view"]),
            views.get(u["write_view"]),
            u["from"],
        )
        for u in snmp["users"]
    )
    communities = tuple(
        Community(
            c["access"],
            c["from"],
            c["name_file"].octets,
            c["label"] or f"community-{number}",
            views.get(c["view"]),
            views.get(c["write_view"]),
        )
        for number, c in enumerate(snmp["communities"], 1)
    )
    notify = tuple(
        Receiver(
            n["to"],
            n["version"],
            n["user"] or "",
            n["community_file"].octets if n["community_file"] else b"",
            n["type"],
            **{name: n[name] for name in ("timeout_ms", "retries", "min_severity", "enabled")},
            name=n["name"] or "",
        )
        for n in snmp["notify"]
    )
    plain = {
        name: snmp[name]
        for name in (
            "listen", "allow_insecure_set", "alive_s", "backlog", "authentication_traps", "agentx", "agentx_access",
        )
    }  # fmt: skip
    return Snmp(
        users=users,
        communities=communities,
        notify=notify,
        throttle=Throttle(**snmp["throttle"].values),
        views=tuple(views.values()),
        **plain,
    )


def _digest(
    cluster: str,
    nodes: tuple[NodeSettings, ...],
    beat: Heartbeat,
    arbiter: Arbiter,
    groups: tuple[Group, ...],
    watchdog: Watchdog,
) -> str:
    """What nodes must agree on before any of them may acquire a group (design rule 9); late_after_ms only counts."""
    # The order of nodes breaks ties between claimants; the order of links, groups and services decides nothing.
    agreed: dict[str, Any] = {
        "form": 1,
        "cluster": cluster,
        "nodes": [[node.name, node.links] for node in nodes],
        "heartbeat": [
            beat.port,
            beat.interval_ms,
            beat.dead_after_ms,
            beat.startup_wait_ms,
            beat.max_clock_drift_ppm,
            beat.kill_ms,
        ],
        "arbiter": [arbiter.type, arbiter.device, arbiter.lease_ms, arbiter.io_timeout_ms, arbiter.accept_split_brain],
        "groups": {group.name: group.nodes for group in groups},
    }
    # What the first version did not have is named only where it is used: so nodes of both versions agree while the cluster
    # is upgraded one by one. Secrets are not in it: each node has its own files.
    levels = {
        node.name: [[f.agent, f.cuts, f.timeout_ms, f.action, f.options, sorted(f.secrets)] for f in node.fence]
        for node in nodes
        if node.fence
    }
    disks = {g.name: g.accept_unfenced_disk for g in groups if g.disk}
    failures = {g.name: g.on_stop_failure for g in groups if g.on_stop_failure != "block"}
    more = {"fence": levels, "disks": disks, "on_stop_failure": failures}
    agreed.update({name: value for name, value in more.items() if value})
    if watchdog.device:
        agreed["watchdog"] = [watchdog.device, watchdog.timeout_s]
    canonical = json.dumps(agreed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
