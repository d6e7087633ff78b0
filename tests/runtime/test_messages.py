"""The language between guardian and engine."""

from __future__ import annotations

from dataclasses import fields

from hasnmp.runtime import messages


def test_every_field_is_read_as_what_it_is() -> None:
    """What has no conversion of its own is read as a string: a flag that is one would always be on."""
    for name, cls in messages._CLASSES.items():
        for field in fields(cls):
            assert str(field.type) == "str" or field.name in messages._CONVERT, f"{name}.{field.name}: {field.type}"
