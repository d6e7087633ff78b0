"""HASNMP-MIB and the MIBs that it imports, for the tools that read MIBs: smilint, Net-SNMP, pysmi.

Debian's snmp and smitools come without the IETF's MIBs (their licence is non-free); erlang-snmp ships those that we
need, under names that end in .mib, which libsmi does not look for: so they are copied.
"""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

MIB = Path(__file__).parents[2] / "mibs" / "HASNMP-MIB.txt"
MODULES = ":".join((
    "SNMPv2-MIB", "SNMP-FRAMEWORK-MIB", "SNMP-MPD-MIB", "SNMP-USER-BASED-SM-MIB", "SNMP-VIEW-BASED-ACM-MIB",
    "SNMP-TARGET-MIB", "SNMP-NOTIFICATION-MIB", "HASNMP-MIB",
))  # fmt: skip


def base_mibs(folder: Path) -> Path:
    """Fill a folder with the IETF's MIBs, named by module. Returns it."""
    found = glob.glob("/usr/lib/erlang/lib/snmp-*/mibs/*.mib")
    assert found, "no base MIBs: install the Debian package erlang-snmp"
    folder.mkdir(parents=True, exist_ok=True)
    for file in found:
        shutil.copy(file, folder / Path(file).stem)
    return folder


def net_snmp_environment(folder: Path) -> dict[str, str]:
    """The environment in which Net-SNMP's commands know HASNMP-MIB and its base, and no other file of this machine.

    folder: for the copies, and for what Net-SNMP would keep for itself.
    """
    base = base_mibs(folder / "mibs")
    return {**os.environ, "MIBDIRS": f"{base}:{MIB.parent}", "MIBS": MODULES,
            "SNMPCONFPATH": str(folder), "SNMP_PERSISTENT_DIR": str(folder)}  # fmt: skip
