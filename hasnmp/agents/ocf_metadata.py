"""What OCF agents are given and what they say of themselves: paths, the environment of an action, `meta-data`.

Only the standard library, errors, settings and config are used here, so that a configuration can be judged without any of
the runtime. Source: Open Cluster Framework, resource agent API 1.1. What runs programs and waits is never called from the
engine.
"""

from __future__ import annotations

import os
from pathlib import Path

from hasnmp import settings
from hasnmp.config_ocf import parts

TOOLS = Path(__file__).with_name("ocf_tools")  # what agents call of Pacemaker, in our words
PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
FEATURE_SET = (
    "3.16.2"  # of Pacemaker 2.1.5, which Debian 12 has beside these agents: they ask for what came with 3.0 and 3.1
)


def root() -> str:
    return os.environ.get("OCF_ROOT", "") or "/usr/lib/ocf"


def path(agent: str) -> str:
    """Of the agent's program, whether it is there or not."""
    _, provider, name = parts(agent)
    return f"{root()}/resource.d/{provider}/{name}"


def state_dir(run_dir: str, node: str) -> str:
    """HA_RSCTMP, of each node its own: two nodes may be on one machine."""
    return f"{run_dir}/ocf-{node}"


def environment(
    service: settings.Service, action: str, run_dir: str, node: str, nodes: tuple[str, ...], timeout_ms: int
) -> dict[str, str]:
    """The environment of an action, to be added to the daemon's own."""
    _, provider, name = parts(service.agent)
    own = [place for place in os.environ.get("PATH", "").split(":") if place and place not in PLACES]
    recurring = service.check.every_ms if action == "monitor" else 0
    env = {
        "OCF_ROOT": root(), "OCF_RA_VERSION_MAJOR": "1", "OCF_RA_VERSION_MINOR": "1",
        "OCF_RESOURCE_INSTANCE": service.name, "OCF_RESOURCE_PROVIDER": provider, "OCF_RESOURCE_TYPE": name,
        "OCF_EXIT_REASON_PREFIX": "ocf-exit-reason:", "__OCF_ACTION": action,
        "OCF_RESKEY_crm_feature_set": FEATURE_SET, "OCF_RESKEY_CRM_meta_name": action,
        "OCF_RESKEY_CRM_meta_timeout": str(timeout_ms), "OCF_RESKEY_CRM_meta_interval": str(recurring),
        "OCF_RESKEY_CRM_meta_on_node": node,
        # Without a log of its own an agent writes to standard error, where the end of it is kept.
        "HA_RSCTMP": state_dir(run_dir, node), "HA_SBIN_DIR": str(TOOLS), "HA_LOGFACILITY": "none", "HA_debug": "0",
        "PATH": ":".join((str(TOOLS), *PLACES, *own)),
        "HASNMP_OCF_NODE": node, "HASNMP_OCF_NODES": " ".join(nodes), "HASNMP_OCF_ATTRIBUTES": f"{state_dir(run_dir, node)}/attributes",
    }  # fmt: skip
    if action == "monitor":
        env["OCF_CHECK_LEVEL"] = str(service.check.depth)
    given = {**service.options, **service.secrets}
    return env | {f"OCF_RESKEY_{option}": str(value) for option, value in given.items()}
