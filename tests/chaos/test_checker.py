"""The checker finds what is planted in histories and rows, and nothing in sound ones."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.chaos import checker, plot, report, results
from tests.chaos.__main__ import PAGES
from tests.chaos.cases import limits
from tests.chaos.checker import Survivors
from tests.chaos.figures import CaseResult, histogram, none_of, times
from tests.chaos.history import Event, History, Kind, Operation, Outcome
from tests.chaos.results import Results


def did(
    kind: Kind, value: object, outcome: Outcome = Outcome.OK, *, at: float = 0.0, took: float = 0.1, timeline: int = 1,
    server: int = 1, keyed: bool = False, result: object = None, attempts: int = 1, timeout: float = 10.0,
) -> Operation:
    return Operation(kind, 0, value, at, at + timeout, "sdk", keyed, at + took, outcome, timeline=timeline,
                     server=server, copied=True, result=result, attempts=attempts)


def history(*operations: Operation) -> History:
    return History(began=0.0, operations=list(operations))


def said(operations: list[Operation], ledger: dict[int, int], increments: dict[int, int] | None = None,
         counters: dict[int, int] | None = None) -> dict[str, float | None]:
    figures = checker.write_figures(history(*operations), Survivors(ledger, increments or {}, counters or {}))
    return {one.what.split()[0]: one.figure for one in figures}


def test_sound_writes_have_no_faults() -> None:
    operations = [
        did(Kind.APPEND, 1), did(Kind.BATCH, 2, Outcome.FAILED), did(Kind.TRANSACT, 3, Outcome.UNKNOWN),
        did(Kind.APPEND, 4, Outcome.UNKNOWN), did(Kind.INCREMENT, (5, 0), keyed=True),
    ]
    assert said(operations, {1: 1, 3: 1}, {5: 1}, {0: 1}) == {
        "acknowledged": 0, "un-keyed": 0, "keyed": 0, "x": 0}


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.DONE])
def test_an_acknowledged_write_that_is_not_there_is_lost_and_told_wrong(outcome: Outcome) -> None:
    found = said([did(Kind.APPEND, 1, outcome), did(Kind.APPEND, 2)], {2: 1})
    assert (found["acknowledged"], found["un-keyed"]) == (1, 1)


def test_a_write_told_failed_that_is_there_is_told_wrong() -> None:
    found = said([did(Kind.BATCH, 1, Outcome.FAILED)], {1: 1})
    assert (found["acknowledged"], found["un-keyed"]) == (None, 1)


def test_a_write_done_twice_is_found_whether_keyed_or_not() -> None:
    assert said([did(Kind.APPEND, 1)], {1: 2})["un-keyed"] == 1
    keyed = [did(Kind.INCREMENT, (1, 0), keyed=True), did(Kind.INCREMENT, (2, 0), keyed=True)]
    found = said(keyed, {}, {1: 2, 2: 1}, {0: 3})
    assert (found["keyed"], found["x"]) == (1, 0)


def test_a_counter_that_differs_from_its_rows_is_found() -> None:
    assert said([did(Kind.INCREMENT, (1, 0))], {}, {1: 1}, {0: 2})["x"] == 1


def test_a_write_of_an_older_timeline_after_a_newer_one_is_split_brain() -> None:
    before, after = did(Kind.APPEND, 1, at=0), did(Kind.APPEND, 2, at=1, timeline=2, server=2)
    meanwhile = did(Kind.APPEND, 3, at=1.05)
    assert checker.two_timelines(history(before, after, meanwhile)) == []
    late = did(Kind.APPEND, 4, at=1.2)
    assert checker.two_timelines(history(before, after, late)) == [(after, late)]


def test_two_servers_on_one_timeline_are_split_brain() -> None:
    one, other = did(Kind.APPEND, 1, timeline=2, server=2), did(Kind.APPEND, 2, at=1, timeline=2, server=3)
    assert checker.two_timelines(history(one, other)) == [(one, other)]


def test_rows_that_reached_a_former_primary_late_are_found() -> None:
    operations = history(
        did(Kind.APPEND, 1, at=0), did(Kind.APPEND, 2, at=1, timeline=2, server=2),
        did(Kind.APPEND, 3, Outcome.UNKNOWN, at=0.9), did(Kind.APPEND, 4, Outcome.UNKNOWN, at=2),
    )
    assert checker.late_arrivals(operations, [1, 3, 4], timeline=1) == [4]


def test_a_newer_server_that_has_not_served_makes_nothing_late_on_the_older() -> None:
    operations = history(did(Kind.APPEND, 1, at=0), did(Kind.APPEND, 2, at=1), did(Kind.APPEND, 3, at=2))
    assert checker.late_arrivals(operations, [1, 2, 3], timeline=1) == []


def test_a_strong_read_must_hold_what_was_acknowledged_before() -> None:
    done = [did(Kind.INCREMENT, (n, 7), at=n) for n in (1, 2)]
    fresh, stale = (did(Kind.STRONG_READ, 7, at=2.5, result=value) for value in (2, 1))
    early = did(Kind.STRONG_READ, 7, at=2.05, result=1)
    assert checker.stale_strong_reads(history(*done, fresh, stale, early)) == (1, 3)


def test_own_reads_never_go_back() -> None:
    found = checker.stale_own_reads(history(did(Kind.OWN_READ, 5, result=5), did(Kind.OWN_READ, 6, result=5)))
    assert found[:2] == (1, 2)


def test_lateness_counts_from_the_deadline_and_not_what_the_harness_could_not_see() -> None:
    run = history(
        did(Kind.APPEND, 1, took=1.05, timeout=1), did(Kind.APPEND, 2, took=1.2, timeout=1),
        did(Kind.APPEND, 3, at=10, took=1.3, timeout=1),
    )
    run.stalls = [(11.0, 11.28)]
    late, looked, unseen = checker.lateness(run)
    assert ([one.value for one in late], looked, unseen) == ([2], 2, 1)


def test_attempts_are_counted_in_the_worst_ten_seconds() -> None:
    calm = [did(Kind.APPEND, n, at=n / 10) for n in range(300)]
    busy = [did(Kind.APPEND, n, at=50 + n / 20, attempts=2 if n % 5 == 0 else 1) for n in range(200)]
    figure = checker.attempts_figure(history(*calm, *busy))
    assert figure.figure == pytest.approx(1.2, abs=0.01)
    assert (figure.reached, figure.n) == (False, 500)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert none_of("lost", 0, 0, "writes").reached is None
    assert times("wait", [], p50=1).reached is None


def test_times_are_held_against_every_bound() -> None:
    assert times("wait", [0.5, 0.6, 1.9], p50=0.8, most=2).reached is True
    assert times("wait", [0.5, 0.6, 2.1], p50=0.8, most=2).reached is False
    assert times("wait", [0.9, 0.9, 1.0], p50=0.8, most=2).reached is False
    assert histogram([0.004, 0.0041, 99]) == {"0.005": 2, "more": 1}


def results_of(*figures: object) -> Results:
    run = history(*(did(Kind.APPEND, n, at=n / 10, took=0.02) for n in range(50)))
    run.events.append(Event(1.0, "kill -9 n1"))
    case = CaseResult("kill", "kill -9", "quick", 7, figures, ("a <note>",), results.strip(run), when="2026-01-01")  # type: ignore[arg-type]
    machine = {"cores": 2, "processor": "x", "postgres": "18", "python": "3", "libraries": {"grpcio": "1"},
               "load_before": 0.0}
    return Results("2026-01-01T00:00Z", machine, (case, CaseResult("other", "Other", "quick", 7, skipped="no netns")))


def test_results_survive_being_written_and_are_merged_by_case() -> None:
    made = results_of(times("wait", [0.5], most=2), none_of("lost", 1, 5, "writes"))
    again = Results.from_json(made.to_json())
    assert again.to_json() == made.to_json()
    assert (again.cases[0].missed, again.cases[1].missed) == (True, False)
    merged = Results("later", made.machine, (made.cases[1],)).merged_over(made, ["other", "kill"])
    assert [one.name for one in merged.cases] == ["other", "kill"]


def test_tables_say_the_goal_what_was_reached_and_n(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = results_of(times("wait", [0.5], most=2), none_of("lost", 1, 5, "writes"))
    console = Console(file=io.StringIO(), width=160)
    for case in made.cases:
        report.print_case(console, case)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 5 writes" in text
    assert "skipped: no netns" in text
    both = report.goals(made) + report.figures(made)
    filled = report.PLACE.fill(f"a\n{report.PLACE.start}\nold\n{report.PLACE.end}\nz", both)
    assert "| kill -9 | wait | max ≤ 2.00 s | p50 500 ms, max 500 ms over 1 | reached |" in filled
    assert "|  | lost | 0 | 1 of 5 writes | **not reached** |" in filled
    assert "a &lt;note&gt;" in filled
    assert "old" not in filled
    picture = tmp_path / "over_time.svg"
    assert plot.write(made, picture)
    assert "kill -9 n1" in picture.read_text()


def test_both_pages_show_the_latest_results() -> None:
    made = results.read(results.FOLDER / "latest.json")
    assert made is not None, "make chaos writes it"
    for page, part in PAGES:
        assert report.PLACE.fill(page.read_text(), part(made)) == page.read_text(), "make chaos ARGS=--render"


def test_amplification_counts_what_servers_had_to_work_for_in_the_worst_window() -> None:
    page = {'pointsman_requests_total{a="1"}': 900.0, 'pointsman_requests_total{a="2"}': 100.0,
            'pointsman_retries_total{method="query",reason="not_sent"}': 70.0,
            'pointsman_retries_total{method="query",reason="serialization"}': 30.0}
    assert limits.counted(page) == limits.Counted(1000.0, 30.0, 70.0)
    samples = [limits.Counted(n * 100.0, 50.0 if n < 8 else 250.0, 0.0) for n in range(16)]
    assert limits.amplification(samples).figure == pytest.approx(1.2)
    assert limits.amplification(samples[:8]).reached is True
    connecting = [limits.Counted(n * 100.0, n * 5.0, 0.0, connects=n * 6.0) for n in range(16)]
    found = limits.amplification(connecting)
    assert (found.reached, "(1.110 with the 90 connects that failed)" in found.said) == (True, True)


def test_what_most_cases_ask_is_told_once_with_the_sum_of_n_and_every_miss_by_itself() -> None:
    cases = [CaseResult(f"c{n}", f"Case {n}", "quick", 1, (none_of("lost", n == 2, 10, "writes"),
                        none_of(f"only {n}", 0, 1, "x"))) for n in range(4)]
    assert [(one.what, one.said, one.reached) for one in report.pooled(cases)] == [("lost", "1 of 40", False)]
    text = report.goals(Results("2026-01-01T00:00Z", results_of().machine, cases))
    assert text.count("| lost |") == 2
    assert "| Case 2 | lost | 0 | 1 of 10 writes | **not reached** |" in text
    assert "| all cases together | lost | 0 | 1 of 40 | **not reached** |" in text
