"""Checks of single fields of a policy; the ValueError's text is what the operator reads."""

from __future__ import annotations


def positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{name} must be greater than 0, not {value}")


def not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value < 0:
            raise ValueError(f"{name} must not be negative, not {value}")
