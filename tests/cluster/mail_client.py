"""A mail program: sends one message after the other by SMTP, and looks into the mailbox by IMAP, each on a connection that stays.

    python mail_client.py HOST      to joe@example.com, whose password is "secret"

Each line of standard output is one request: "sent" (the server has acknowledged it) or "read", its number, when it was begun and
when it had ended (CLOCK_MONOTONIC, ns), and "" or the error. "later": it was not answered, or asked to come again (RFC 5321,
4.5.4.1), and is asked again. A message keeps its number, so one may be in the mailbox twice.
"""

from __future__ import annotations

import imaplib
import smtplib
import sys
import threading
import time
from collections.abc import Callable

LIMIT_S = 10.0  # less than what mail programs wait, more than any move: who gives up earlier asks while nobody is there
AGAIN_S = 0.01  # part of what it takes until it is served again
PAUSE_S = 0.02
_said = threading.Lock()


def say(what: str, number: int, began_ns: int, error: object = "") -> None:
    with _said:
        print(what, number, began_ns, time.monotonic_ns(), " ".join(str(error).split()), sep="\t", flush=True)


def send(host: str) -> Callable[[int], None]:
    lines: list[smtplib.SMTP] = []

    def one(number: int) -> None:
        if not lines:
            lines.append(smtplib.SMTP(host, timeout=LIMIT_S, local_hostname="client.example.com"))
        try:
            lines[0].sendmail("ann@example.org", ["joe@example.com"], f"Subject: number {number}.\n\nhello\n")
        except BaseException:
            lines.pop().close()
            raise

    return one


def read(host: str) -> Callable[[int], None]:
    lines: list[imaplib.IMAP4] = []

    def one(number: int) -> None:
        new = not lines
        if new:
            lines.append(imaplib.IMAP4(host, timeout=LIMIT_S))
        try:
            if new:
                lines[0].login("joe", "secret")
            lines[0].select("INBOX", readonly=True)
        except BaseException:
            lines.pop().shutdown()
            raise

    return one


def forever(what: str, one: Callable[[int], None]) -> None:
    number = 1
    while True:
        began_ns = time.monotonic_ns()
        try:
            one(number)
        except smtplib.SMTPResponseException as error:
            say("later" if 400 <= error.smtp_code < 500 or error.smtp_code == -1 else what, number, began_ns, error)
        except smtplib.SMTPRecipientsRefused as error:
            code = next(iter(error.recipients.values()))[0]
            say("later" if 400 <= code < 500 else what, number, began_ns, error)
        except (OSError, smtplib.SMTPServerDisconnected, imaplib.IMAP4.abort) as error:
            say("later", number, began_ns, error)
        except imaplib.IMAP4.error as error:
            say(what, number, began_ns, error)
        else:
            say(what, number, began_ns)
            number += 1
            time.sleep(PAUSE_S)
            continue
        time.sleep(AGAIN_S)


if __name__ == "__main__":
    threading.Thread(target=forever, args=("read", read(sys.argv[1])), daemon=True).start()
    forever("sent", send(sys.argv[1]))
