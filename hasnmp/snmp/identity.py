"""This node's SNMP engine ID and boots, durable (RFC 3411 section 5, RFC 3414 section 2.2).

Managers trust a (boots, time) pair to be new: a value that was used must never come again with the same ID and keys. So
the next boots value is on the disk before the first message, and where that fails - or the file can't be believed, or is
another machine's, of which this one is a copy - a new random ID is taken: with another ID every localized key is another too.
Nothing else of the users is kept: their keys are made from the passphrases at each start, and localized before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MAX_BOOTS = 2147483647
# RFC 3411 SnmpEngineID: our enterprise number (RFC 5612's) with the first bit set; format 5, octets of our own making.
_PREFIX = (0x80000000 | 32473).to_bytes(4, "big") + b"\x05"


def new_engine_id() -> bytes:
    return _PREFIX + os.urandom(12)


# What differs between a machine and its clone: systemd's id, which who clones by the book makes anew, and the firmware's.
_MACHINE = ("/etc/machine-id", "/sys/class/dmi/id/product_uuid")


def machine() -> list[str]:
    """A fingerprint of each of _MACHINE; "" for what is not there, or not for this user to read."""
    told = []
    for name in _MACHINE:
        try:
            told.append(hashlib.sha256(Path(name).read_bytes().strip()).hexdigest()[:16])
        except OSError:
            told.append("")
    return told


def start(state_dir: str, node: str) -> tuple[bytes, int, str]:
    """The engine ID, and the boots value for this start of the engine.

    Returns: ID, boots, and "" or why it is a new ID although there ought to be an old one (to be logged).
    """
    path = Path(state_dir) / f"snmp-engine-{node}.json"
    trouble = ""
    engine_id, boots = new_engine_id(), 0
    here = machine()
    try:
        stored = json.loads(path.read_bytes())
        kept, count = bytes.fromhex(stored["engine_id"]), stored["boots"]
        if not 5 <= len(kept) <= 32 or not isinstance(count, int) or not 0 <= count <= MAX_BOOTS:
            raise ValueError("values out of their ranges")
        if any(now and then and now != then for now, then in zip(here, stored.get("machine", ()), strict=False)):
            raise ValueError("it is another machine's, of which this one is a copy")
        engine_id, boots = kept, count
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        trouble = f"{path}: {error if isinstance(error, OSError | ValueError) else repr(error)}"
    # At the end of its range it stays: then nobody is in this engine's time window until the file is removed.
    boots = min(boots + 1, MAX_BOOTS)
    try:
        _write(path, json.dumps({"engine_id": engine_id.hex(), "boots": boots, "machine": here}).encode())
    except OSError as error:
        return new_engine_id(), 1, f"{path}: {error}"
    return engine_id, boots, trouble


def _write(path: Path, data: bytes) -> None:
    """Replace the file so that either the old or the new one is there after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
