"""Where HASNMP-MIB hangs in the tree of object identifiers: one constant, and the MIB text under another one."""

from __future__ import annotations

ENTERPRISES = (1, 3, 6, 1, 4, 1)
# RFC 5612 keeps 32473 for documentation; a site uses its own number: `hasnmp mib --root 1.3.6.1.4.1.N.n`.
ROOT = (*ENTERPRISES, 32473, 1992)


def parse_oid(text: str) -> tuple[int, ...]:
    """A dotted OID as numbers; a leading dot is allowed.

    Raises ValueError: not numbers, a sub-identifier of 2**32 or more, or more than 128 of them (RFC 2578 section 7.1.3).
    """
    parts = text.strip().removeprefix(".").split(".")
    if len(parts) > 128 or not all(part.isascii() and part.isdigit() and int(part) < 2**32 for part in parts):
        raise ValueError(f"{text!r} is not an object identifier: dotted numbers below 2**32 are, at most 128 of them")
    return tuple(int(part) for part in parts)


def _anchor(root: tuple[int, ...]) -> str:
    """The value of hasnmpMIB. Arcs between are named, or smilint warns of nodes that come to be by the way."""
    *between, last = root[len(ENTERPRISES) :]
    names = ["example", *(f"example{n}" for n in range(2, len(between) + 1))]
    arcs = [f"{name}({number})" for name, number in zip(names, between, strict=False)]
    return f"::= {{ {' '.join(['enterprises', *arcs, str(last)])} }}"


def reroot(text: str, new_root: tuple[int, ...] | str) -> str:
    """HASNMP-MIB's text with its root replaced; everything in it hangs on that one line.

    Raises ValueError: the new root is not below enterprises (1.3.6.1.4.1, where every organisation's own number is), or
    the text is not HASNMP-MIB as it ships.
    """
    root = parse_oid(new_root) if isinstance(new_root, str) else new_root
    below = len(ENTERPRISES)
    if root[:below] != ENTERPRISES or len(root) == below:
        raise ValueError(f"root {'.'.join(map(str, root))} is not below 1.3.6.1.4.1 (enterprises): give "
                         "1.3.6.1.4.1.N, N being your own enterprise number, or an arc below it")  # fmt: skip
    if text.count(_anchor(ROOT)) != 1:
        raise ValueError(f"no single line {_anchor(ROOT)!r}: this is not HASNMP-MIB as it ships")
    return text.replace(_anchor(ROOT), _anchor(root))
