"""Names of agents that are not built in, as ocf:PROVIDER:NAME, and what can be known of one without asking it."""

from __future__ import annotations

import re

OCF_FORM = re.compile(r"ocf:[A-Za-z0-9][A-Za-z0-9_.-]{0,63}:[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)

# A unit has its control group, by which it is ended, if it is a service.
UNIT_FORM = re.compile(r"systemd:[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,200}", re.ASCII)
OTHER_UNITS = (".socket", ".target", ".mount", ".timer", ".slice", ".scope", ".path", ".swap", ".device", ".automount")

# Agents of Debian's resource-agents and pacemaker-resource-agents (4.12, 2.1) all of whose service is processes that they
# leave running, in the group's control group: when a lease ends by force, they end with it. Of any other - a file system, a
# volume, an export of the kernel's, a container, an address in somebody's cloud - something may be left, so that a silent
# node's group must not be taken on silence alone (design rule 6).
PROCESSES = frozenset((
    "Delay", "Dummy", "MailTo", "Pure-FTPd", "SAPDatabase", "SAPInstance", "SphinxSearchDaemon", "Squid", "SysInfo", "WAS",
    "WAS6", "Xinetd", "anything", "apache", "asterisk", "corosync-qnetd", "db2", "dhcpd", "dnsupdate", "dovecot",
    "dummypy", "eDir88", "fio", "garbd", "ids", "jboss", "jira", "kamailio", "ldirectord", "minio", "mysql",
    "mysql-proxy", "nagios", "named", "nginx", "oracle", "oralsnr", "pgagent", "pgsql", "postfix", "pound", "proftpd",
    "rabbitmq-cluster", "rsyncd", "rsyslog", "slapd", "sybaseASE", "symlink", "syslog-ng", "tomcat", "varnish",
    "vsftpd", "zabbixserver", "HealthCPU", "HealthIOWait", "HealthSMART", "ClusterMon", "attribute", "ifspeed", "ping",
    "pingd", "ethmonitor", "machine-info", "NodeUtilization",
))  # fmt: skip
# Agents with a promoted role whose service is whole on one node too; and those without, of Debian's and of drbd-utils.
WITHOUT_PROMOTION = frozenset(("SAPInstance", "db2", "mysql", "pgsql"))
NEEDS_PROMOTION = frozenset((
    "Stateful", "conntrackd", "drbd", "galera", "mariadb", "mpathpersist", "rabbitmq-server-ha", "redis", "sg_persist",
))  # fmt: skip
FILESYSTEM = "ocf:heartbeat:Filesystem"
# Addresses of this machine's interfaces, which the guardian takes off by itself.
ADDRESSES = frozenset(("IPaddr2", "IPaddr", "IPv6addr"))


def parts(agent: str) -> tuple[str, str, str]:
    """("ocf", "heartbeat", "pgsql"); ("exec", "", "")."""
    kind, _, rest = agent.partition(":")
    provider, _, name = rest.partition(":")
    return kind, provider, name


def is_external(agent: str) -> bool:
    """Is it ocf:PROVIDER:NAME or systemd:UNIT, and not built in?"""
    if UNIT_FORM.fullmatch(agent):
        return not agent.endswith(OTHER_UNITS)
    return OCF_FORM.fullmatch(agent) is not None


def outlives(agent: str) -> bool:
    """May something of its service be left when all processes of its group have ended?"""
    _, provider, name = parts(agent)
    return OCF_FORM.fullmatch(agent) is not None and not (
        provider in ("heartbeat", "pacemaker") and name in PROCESSES | ADDRESSES
    )
