"""The filesystem agent: mounts a disk that the nodes share, and takes it off again before the group's lease is given up.

Options: device, directory, fstype, options (as for mount -o). The programs `mount` and `umount` run under the guardian,
which knows the mount points too: a group is released only when nothing of it is mounted, and one that is ended by force is
cut off from its disk (runtime/mounts.py). Neither the engine nor the guardian ever touches the disk itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from hasnmp import settings
from hasnmp.agents.checks import Verdict
from hasnmp.agents.host import Host, NotRun, Program, how_it_ended
from hasnmp.core.events import Act, Outcome
from hasnmp.runtime.messages import Exited, Purpose
from hasnmp.runtime.mounts import Mount, device_number, device_path, mounted, mounts_of

PAUSE_S = 0.25  # between two tries to unmount what is still held open
MARGIN_S = 0.05  # the answer comes so long before the caller's time limit, so that it says what was wrong
# Kind -> the folder of /sys/fs that has an entry for each file system that lives, by the name of its device.
LISTED = {"ext3": "ext4", "ext4": "ext4", "xfs": "xfs", "f2fs": "f2fs"}
PROBE = (sys.executable, "-I", "-S", str(Path(__file__).with_name("filesystem_probe.py")))


class FilesystemAgent:
    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host, self.group = service, host, service.group
        self._device, self._directory = str(service.options["device"]), str(service.options["directory"])
        self._type, self._options = str(service.options["fstype"]), str(service.options.get("options") or "")
        self._fsck = service.options.get("fsck") == "preen"
        self._kill = service.options.get("unmount") == "kill"
        self._probe: Program | None = None  # the last look at the disk
        self._probe_s = 0.0  # when it began, the loop's clock

    @property
    def mounted(self) -> bool:
        return any(mount.directory == self._directory for mount in mounts_of(self._device, self._directory))

    # ---------------------------------------------------------------------------------------------------------- start

    async def start(self, act: Act) -> Verdict:
        until_s = asyncio.get_running_loop().time() + max(MARGIN_S, act.timeout_ms / 1000 - MARGIN_S)
        hindrance = self._hindrance()
        if hindrance is not None:
            return hindrance
        already = self.mounted
        if not already and self._fsck and (faulty := await self._check_it(until_s)) is not None:
            return faulty
        if not already:
            options = ("-o", self._options) if self._options else ()
            said = await self._run(("mount", "-t", self._type, *options, self._device, self._directory), until_s)
            if said is not None:
                return said
        where = self._here()
        if where is None:
            return Verdict(
                Outcome.FAILED, f"{self._directory}: mount said that it is done, but {self._device} is not there"
            )
        if self._is_read_only(where):
            if not already:
                await self._run(("umount", self._directory), until_s)
            return Verdict(Outcome.FAILED, f"{self._directory}: {self._device} can only be mounted read-only")
        # One that was mounted just now has been read from the disk itself.
        if already and (verdict := await self._look(until_s)).outcome is not Outcome.OK:
            return verdict
        return Verdict(Outcome.OK, f"{self._device} is mounted at {self._directory}" + (" already" if already else ""))

    async def _check_it(self, until_s: float) -> Verdict | None:
        """fsck -p: repairs what is safe to repair. None: it is in order now (fsck(8): 0 clean, 1 corrected)."""
        left_s = max(0.05, until_s - asyncio.get_running_loop().time())
        argv = ("fsck", "-T", "-p", "-t", self._type, device_path(self._device))
        try:
            exited = await self._host.output(self._service, argv, Purpose.STOP, int(left_s * 1000))
        except NotRun as error:
            return Verdict(error.outcome, str(error))
        if exited.timed_out:
            return Verdict(
                Outcome.TIMED_OUT, f"fsck of {self._device}: no end within {left_s:.1f} s: give start_timeout_ms more"
            )
        if exited.signal or exited.code not in (0, 1):
            return Verdict(
                Outcome.FAILED, f"fsck -p of {self._device}: {how_it_ended(exited)}; it has to be run by hand"
            )
        return None

    def _hindrance(self) -> Verdict | None:
        """What speaks against mounting it."""
        if self._is_missing():
            return Verdict(Outcome.MISSING, f"{self._device} is not there: is the disk connected to this node?")
        among = mounted()
        ours = mounts_of(self._device, self._directory, among)
        for mount in ours:
            if mount.directory != self._directory:
                return Verdict(Outcome.FAILED, f"{self._device} is mounted at {mount.directory} too: unmount it there")
        for mount in among:
            if mount.directory == self._directory and mount not in ours:
                return Verdict(
                    Outcome.FAILED, f"{self._directory} is taken: {mount.source} is mounted there, not {self._device}"
                )
        return None

    def _is_missing(self) -> bool:
        # Only what lies below /dev may be looked at: any other folder may be on a disk that hangs.
        return self._device.startswith("/dev/") and not os.path.exists(self._device)

    def _here(self) -> Mount | None:
        mounts = mounts_of(self._device, self._directory)
        return next((mount for mount in mounts if mount.directory == self._directory), None)

    def _is_read_only(self, mount: Mount) -> bool:
        return mount.read_only and "ro" not in self._options.split(",")

    async def _run(self, argv: tuple[str, ...], until_s: float) -> Verdict | None:
        """Run mount or umount. None: it did it; else why not."""
        left_s = until_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.01, left_s)):
                exited = await self._host.output(self._service, argv, Purpose.STOP, max(1, int(left_s * 1000)))
        except TimeoutError:
            return Verdict(
                Outcome.TIMED_OUT, f"{' '.join(argv)}: not done within {left_s:.1f} s: the disk does not answer"
            )
        except NotRun as error:
            return Verdict(error.outcome, str(error))
        return Verdict(Outcome.FAILED, f"{argv[0]}: {how_it_ended(exited)}") if exited.code or exited.signal else None

    # ----------------------------------------------------------------------------------------------------------- stop

    async def stop(self, act: Act) -> Verdict:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + max(MARGIN_S, act.timeout_ms / 1000 - MARGIN_S)
        before, tries, kill_at_s = bool(self._mounts()), 0, (loop.time() + until_s) / 2
        killed: dict[str, None] = {}
        while True:
            if mounts := self._mounts():
                said = await self._run(("umount", mounts[0].directory), until_s)
                if said is None:
                    continue
            elif (said := await self._elsewhere(until_s)) is None:
                break
            tries += 1
            if said.outcome is not Outcome.FAILED:
                # It hangs, or was not run: to try again helps nothing.
                return said._replace(killed=", ".join(killed))
            if until_s - loop.time() < PAUSE_S * 2:
                who = await self._holders(mounts[0].directory, until_s) if mounts else None
                found = "no process of this machine's is seen to hold it" if who == "" else f"held open by {who}"
                more = "" if who is None else f"; {found}"
                return Verdict(
                    Outcome.FAILED, f"{said.message}; tried {tries} times{more}", killed=", ".join(killed)
                )  # fmt: skip
            if self._kill and loop.time() >= kill_at_s:
                if who := await (
                    self._holders(mounts[0].directory, until_s, kill=True) if mounts else self._kill_elsewhere(until_s)
                ):
                    killed[who] = None
            await asyncio.sleep(PAUSE_S)
        if not before and not tries:
            return Verdict(Outcome.OK, "was not mounted")
        again = f", at try {tries + 1}" if tries else ""
        return Verdict(Outcome.OK, f"{self._device} is unmounted{again}", killed=", ".join(killed))

    def _mounts(self) -> list[Mount]:
        return mounts_of(self._device, self._directory)

    async def _elsewhere(self, until_s: float) -> Verdict | None:
        """None: it is mounted nowhere. Else it lives on in mounts that are not ours to see, a container's, and what is written
        there goes to the disk that another node is about to mount."""
        if not self._may_live():
            return None
        exited = await self._ask("elsewhere", device_path(self._device), until_s)
        if exited is not None and exited.code != 3:
            return None
        who = exited.output_tail.strip() if exited else ""
        where = f"{who} has it in mounts of its own (a container?)" if who else "in mounts that no process is seen in"
        text = (
            f"{self._device} is not mounted at {self._directory} any more, but its file system is still in use: {where}"
        )
        return Verdict(Outcome.FAILED, text)

    def _may_live(self) -> bool:
        """By the kernel's own list of such file systems, where it keeps one: that costs no process, and touches no disk."""
        if "ro" in self._options.split(",") or not (number := device_number(device_path(self._device))):
            return False  # nothing is written, or there is none that another node could mount in its place
        folder = Path("/sys/fs", LISTED.get(self._type, ""))
        try:
            name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
        except OSError:
            return True
        return self._type not in LISTED or not folder.is_dir() or (folder / name).exists()

    async def _kill_elsewhere(self, until_s: float) -> str:
        exited = await self._ask("kill-elsewhere", device_path(self._device), until_s)
        return exited.output_tail.strip() if exited else ""

    async def _ask(self, what: str, of: str, until_s: float) -> Exited | None:
        """The probe's answer, None if there is none in time."""
        left_s = until_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.05, left_s)):
                return await self._host.output(
                    self._service, (*PROBE, what, of), Purpose.CHECK, max(50, int(left_s * 1000))
                )
        except (TimeoutError, NotRun):
            return None

    async def _holders(self, directory: str, until_s: float, kill: bool = False) -> str | None:
        """ "nginx (812), sh (97)"; "" if none is seen, None if that can't be found out in time."""
        exited = await self._ask("kill" if kill else "holders", directory, until_s)
        return None if exited is None else "" if exited.code else exited.output_tail.strip()

    # ---------------------------------------------------------------------------------------------------------- check

    def glance(self, act: Act) -> Verdict | None:
        if not act.owned:
            if self._is_missing():
                return Verdict(Outcome.FAILED, f"{self._device} is not there: is the disk connected to this node?")
            if mounts := mounts_of(self._device, self._directory):
                return Verdict(Outcome.FAILED, f"{self._device} is mounted at {mounts[0].directory} without a lease")
            return Verdict(Outcome.OK, f"{self._device} is not mounted here")
        where = self._here()
        if where is None:
            return Verdict(Outcome.NOT_RUNNING, f"{self._device} is not mounted at {self._directory}")
        if "shutdown" in where.super_options:
            return Verdict(Outcome.FAILED, f"{self._directory}: the file system was shut down")
        if self._is_read_only(where):
            return Verdict(
                Outcome.FAILED, f"{self._directory} is read-only: the kernel found errors on {self._device}, see dmesg"
            )
        return None

    async def check(self, act: Act) -> Verdict:
        return await self._look(asyncio.get_running_loop().time() + max(MARGIN_S, act.timeout_ms / 1000 - MARGIN_S))

    async def _look(self, until_s: float) -> Verdict:
        """Ask the disk itself, in a process that may hang in its place. Only one hangs at a time: it can't be killed."""
        loop = asyncio.get_running_loop()
        if self._probe is not None and self._probe.alive:
            since_s = loop.time() - self._probe_s
            return Verdict(Outcome.TIMED_OUT, f"{self._directory}: the disk has not answered for {since_s:.1f} s")
        began_s = self._probe_s = loop.time()
        left_s = max(0.01, until_s - began_s)
        try:
            async with asyncio.timeout(left_s):
                argv = (*PROBE, "look", self._directory, device_path(self._device))
                self._probe = await self._host.run(
                    self._service, argv, Purpose.CHECK, timeout_ms=int(left_s * 1000) + 1
                )
                exited = await asyncio.shield(self._probe.exited)
        except TimeoutError:
            return Verdict(
                Outcome.TIMED_OUT, f"{self._directory}: the disk does not answer within {left_s * 1000:.0f} ms"
            )
        except NotRun as error:
            return Verdict(error.outcome, str(error))
        took_ms = (loop.time() - began_s) * 1000
        if exited.timed_out:
            return Verdict(
                Outcome.TIMED_OUT, f"{self._directory}: the disk does not answer within {left_s * 1000:.0f} ms"
            )
        if exited.code or exited.signal:
            why = exited.output_tail.strip() or how_it_ended(exited)
            return Verdict(Outcome.FAILED, f"{self._directory}: {why}")
        return Verdict(Outcome.OK, f"{self._directory}: the disk answers, {took_ms:.0f} ms")
