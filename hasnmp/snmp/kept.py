"""sysUpTime and the agent's counters, kept over restarts of the agent: a file of run_dir that is mapped into its memory.

A manager computes rates, and takes a smaller value for a wrap of 2**32 unless sysUpTime began anew. A killed agent can't
save anything, so its counters live in the page cache of a file: each is there the moment it is counted, at the cost of an
addition. What a restart does begin anew - snmpEngineBoots, snmpEngineTime - the standard has begin anew.

    8 octets         length of the header, in this machine's byte order
    header           JSON: boot_id, started_ns (CLOCK_BOOTTIME of sysUpTime 0), names of the counters
    8 octets each    the counters

It ends with the machine's uptime, and with the daemon's. Where it can't be used the counters are ordinary memory, and
sysUpTime begins with this agent.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LENGTH = struct.Struct("=Q")


class Kept:
    """started_ns: CLOCK_BOOTTIME when sysUpTime was 0. goes_on: this agent continues another one's."""

    def __init__(self, path: Path, names: Sequence[str], now_ns: int, warm: bool) -> None:
        """warm: the guardian restarts the agent. Counters that only a newer version of us knows begin at 0."""
        self.started_ns, self.goes_on = now_ns, False
        boot_id = ""
        values: dict[str, int] = {}
        with contextlib.suppress(OSError):
            boot_id = _BOOT_ID.read_text().strip()
        if warm:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, struct.error):
                header, values = _read(path)
                started_ns = header["started_ns"]
                if header["boot_id"] != boot_id or not isinstance(started_ns, int) or not 0 < started_ns <= now_ns:
                    raise ValueError("of another boot")
                self.started_ns, self.goes_on = started_ns, True
        if not self.goes_on:
            values = {}
        self._at = {name: number for number, name in enumerate(dict.fromkeys(names))}
        header_text = json.dumps({"boot_id": boot_id, "started_ns": self.started_ns, "names": list(self._at)})
        header_octets = header_text.encode() + b" " * (-len(header_text.encode()) % 8)
        contents = _LENGTH.pack(len(header_octets)) + header_octets
        contents += b"".join(_LENGTH.pack(values.get(name, 0) % 2**64) for name in self._at)
        memory: mmap.mmap | bytearray = bytearray(contents)
        with contextlib.suppress(OSError, ValueError):
            draft = path.with_suffix(".new")
            draft.write_bytes(contents)
            with draft.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), len(contents))
            draft.rename(path)
        self._counters = memoryview(memory)[_LENGTH.size + len(header_octets) :].cast("Q")

    def part(self, names: Sequence[str]) -> memoryview[int]:
        """These counters; they were given one after the other at the start."""
        first = self._at[names[0]] if names else 0
        assert [self._at[name] for name in names] == list(range(first, first + len(names)))
        return self._counters[first : first + len(names)]


def _read(path: Path) -> tuple[dict[str, object], dict[str, int]]:
    """Header and counters. Raises: OSError, ValueError, KeyError, struct.error: not such a file."""
    data = path.read_bytes()
    [length] = _LENGTH.unpack_from(data)
    header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    at = _LENGTH.size + length
    return header, {
        name: _LENGTH.unpack_from(data, at + number * _LENGTH.size)[0] for number, name in enumerate(header["names"])
    }
