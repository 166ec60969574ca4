"""Orders about tenants: judged before anything is written, in force when answered, nobody's change undone."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from router.config import tenant_files
from router.config.document import parse
from router.config.document_edits import EditMistake, edited
from router.config.loaded import LoadedConfig
from router.config.loading import load
from router.config.paused_text import with_paused
from router.config.reading import SMALL_BYTES
from router.config.tenant_book import TenantBook
from router.live_configuration import LiveConfiguration
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.topology import TenantChanges
from router.tenant_store import TenantStore
from tests.config.test_live_configuration import HastyClock
from tests.config.test_tenant_book import Folder, section
from tests.support.builders import Recorder
from tests.support.eventually import eventually


class Store:
    """A store over a folder of three, and what its orders brought into force."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.taken: list[TenantChanges] = []
        config = load(folder.path / "router.yaml")
        self.live = LiveConfiguration(config, HastyClock(), Recorder(), self.whole, self.some, lambda _: "")
        self.orders = TenantStore(self.live)

    def whole(self, _: LoadedConfig, __: TenantChanges) -> None:
        raise AssertionError("only tenants have changed")

    def some(self, _: LoadedConfig, changes: TenantChanges) -> None:
        self.taken.append(changes)

    def on_disk(self, name: str) -> str | None:
        path = self.folder.path / "tenants" / f"{name}.yaml"
        return path.read_text() if path.exists() else None


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ADMIN", "operator")
    folder = Folder(tmp_path)
    for name in ("a", "b", "c"):
        folder.write(name)
    return Store(folder)


async def refused(order: object) -> RouterError:
    with pytest.raises(RouterError) as caught:
        await order  # type: ignore[misc]
    return caught.value


async def test_create_change_pause_resume_and_remove(store: Store) -> None:
    document = section("a").replace("a", "a")
    error = await refused(store.orders.create("a", document))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, RefuseReason.TENANT_EXISTS)
    store.folder.write("d")
    text = store.on_disk("d")
    assert text is not None
    (store.folder.path / "tenants" / "d.yaml").unlink()
    made = await store.orders.create("d", text)
    assert [str(one) for one in made.changes] == ["tenants.d: added"]
    assert store.on_disk("d") == text
    grown = await store.orders.change("d", text + "pool: {max_size: 3}\n# mine\n", made.version)
    assert [str(one) for one in grown.changes] == ["tenants.d.pool.max_size: 8 → 3"]
    lost = await refused(store.orders.change("d", text, made.version))
    assert (lost.code, lost.reason) == (Code.ABORTED, RefuseReason.VERSION_CHANGED)
    paused = await store.orders.pause("d", "", paused=True)
    assert [str(one) for one in paused.changes] == ["tenants.d.paused: false → true"]
    assert "# mine" in (store.on_disk("d") or "")
    again = await store.orders.pause("d", "", paused=True)
    assert again.changes == ()
    resumed = await store.orders.pause("d", "", paused=False)
    assert resumed.version == grown.version, "the file is what it was"
    gone = await store.orders.remove("d", resumed.version)
    assert [str(one) for one in gone.changes] == ["tenants.d: removed"]
    assert store.on_disk("d") is None
    assert [(len(one.changed), len(one.removed)) for one in store.taken] == [(1, 0)] * 4 + [(0, 1)]
    assert store.live._files.changed() == str(store.folder.path / "tenants"), "the folder, and no file that is gone"
    await store.live._take_or_tell(str(store.folder.path / "tenants"))
    assert store.live._files.changed() is None
    for order in (store.orders.remove("d", ""), store.orders.change("d", text, ""), store.orders.show("d")):
        assert (await refused(order)).code is Code.NOT_FOUND


