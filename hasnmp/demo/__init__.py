"""`hasnmp demo`: two nodes with their own daemons on this machine, as an ordinary user, and what happens to them.

stage.py     the folder, the addresses, the configuration; starts, kills and stops the nodes
manager.py   the console's side: Net-SNMP's tools where they are installed, else pysnmp; a trap receiver
web.py       the service that fails over
story.py     what is played, told and checked
"""

from __future__ import annotations


def main(once: bool) -> int:
    """Play. once: play it, check each step, and end. Returns the exit status: 0, or 1 with what differed."""
    from hasnmp.demo.story import play

    return play(once)
