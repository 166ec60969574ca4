"""Tenants in files of their own: each is judged with its neighbours, and its mistakes are its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router.config import tenant_files
from router.config.loaded import LoadedConfig
from router.config.loading import load, load_leniently
from router.config.problems import ConfigProblems, lines
from router.config.tenant_book import TenantBook
from router.model.identity import TenantName

MAIN = """\
admin: {tokens: [env:ADMIN]}
clusters:
  main:
    control: {user: control, password: env:ADMIN}
    endpoints: {pg1: {host: one.example}}
tenants_dir: tenants
"""
Write = Callable[..., None]


def section(name: str, **more: str) -> str:
    values = {
        "cluster": "main",
        "database": name,
        "login": f"{{user: {name}, password: 'file:{name}.password'}}",
        "tokens": f"['file:{name}.token']",
    } | more
    return "".join(f"{key}: {value}\n" for key, value in values.items())


class Folder:
    """A configuration with a folder of tenants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "tenants").mkdir()
        (path / "router.yaml").write_text(MAIN)

    def write(self, name: str, text: str = "", **more: str) -> None:
        (self.path / f"{name}.password").write_text(f"password of {name}")
        (self.path / f"{name}.token").write_text(f"token-of-{name}")
        (self.path / "tenants" / f"{name}.yaml").write_text(text or section(name, **more))

    def load(self) -> LoadedConfig:
        return load(self.path / "router.yaml", {"ADMIN": "operator"})

    def book(self) -> TenantBook:
        book = load_leniently(self.path / "router.yaml", {"ADMIN": "operator"}).book
        assert book is not None
        return book


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    for name in ("a", "b", "c"):
        found.write(name)
    return found


def names(changes: tuple[object, ...]) -> list[str]:
    return [getattr(one, "name", str(one)) for one in changes]


def told(book: TenantBook) -> str:
    return " | ".join(f"{Path(one.source).name}:{one.line}: {one}" for one in book.problems)


def test_a_folder_is_as_good_as_a_section(folder: Folder) -> None:
    config = folder.load()
    assert sorted(config.topology.tenants) == ["a", "b", "c"]
    assert config.topology.tenants[TenantName("a")].login.password is not None
    (folder.path / "tenants" / ".hidden.yaml").write_text("nonsense")
    (folder.path / "tenants" / "README").write_text("nonsense")
    assert folder.book().problems == ()
    for one in (folder.path / "tenants").glob("[abc].yaml"):
        one.unlink()
    assert folder.load().topology.tenants == {}, "they may come later"


def test_mistakes_are_told_with_file_and_line_and_leave_the_others_out_of_it(folder: Folder) -> None:
    folder.write("b", section("b") + "pool: {max_size: -1}\n")
    folder.write("d", "a: [")
    folder.write("e", section("e", cluster="elsewhere"))
    folder.write("f", section("f", tokens="['file:absent']"))
    folder.write("g", "")
    (folder.path / "tenants" / "g.yaml").write_text("")
    folder.write("h!")
    book = folder.book()
    assert sorted(book.entries) == ["a", "c"]
    assert sorted(book.refused) == ["b", "d", "e", "f", "g", "h!"]
    for words in ("b.yaml:5: pool.max_size", "d.yaml:2", "e.yaml:1: cluster: (elsewhere)", "f.yaml:4: tokens[0]",
                  "cluster, database and login", "is no usable name"):
        assert words in told(book), told(book)
    with pytest.raises(ConfigProblems) as strict:
        folder.load()
    assert any(line.startswith(f"{folder.path}/tenants/b.yaml:5: pool") for line in strict.value.lines())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"database": "a"}, "is also used by tenant a"),
        ({"login": "{user: a}"}, "is also the role of tenant a"),
        ({"tokens": "['file:a.token']"}, "is also a token of tenant a"),
        ({"tokens": "['env:ADMIN']"}, "is also a token of the operators"),
        ({"isolation": "registered", "statements": "{x: select 1}", "role": "a"}, "is the login of tenant a"),
    ],
)
def test_a_newcomer_may_not_have_what_is_anothers(folder: Folder, more: dict[str, str], words: str) -> None:
    book = folder.book()
    folder.write("z", **more)
    assert not book.look()
    assert words in told(book)
    assert sorted(book.entries) == ["a", "b", "c"]
    (folder.path / "tenants" / "a.yaml").unlink()
    changes = book.look()
    stays_wrong = more.get("tokens") == "['env:ADMIN']"
    assert (names(changes.changed), names(changes.removed)) == ([] if stays_wrong else ["z"], ["a"])
    assert bool(book.problems) is stays_wrong


