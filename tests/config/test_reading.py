"""A large configuration, read by a process of its own, is the one that would have been read here."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import reading
from router.config.problems import ConfigProblems
from router.config.reading import read
from router.model.identity import TenantName
from tests.config.test_config_memory import many_tenants
from tests.config.test_tenant_book import Folder, section


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of 600 tenants, more than travel in one piece."""
    text, environ = many_tenants(600)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "router.yaml"
    path.write_text(text)
    return path


def test_it_is_the_same_and_what_tenants_share_is_one_object(file: Path) -> None:
    assert not reading.is_small(file)
    apart, here = read(file), reading.read_here(file)
    assert apart == here
    assert list(apart.topology.tenants) == list(here.topology.tenants)
    assert apart.files == here.files
    tenants = apart.topology.tenants.values()
    for part in ("pool", "policy", "weights", "statements"):
        assert len({id(getattr(one, part)) for one in tenants}) == 1, part
    assert reading.begin(file)() == here
    text = file.read_text().replace("max_size: 4", "max_size: 5", 1)
    assert read(file, text).topology.tenants[TenantName("t0")].pool.max_size == 5


def test_mistakes_come_back_with_their_places(file: Path) -> None:
    text = file.read_text().replace("cluster: main", "cluster: elsewhere", 1)
    with pytest.raises(ConfigProblems) as here:
        reading.read_here(file, text)
    with pytest.raises(ConfigProblems) as apart:
        read(file, text)
    assert apart.value.lines() == here.value.lines() != ()
    assert apart.value.files == here.value.files


def test_a_folder_comes_back_with_all_that_it_is_judged_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", "operator")
    folder = Folder(tmp_path)
    for name in ("a", "b", "c"):
        folder.write(name)
    folder.write("d", section("d", cluster="elsewhere"))
    source = tmp_path / "router.yaml"
    apart = reading.begin(source)()
    here = reading.read_here(source)
    assert apart == here
    assert apart.book is not None
    assert here.book is not None
    assert apart.book.entries == here.book.entries
    assert apart.book.refused == here.book.refused
    assert apart.book.files() == here.book.files()
    folder.write("d", section("d", database="a"))
    assert not apart.book.look()
    assert "is also used by tenant a" in str(apart.book.refused["d"].problems[0])


def test_a_process_that_ends_early_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1"):
        read(file)


def test_a_pipe_in_place_of_a_file_is_read_once(tmp_path: Path) -> None:
    """As in `pointsman serve --config <(...)`."""
    import os
    import threading

    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text("tenants_dir: x\n"))
    writer.start()
    wait = reading.begin(path)
    with pytest.raises(ConfigProblems):
        wait()
    writer.join(5)
