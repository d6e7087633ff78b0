"""Judges a history. Pure: it knows nothing of hasnmp but what a lease promises.

The register's log is the order of the writes. What must hold, whatever was broken meanwhile:

    torn, gap      every block of the log is whole and in its place
    two-owners     tokens only rise along the log, a token belongs to one node, and no instance writes again after another
                   has; nobody answers under a token after somebody answered under a higher one
    lost           an acknowledged write stands in the log, where its reply said, as it was sent
    invented       nothing stands in the log, or was read, that nobody had sent by then; nothing stands there twice
    stale          an operation that begins after another was answered sees at least what that one saw (the register is
                   linearizable: real-time order)
    past-lease     no reply left, and no record was made, when the writer's node held no lease under that token; but a
                   record (never a reply) of a request that had come within the lease may be made after it, where
                   whoever could end the writer stood still from before its end, no other register has been started
                   since, and who goes on has had no more than kill_ms to end it: see _late_by_a_freeze. So it is where
                   the machine itself stood still: see _late_by_the_machine
    not-served     after everything was healed a write was acknowledged within the bound, and the pair was steady
    noticed        a fault that must cost the clients nothing cost them an answer for longer than the bound, or moved the
                   group; nothing is said of a round in which the machine itself stood still for longer than a lease has room
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.cluster.nemesis.history import History, Op, Record, RoundTime

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    text: str
    at_ns: int = 0


def check(history: History, most: int = 5) -> list[Violation]:
    """The violations, at most so many of each rule (the first ones say what happened)."""
    count: dict[str, int] = defaultdict(int)
    found = []
    for rule in (_log, _acknowledged, _tokens, _order, _leases, _rounds):
        for violation in rule(history):
            count[violation.rule] += 1
            if count[violation.rule] <= most:
                found.append(violation)
    return sorted(found, key=lambda violation: violation.at_ns)


def _log(history: History) -> Iterator[Violation]:
    """The log in itself, and against what was ever sent."""
    sent = {op.value: op for op in history.ops if op.kind == "w" and op.outcome != "none"}
    places: dict[str, int] = {}
    owner: dict[int, str] = {}
    done: set[str] = set()  # instances after which another has written
    last = None
    for place, record in enumerate(history.log, 1):
        if record.seq == 0:
            yield Violation("torn", f"block {place} is no whole record")
            continue
        if record.seq != place:
            yield Violation("gap", f"block {place} holds record {record.seq} of {record.instance}", record.stamp_ns)
        if record.value in places:
            text = f"{record.value} stands at {places[record.value]} and at {place}"
            yield Violation("invented", text, record.stamp_ns)
        places[record.value] = place
        op = sent.get(record.value)
        if op is None:
            yield Violation("invented", f"record {place}, {record.value}, was never sent", record.stamp_ns)
        if last is not None:
            if record.token < last.token:
                text = f"record {place} of {record.instance} under token {record.token} after {last.instance} under {last.token}"
                yield Violation("two-owners", text, record.stamp_ns)
            if record.instance != last.instance:
                done.add(last.instance)
                if record.instance in done:
                    text = f"record {place}: {record.instance} writes again after {last.instance} has"
                    yield Violation("two-owners", text, record.stamp_ns)
        if owner.setdefault(record.token, record.node) != record.node:
            text = f"token {record.token} is used by {owner[record.token]} and, in record {place}, by {record.node}"
            yield Violation("two-owners", text, record.stamp_ns)
        last = record


def _acknowledged(history: History) -> Iterator[Violation]:
    """Each answer against the log."""
    begun = {op.value: op.begun_ns for op in history.ops if op.kind == "w"}
    for op in history.ops:
        if op.outcome != "ok" or op.seq == 0:
            continue
        what = f"{op.client} {op.kind} {op.value} at {op.seq} by {op.instance} under token {op.token}"
        if op.seq > len(history.log):
            yield Violation("lost", f"{what}: the log ends at {len(history.log)}", op.ended_ns)
            continue
        record = history.log[op.seq - 1]
        if record.value != op.value:
            rule = "lost" if op.kind == "w" else "stale"
            yield Violation(
                rule, f"{what}: there stands {record.value} of {record.instance} under {record.token}", op.ended_ns
            )
        elif op.kind == "w" and (record.token, record.instance) != (op.token, op.instance):
            yield Violation("lost", f"{what}: it stands there as {record.instance}'s under {record.token}", op.ended_ns)
        if begun.get(op.value, op.ended_ns + 1) > op.ended_ns:
            yield Violation("invented", f"{what}: it was sent only later, or never", op.ended_ns)


def _answers(history: History) -> list[Op]:
    return [op for op in history.ops if op.outcome == "ok"]


def _tokens(history: History) -> Iterator[Violation]:
    """Nobody answers under a token after somebody has under a higher one, by the servers' own clocks."""
    newest: Op | None = None
    for op in sorted(_answers(history), key=lambda op: op.stamp_ns):
        if newest is not None and op.token < newest.token:
            late_ms = (op.stamp_ns - newest.stamp_ns) / MS
            text = (
                f"{op.instance} answers {op.client} under token {op.token}, {late_ms:.1f} ms after {newest.instance} "
                f"under {newest.token}"
            )
            yield Violation("two-owners", text, op.stamp_ns)
        else:
            newest = op


