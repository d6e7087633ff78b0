#!/usr/bin/env python3
"""An outside agent: looks after a service in its own way, and reports it up or down to the cluster every few seconds.

    report.py SERVICE CLIENT-FILE PROGRAM [WORD...]      exit status 0 of the program means up; ONCE=1: report once, and end

The service has `agent: passive` in the nodes' configuration, and `clients.keys` there names it under `report` of the key that
the client's file has. Silence for longer than its report_within_ms is a failure by itself.
"""

import os
import subprocess
import sys
import time

from hasnmp.client import Client, NotRunning

EVERY_S = 3.0


def main() -> int:
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    service, file, *program = sys.argv[1:]
    client = Client.load(file)
    while True:
        try:
            ran = subprocess.run(program, capture_output=True, text=True, timeout=EVERY_S)
            up, text = ran.returncode == 0, " ".join((ran.stdout + ran.stderr).split())
        except (OSError, subprocess.TimeoutExpired) as error:
            up, text = False, str(error)
        taken = True
        try:
            client.report(service, up, text)
        except NotRunning as error:
            print(error, file=sys.stderr)
            taken = False
        if os.environ.get("ONCE"):
            return 0 if taken else 1
        time.sleep(EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
