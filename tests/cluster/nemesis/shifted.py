"""Starts hasnmpd with a wall clock that can be set while it runs: file CLOCK holds nanoseconds that are added to it.

    python shifted.py CLOCK hasnmpd's arguments...

What is shifted is CLOCK_REALTIME as every process of the stack reads it (time.time, time.time_ns). The clock that leases live
by, CLOCK_BOOTTIME, can't be made to jump or run faster in a process; that each machine's has another zero is the laboratory's
doing (a time namespace), and that they drift apart is the simulator's.
"""

import mmap
import os
import struct
import sys
import time

path = sys.argv.pop(1)
if not os.path.exists(path):
    with open(path, "wb") as file:
        file.write(bytes(8))
with open(path, "rb") as file:
    shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)  # the forked processes see the same page
real_ns = time.time_ns


def time_ns() -> int:
    return real_ns() + struct.unpack_from("<q", shift)[0]


time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9

from hasnmp.runtime.daemon import main  # noqa: E402  the clock is set up before anybody can have taken it by name

sys.exit(main())