async def test_an_order_that_failed_half_way_comes_into_force_with_the_next(store: Store) -> None:
    def stumble(_: LoadedConfig, __: TenantChanges) -> None:
        raise ZeroDivisionError

    store.live._change = stumble
    with pytest.raises(ZeroDivisionError):
        await store.orders.pause("a", "", paused=True)
    with pytest.raises(ZeroDivisionError):
        await store.orders.remove("c", "")
    assert "cannot be applied: ZeroDivisionError" in store.live.view().problems[0]
    store.live._change = store.some
    told = (await store.orders.pause("b", "", paused=True)).changes
    assert sorted(map(str, told)) == ["tenants.a.paused: false → true", "tenants.b.paused: false → true",
                                      "tenants.c: removed"]
    ((changed, removed),) = [(one.changed, one.removed) for one in store.taken]
    assert sorted((one.name, one.paused) for one in changed) == [("a", True), ("b", True)]
    assert removed == ("c",)
    assert store.live.view().problems == ()
    assert (await store.orders.pause("b", "", paused=False)).changes
    assert len(store.taken) == 2
    assert [one.name for one in store.taken[1].changed] == ["b"]


async def test_the_watch_brings_what_an_order_has_left_half_way(store: Store) -> None:
    failing = [True, True]

    def stumble(config: LoadedConfig, changes: TenantChanges) -> None:
        if failing:
            failing.pop()
            raise ZeroDivisionError
        store.some(config, changes)

    def brought() -> set[str]:
        return {one.name for changes in store.taken for one in changes.changed if one.paused or one.name == "d"}

    store.live._change = stumble
    store.live.start()
    try:
        with pytest.raises(ZeroDivisionError):
            await store.orders.pause("a", "", paused=True)
        await eventually(lambda: not failing, within_s=3, what="a second failure")
        store.folder.write("d")
        await eventually(lambda: brought() == {"a", "d"}, within_s=3, what="both")
    finally:
        await store.live.stop()
    assert store.live.view().problems == ()


async def test_an_order_whose_caller_goes_away_is_in_force_as_it_stands_on_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, begun = tenant_files.write, threading.Event()

    def slowly(*parts: Any) -> Any:
        begun.set()
        time.sleep(0.1)
        return writes(*parts)

    monkeypatch.setattr(tenant_files, "write", slowly)
    order = asyncio.create_task(store.orders.pause("a", "", paused=True))
    await asyncio.to_thread(begun.wait)
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    await store.orders.show("a")  # its turn comes after the order
    assert "paused: true" in (store.on_disk("a") or "")
    assert [one.name for changes in store.taken for one in changes.changed] == ["a"]


async def test_a_reload_whose_caller_goes_away_comes_into_force(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, begun = TenantBook.look, threading.Event()

    def slowly(book: TenantBook) -> TenantChanges:
        changes = looks(book)
        begun.set()
        time.sleep(0.1)
        return changes

    monkeypatch.setattr(TenantBook, "look", slowly)
    store.folder.write("d")
    reload = asyncio.create_task(store.live.reload())
    await asyncio.to_thread(begun.wait)
    reload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reload
    await store.orders.show("a")
    assert [one.name for changes in store.taken for one in changes.changed] == ["d"]


async def test_what_has_mistakes_is_neither_written_nor_taken(store: Store) -> None:
    before = store.on_disk("a")
    for document in ("a: [", "", section("a", cluster="elsewhere"), section("a", database="b")):
        error = await refused(store.orders.change("a", document, ""))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, RefuseReason.CONFIG_INVALID)
        assert "a.yaml" in error.message
    for name in ("../a", ".a", "a/b", "", "a" * 70):
        assert (await refused(store.orders.create(name, section("a")))).code is Code.INVALID_ARGUMENT
    assert store.on_disk("a") == before
    assert store.taken == []
    assert store.live.view().problems == ()
    assert sorted(path.name for path in (store.folder.path / "tenants").iterdir()) == ["a.yaml", "b.yaml", "c.yaml"]


async def test_orders_at_the_same_time_do_not_undo_each_other(store: Store) -> None:
    seen = await store.orders.show("a")
    orders = [store.orders.change("a", f"{seen.document}pool: {{max_size: {n}}}\n", seen.version) for n in range(2, 7)]
    done = await asyncio.gather(*orders, return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in done) == 1
    assert len(store.taken) == 1


