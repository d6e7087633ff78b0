#!/usr/bin/env python3
"""A fence agent of the laboratory: asks the harness, out of band, to switch a host's power.

Bound over an agent of the fence-agents package inside the hosts of one lab (pacemaker.py), for Pacemaker finds its agents
by their folder. Options as the API of fence agents has them, key=value lines on standard input: action, plug.
"""

import socket
import sys

SOCKET = "/run/lab/etc/power.sock"
METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_lab" shortdesc="power switch of the laboratory">
<longdesc>power switch of the laboratory</longdesc>
<parameters>
<parameter name="action" unique="0" required="1"><content type="string" default="off" /></parameter>
<parameter name="plug" unique="0" required="0"><content type="string" /></parameter>
</parameters>
<actions>
<action name="on" automatic="0"/><action name="off" /><action name="reboot" /><action name="status" />
<action name="monitor" /><action name="metadata" /><action name="list" />
</actions>
</resource-agent>
"""

options = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line)
action = options.get("action", options.get("option", "off"))
if action == "metadata":
    print(METADATA)
    sys.exit(0)
if action == "monitor":
    sys.exit(0)
if action == "list":
    print("a,\nb,")
    sys.exit(0)
wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
wire.settimeout(15)
wire.connect(SOCKET)
wire.sendall(f"{action} {options.get('plug') or options.get('port')}\n".encode())
answer = wire.makefile().readline().strip()
# 0 done or on, 2 off
sys.exit({"done": 0, "on": 0, "off": 2}.get(answer, 1))
