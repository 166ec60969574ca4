"""PostgreSQL values that Python has no type for: ranges, intervals with months, JSON that is not a dict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Json:
    """A value to be sent as JSON: `Json([1, 2])` is a JSON array, where a bare list is a PostgreSQL array."""

    value: Any
    dumps: Callable[[Any], str] | None = None


@dataclass(frozen=True, slots=True)
class Range(Generic[T]):
    """A range; None as a bound means unbounded. `bounds` is one of "[)", "[]", "(]", "()"."""

    lower: T | None = None
    upper: T | None = None
    bounds: str = "[)"
    empty: bool = False

    def __post_init__(self) -> None:
        if self.bounds not in ("[)", "[]", "(]", "()"):
            raise ValueError(f'bounds must be "[)", "[]", "(]" or "()", not {self.bounds!r}')

    def __contains__(self, value: Any) -> bool:
        if self.empty:
            return False
        if self.lower is not None and (value < self.lower or (value == self.lower and self.bounds[0] == "(")):
            return False
        return self.upper is None or value < self.upper or (value == self.upper and self.bounds[1] == "]")

    def __bool__(self) -> bool:
        return not self.empty


EMPTY_RANGE: Range[Any] = Range(empty=True)


class MultiRange(tuple[Range[Any], ...]):
    """A multirange: its ranges, in order."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"MultiRange({list(self)!r})"


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval with months, which timedelta cannot hold; PostgreSQL keeps these three apart."""

    months: int = 0
    days: int = 0
    microseconds: int = 0

    @classmethod
    def of(cls, delta: timedelta) -> Interval:
        """The same span; its days stay days."""
        return cls(0, delta.days, delta.seconds * 1_000_000 + delta.microseconds)

    def __str__(self) -> str:
        """ISO 8601, which PostgreSQL reads under every IntervalStyle."""
        sign = "-" if self.microseconds < 0 else ""
        seconds, fraction = divmod(abs(self.microseconds), 1_000_000)
        return f"P{self.months}M{self.days}DT{sign}{seconds}.{fraction:06d}S"
