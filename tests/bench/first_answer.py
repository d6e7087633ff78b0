"""python -I first_answer.py ADDRESS COMMUNITY: asks an SNMP agent each 5 ms; prints when the first answer came.

The time is CLOCK_MONOTONIC, nanoseconds. The question is an SNMPv2c GET of sysUpTime.0.
"""

import socket
import sys
import time

name = sys.argv[2].encode()
oid = bytes((0x06, 8, 0x2B, 6, 1, 2, 1, 1, 3, 0))
pdu = bytes((2, 1, 1, 2, 1, 0, 2, 1, 0, 0x30, len(oid) + 4, 0x30, len(oid) + 2)) + oid + b"\x05\x00"
body = b"\x02\x01\x01" + bytes((4, len(name))) + name + bytes((0xA0, len(pdu))) + pdu
question = bytes((0x30, len(body))) + body

sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(0.005)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        sock.sendto(question, (sys.argv[1], 161))
        if sock.recv(1500):
            print(time.monotonic_ns())
            sys.exit(0)
    except ConnectionRefusedError:
        time.sleep(0.005)
    except OSError:
        pass  # nobody has answered yet
sys.exit(1)
