"""decisions/login_choice: the new login once it is accepted, the former one until then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S
from router.decisions.login_choice import LoginChoice
from router.model.topology import Login, Secret

OLD, NEW, NEWER = (Login("acme", Secret(word)) for word in ("old", "new", "newer"))


def pending() -> LoginChoice:
    return LoginChoice(NEW, OLD, former_in_use=True)


def test_the_new_one_is_in_use_once_it_is_accepted() -> None:
    choice = pending()
    assert (choice.in_use, choice.other, choice.pending) == (OLD, NEW, True)
    assert choice.accepted(NEW)
    assert (choice.in_use, choice.other, choice.pending) == (NEW, None, False)
    assert not choice.accepted(NEW)


def test_one_that_is_refused_leaves_the_old_one_in_use_and_is_tried_again_with_pauses() -> None:
    choice, now, pause_s = pending(), 100.0, FIRST_PAUSE_S
    for _ in range(8):
        choice.refused(NEW, "no such password", now)
        assert choice.again_at == now + pause_s
        now += pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    assert (choice.in_use, choice.problem, choice.refused_at) == (OLD, "no such password", 100.0)
    assert choice.trouble(160.0) == ("the new one is refused, the former one goes on: no such password", 60.0)
    assert choice.accepted(NEW)
    assert (choice.problem, choice.refused_at, choice.trouble(160.0)) == ("", None, None)


def test_what_the_old_one_is_told_says_nothing_about_the_new_one() -> None:
    choice = pending()
    choice.refused(OLD, "gone", 1.0)
    assert not choice.accepted(OLD)
    assert (choice.problem, choice.again_at, choice.in_use) == ("", 0.0, OLD)
    choice.unknown(1.0)
    assert (choice.problem, choice.again_at, choice.trouble(1.0)) == ("", 1.0 + FIRST_PAUSE_S, None)


def test_without_connections_the_new_one_is_tried_first_and_the_old_one_is_fallen_back_on() -> None:
    choice = LoginChoice(NEW, OLD)
    assert (choice.in_use, choice.other) == (NEW, OLD)
    choice.refused(NEW, "wrong", 1.0)
    assert choice.trouble(2.0) is None, "it is in use: the login breaker's matter"
    assert choice.accepted(OLD)
    assert (choice.in_use, choice.other, choice.problem, choice.refused_at) == (OLD, NEW, "wrong", 1.0)


def test_when_both_are_refused_the_configured_one_stays() -> None:
    choice = LoginChoice(NEW, OLD)
    choice.refused(NEW, "wrong", 1.0)
    choice.refused(OLD, "gone", 1.0)
    assert (choice.in_use, choice.other) == (NEW, None)
    assert choice.accepted(NEW) is False
    assert choice.problem == ""


def test_a_change_in_between_is_skipped_and_a_change_back_settles() -> None:
    choice = pending()
    choice.refused(NEW, "wrong", 1.0)
    choice.change(NEWER)
    assert (choice.in_use, choice.other, choice.problem, choice.again_at) == (OLD, NEWER, "", 0.0)
    assert not choice.accepted(NEW), "a late answer"
    choice.change(OLD)
    assert not choice.pending
    untried = LoginChoice(NEW, OLD)
    untried.change(NEWER)
    assert (untried.in_use, untried.other) == (OLD, NEWER)


@pytest.mark.parametrize("former", [None, NEW])
def test_nothing_has_changed(former: Login | None) -> None:
    choice = LoginChoice(NEW, former, former_in_use=former is not None)
    assert (choice.in_use, choice.other, choice.pending) == (NEW, None, False)


@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["accepted", "refused", "change", "unknown"]), st.sampled_from([OLD, NEW, NEWER])),
        max_size=40,
    ),
)
def test_what_was_accepted_is_given_up_only_for_what_was_accepted(
    in_use: bool, steps: list[tuple[str, Login]]
) -> None:
    choice = LoginChoice(NEW, OLD, former_in_use=in_use)
    held: Login | None = OLD if in_use else None
    for now, (what, login) in enumerate(steps):
        before = choice.in_use
        if what == "accepted":
            choice.accepted(login)
            if choice.in_use == login:
                held = login
        elif what == "refused":
            choice.refused(login, "no", float(now))
        elif what == "change":
            choice.change(login)
        else:
            choice.unknown(float(now))
        if held is not None:
            assert choice.in_use == held or what == "accepted"
        if what == "refused":
            assert choice.in_use == before
        assert choice.pending == (choice.other == choice.configured)