async def test_a_file_that_is_wrong_on_disk_is_shown_with_its_problems_and_can_be_mended(store: Store) -> None:
    store.folder.write("a", section("a", cluster="elsewhere"))
    assert not (await store.live.reload()).applied
    shown = await store.orders.show("a")
    assert "elsewhere" in shown.problems[0]
    assert store.live.view().problems == shown.problems
    await store.orders.change("a", section("a"), shown.version)
    assert store.live.view().problems == ()


@pytest.mark.parametrize("way", ["remove", "change", "edit"])
async def test_what_another_tenant_kept_out_comes_in_when_that_one_makes_room(store: Store, way: str) -> None:
    store.folder.write("d", section("d", database="a"))
    assert not (await store.live.reload()).applied
    assert "is also used by tenant a" in store.live.view().problems[0]
    version = (await store.orders.show("a")).version
    match way:
        case "remove":
            told = (await store.orders.remove("a", version)).changes
        case "change":
            told = (await store.orders.change("a", section("a", database="other"), version)).changes
        case _:
            store.folder.write("a", section("a", database="other"))
            await store.live._take_or_tell(str(store.folder.path / "tenants" / "a.yaml"))
            told = ()
    assert [one.name for changes in store.taken for one in changes.changed if one.name == "d"] == ["d"]
    assert store.live.view().problems == ()
    assert way == "edit" or any("tenants.d" in str(one) for one in told)
    assert (await store.live.reload()).changes == ()


async def test_tenants_do_not_wait_for_a_main_file_that_an_objection_refuses(store: Store) -> None:
    store.live._objection = lambda _: "not here"
    store.folder.write("a", section("a") + "paused: true\n")
    done = await store.live.reload()
    assert (done.applied, done.changes) == (False, ("tenants.a.paused: false → true",))
    assert [one.changed[0].paused for one in store.taken] == [True]
    assert store.live.view().problems == (f"{store.folder.path}/router.yaml: not here",)
    store.live._objection = lambda _: ""
    assert (await store.live.reload()).changes == ()


async def test_tenants_do_not_wait_for_a_main_file_that_is_broken(store: Store) -> None:
    """Found by the watch, by an order or by a reload, they come into force with the main file that runs."""
    main = store.folder.path / "router.yaml"
    sound = main.read_text()
    main.write_text(f"{sound}hots: 1\n")
    assert not (await store.live.reload()).applied
    (broken,) = store.live.view().problems
    assert "hots" in broken
    await store.orders.pause("a", "", paused=True)
    store.folder.write("d", section("d", cluster="elsewhere"))
    store.folder.write("b", section("b") + "paused: true\n")
    await store.live._take_or_tell(str(store.folder.path / "tenants" / "b.yaml"))
    (store.folder.path / "c.password").write_text("another")
    reloaded = await store.live.reload()
    assert (reloaded.applied, reloaded.changes) == (False, ("tenants.c.login.password: changed (secret)",))
    assert [one.name for changes in store.taken for one in changes.changed] == ["a", "b", "c"]
    assert [Path(one.partition(":")[0]).name for one in store.live.view().problems] == ["router.yaml", "d.yaml"]
    (store.folder.path / "tenants" / "d.yaml").unlink()
    main.write_text(sound)
    assert (await store.live.reload()).applied
    assert store.live.view().problems == ()


async def test_the_watch_takes_tenants_beside_a_broken_main_file(store: Store) -> None:
    store.live.start()
    try:
        main = store.folder.path / "router.yaml"
        main.write_text("nonsense")
        await eventually(lambda: len(store.live.view().problems) == 1, within_s=3, what="the refused main file")
        beside = store.folder.path / "tenants" / ".a"
        beside.write_text(section("a") + "paused: true\n")
        beside.rename(store.folder.path / "tenants" / "a.yaml")
        await eventually(lambda: len(store.taken) == 1, within_s=3, what="the pause")
        assert "router.yaml" in store.live.view().problems[0]
    finally:
        await store.live.stop()


