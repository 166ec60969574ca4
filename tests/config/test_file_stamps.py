"""Changed files are noticed, however they were changed."""

from __future__ import annotations

import os
from pathlib import Path

from router.config.file_stamps import FilesWatched, stamp_of


def watched(*paths: Path) -> FilesWatched:
    return FilesWatched({str(path): stamp_of(path) for path in paths})


def test_writing_replacing_removing_and_making_are_changes(tmp_path: Path) -> None:
    file, absent = tmp_path / "a", tmp_path / "b"
    file.write_text("one")
    files = watched(file, absent)
    assert files.changed() is None
    file.write_text("other")
    assert files.changed() == str(file)
    files = watched(file, absent)
    stat = file.stat()
    other = tmp_path / "c"
    other.write_text("OTHER")  # same size, and the very same time
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert files.changed() == str(file)
    files = watched(file, absent)
    absent.write_text("here")
    assert files.changed() == str(absent)
    files = watched(file, absent)
    file.unlink()
    assert files.changed() == str(file)


def test_a_folder_swapped_behind_a_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes does with mounted ConfigMaps and Secrets: config.yaml -> ..data/config.yaml, ..data -> ..2026_1."""
    for version in ("1", "2"):
        (tmp_path / f"..2026_{version}").mkdir()
        (tmp_path / f"..2026_{version}" / "config.yaml").write_text("same size")
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    files = watched(tmp_path / "config.yaml")
    assert files.changed() is None
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert files.changed() == str(tmp_path / "config.yaml")


def test_of_many_files_each_has_its_turn(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}" for n in range(2500)]
    files = FilesWatched(dict.fromkeys(map(str, paths)))
    assert [files.changed() for _ in range(3)] == [None] * 3
    paths[2400].write_text("x")
    found = [files.changed() for _ in range(3)]
    assert str(paths[2400]) in found