def _order(history: History) -> Iterator[Violation]:
    """Real-time order: by the places that the answers name."""
    answers = sorted(_answers(history), key=lambda op: op.begun_ns)
    ended = sorted(answers, key=lambda op: op.ended_ns)
    seen, at = None, 0  # the answer that saw the most of those that ended before
    for op in answers:
        while at < len(ended) and ended[at].ended_ns < op.begun_ns:
            if seen is None or ended[at].seq > seen.seq:
                seen = ended[at]
            at += 1
        if seen is not None and (op.seq < seen.seq or (op.kind == "w" and op.seq == seen.seq)):
            text = (
                f"{op.client} {op.kind} sees {op.seq} by {op.instance}, begun {(op.begun_ns - seen.ended_ns) / MS:.1f} ms "
                f"after {seen.client} {seen.kind} saw {seen.seq} by {seen.instance}"
            )
            yield Violation("stale", text, op.begun_ns)


def _leases(history: History) -> Iterator[Violation]:
    """Every reply and every record within a lease that the guardian had taken over by then."""
    terms: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for told in sorted(history.told, key=lambda told: told.at_ns):
        known = terms[told.node, told.token]
        known.append((told.at_ns, max(told.until_ns, known[-1][1] if known else 0)))

    def end_ns(node: str, token: int, ns: int) -> int:
        """The lease's end, as far as it was known by then; 0: none had begun."""
        known = terms.get((node, token), [])
        place = bisect_right(known, (ns, 1 << 62)) - 1
        return known[place][1] if place >= 0 else 0

    def covered(node: str, token: int, ns: int) -> str:
        known = terms.get((node, token))
        if not known:
            return "no lease was ever told of it"
        end = end_ns(node, token, ns)
        if not end:
            return f"{(known[0][0] - ns) / MS:.1f} ms before the lease began"
        late_ms = (ns - end) / MS
        return f"{late_ms:.1f} ms after the lease's end" if late_ms > 0 else ""

    for op in _answers(history):
        if why := covered(op.node, op.token, op.stamp_ns):
            text = f"{op.instance} answers {op.client} {op.kind} {op.value} under token {op.token}, {why}"
            yield Violation("past-lease", text, op.stamp_ns)
    for place, record in enumerate(history.log, 1):
        if not record.seq or not (why := covered(record.node, record.token, record.stamp_ns)):
            continue
        end = end_ns(record.node, record.token, record.stamp_ns)
        if not (_late_by_a_freeze(history, record, end) or _late_by_the_machine(history, record, end)):
            came_ms = (record.came_ns - end) / MS
            text = f"record {place}, {record.value}, of {record.instance} under token {record.token}, {why}"
            text += f"; its request came {came_ms:+.1f} ms from the end" if end else ""
            yield Violation("past-lease", text, record.stamp_ns)


def _late_by_a_freeze(history: History, record: Record, end_ns: int) -> bool:
    """May a record have been made after the lease's end, because nobody was there who could end its writer?

    A stack that is stopped ends nothing. What keeps the group from running twice is then that the address falls silent with
    the lease, and that the other node, which may have the next lease by now, starts nothing of the group before this one was
    fenced or its guardian has ended it. Requests that had come before the silence still wait in the kernel, and the writer,
    whom a slow disk holds up, goes on with them.
    """
    return record.came_ns <= end_ns and any(
        one.node == record.node
        and one.since_ns <= end_ns
        and record.stamp_ns <= one.until_ns + history.kill_ms * MS
        and not any(one.since_ns < begun_ns <= record.stamp_ns for begun_ns in history.begun.values())
        for one in history.frozen
    )


def _late_by_the_machine(history: History, record: Record, end_ns: int) -> bool:
    """The same where the machine itself stood still: from when its group was due to be ended by force, kill_ms before the lease's
    end, its guardian has had no more than kill_ms until the record was made."""
    kill_ns = history.kill_ms * MS
    return (
        record.came_ns <= end_ns
        and history.spent_ns(end_ns - kill_ns, record.stamp_ns) <= kill_ns
        and not any(end_ns - kill_ns < begun_ns <= record.stamp_ns for begun_ns in history.begun.values())
    )


def _rounds(history: History) -> Iterator[Violation]:
    answers = sorted(_answers(history), key=lambda op: op.ended_ns)
    times = [op.ended_ns for op in answers]
    for one in history.rounds:
        wrote = next((op for op in answers[bisect_right(times, one.healed_ns) :] if op.kind == "w"), None)
        took_ms = history.spent_ns(one.healed_ns, wrote.ended_ns) / MS if wrote else None
        if took_ms is None or took_ms > history.served_within_ms:
            how = (
                "nothing was written" if took_ms is None else f"it took {took_ms:.0f} ms until a write was acknowledged"
            )
            text = f"round {one.number}: {how} after it was healed; allowed are {history.served_within_ms} ms"
            yield Violation("not-served", text, one.healed_ns)
        elif not one.steady_ns:
            yield Violation("not-served", f"round {one.number}: the pair was not steady again", one.healed_ns)
        if one.quiet and history.stood_ns(one.begun_ns, one.steady_ns or one.healed_ns) <= history.room_ms * MS:
            yield from _quiet(history, one, answers)


def _quiet(history: History, one: RoundTime, answers: list[Op]) -> Iterator[Violation]:
    end = one.steady_ns or one.healed_ns
    within = [op for op in answers if one.begun_ns <= op.ended_ns <= end]
    if moved := {op.node for op in within} - {one.owner}:
        yield Violation("noticed", f"round {one.number}: {', '.join(moved)} answered, not {one.owner}", one.begun_ns)
    points = [one.begun_ns, *(op.ended_ns for op in within), end]
    gap_ms, at_ns = max((history.spent_ns(earlier, later) / MS, earlier) for earlier, later in pairwise(points))
    if gap_ms > history.unnoticed_ms:
        text = f"round {one.number}: no answer for {gap_ms:.0f} ms; allowed are {history.unnoticed_ms} ms"
        yield Violation("noticed", text, at_ns)
