"""Statements in, rows out: the reader of statements and the forms of output."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman import Interval, Json, MultiRange, Range
from rich.console import Console

from router.console.result_output import (
    OutputFormat,
    as_text,
    csv_lines,
    json_pieces,
    unique_names,
    visible,
    write_rows,
)
from router.console.statement_reader import StatementReader, first_word, looks_like_a_read, split
from router.console.table_output import FIRST_ROWS, NULL


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("select 1; select 2;", ["select 1", "select 2", ""]),
        ("select ';'; x", ["select ';'", "x"]),
        ("select 'it''s; me'; x", ["select 'it''s; me'", "x"]),
        (r"select E'\'; still'; x", [r"select E'\'; still'", "x"]),
        (r"select '\'; x", [r"select '\'", "x"]),
        (r"select type'\'; x", [r"select type'\'", "x"]),
        ('select "a;b"; x', ['select "a;b"', "x"]),
        ("select 1 -- no; end\n; x", ["select 1 -- no; end\n", "x"]),
        ("select /* a; /* b; */ c; */ 1; x", ["select /* a; /* b; */ c; */ 1", "x"]),
        ("do $$ begin; end $$; x", ["do $$ begin; end $$", "x"]),
        ("do $f$ $$;$$ ; $f$; x", ["do $f$ $$;$$ ; $f$", "x"]),
        ("select $1; x", ["select $1", "x"]),
        ("select a$b$c; x", ["select a$b$c", "x"]),
        ("select 'open; x", ["select 'open; x"]),
    ],
)
def test_a_statement_ends_at_a_semicolon_outside_quotes_and_comments(text: str, pieces: list[str]):
    assert [piece.strip() for piece in split(text)] == [piece.strip() for piece in pieces]


@given(st.text(alphabet="a;'\"$-/*\\\nE ", max_size=40))
def test_splitting_loses_nothing_and_ends(text: str):
    assert ";".join(split(text)) == text


def test_lines_are_collected_until_a_statement_is_complete():
    reader = StatementReader()
    assert reader.feed("select 1,") == []
    assert reader.pending
    assert reader.feed("  2; select 'a") == ["select 1,\n  2"]
    assert reader.feed("b';;") == ["select 'a\nb'"]
    assert not reader.pending
    reader.feed("select")
    reader.clear()
    assert not reader.pending


@pytest.mark.parametrize(
    ("sql", "word"),
    [("SELECT 1", "select"), ("  -- x\n /* y */ (with", "with"), ("", ""), ("-- only", ""), ("123", "")],
)
def test_the_first_word(sql: str, word: str):
    assert first_word(sql) == word


def test_reads_are_guessed_from_the_first_word():
    assert looks_like_a_read("explain analyze select 1")
    assert not looks_like_a_read("update t set a = 1")


ROWS = [(1, None, "a,b"), (2, "", 'say "hi"\n')]
NAMES = ("n", "t", "u")


def written(form: OutputFormat, names=NAMES, rows=ROWS) -> str:
    out = io.StringIO()
    write_rows(form, names, rows, Console(file=out, width=100, force_terminal=False), out)
    return out.getvalue()


def test_a_table_tells_null_from_an_empty_text():
    text = written(OutputFormat.TABLE)
    lines = [line for line in text.splitlines() if "│" in line]
    assert NULL in lines[0]
    assert NULL not in lines[1]
    assert 'say "hi"' in text


def lines_of(names: tuple[str, ...], rows: list[tuple[object, ...]], width: int) -> list[str]:
    out = io.StringIO()
    write_rows(OutputFormat.TABLE, names, iter(rows), Console(file=out, width=width), out)
    return out.getvalue().splitlines()


def test_a_rows_line_is_written_before_the_next_row_has_come():
    out = io.StringIO()
    seen = []

    def rows():
        for n in range(FIRST_ROWS + 2):
            seen.append(f"│ {n - 1:>10} │" in out.getvalue())
            yield (n,)

    write_rows(OutputFormat.TABLE, ("n",), rows(), Console(file=out, width=100), out)
    assert seen[-1]
    assert not seen[FIRST_ROWS - 1]


def test_the_widths_come_from_the_first_rows_and_their_types():
    moment = datetime(2026, 1, 1)
    rows: list[tuple[object, ...]] = [(n, "ab", moment) for n in range(FIRST_ROWS)]
    lines = lines_of(("n", "t", "at"), [*rows, (9_999_999_999, "c", moment.replace(microsecond=1))], 60)
    assert {len(line) for line in lines} == {3 + 10 + 2 + 26 + 7}
    assert [len(line) for line in lines_of(("n",), [(7,)], 60)] == [5] * 5, "of a small result all is known"


def test_a_cell_that_is_wider_than_those_before_it_overflows_and_folds_at_the_terminals_edge():
    rows: list[tuple[object, ...]] = [("ab", n) for n in range(FIRST_ROWS)]
    wider = lines_of(("t", "n"), [*rows, ("x" * 20, None)], 60)
    assert wider[-2] == f"│ {'x' * 20} │ {NULL:>10} │"
    folded = lines_of(("t", "n"), [*rows, ("xyz", 1), ("漢字", None), ("a\nb", 2)], 19)
    assert folded[-7:-1] == [
        f"│ {left} │ {right:>10} │" for left, right in (
            ("xy", 1), ("z ", ""), ("漢", NULL), ("字", ""), ("a ", 2), ("b ", ""),
        )
    ]  # fmt: skip


def test_the_widest_columns_give_way_to_the_terminal():
    lines = lines_of(("long", "b"), [("x" * 100, "short")], 30)
    assert lines[3] == f"│ {'x' * 18} │ short │"
    assert len(lines) == 10


def test_expanded_has_a_line_per_column():
    text = written(OutputFormat.EXPANDED)
    assert text.count("row ") == 2
    assert f"t  {NULL}" in text


def test_json_keeps_numbers_nulls_and_doubled_names():
    assert json.loads(written(OutputFormat.JSON)) == [
        {"n": 1, "t": None, "u": "a,b"},
        {"n": 2, "t": "", "u": 'say "hi"\n'},
    ]
    assert json.loads(written(OutputFormat.JSON, ("a", "a"), [(1, 2)])) == [{"a": 1, "a_2": 2}]
    assert json.loads(written(OutputFormat.JSON, ("a",), [])) == []


def test_json_takes_every_type_there_is():
    values = (
        Decimal("1.50"),
        datetime(2026, 1, 2, 3, 4, 5),
        b"\x00\xff",
        UUID(int=1),
        float("nan"),
        [1, {"a": date(2026, 1, 1)}],
    )
    (row,) = json.loads(written(OutputFormat.JSON, tuple("abcdef"), [values]))
    assert list(row.values()) == [
        "1.50", "2026-01-02 03:04:05", "\\x00ff", str(UUID(int=1)), "nan", [1, {"a": "2026-01-01"}],
    ]  # fmt: skip


def strictly(text: str) -> object:
    """Parsed as JSON is defined, without the numbers that Python adds."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_numbers_that_json_has_not():
    nan, inf = float("nan"), float("inf")
    rows = [([nan, [inf, 1.5]], Json({"a": [inf]}), {"b": -inf}, Range(1.0, inf), MultiRange([Range(nan, None)]))]
    assert strictly(written(OutputFormat.JSON, tuple("abcde"), rows)) == [
        {"a": ["nan", ["inf", 1.5]], "b": {"a": ["inf"]}, "c": {"b": "-inf"}, "d": "[1.0,inf)", "e": ["[nan,)"]}
    ]
    assert strictly("".join(json_pieces(("a",), [(nan,), (1,)], one_line=True))) == [{"a": "nan"}, {"a": 1}]
    assert list(json_pieces(("a",), [], one_line=True)) == ["[]\n"]


