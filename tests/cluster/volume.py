"""A shared disk (shared_disk.py) that is large enough for a database, and there again by itself after each power
cut. The groups that stand on it are read from conf/services, the very files that an administrator copies."""

from __future__ import annotations

from tests.cluster.lab import PROJECT, STATE, Lab, sh
from tests.cluster.served import Served
from tests.cluster.shared_disk import DEVICE, SharedDisk

FOLDER = f"{STATE}/srv"  # where the hosts mount it
SERVICES = PROJECT / "conf" / "services"


def substituted(file: str, words: dict[str, str]) -> str:
    """A file of conf/services with other addresses and paths. Each word must be there, so that a test uses what it thinks."""
    text = (SERVICES / file).read_text()
    for old, new in words.items():
        assert old in text, f"{file} does not say {old!r}"
        text = text.replace(old, new)
    return text


def group(name: str, file: str, ip: str, home: str, words: dict[str, str]) -> Served:
    text = substituted(file, words).partition("groups:\n")[2]
    assert f"  {name}:\n" in text
    return Served(name, ip, home, text="\n" + text)


class Volume(SharedDisk):
    """Use as a context manager, within the lab's and before anything is started: the hosts are switched on anew."""

    def __init__(self, lab: Lab, kind: str = "ext4", octets: int = 320 << 20) -> None:
        super().__init__(lab, FOLDER)
        self._kind, self._octets = kind, octets

    def __enter__(self) -> Volume:
        image = self._lab.images / "volume.img"
        with open(image, "wb") as file:
            file.truncate(self._octets)
        sh(
            f"mkfs.{self._kind}",
            "-q",
            *(["-F", "-E", "lazy_itable_init=0"] if self._kind == "ext4" else []),
            str(image),
        )
        for name in ("a", "b"):
            self._loops.append(sh("losetup", "--find", "--show", str(image)).strip())
            (self._lab[name].state / "srv").mkdir()
            self._lab.devices[name] = {DEVICE: self._loops[-1]}
            self._lab[name].power_off()
            self._lab[name].power_on()
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("a", "b"):
            self._lab[name].power_off()  # with it goes what is mounted
        for loop in self._loops:
            sh("losetup", "--detach", loop, check=False)
