"""What a service with a shared disk does, as far as a test can see it: every 10 ms a line in a file that all hosts reach.

python -I -S writer.py FILE          each line: NODE TOKEN CLOCK_MONOTONIC
"""

import os
import sys
import time

head = f"{os.uname().nodename} {os.environ.get('HASNMP_TOKEN', '0')}"
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(fd, f"{head} {time.monotonic_ns()}\n".encode())
    time.sleep(0.01)
