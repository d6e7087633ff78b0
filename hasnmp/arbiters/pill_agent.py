"""The built-in fence agent `pill`: ends a node by a poison pill on the lease disk. A program with the Fence Agent API.

Run by the guardian as every fence agent is, so that a frozen disk freezes only this. Options on standard input: device,
cluster, attacker (this node), victim, until_ns (of CLOCK_BOOTTIME), and action:

    off      write a pill for the victim's present holder and wait until that very pill is acknowledged; exit status 0 is
             its guardian's word that nothing of that holder is left
    status   the same with a pill that only asks for an acknowledgement: the whole way works; exit status 0
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__":  # run by its path, with -I -S: nothing but the standard library and hasnmp itself
    sys.path.insert(0, str(Path(__file__).parents[2]))

from hasnmp.arbiters.pills import Acks, Pill, PillKind, PillRow, new_number
from hasnmp.errors import HasnmpError, WireError

LOOK_S = 0.1
WITHDRAW_S = 0.4  # kept of the time limit for taking the pill back


class Failed(HasnmpError):
    """Why the victim can't be said to have ended."""


def main() -> int:
    given = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    try:
        kind = {"off": PillKind.END, "status": PillKind.TEST}.get(given.get("action", ""))
        if kind is None:
            raise Failed(f"a pill has no action {given.get('action')!r}")
        row = PillRow(given["device"], given["cluster"], given["victim"])
        until_s = int(given["until_ns"]) / 1e9 - WITHDRAW_S
        print(send(row, given["attacker"], given["victim"], kind, until_s))
        return 0
    except WireError as error:
        hint = "; run `hasnmp arbiter init` on one node" if error.reason in ("unknown group", "unknown node") else ""
        print(f"the lease disk has no place for pills{hint}" if hint else f"{given['device']}: {error}")
    except OSError as error:
        print(f"{given['device']}: {error.strerror}")
    except (Failed, KeyError, ValueError) as error:
        print(error)
    return 1


def send(row: PillRow, attacker: str, victim: str, kind: PillKind, until_s: float) -> str:
    """What happened, in words. until_s: of CLOCK_BOOTTIME. Raises Failed, OSError, WireError."""
    _, acks = row.read()
    if not isinstance(acks, Acks):
        raise Failed(
            f"{victim} takes no pills: its place on the lease disk says nothing of it ({acks}); does hasnmpd run there?"
        )
    pill = Pill(attacker, victim, kind, new_number(), acks.holder)
    row.write_pill(pill)
    written = time.monotonic()
    while True:
        _, acks = row.read()
        if isinstance(acks, Acks) and acks.of(pill):
            took_ms = (time.monotonic() - written) * 1000
            what = "everything of it has ended" if kind is PillKind.END else "it reads its pills"
            return f"{victim}'s guardian acknowledged the pill after {took_ms:.0f} ms: {what} (holder {pill.holder})"
        if time.clock_gettime(time.CLOCK_BOOTTIME) >= until_s:
            break
        time.sleep(LOOK_S)
    row.write_pill(Pill(attacker, victim, PillKind.NONE, pill.number, pill.holder))
    now = (
        f"its holder is {acks.holder} now" if isinstance(acks, Acks) and acks.holder != pill.holder else "no word of it"
    )
    waited_ms = (time.monotonic() - written) * 1000
    raise Failed(f"{victim} did not acknowledge the pill within {waited_ms:.0f} ms ({now})")


if __name__ == "__main__":
    sys.exit(main())
