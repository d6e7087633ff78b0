#!/usr/bin/env -S python3 -I -S
"""A fence agent with the API of the real ones, whose device is a file ("on" or "off"), and which lies when it is told to.

Options, all on standard input: state=FILE; log=FILE gets a line for each call; password. And for each action ACTION:
    ACTION_ms=N       take so long, before anything is done
    ACTION_exit=N     end with this status, and do nothing
    ACTION_print=TEXT print it; ACTION_flood=N print so many octets first
    ACTION_until=FILE take until it is there
    ACTION_does=none | late:N       have no effect; have it when the status is asked for the Nth time after that
    has=on,off,...    the actions that its metadata tells of; others are refused
"""

import os
import sys
import time


def main() -> int:
    given = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    action = given.pop("action", "reboot")  # as the real ones: whoever forgets to say what, reboots

    def told(name: str) -> str:
        return given.get(f"{action}_{name}", "")

    known = given.get("has", "on,off,reboot,status,monitor").split(",")
    if log := given.get("log"):
        with open(log, "a") as file:
            file.write(f"{action} {' '.join(sorted(k for k in given if not k.startswith(action)))}\n")
    if action == "metadata":
        print("<resource-agent><parameters/>" + " " * 2000 + "<actions>")
        print("".join(f'<action name="{name}" automatic="0" />\n' for name in known) + "</actions></resource-agent>")
        return 0
    if action not in known:
        print(f"Failed: Unrecognised action '{action}'", file=sys.stderr)
        return 1
    sys.stdout.write("flood\n" * (int(told("flood") or 0) // 6))
    if told("print"):
        print(told("print"), flush=True)
    time.sleep(int(told("ms") or 0) / 1000)
    while told("until") and not os.path.exists(told("until")):
        time.sleep(0.02)
    if told("exit"):
        return int(told("exit"))
    state = given["state"]
    if action == "status":
        with open(state) as file:
            word, _, at = file.read().strip().partition(" ")
        if int(at or 0) > 1:
            with open(state, "w") as file:
                file.write(f"{word} {int(at) - 1}")
            word = "off" if word == "on" else "on"
        return {"on": 0, "off": 2}.get(word, 1)
    if action in ("off", "on") and told("does") != "none":
        at = f" {told('does')[5:]}" if told("does") else ""
        with open(state, "w") as file:
            file.write(action + at)
    return 0


sys.exit(main())