def test_csv_tells_null_from_an_empty_text():
    assert "".join(csv_lines(NAMES, ROWS)) == 'n,t,u\n1,,"a,b"\n2,"","say ""hi""\n"\n'


@given(st.lists(st.tuples(st.none() | st.text(), st.text()), max_size=5))
def test_csv_is_read_back_as_written(rows):
    text = "".join(csv_lines(("a", "b"), rows))
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a", "b"],
        *([left or "", right] for left, right in rows),
    ]


def test_names_of_keys_are_unique():
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a_2", "a_3"]
    assert unique_names(["a", "a_2", "a"]) == ["a", "a_2", "a_3"]
    assert unique_names(["a", "a", "a_2", "a_2"]) == ["a", "a_3", "a_2", "a_2_2"]


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "a_2_2", "b", ""])))
def test_no_column_is_lost_to_another(names: list[str]):
    fields = unique_names(names)
    assert len(set(fields)) == len(names) == len(fields)
    assert all(fields[names.index(name)] == name for name in names)


def test_many_columns_that_do_not_fit_are_shown_one_a_line():
    names = tuple("abcdef")
    wide = [("x" * 30,) * 6]
    assert "─ row 1" in written(OutputFormat.TABLE, names, wide)
    assert "─ row 1" not in written(OutputFormat.TABLE, names, [("x",) * 6])
    assert "─ row 1" not in written(OutputFormat.TABLE, ("a", "b"), [("x" * 80,) * 2])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Range(1, None), "[1,)"),
        (Range(date(2026, 1, 2), date(2026, 1, 3), "[]"), "[2026-01-02,2026-01-03]"),
        (Range(empty=True), "empty"),
        (MultiRange([Range(1, 2), Range(4, 5)]), "{[1,2),[4,5)}"),
        (Interval(1, 2, 0), "1 mon 2 days"),
        (Interval(-14, 1, -1_500_000), "-1 years -2 mons +1 day -00:00:01.5"),
        (timedelta(days=1, hours=30, microseconds=250), "2 days 06:00:00.00025"),
        (timedelta(0), "00:00:00"),
        (True, "true"),
        (1.5, "1.5"),
        (b"\x01", "\\x01"),
        ([1, None], "{1,NULL}"),
        (["a", None, "b c", "", "null", 'say "hi"\\'], r'{a,NULL,"b c","","null","say \"hi\"\\"}'),
        ([[1, 2], [3, 4]], "{{1,2},{3,4}}"),
        ([timedelta(days=1)], '{"1 day"}'),
        (Json([1, None, {"a": "é"}]), '[1, null, {"a": "é"}]'),
        ({"a": "é"}, '{"a": "é"}'),
    ],
)
def test_values_as_text(value: object, text: str):
    assert as_text(value) == text


def test_what_a_database_holds_cannot_act_on_the_terminal():
    evil = "\x1b]0;owned\x07\u202eabc[bold]x[/]\r"
    assert visible(evil) == "\\x1b]0;owned\\x07\\u202eabc[bold]x[/]\\x0d"
    text = written(OutputFormat.TABLE, (evil,), [(evil,)])
    assert "\x1b" not in text
    assert "[bold]" in text
    assert visible("tab\tand\nline é 漢") == "tab\tand\nline é 漢"
