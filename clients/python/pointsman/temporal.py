"""Reading PostgreSQL's dates, times and intervals (DateStyle ISO, IntervalStyle iso_8601, TimeZone UTC).

Infinity becomes the last value of the type and -infinity the first, as parameters.py sends them back. What
Python cannot hold (years before 1 or after 9999, 24:00:00) raises ValueError; decoding.py then gives the text.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from pointsman.values import Interval

_FIRST_UTC = datetime.min.replace(tzinfo=UTC)
_LAST_UTC = datetime.max.replace(tzinfo=UTC)

_INTERVAL = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)W)?(?:(-?\d+)D)?"
    r"(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d{1,6}))?S)?)?"
)


def parse_timestamp(text: str) -> datetime:
    """timestamp without time zone."""
    if text.endswith("infinity"):
        return datetime.min if text.startswith("-") else datetime.max
    return datetime.fromisoformat(text)


def parse_timestamptz(text: str) -> datetime:
    """timestamp with time zone; always in UTC."""
    if text.endswith("infinity"):
        return _FIRST_UTC if text.startswith("-") else _LAST_UTC
    return datetime.fromisoformat(text)


def parse_date(text: str) -> date:
    """date."""
    if text.endswith("infinity"):
        return date.min if text.startswith("-") else date.max
    return date.fromisoformat(text)


def parse_time(text: str) -> time:
    """time and timetz."""
    if text.startswith("24"):
        raise ValueError("Python has no 24:00:00")  # newer versions read it as 00:00, which is another time
    return time.fromisoformat(text)


def parse_interval(text: str) -> timedelta | Interval:
    """interval: a timedelta, or an Interval when it has years or months, whose length depends on the calendar."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise ValueError(f"not an interval: {text!r}")
    years, months, weeks, days, hours, minutes, sign, seconds, fraction = found.groups()
    microseconds = int(seconds or 0) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    if sign:
        microseconds = -microseconds
    microseconds += (int(hours or 0) * 3600 + int(minutes or 0) * 60) * 1_000_000
    whole_days = int(weeks or 0) * 7 + int(days or 0)
    whole_months = int(years or 0) * 12 + int(months or 0)
    if whole_months:
        return Interval(whole_months, whole_days, microseconds)
    try:
        return timedelta(days=whole_days, microseconds=microseconds)
    except OverflowError as error:
        raise ValueError(f"timedelta cannot hold {text}") from error
