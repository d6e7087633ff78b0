"""A history as a picture: SVG, written by hand.

One band for each round, time from left to right. Its lanes, from above:
    a, b        what was done to each machine; a bar lasts until the fault ended or all was healed
    owner       who answered, and under which token: a colour for each node, a step in its brightness for each token
    clients     a stroke for each operation where it ended: answered (green, higher = sooner), unknown (orange), none (grey)
    a red line, with its rule, wherever the checker found a violation; a green one where everything was healed
"""

from __future__ import annotations

from html import escape

from tests.cluster.nemesis.checker import Violation
from tests.cluster.nemesis.history import History, Mark, Op, RoundTime

PX_PER_S = 110
LEFT, LANE, ROW = 70, 34, 14  # px: room for the names; height of a lane; of a line of text
BAND = 5 * LANE + 2 * ROW
COLOURS = {"a": ("#1f6fb4", "#6aaede"), "b": ("#b4531f", "#e0a06a")}
OUTCOMES = {"ok": "#2f9e44", "unknown": "#f08c00", "none": "#adb5bd"}
SLOWEST_MS = 250  # an operation that takes so long has the lowest stroke
MS, S = 1_000_000, 1_000_000_000


def draw(history: History, violations: list[Violation], title: str) -> str:
    begun = [one.begun_ns for one in history.rounds]
    last = max(
        [op.ended_ns for op in history.ops] + [one.steady_ns or one.healed_ns for one in history.rounds], default=0
    )
    ends = [*begun[1:], max(last, begun[-1] + S) + 1] if begun else []
    spans = list(zip(history.rounds, ends, strict=True))
    width = LEFT + max((x(end, one.begun_ns) - LEFT for one, end in spans), default=S // S) + 20
    verdict = f"{len(violations)} violations" if violations else "no violation"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{40 + len(spans) * BAND}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="15" font-weight="bold">nemesis, {escape(title)}: {verdict}</text>',
    ]
    for number, (one, end) in enumerate(spans):
        parts.append(f'<g transform="translate(0 {36 + number * BAND})">')
        parts += _band(
            history, one, end, [v for v in violations if one.begun_ns <= v.at_ns < end or (not v.at_ns and not number)]
        )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def x(ns: int, begun_ns: int) -> float:
    return LEFT + (ns - begun_ns) / S * PX_PER_S


def _band(history: History, one: RoundTime, end: int, violations: list[Violation]) -> list[str]:
    right = x(end, one.begun_ns)
    quiet = ", no client may notice it" if one.quiet else ""
    parts = [f'<text x="10" y="12" font-weight="bold">round {one.number}{quiet}</text>']
    for lane, name in enumerate(("a", "b", "owner", "clients")):
        y = ROW + 4 + lane * LANE
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{right - LEFT:.1f}" height="{LANE - 4}" fill="#f4f5f6"/>')
        parts.append(f'<text x="10" y="{y + 19}">{name}</text>')
    parts += _axis(one, end)
    marks = [mark for mark in history.marks if one.begun_ns <= mark.at_ns < end]
    for lane, node in enumerate(("a", "b")):
        parts += _faults(
            [mark for mark in marks if mark.node == node], one, ROW + 4 + lane * LANE, one.healed_ns or end
        )
    ops = [op for op in history.ops if one.begun_ns <= op.ended_ns < end]
    parts += _owners(ops, one, ROW + 4 + 2 * LANE) + _clients(ops, one, ROW + 4 + 3 * LANE)
    if one.healed_ns:
        parts.append(_line(one.healed_ns, one, "#2f9e44", "healed"))
    if one.steady_ns:
        parts.append(_line(one.steady_ns, one, "#868e96", ""))
    for violation in violations:
        parts.append(_line(max(violation.at_ns, one.begun_ns), one, "#e03131", violation.rule, violation.text))
    return parts


