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

from tests.cluster.lab import HERE, PROJECT, sh, wait_for
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


@pytest.fixture(scope="module")
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


def test_every_accepted_message_is_in_its_mailbox(stage: Stage) -> None:
    with ask(stage) as client:
        moves = [stage.move("a", "b", client), stage.move("b", "a", client), stage.crash("a", "b", client)]
        now_ns = time.monotonic_ns()
        for what in ("sent", "read"):
            wait_for(lambda what=what: any(x.what == what and x.began_ns > now_ns and not x.error for x in client.requests),
                     20, f"{what} after the crash: {client.requests[-5:]}")  # fmt: skip
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
    assert all(move.outage_ms < MOST_MS for move in moves), moves
