"""Views of the MIB as a configuration defines them (RFC 3415): subtrees by name or by number.

A subtree's name is one of SUBTREES, which snmp/access.py knows the numbers of; an OID may have `*` for any number, so that
the rows of one group or service can be told from the others'.
"""

from __future__ import annotations

import re

from hasnmp.config_read import BAD, REQUIRED, Context, Key, Section, list_of, section, string, suggest
from hasnmp.config_yaml import show

SUBTREES = (
    "internet", "system", "snmp", "snmpModules", "snmpTraps", "snmpSet", "snmpFrameworkMIB", "snmpMPDMIB", "snmpTargetMIB",
    "snmpNotificationMIB", "snmpUsmMIB", "snmpVacmMIB", "snmpCommunityMIB", "hasnmpMIB", "haNotifications", "haObjects",
    "haSystem", "haControl", "haCommandTable", "haNodeTable", "haLinkTable", "haGroupTable", "haServiceTable",
    "haArbiterTable", "haFenceTable", "haConfig", "haStatistics", "haEvents", "haEventTable", "haAlarms", "haAlarmTable",
    "haNotify", "haReceiverTable", "haGroupWhyTable",
)  # fmt: skip
_OID = re.compile(r"[0-2](\.([0-9]{1,10}|\*)){1,127}")


def _problem(value: str) -> str:
    if value in SUBTREES:
        return ""
    if not _OID.fullmatch(value):
        return (
            "is no OID, as 1.3.6.1.2.1.1" if value[:1].isdigit() else f"is no known subtree{suggest(value, SUBTREES)}"
        )
    numbers = [int(part) for part in value.split(".") if part != "*"]
    if max(numbers) >= 1 << 32 or value.split(".")[1] == "*" or (numbers[0] < 2 and numbers[1] > 39):
        return "is no OID: its numbers are out of range"
    return ""


SUBTREE = string(
    "an OID, with * for any number in it, or a name as haServiceTable (conf/hasnmp.yaml has all of them)", _problem
)

# fmt: off
VIEW = section(
    Key("include", list_of(SUBTREE, 1, 64, unique=True), REQUIRED, "subtrees that are in it, by name or OID"),
    Key("exclude", list_of(SUBTREE, 0, 64, unique=True), (), "subtrees of these that are not; the longest that fits decides"),
)
# fmt: on


def judge_views(snmp: Section, context: Context) -> None:
    """No subtree is in a view and out of it. (One by name and by OID: snmp/access.py leaves it out.)"""
    for view in (snmp["views"] or {}).values() if snmp.good("views") else ():
        if view is not BAD and view.good("include", "exclude"):
            for subtree in view["exclude"]:
                if subtree in view["include"]:
                    context.tell(
                        view, ["exclude", "include"], f"{show(subtree)} is in include too; leave it out of one"
                    )


def judge_access(who: Section, snmp: Section, context: Context) -> None:
    """A user's or community's views: those that it names are defined, and what it may SET it may SET by its access."""
    views = (snmp["views"] or {}) if snmp.good("views") else None
    for key in ("view", "write_view"):
        name = who[key]
        if isinstance(name, str) and views is not None and name not in views:
            known = ", ".join(views) or "none"
            context.tell(
                who, [key], f"{show(name)} is no view of this file{suggest(name, views)}; known views: {known}"
            )
    if who["access"] == "read" and "write_view" in who.lines:
        context.tell(who, ["write_view"], "is given, but access is read; write access: operate, or leave it out")