async def test_a_program_that_a_tenants_file_waits_for_is_noticed(store: Store) -> None:
    program = store.folder.path / "ask"
    store.live.start()
    try:
        store.folder.write("d", section("d", login="{user: d, password: 'command:./ask'}"))
        await eventually(lambda: "program ./ask cannot" in str(store.live.view()), within_s=3, what="the refused file")
        beside = store.folder.path / "beside"
        beside.write_text("")
        beside.chmod(0o755)
        beside.rename(program)
        await eventually(lambda: len(store.taken) == 1, within_s=3, what="the tenant")
        await eventually(lambda: store.live.view().problems == (), within_s=3, what="nothing left to complain of")
    finally:
        await store.live.stop()


async def test_a_document_that_no_file_may_hold_is_refused_at_once(store: Store) -> None:
    """It was written, ran, and was left out by the next start."""
    large = section("d") + "#" * tenant_files.MOST_BYTES
    for order in (store.orders.create("d", large), store.orders.change("a", large, "")):
        error = await refused(order)
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, RefuseReason.CONFIG_INVALID)
        assert str(tenant_files.MOST_BYTES) in error.message
    assert store.on_disk("d") is None
    assert store.taken == []


async def test_with_one_file_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", "operator")
    folder = Folder(tmp_path)
    folder.write("a")
    main = (tmp_path / "router.yaml").read_text().replace("tenants_dir: tenants\n", "")
    tenant = section("a").replace("\n", ", ").rstrip(", ")
    (tmp_path / "router.yaml").write_text(f"{main}tenants: {{a: {{{tenant}}}}}\n")
    store = Store(folder)
    error = await refused(store.orders.pause("a", "", paused=True))
    assert error.code is Code.FAILED_PRECONDITION
    assert "tenants_dir" in error.message


async def test_a_section_of_the_one_file_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused like an order to change it."""
    monkeypatch.setenv("ADMIN", "operator")
    folder = Folder(tmp_path)
    folder.write("a")
    main = tmp_path / "router.yaml"
    before = main.read_text().replace("tenants_dir: tenants\n", "")
    tenant = section("a").replace("\n", ", ").rstrip(", ")
    main.write_text(f"{before}tenants: {{a: {{{tenant}}}}}\n")
    orders = Store(folder).orders
    shown = await orders.show("a")
    assert parse(shown.document).values == parse(section("a")).values
    assert (shown.name, shown.version, shown.problems) == ("a", "", ())
    assert (await refused(orders.show("b"))).code is Code.NOT_FOUND
    main.write_text(main.read_text() + "#" * SMALL_BYTES)
    error = await refused(orders.show("a"))
    assert error.code is Code.FAILED_PRECONDITION
    assert str(main) in error.message


@pytest.mark.parametrize(
    "text", ["a: 1\nb: {c: 2} # mine\n", '{"a": 1, "b": {"c": 2}}', "a: 1\npaused: no\nb:\n  c: 2", "a: 1\nb: {c: 2}"]
)
def test_pausing_changes_one_key(text: str) -> None:
    paused = with_paused(text.encode(), paused=True)
    assert parse(paused.decode()).values == {"a": 1, "b": {"c": 2}, "paused": True}
    assert ("# mine" in paused.decode()) is ("# mine" in text)
    assert parse(with_paused(paused, paused=False).decode()).values == {"a": 1, "b": {"c": 2}}
    assert with_paused(b"a: [", paused=True) == b"a: ["


def test_single_keys_are_edited() -> None:
    from router.config.document import parse

    text = edited("a: 1\nb: {c: 2, d: 3}\n", ["b.c=5", "b.d=", "e.f=[x, y]"])
    assert parse(text).values == {"a": 1, "b": {"c": 5}, "e": {"f": ["x", "y"]}}
    assert edited("as it is", []) == "as it is"
    assert parse(edited("", ["a=1"])).values == {"a": 1}
    assert parse(edited("a: 1\n", ["b=x: y", "c=[1,\n2]", "d=2020-01-02", "e='f: g'", "a="])).values == {
        "b": {"x": "y"}, "c": [1, 2], "d": "2020-01-02", "e": "f: g",
    }  # fmt: skip
    for change in ("a", "=1", "a..b=1", "a.b=1", "b=[", "a=1: 2: 3", "b=2020-13-45", "b=!!int x", "b=" + "[" * 5000):
        with pytest.raises(EditMistake):
            edited("a: 1\n", [change])