def test_a_channel_of_one_among_many_neighbours_is_no_newcomers(folder: Folder) -> None:
    shared = {"isolation": "schema", "database": "shared"}
    for n in range(9):
        folder.write(f"s{n}", section(f"s{n}", **shared, channels=f"[s{n}_jobs]"))
    book = folder.book()
    folder.write("z", section("z", **shared, channels="[z_jobs, s7_jobs]"))
    assert not book.look()
    assert "(s7_jobs) is also a channel of tenant s7 in database shared" in told(book)


def test_a_channel_that_stands_twice_is_one(folder: Folder) -> None:
    shared = {"isolation": "schema", "database": "shared"}
    folder.write("a", **shared, channels="[jobs, jobs]")
    folder.write("b", **shared)
    book = folder.book()
    assert book.tenants[TenantName("a")].channels == ("jobs",)
    folder.write("a", **shared, channels="[jobs, jobs]", paused="true")
    assert names(book.look().changed) == ["a"]
    folder.write("b", **shared, channels="[jobs]")
    assert not book.look()
    assert "(jobs) is also a channel of tenant a" in told(book)
    (folder.path / "tenants" / "a.yaml").unlink()
    changes = book.look()
    assert (names(changes.changed), names(changes.removed)) == (["b"], ["a"])
    folder.write("b", **shared, channels="[jobs, other]")
    assert names(book.look().changed) == ["b"]


def test_what_two_have_exchanged_is_theirs(folder: Folder) -> None:
    book = folder.book()
    folder.write("a", tokens="['file:b.token']")
    folder.write("b", tokens="['file:a.token']")
    assert sorted(names(book.look().changed)) == ["a", "b"]
    for token in ("a", "b"):
        folder.write("c", tokens=f"['file:{token}.token']")
        assert not book.look()
        assert "is also a token of tenant" in told(book)


def test_floors_of_all_must_fit(folder: Folder) -> None:
    folder.write("a", section("a", pool="{floor: 8}"))
    main = folder.path / "router.yaml"
    main.write_text(main.read_text().replace("host: one.example", "host: one.example, max_connections: 10"))
    for n in range(3):
        folder.write(f"f{n}", section(f"f{n}", pool="{floor: 1}"))
    book = folder.book()
    assert (len(book.entries), list(book.refused)) == (5, ["f2"])
    assert "is less than the floors of its tenants, 11 in all" in told(book)


def test_two_may_change_places(folder: Folder) -> None:
    book = folder.book()
    folder.write("a", section("a", database="b"))
    folder.write("b", section("b", database="a"))
    assert sorted(names(book.look().changed)) == ["a", "b"]
    assert book.problems == ()


def test_what_was_refused_comes_into_force_when_another_file_has_made_room(folder: Folder) -> None:
    book = folder.book()
    folder.write("b", section("b", database="a"))  # a's, while that has it
    folder.write("d", section("d", database="b"))  # b's, until its file is in force
    assert not book.look()
    assert sorted(book.refused) == ["b", "d"]
    folder.write("a", section("a", database="other"))
    assert sorted(names(book.update(["a"]).changed)) == ["a", "b", "d"]
    assert book.problems == ()
    folder.write("c", section("c", database="other"))
    assert not book.update(["c"])
    (folder.path / "tenants" / "a.yaml").unlink()
    changes = book.update([], ["a"])
    assert (names(changes.changed), names(changes.removed)) == (["c"], ["a"])


