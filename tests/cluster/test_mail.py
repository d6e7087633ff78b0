"""postfix and dovecot on a shared disk: every message that was accepted is in its mailbox, and the mailbox is read again."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bounds import within
from tests.cluster.lab import HERE, PROJECT, STATE, sh, wait_for
from tests.cluster.pair import NODES
from tests.cluster.served import TICKLE, Client, Stage, group
from tests.cluster.served import missing as not_here

MOST_MS = 10_000  # far more than it takes: the benchmark measures it against its goal
MAIL_UID = 8


def fill(disk: Path) -> None:
    configurations = {
        "postfix-main.cf": "postfix/main.cf",
        "postfix-master.cf": "postfix/master.cf",
        "dovecot.conf": "dovecot.conf",
    }
    (disk / "postfix").mkdir()
    for name, place in configurations.items():
        shutil.copyfile(PROJECT / "conf" / "services" / name, disk / place)
    dovecot = disk / "dovecot.conf"
    dovecot.write_text(dovecot.read_text().replace("log_path = syslog", f"log_path = {STATE}/dovecot.log"))
    (disk / "postfix" / "mailboxes").write_text("joe@example.com joe/\n")
    (disk / "users").write_text("joe:{PLAIN}secret\n")
    (disk / "spool").mkdir()
    os.chown(disk / "spool", MAIL_UID, MAIL_UID)
    (disk / "queue").mkdir()
    (disk / "data").mkdir()
    shutil.chown(disk / "data", "postfix", "postfix")
    # As the document has it: postfix makes its own folders. In the host that has the disk.
    sh("nsenter", "-t", disk.parts[2], "-m", "--", "postfix", "-c", "/srv/mail/postfix", "check")


def missing() -> list[str]:
    return not_here("postfix", "dovecot (dovecot-imapd)")


def made() -> Stage:
    return Stage(group("mail.yaml", TICKLE), fill=fill)


def ask(stage: Stage) -> Client:
    return Client(stage.pair.lab, str(HERE / "mail_client.py"), stage.group.ip)


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with made() as stage:
        yield stage


def subjects(mailbox: Path) -> Counter[int]:
    """number -> how often the mailbox has it"""
    found: Counter[int] = Counter()
    for folder in ("new", "cur"):
        for message in (mailbox / folder).iterdir():
            if number := re.search(rb"^Subject: number (\d+)\.", message.read_bytes(), re.MULTILINE):
                found[int(number[1])] += 1
    return found


def story(stage: Stage, client: Client, since_ns: int) -> str:
    """What the client was told last, in ms since then, and what dovecot says of it."""
    lines = [f"{(x.began_ns - since_ns) / 1e6:.0f} to {(x.ended_ns - since_ns) / 1e6:.0f} ms: {x.what} {x.number} {x.error}"
             for what in ("sent", "read", "later") for x in [x for x in list(client.requests) if x.what == what][-10:]]  # fmt: skip
    for node in NODES:
        lines += [f"dovecot on {node}:", *(stage.pair.lab[node].state / "dovecot.log").read_text().splitlines()[-20:]]
    return "\n".join(lines)


def has_sent(client: Client, more: int) -> None:
    """Wait until so many further messages were accepted: what a move may lose."""

    def sent() -> int:
        return len([x for x in list(client.requests) if x.what == "sent"])

    before = sent()
    wait_for(lambda: sent() >= before + more, 20, lambda: f"{more} messages are accepted: {client.requests[-5:]}")


def leave_lock(stage: Stage, node: str) -> None:
    """What dovecot leaves in the mailbox if the node crashes as it looks into it: on the disk, with its pid and host."""
    lock = stage.pair.lab[node].path("/srv/mail/spool/joe/dovecot-uidlist.lock")

    def taken() -> bool:
        try:
            with open(lock, "x") as file:
                os.fchown(file.fileno(), MAIL_UID, MAIL_UID)
                file.write(f"1:{node}")
        except FileExistsError:  # dovecot has it just now
            return False
        return True

    wait_for(taken, 5, f"dovecot lets go of {lock}", pause_s=0)
    for path in (lock, lock.parent):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def test_every_accepted_message_is_in_its_mailbox(stage: Stage) -> None:
    with ask(stage) as client:
        moves = []
        for source, target in (("a", "b"), ("b", "a")):
            has_sent(client, 5)
            moves.append(stage.move(source, target, client))
        has_sent(client, 5)
        leave_lock(stage, "a")
        moves.append(stage.crash("a", "b", client))
        now_ns = time.monotonic_ns()
        for what in ("sent", "read"):
            wait_for(lambda what=what: any(x.what == what and x.began_ns > now_ns and not x.error for x in client.requests),
                     20, lambda what=what: f"{what} after the crash\n{story(stage, client, now_ns)}")  # fmt: skip
    for move in moves:
        print(move)
    assert not client.errors()
    accepted = {x.number for x in client.requests if x.what == "sent" and not x.error}
    mailbox = stage.pair.lab["b"].path("/srv/mail/spool/joe")
    wait_for(lambda: accepted <= set(subjects(mailbox)), 30,
             lambda: f"lost: {sorted(accepted - set(subjects(mailbox)))[:20]} of {len(accepted)}")  # fmt: skip
    found = subjects(mailbox)
    print(f"{len(accepted)} accepted, {sum(found.values()) - len(found)} of them twice, "
          f"{len([x for x in client.requests if x.what == 'later'])} tries that came to nothing")  # fmt: skip
    within(max(move.outage_ms for move in moves), MOST_MS, str(moves))
