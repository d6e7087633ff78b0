"""error-status: why a request failed as a whole (RFC 3416 section 3), and what SNMPv1 is told instead (RFC 3584)."""

from __future__ import annotations

from enum import IntEnum


class ErrorStatus(IntEnum):
    """RFC 3416 section 3; the first six are SNMPv1's too."""

    NO_ERROR = 0
    TOO_BIG = 1
    NO_SUCH_NAME = 2
    BAD_VALUE = 3
    GEN_ERR = 5
    NO_ACCESS = 6
    WRONG_TYPE = 7
    WRONG_LENGTH = 8
    WRONG_ENCODING = 9
    WRONG_VALUE = 10
    NO_CREATION = 11
    INCONSISTENT_VALUE = 12
    RESOURCE_UNAVAILABLE = 13
    COMMIT_FAILED = 14
    UNDO_FAILED = 15
    AUTHORIZATION_ERROR = 16
    NOT_WRITABLE = 17
    INCONSISTENT_NAME = 18


# What SNMPv1 is told instead (RFC 3584 section 4.4).
V1_STATUS = {
    **{status: status for status in (0, 1, 2, 3, 5)},
    **dict.fromkeys((7, 8, 9, 10, 12), ErrorStatus.BAD_VALUE),
    **dict.fromkeys((6, 11, 16, 17, 18), ErrorStatus.NO_SUCH_NAME),
    **dict.fromkeys((13, 14, 15), ErrorStatus.GEN_ERR),
}