def test_a_close_look_judges_all_that_was_refused_and_a_change_some_of_it_in_turn(folder: Folder) -> None:
    for number in range(60):
        folder.write(f"t{number:02}", section(f"t{number:02}", database="a"))
    book = folder.book()
    assert len(book.refused) == 60
    first = list(book.refused)[:50]
    folder.write("c", section("c") + "paused: true\n")
    assert names(book.update(["c"]).changed) == ["c"]
    assert list(book.refused)[10:] == first
    # The reason is gone without a word from any file.
    book.forget("a")
    (folder.path / "tenants" / "a.yaml").unlink()
    assert len(names(book.look().changed)) == 1
    assert len(book.refused) == 59


def test_only_what_has_changed_is_a_change_and_a_bad_file_keeps_the_tenant(folder: Folder) -> None:
    book = folder.book()
    before = book.tenants
    assert not book.look()
    folder.write("b", section("b") + "paused: true\n")
    changes = book.look()
    assert names(changes.changed) == ["b"]
    after = changes.of(before)
    assert after[TenantName("a")] is before[TenantName("a")]
    folder.write("b", section("b") + "pool: 7\n")
    assert not book.look()
    assert book.tenants[TenantName("b")].paused
    folder.write("b", section("b") + "# a comment\npaused: true\n")
    assert not book.look(), "the same, but for the words"
    assert book.problems == ()


def test_a_secret_that_changes_changes_its_tenants(folder: Folder) -> None:
    book = folder.book()
    (folder.path / "b.password").write_text("another password")
    assert book.users_of(str(folder.path / "b.password")) == ["b"]
    assert not book.look(closely=False)
    assert names(book.look().changed) == ["b"]
    (folder.path / "b.password").unlink()
    assert not book.look()
    assert "b.password cannot be read" in told(book)
    assert "another" not in told(book)


def test_a_hasty_look_sees_what_came_went_and_was_replaced(folder: Folder) -> None:
    book = folder.book()
    tenants = folder.path / "tenants"
    (tenants / ".b").write_text(section("b") + "paused: true\n")
    (tenants / ".b").rename(tenants / "b.yaml")
    folder.write("d")
    (tenants / "a.yaml").unlink()
    changes = book.look(closely=False)
    assert (names(changes.changed), names(changes.removed)) == (["b", "d"], ["a"])
    folder.write("c", section("c") + "paused: true\n")
    assert not book.look(closely=False), "written into: the watch looks at each file in turn"
    assert book.name_of(str(tenants / "c.yaml")) == "c"
    assert names(book.look().changed) == ["c"]


def test_what_was_written_just_now_is_left_for_the_next_look(folder: Folder) -> None:
    book = folder.book()
    folder.write("d")
    assert not book.look(settled_s=60)
    past = time.time() - 100
    os.utime(folder.path / "tenants" / "d.yaml", (past, past))
    assert names(book.look(settled_s=60).changed) == ["d"]


def test_a_file_from_the_future_is_taken_now(folder: Folder) -> None:
    book = folder.book()
    folder.write("d")
    future = time.time() + 86400
    os.utime(folder.path / "tenants" / "d.yaml", (future, future))
    assert names(book.look(settled_s=60).changed) == ["d"]


def test_a_folder_that_cannot_be_read_keeps_all_and_says_so(folder: Folder) -> None:
    book = folder.book()
    (folder.path / "tenants").rename(folder.path / "elsewhere")
    assert not book.look()
    assert "its tenants stay as they are" in told(book)
    (folder.path / "elsewhere").rename(folder.path / "tenants")
    assert not book.look()
    assert book.problems == ()


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 50_000 + "]" * 50_000,
        "a: " + "{b: " * 500 + "}" * 500,
        "a:\n  " + "- " * 50_000 + "1",
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 10)}]\n" for n in range(12)),
    ],
    ids=["brackets", "braces", "dashes", "aliases"],
)
def test_a_file_that_would_end_the_process_is_refused_like_any_other(folder: Folder, text: str) -> None:
    folder.write("d", text)
    book = folder.book()
    assert {"a", "b", "c"} == set(book.entries)
    assert "levels deep" in told(book) or "aliases" in told(book)


