"""The hardware watchdog: a device that resets the machine unless it is fed.

It is armed by being opened, and closing it disarms nothing: only a "V" written right before (the magic close) does, and
that is for an orderly stop that left nothing behind. Source: Documentation/watchdog/watchdog-api.rst.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hasnmp import settings

WDIOC_SETTIMEOUT = 0xC0045706  # _IOWR('W', 6, int), seconds; the driver writes back what it took
WDIOC_GETTIMEOUT = 0x80045707  # _IOR('W', 7, int)
RETRY_S = 30  # between two tries to open it


@dataclass(slots=True)
class Watchdog:
    """ioctl: in tests, of a file that is no device. timeout_ms: 0 while it is not armed; error then says why."""

    settings: settings.Watchdog
    ioctl: Callable[[int, int, array.array[int]], Any] = field(default_factory=lambda: fcntl.ioctl)
    fd: int = -1
    timeout_ms: int = 0
    error: str = ""

    @property
    def wanted(self) -> bool:
        return bool(self.settings.device)

    @property
    def every_ns(self) -> int:
        """How often it is to be fed: two feeds may be lost."""
        return self.timeout_ms * 1_000_000 // 3

    def arm(self) -> bool:
        """Open it, so that it counts from now. False: `error` says why not."""
        if self.fd >= 0:
            return True
        device = self.settings.device
        try:
            fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            hint = {2: "; load its driver (softdog where there is no hardware)",
                    16: "; something else feeds it: systemd's RuntimeWatchdogSec, or watchdogd"}.get(error.errno or 0, "")  # fmt: skip
            self.error = f"{device} can't be opened: {error.strerror}{hint}"
            return False
        try:
            seconds = array.array("i", [self.settings.timeout_s])
            with contextlib.suppress(OSError):  # one with a fixed time: what it has is asked for below
                self.ioctl(fd, WDIOC_SETTIMEOUT, seconds)
            self.ioctl(fd, WDIOC_GETTIMEOUT, seconds)
            if seconds[0] < 1:
                raise OSError(0, f"it says {seconds[0]} s")
        except OSError as error:
            self.error = f"{device} does not tell its time: {error.strerror}; is it a watchdog?"
            with contextlib.suppress(OSError):
                os.write(fd, b"V")
            os.close(fd)
            return False
        self.fd, self.timeout_ms, self.error = fd, seconds[0] * 1000, ""
        return True

    def feed(self) -> bool:
        """False: it did not take it, so this machine may be reset within timeout_ms."""
        try:
            return os.write(self.fd, b"\0") == 1
        except OSError as error:
            self.error = f"{self.settings.device} can't be fed: {error.strerror}"
            return False

    def take_over(self, device: str, fd: int, timeout_ms: int) -> None:
        """Go on with one that former code of this very process armed."""
        self.fd, self.timeout_ms = fd, timeout_ms
        if device != self.settings.device:
            self.disarm()

    def disarm(self) -> None:
        """The magic close: nothing is left here that would have to be ended."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.fd, b"V")
            self.forget()
            self.timeout_ms = 0

    def give_up(self) -> None:
        """It takes no feed: from here on it counts as not armed, whatever it does."""
        self.forget()
        self.timeout_ms = 0

    def forget(self) -> None:
        """Close it without a word: it goes on counting. Also what a forked child does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
