#!/usr/bin/env -S python3 -I -S
"""The laboratory's fence agent: asks the power switch (power.py), which stands outside of every host, by its socket.

A fence agent like any other: options on standard input (switch, plug, socket, password), exit status 0 done or on, 2 off.
"""

import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_lab" shortdesc="The laboratory's power switch">
<parameters>
<parameter name="action" required="1"><content type="string" default="reboot"/></parameter>
<parameter name="plug" required="1"><content type="string"/></parameter>
<parameter name="socket" required="1"><content type="string"/></parameter>
<parameter name="switch" required="0"><content type="string" default="one"/></parameter>
</parameters>
<actions><action name="on"/><action name="off"/><action name="reboot"/><action name="status"/><action name="monitor"/>
<action name="metadata"/></actions>
</resource-agent>"""


def main() -> int:
    if sys.argv[1:] == ["-o", "metadata"]:
        print(METADATA)
        return 0
    given = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    if given["action"] == "metadata":
        print(METADATA)
        return 0
    line = socket(AF_UNIX, SOCK_STREAM)
    line.connect(given["socket"])
    line.send(f"{given.get('switch', 'one')} {given['action']} {given['plug']}\n".encode())
    answer = line.recv(200).decode().strip()
    if answer in ("on", "off", "done"):
        return 2 if answer == "off" else 0
    print(answer or "the switch hung up")
    return 1


sys.exit(main())