@pytest.mark.parametrize("value", ["!!bool x", "!!timestamp x", "2020-13-45", "!!int x", "!!python/object:x y"])
def test_a_value_that_is_not_what_it_says_is_its_files_mistake(folder: Folder, value: str) -> None:
    folder.write("b", section("b") + f"paused: {value}\n")
    book = folder.book()
    assert sorted(book.entries) == ["a", "c"]
    assert "b.yaml:5: paused: cannot be read" in told(book)


def test_many_bad_files_are_refused_alone(folder: Folder) -> None:
    for n in range(120):
        folder.write(f"t{n}", section(f"t{n}", **({"cluster": "elsewhere"} if n % 2 else {})))
    book = folder.book()
    assert (len(book.entries), len(book.refused)) == (63, 60)


def test_one_of_thousands_is_judged_in_milliseconds(folder: Folder) -> None:
    """Whatever it shares with the others: the limit holds the whole service's 50 ms for a change."""
    for n in range(300):
        folder.write(f"r{n}", section(f"r{n}", isolation="registered", statements="{x: select 1}", database="shared",
                                      login="{user: everyone}"))  # fmt: skip
    book = folder.book()
    assert len(book.entries) == 303
    folder.write("r7", section("r7", isolation="registered", statements="{x: select 2}", database="shared",
                               login="{user: everyone}"))  # fmt: skip
    began = time.process_time()
    assert names(book.update(["r7"]).changed) == ["r7"]
    assert time.process_time() - began < 0.03
    folder.write("own", section("own", login="{user: everyone}"))
    assert not book.update(["own"])
    assert "and 1 more" in told(book)


def test_files_are_written_as_a_whole(tmp_path: Path) -> None:
    stamp = tenant_files.write(tmp_path, "a", b"one")
    assert (tmp_path / "a.yaml").read_bytes() == b"one"
    assert tenant_files.listed(tmp_path) == {"a": stamp}
    assert tenant_files.write(tmp_path, "a", b"two") != stamp
    tenant_files.remove(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [("pipe", "a named pipe"), ("socket", "a socket"), ("folder", "a folder"), ("device", "a device"),
     ("loop", "too many"), ("large", "larger than 1048576 bytes")],
)  # fmt: skip
def test_what_is_no_file_is_told_and_keeps_nobody_waiting(folder: Folder, kind: str, words: str) -> None:
    """Opened like a file, a named pipe without a writer keeps its reader for ever, and so every later order."""
    put(folder.path / "tenants" / "d.yaml", kind)
    folder.write("e")
    (folder.path / "e.password").unlink()
    put(folder.path / "e.password", kind)
    book = folder.book()
    assert sorted(book.entries) == ["a", "b", "c"]
    assert words in str(book.refused["d"].problems[0])
    assert words.replace("1048576", "65536") in str(book.refused["e"].problems[0])
    assert not book.look(closely=False)


def put(path: Path, kind: str) -> None:
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            bound = socket.socket(socket.AF_UNIX)
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path has little room
            bound.bind(path.name)
            os.chdir(here)
            bound.close()
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "large":
            path.write_bytes(b"#" * ((1 << 20) + 1))


def test_a_name_that_is_no_text_can_be_told(folder: Folder) -> None:
    (Path(os.fsdecode(os.fsencode(folder.path / "tenants") + b"/\xff.yaml"))).write_text(section("d"))
    book = folder.book()
    assert sorted(book.entries) == ["a", "b", "c"]
    assert "\\xff.yaml: is no usable name" in "".join(lines(folder.path, book.problems)).encode().decode()
