"""One action on a systemd unit, over D-Bus, in a process of its own: a bus that hangs costs the engine nothing.

    python -I systemd_unit.py start|stop|monitor UNIT

Speaks as an OCF agent does: the same exit statuses, the reason on standard error after "ocf-exit-reason:". Imports nothing of
this package. While the unit is ours a drop-in below /run holds `Restart=no`: systemd must not start again what a lease's end
has killed. And it starts the unit only while the file HASNMP_UNIT_LEAVE is there, which the guardian removes with the lease
(runtime/units.py): a job may wait long for other units. Source: org.freedesktop.systemd1(5), sd-bus error names of systemd 252.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, Proxy, open_dbus_connection
from jeepney.wrappers import unwrap_msg

NAME, ROOT = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
MANAGER = DBusAddress(ROOT, NAME, "org.freedesktop.systemd1.Manager")
OK, FAILED, NOT_ALLOWED, NOT_INSTALLED, NOT_RUNNING = 0, 1, 4, 5, 7
DROP_IN = "50-hasnmp.conf"
TEXT = "# hasnmp runs this unit while its group's lease is here; systemd must not start it again by itself.\n"
WAIT_S = 3600.0  # for a job: hasnmp ends this process at its own time limit, long before
BUS_S = 5.0  # for a single answer


class Over(Exception):
    """The action has ended: exit status, reason."""

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status


class Systemd:
    def __init__(self) -> None:
        """Raises OSError: no system bus."""
        self.bus: DBusConnection = open_dbus_connection("SYSTEM")

    def call(self, address: DBusAddress, method: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        """Raises Over: what systemd said against it."""
        try:
            reply = self.bus.send_and_get_reply(new_method_call(address, method, signature, body), timeout=BUS_S)
            return tuple(unwrap_msg(reply))
        except DBusErrorResponse as error:
            kind = error.name.rpartition(".")[2]
            status = {"NoSuchUnit": NOT_INSTALLED, "LoadFailed": NOT_INSTALLED, "AccessDenied": NOT_ALLOWED,
                      "InteractiveAuthorizationRequired": NOT_ALLOWED}.get(kind, FAILED)  # fmt: skip
            raise Over(status, f"{method}: {' '.join(map(str, error.data)) or kind}") from None
        except TimeoutError:
            raise Over(FAILED, f"{method}: systemd does not answer within {BUS_S:g} s") from None

    def properties(self, unit: str) -> dict[str, Any]:
        """Of the unit; it is loaded for that, if there is one."""
        (path,) = self.call(MANAGER, "LoadUnit", "s", unit)
        where = DBusAddress(path, NAME, "org.freedesktop.DBus.Properties")
        found: dict[str, Any] = {}
        for interface in ("Unit", "Service"):
            (values,) = self.call(where, "GetAll", "s", f"org.freedesktop.systemd1.{interface}")
            found |= {key: value for key, (_, value) in values.items()}
        if found.get("LoadState") in ("not-found", "bad-setting", "error", "masked"):
            raise Over(NOT_INSTALLED, f"{unit}: its unit file is {found['LoadState']}")
        return found

    def job(self, method: str, unit: str) -> str:
        """StartUnit or StopUnit, to the end of its job. Gives its result: done, failed, timeout, dependency..."""
        rule = MatchRule(type="signal", interface=MANAGER.interface, member="JobRemoved", path=ROOT)
        Proxy(message_bus, self.bus).AddMatch(rule)
        self.call(MANAGER, "Subscribe")
        with self.bus.filter(rule, bufsize=1000) as removed:
            (job,) = self.call(MANAGER, method, "ss", unit, "replace")
            until = time.monotonic() + WAIT_S
            while True:
                signal = self.bus.recv_until_filtered(removed, timeout=until - time.monotonic())
                if signal.body[1] == job:
                    return str(signal.body[3])


def drop_in(systemd: Systemd, unit: str, wanted: bool) -> None:
    """Have the drop-in there, or not. Raises Over, OSError."""
    folder = os.path.join(os.environ.get("HASNMP_SYSTEMD_RUN", "/run/systemd/system"), f"{unit}.d")
    path = os.path.join(folder, DROP_IN)
    leave = os.environ["HASNMP_UNIT_LEAVE"].replace("%", "%%")
    text = f"{TEXT}[Unit]\nDefaultDependencies=no\nAssertPathExists={leave}\n[Service]\nRestart=no\n" if wanted else ""
    try:
        with open(path) as file:
            before = file.read()
    except FileNotFoundError:
        before = ""
    if before == text:
        return
    if wanted:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        with open(path + ".new", "w") as file:
            file.write(text)
        os.replace(path + ".new", path)
    else:
        os.unlink(path)
    systemd.call(MANAGER, "Reload")


def allow(wanted: bool) -> None:
    """May systemd start the unit? Raises OSError."""
    leave = os.environ["HASNMP_UNIT_LEAVE"]
    if wanted:
        os.makedirs(os.path.dirname(leave), mode=0o755, exist_ok=True)
        open(leave, "w").close()
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leave)


def folders(unit: str) -> Iterator[str]:
    """The control groups of that name, below slices only."""
    waiting = [mount] if (mount := os.environ["HASNMP_CGROUPS"]) else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name == unit:
                    yield entry.path
                elif entry.name.endswith(".slice"):
                    waiting.append(entry.path)


def thaw(unit: str) -> bool:
    """The guardian froze the unit's control group when it ended it: what systemd has put there since never ran, and ends now.
    Gives whether it was so. Raises OSError."""
    found = False
    for folder in folders(unit):
        with contextlib.suppress(FileNotFoundError):
            with open(f"{folder}/cgroup.freeze") as file:
                if file.read().strip() != "1":
                    continue
            found = True
            with contextlib.suppress(FileNotFoundError), open(f"{folder}/cgroup.kill", "w") as file:
                file.write("1")
            with open(f"{folder}/cgroup.freeze", "w") as file:
                file.write("0")
    return found


def act(action: str, unit: str) -> None:
    """Raises Over, OSError."""
    systemd = Systemd()
    now = systemd.properties(unit)
    state = str(now.get("ActiveState"))
    if action == "monitor":
        if state in ("active", "reloading"):
            return
        # A probe asks whether there is anything to stop: what comes up is, and so is a job that waits for another unit.
        if os.environ.get("HASNMP_PROBE") and (state not in ("inactive", "failed") or now.get("Job", (0,))[0]):
            return
        if state == "inactive":
            raise Over(NOT_RUNNING, f"{unit} is inactive")
        raise Over(FAILED, f"{unit} is {state} ({now.get('SubState')}), result {now.get('Result')}")
    if thaw(unit) and action == "start":
        systemd.job("StopUnit", unit)
    if action == "start":
        drop_in(systemd, unit, True)
        allow(True)
        result = systemd.job("StartUnit", unit)
    else:
        result = systemd.job("StopUnit", unit)
    now = systemd.properties(unit)
    state = str(now.get("ActiveState"))
    if action == "stop" and state in ("inactive", "failed"):
        allow(False)
        drop_in(systemd, unit, False)
        return
    if result != "done" or state not in ("active", "reloading"):
        raise Over(FAILED, f"{unit}: the job ended with {result}, the unit is {state}, result {now.get('Result')}")
    group = str(now.get("ControlGroup") or "")
    if os.path.basename(group) != unit or not group.rpartition("/")[0].endswith(".slice"):
        systemd.job("StopUnit", unit)
        raise Over(
            FAILED, f"{unit} runs in the control group {group or '(none)'}, where it could not be ended with its lease"
        )


def main(argv: list[str]) -> int:
    try:
        act(argv[1], argv[2])
    except Over as over:
        if str(over):
            print(f"ocf-exit-reason:{over}", file=sys.stderr)
        return over.status
    except (OSError, StopIteration) as error:
        print(f"ocf-exit-reason:no system bus: {error or 'no address'}", file=sys.stderr)
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv))