def _axis(one: RoundTime, end: int) -> list[str]:
    y = ROW + 4 + 4 * LANE
    parts = []
    for second in range((end - one.begun_ns) // S + 1):
        at = x(one.begun_ns + second * S, one.begun_ns)
        parts.append(f'<path d="M{at:.1f} {ROW + 4}V{y}" stroke="#dee2e6"/>')
        parts.append(f'<text x="{at + 2:.1f}" y="{y + 8}" fill="#868e96" font-size="9">{second} s</text>')
    return parts


def _faults(marks: list[Mark], one: RoundTime, y: int, end: int) -> list[str]:
    parts = []
    row = 0
    for index, mark in enumerate(marks):
        if mark.kind.startswith("end of"):
            continue
        lasts = mark.kind in ("stop", "power", "cut", "pull", "disk", "clock", "full")
        until = next((m.at_ns for m in marks[index:] if (m.kind, m.text) == (f"end of {mark.kind}", mark.text)), end)
        left, right = x(mark.at_ns, one.begun_ns), x(until if lasts else mark.at_ns, one.begun_ns)
        top = y + 2 + row % 3 * 9
        row += 1
        text = escape(f"{mark.kind} {mark.text}"[:60])
        parts.append(f'<rect x="{left:.1f}" y="{top}" width="{max(3.0, right - left):.1f}" height="8" fill="#e8590c" '
                     f'fill-opacity="0.45"><title>{escape(mark.kind)} {escape(mark.text)}</title></rect>')  # fmt: skip
        parts.append(f'<text x="{left + 4:.1f}" y="{top + 7}" font-size="9">{text}</text>')
    return parts


def _owners(ops: list[Op], one: RoundTime, y: int) -> list[str]:
    """One bar from the first to the last answer of each instance."""
    spans: dict[tuple[str, int], tuple[int, int]] = {}
    for op in ops:
        if op.outcome == "ok":
            first, last = spans.get((op.instance, op.token), (op.ended_ns, op.ended_ns))
            spans[op.instance, op.token] = min(first, op.ended_ns), max(last, op.ended_ns)
    parts = []
    for (instance, token), (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        node = instance.partition("-")[0]
        left, right = x(first, one.begun_ns), x(last, one.begun_ns)
        colour = COLOURS.get(node, ("#495057", "#adb5bd"))[token % 2]
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{max(1.5, right - left):.1f}" height="{LANE - 4}" fill="{colour}" '
                     f'fill-opacity="0.85"><title>{escape(instance)} token {token}</title></rect>')  # fmt: skip
        if right - left > 30:
            parts.append(f'<text x="{left + 4:.1f}" y="{y + 19}" fill="white">{escape(node)} {token}</text>')
    return parts


def _clients(ops: list[Op], one: RoundTime, y: int) -> list[str]:
    """Strokes of one colour are one path: a thousand elements would make the picture slow to show."""
    paths: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for op in ops:
        took = min(1.0, (op.ended_ns - op.begun_ns) / MS / SLOWEST_MS)
        height = max(3.0, (LANE - 4) * (1 - took)) if op.outcome == "ok" else LANE - 4.0
        paths[op.outcome].append(f"M{x(op.ended_ns, one.begun_ns):.1f} {y + LANE - 4}v{-height:.0f}")
    return [f'<path d="{"".join(strokes)}" stroke="{OUTCOMES[outcome]}" stroke-width="{0.7 if outcome == "ok" else 1.4}"/>'
            for outcome, strokes in paths.items() if strokes]  # fmt: skip


def _line(ns: int, one: RoundTime, colour: str, word: str, text: str = "") -> str:
    at = x(ns, one.begun_ns)
    title = f"<title>{escape(text)}</title>" if text else ""
    return (f'<g fill="{colour}" stroke="none"><path d="M{at:.1f} {ROW}V{ROW + 4 + 4 * LANE}" stroke="{colour}" '
            f'stroke-width="1.3">{title}</path><text x="{at + 2:.1f}" y="{ROW + 1}" font-size="9">{escape(word)}</text></g>')  # fmt: skip
