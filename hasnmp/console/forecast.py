"""`hasnmp simulate` for people: what the simulator foresees (hasnmp/simulator/what_if.py), as a timeline and tables."""

from __future__ import annotations

from typing import Any

from hasnmp.console.tables import Cell, Screen, clean, table, wrap

MEANING = {"fault": "strong", "served": "good", "unserved": "bad", "twice": "bad", "refused": "warn", "nothing": "warn"}


def seconds(ms: int) -> str:
    return f"{ms / 1000:.3f}"


def forecast(report: dict[str, Any], screen: Screen) -> list[str]:
    """Everything: the start, each fault with what follows, and how it ends."""
    start = report["start"]
    lines = [f"cluster {report['cluster']} of {report['config']}, every node up, after a first start"]
    lines += ["", *groups(start, screen), *why(start, screen)]
    for number, step in enumerate(report["faults"], 1):
        lines += [
            "",
            screen.paint(clean(f"{number}. {step['fault']}"), "strong"),
            *timeline(step, screen),
            "",
            settled(step),
            "",
        ]
        lines += [*groups(step, screen), *why(step, screen), "", *nodes(step, screen)]
        if step is report["faults"][-1]:
            lines += alarms(step, screen)
    lines += ["", verdict(report, screen)]
    return lines


def timeline(step: dict[str, Any], screen: Screen) -> list[str]:
    if not step["timeline"]:
        return ["nothing happens"]
    width = max(len("NODE"), *(len(each["node"]) for each in step["timeline"]))
    lines = [screen.paint(f" SECONDS  {'NODE':<{width}}  WHAT HAPPENS", "dim")]
    for each in step["timeline"]:
        head = f"{seconds(each['ms']):>8}  {each['node']:<{width}}  "
        first, *rest = wrap(head + clean(each["text"]), screen.width, " " * len(head))
        meaning = MEANING.get(each["kind"], "")
        lines += [
            first[: len(head)] + screen.paint(first[len(head) :], meaning),
            *(screen.paint(x, meaning) for x in rest),
        ]
    return lines


def settled(step: dict[str, Any]) -> str:
    took = step["until_ms"] - step["from_ms"]
    if step["settled_ms"] is None:
        return f"{seconds(took)} s later it has not come to rest"
    if step["settled_ms"] <= step["from_ms"]:
        return f"{seconds(took)} s later:"
    return f"settled after {seconds(step['settled_ms'] - step['from_ms'])} s:"


def groups(step: dict[str, Any], screen: Screen) -> list[str]:
    rows: list[tuple[Cell, ...]] = []
    for group in step["groups"]:
        spans = ", ".join(f"{seconds(a)} to {seconds(b)}" for a, b in group["outages"])
        note = f"not served {spans}" if spans and step["fault"] else ""
        if group["twice"]:
            note = "; ".join(filter(None, (note, f"RUNS TWICE, also on {', '.join(group['twice'])}")))
        elif group["left_on"]:
            note = "; ".join(filter(None, (note, f"something of it is left on {', '.join(group['left_on'])}")))
        served: Cell = (group["node"], "good") if group["node"] else ("nobody", "bad")
        rows.append((group["name"], served, group["state"], f"{group['outage_ms']} ms" if step["fault"] else "", note))
    return table(screen, ("GROUP", "SERVED BY", "STATE", "OUTAGE", ""), rows, right="OUTAGE")


def why(step: dict[str, Any], screen: Screen) -> list[str]:
    """The core's own words on each group that nobody serves."""
    lines = []
    for group in step["groups"]:
        if group["node"]:
            continue
        if not group["why"]:
            lines += ["", f"why {group['name']} is not served: no node that may run it has an engine that could say"]
        for node, said in group["why"].items():
            lines += ["", f"why {group['name']} is not served, as {node} sees it:"]
            lines += [line for each in said for line in wrap(f"  {each}", screen.width, "    ")]
    return lines


def nodes(step: dict[str, Any], screen: Screen) -> list[str]:
    rows = [(node["name"], node["state"], node["role"]) for node in step["nodes"]]
    return table(screen, ("NODE", "STATE", "ROLE"), rows)


def alarms(step: dict[str, Any], screen: Screen) -> list[str]:
    rows = [(", ".join(alarm["nodes"]), alarm["alarm"], alarm["text"]) for alarm in step["alarms"]]
    return ["", *table(screen, ("ALARM ON", "ALARM", ""), rows)] if rows else ["", "no alarm stands"]


def verdict(report: dict[str, Any], screen: Screen) -> str:
    last = report["faults"][-1] if report["faults"] else report["start"]
    unserved = [group["name"] for group in last["groups"] if not group["node"]]
    twice = [group["name"] for group in last["groups"] if group["twice"]]
    if unserved or twice:
        words = [f"not served at the end: {', '.join(unserved)}"] if unserved else []
        words += [f"served by more than one node at the end: {', '.join(twice)}"] if twice else []
        return screen.paint("; ".join(words), "bad")
    return screen.paint("every group is served at the end", "good")
