"""The checker of list-append histories finds every planted anomaly, and none where there is none."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.chaos.list_append import Anomaly, Transaction, check, stale_reads

Steps = Sequence[tuple[Any, ...]]


def a(key: int, number: int) -> tuple[Any, ...]:
    return "append", key, number


def r(key: int, *numbers: int) -> tuple[Any, ...]:
    return "read", key, numbers


def history(*steps: Steps, unknown: Sequence[int] = (), aborted: Sequence[int] = ()) -> list[Transaction]:
    """Transactions 1, 2, ...; in time one after the other, each of a process of its own."""
    return [
        Transaction(n, one, None if n in unknown else n not in aborted, invoked=n * 10, ended=n * 10 + 5, process=n)
        for n, one in enumerate(steps, 1)
    ]


PLANTED: Mapping[str, tuple[Anomaly, list[Transaction], Mapping[int, Sequence[int]] | None]] = {
    "two writers in opposite order": (
        Anomaly.G0, history([a(1, 1), a(2, 3)], [a(1, 2), a(2, 4)], [r(1, 1, 2)], [r(2, 4, 3)]), None),
    "three writers in a ring": (
        Anomaly.G0,
        history([a(1, 1), a(3, 6)], [a(1, 2), a(2, 3)], [a(2, 4), a(3, 5)], [r(1, 1, 2), r(2, 3, 4), r(3, 5, 6)]),
        None),
    "opposite order seen only in the last lists": (
        Anomaly.G0, history([a(1, 1), a(2, 3)], [a(1, 2), a(2, 4)]), {1: (1, 2), 2: (4, 3)}),
    "an aborted append is read": (Anomaly.G1A, history([a(1, 1)], [r(1, 1)], aborted=[1]), None),
    "an aborted append is read behind others": (
        Anomaly.G1A, history([a(1, 1)], [a(1, 2)], [r(1, 1, 2)], aborted=[2]), None),
    "an append told failed is in the last list": (Anomaly.G1A, history([a(1, 1)], aborted=[1]), {1: (1,)}),
    "half of a transaction is read": (Anomaly.G1B, history([a(1, 1), a(1, 2)], [r(1, 1)], [r(1, 1, 2)]), None),
    "the middle of three is read": (
        Anomaly.G1B, history([a(1, 1), a(1, 2), a(1, 3)], [r(1, 1, 2)], [r(1, 1, 2, 3)]), None),
    "two read from each other": (Anomaly.G1C, history([a(1, 1), r(2, 2)], [a(2, 2), r(1, 1)]), None),
    "three read in a ring": (
        Anomaly.G1C, history([a(1, 1), r(3, 3)], [a(2, 2), r(1, 1)], [a(3, 3), r(2, 2)]), None),
    "one overwrites and is read by the overwritten": (
        Anomaly.G1C, history([a(1, 1), r(2, 3)], [a(1, 2), a(2, 3)], [r(1, 1, 2)]), None),
    "read skew": (
        Anomaly.G_SINGLE, history([a(1, 1), a(2, 2)], [r(1), r(2, 2)], [r(1, 1), r(2, 2)]), None),
    "a lost update": (
        Anomaly.G_SINGLE, history([a(1, 1)], [r(1, 1), a(1, 2)], [r(1, 1), a(1, 3)], [r(1, 1, 2, 3)]), None),
    "a read that misses half of a chain": (
        Anomaly.G_SINGLE,
        history([a(1, 1)], [r(1, 1), a(2, 2)], [r(2, 2), r(1)], [r(1, 1), r(2, 2)]), None),
    "an old and a new list in one transaction": (
        Anomaly.G_SINGLE, history([a(1, 1)], [a(1, 2), a(2, 3)], [r(2, 3), r(1, 1)], [r(1, 1, 2)]), None),
    "write skew": (Anomaly.G2, history([r(1), a(2, 2)], [r(2), a(1, 1)], [r(1, 1), r(2, 2)]), None),
    "write skew of three": (
        Anomaly.G2,
        history([r(1), a(2, 2)], [r(2), a(3, 3)], [r(3), a(1, 1)], [r(1, 1), r(2, 2), r(3, 3)]), None),
    "a long fork": (
        Anomaly.G2, history([a(1, 1)], [a(2, 2)], [r(1, 1), r(2)], [r(1), r(2, 2)], [r(1, 1), r(2, 2)]), None),
    "two lists of one key": (Anomaly.INCOMPATIBLE, history([a(1, 1)], [a(1, 2)], [r(1, 1)], [r(1, 2)]), None),
    "a list whose beginning changed": (
        Anomaly.INCOMPATIBLE, history([a(1, 1)], [a(1, 2)], [a(1, 3)], [r(1, 1, 2)], [r(1, 2, 1, 3)]), None),
    "what was read is not in the last list": (
        Anomaly.INCOMPATIBLE, history([a(1, 1)], [a(1, 2)], [r(1, 1, 2)], unknown=[2]), {1: (1,)}),
    "an append done twice": (Anomaly.DUPLICATE, history([a(1, 1)], [r(1, 1, 1)]), None),
    "an append done twice, seen in the end": (Anomaly.DUPLICATE, history([a(1, 1)], [a(1, 2)]), {1: (1, 2, 1)}),
    "own append not seen": (Anomaly.INTERNAL, history([a(1, 1), r(1)]), None),
    "two reads in one transaction differ": (
        Anomaly.INTERNAL, history([r(1), r(1, 1)], [a(1, 1)]), None),
    "a number that nobody appended": (Anomaly.GARBAGE, history([a(1, 1)], [r(1, 1, 99)]), None),
    "an acknowledged append is gone": (Anomaly.LOST, history([a(1, 1)], [a(1, 2)]), {1: (2,)}),
    "a whole list is gone": (Anomaly.LOST, history([a(1, 1)], [a(2, 2)]), {2: (2,)}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_anomaly_is_found(name: str) -> None:
    anomaly, transactions, final = PLANTED[name]
    assert anomaly in {one.anomaly for one in check(transactions, final)}


def test_there_are_at_least_twenty_of_them_and_every_kind_is_planted() -> None:
    assert len(PLANTED) >= 20
    planted = {anomaly for anomaly, _, _ in PLANTED.values()}
    assert planted == set(Anomaly) - {Anomaly.STALE}


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_anomaly_is_found_within_a_large_sound_history(seed: int) -> None:
    chance = random.Random(seed)
    for anomaly, planted, final in PLANTED.values():
        sound, lists = serial(chance, 300, first_key=100, first_name=1000)
        mixed = [*planted, *sound]
        chance.shuffle(mixed)
        found = check(mixed, None if final is None else {**lists, **final})
        assert anomaly in {one.anomaly for one in found}
        assert all(set(one.transactions) & {-1, *(each.name for each in planted)} for one in found)


def serial(
    chance: random.Random, count: int, *, first_key: int = 1, first_name: int = 1
) -> tuple[list[Transaction], dict[int, tuple[int, ...]]]:
    """A history that was executed one by one, some of it with unknown or no effect, and the lists at its end."""
    lists: dict[int, tuple[int, ...]] = {}
    made, number = [], 10_000
    for name in range(first_name, first_name + count):
        fate = chance.choices([True, False, None, "done"], [8, 1, 1, 1])[0]
        mine, steps = dict(lists), []
        for _ in range(chance.randint(1, 5)):
            key, number = first_key + chance.randrange(6), number + 1
            if chance.random() < 0.5:
                mine[key] = (*mine.get(key, ()), number)
                steps.append(a(key, number))
            else:
                steps.append(r(key, *mine.get(key, ())))
        if fate in (True, "done"):
            lists = mine
        committed = None if fate == "done" else fate
        made.append(Transaction(name, steps, committed, name * 10, name * 10 + 5, name % 5))  # type: ignore[arg-type]
    return made, lists


@pytest.mark.parametrize("seed", range(20))
def test_a_serial_history_is_sound(seed: int) -> None:
    transactions, lists = serial(random.Random(seed), 400)
    assert check(transactions, lists, session=True) == []
    assert stale_reads(transactions) == []


def test_a_session_that_goes_back_is_found_when_sessions_count() -> None:
    writer = Transaction(1, [a(1, 1)], True, 0, 1, process=1)
    new = Transaction(2, [r(1, 1)], True, 10, 11, process=2)
    old = Transaction(3, [r(1)], True, 20, 21, process=2)
    assert check([writer, new, old]) == []
    assert [one.anomaly for one in check([writer, new, old], session=True)] == [Anomaly.G_SINGLE]
    assert [one.anomaly for one in stale_reads([writer, new, old])] == [Anomaly.STALE]


def test_a_write_of_unknown_outcome_that_was_done_counts_as_done() -> None:
    transactions = history([a(1, 1), a(2, 3)], [a(1, 2), a(2, 4)], [r(1, 1, 2)], [r(2, 4, 3)], unknown=[1, 2])
    assert Anomaly.G0 in {one.anomaly for one in check(transactions)}
    assert check(history([a(1, 1)], [r(1)], unknown=[1])) == []


def test_a_large_history_is_checked_in_little_time() -> None:
    transactions, lists = serial(random.Random(1), 4_000)
    assert check(transactions, lists) == []
