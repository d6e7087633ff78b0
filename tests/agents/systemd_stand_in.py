"""A stand-in for systemd's manager on a private bus: loads, starts and stops units, each in a control group of its own.

    python systemd_stand_in.py FOLDER SLICE

FOLDER has a file for each unit, one JSON object: command (its program), result (of the start job, default done), hang (the
job never ends), state (UnitFileState), active (ActiveState until it is started or stopped), job (one of it waits). What is asked of it is written to FOLDER/calls, a line each. SLICE: the folder of
control groups in which units run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import Proxy, open_dbus_connection

ROOT = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"


class Manager:
    def __init__(self, folder: Path, slice_: Path) -> None:
        self.folder, self.slice = folder, slice_
        self.bus = open_dbus_connection("SYSTEM")
        Proxy(message_bus, self.bus).RequestName("org.freedesktop.systemd1")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: set[str] = set()
        self.asked: set[str] = set()  # to start or stop
        self.jobs = 0

    def unit(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def state(self, name: str) -> str:
        process = self.running.get(name)
        if process is not None and process.poll() is None:
            return "active"
        if name not in self.asked:
            return str((self.unit(name) or {}).get("active", "inactive"))
        if process is not None:
            self.failed.add(name)
            del self.running[name]
        return "failed" if name in self.failed else "inactive"

    def properties(self, name: str) -> dict[str, tuple[str, str]]:
        unit, state = self.unit(name), self.state(name)
        group = f"/{self.slice.name}/{name}" if state == "active" else ""
        return {
            "LoadState": ("s", "loaded" if unit else "not-found"), "ActiveState": ("s", state), "SubState": ("s", state),
            "UnitFileState": ("s", str((unit or {}).get("state", "disabled"))),
            "Result": ("s", "signal" if state == "failed" else "success"),
            "Job": ("(uo)", (0, "/") if name in self.asked else ((unit or {}).get("job", 0), "/")),
            "ControlGroup": ("s", str((unit or {}).get("group", group)) if state == "active" else ""),
        }  # fmt: skip

    def start(self, name: str, unit: dict[str, Any]) -> str:
        if unit.get("result", "done") != "done":
            self.failed.add(name)
            return str(unit["result"])
        group = self.slice / name
        group.mkdir(parents=True, exist_ok=True)
        self.failed.discard(name)
        self.running[name] = subprocess.Popen(
            unit["command"], preexec_fn=lambda: (group / "cgroup.procs").write_text("0"), start_new_session=True  # type: ignore[arg-type,func-returns-value]
        )  # fmt: skip
        return "done"

    def stop(self, name: str) -> str:
        if (process := self.running.pop(name, None)) is not None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        self.failed.discard(name)
        return "done"

    def serve(self) -> None:
        print("ready", flush=True)
        while True:
            message = self.bus.receive()
            if message.header.message_type is MessageType.method_call:
                self.answer(message)

    def answer(self, message: Any) -> None:
        member, path = message.header.fields[HeaderFields.member], message.header.fields[HeaderFields.path]
        with (self.folder / "calls").open("a") as calls:
            print(member, *message.body, file=calls)
        if member == "LoadUnit":
            place = f"{ROOT}/unit/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in message.body[0])
            (self.folder / "paths").mkdir(exist_ok=True)
            (self.folder / "paths" / place.rpartition("/")[2]).write_text(message.body[0])
            self.bus.send(new_method_return(message, "o", (place,)))
        elif member == "GetAll":
            name = (self.folder / "paths" / path.rpartition("/")[2]).read_text()
            values = self.properties(name) if message.body[0].endswith("Unit") else {}
            self.bus.send(new_method_return(message, "a{sv}", (values,)))
        elif member in ("StartUnit", "StopUnit"):
            name, unit = message.body[0], self.unit(message.body[0])
            if unit is None:
                words = ("org.freedesktop.systemd1.NoSuchUnit", "s", (f"Unit {name} not found.",))
                self.bus.send(new_error(message, *words))
                return
            self.jobs += 1
            self.asked.add(name)
            job = f"{ROOT}/job/{self.jobs}"
            self.bus.send(new_method_return(message, "o", (job,)))
            if not unit.get("hang"):
                result = self.start(name, unit) if member == "StartUnit" else self.stop(name)
                manager = DBusAddress(ROOT, interface=MANAGER)
                self.bus.send(new_signal(manager, "JobRemoved", "uoss", (self.jobs, job, name, result)))
        else:
            self.bus.send(new_method_return(message))


if __name__ == "__main__":
    Manager(Path(sys.argv[1]), Path(sys.argv[2])).serve()
