"""The port to a directory: one suite for the real one and the simulated one, and what only one of them can show."""

import errno
import os
from pathlib import Path
from random import Random

import pytest
from tests.sim.disk import PowerCut, SimDisk, sectors

from tickwheel.server.files import Files, OsFiles


@pytest.fixture(params=["os", "sim"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else SimDisk(Random(1))


def test_a_file_is_made_full_of_zeros(disk: Files) -> None:
    disk.create_filled("b", 3_000_001)
    disk.create_filled("a", 0)
    assert disk.list() == ["a", "b"]
    assert disk.read("b") == bytes(3_000_001)
    assert disk.read("a") == b""


def test_a_write_lands_where_it_was_told(disk: Files) -> None:
    disk.create_filled("a", 10)
    handle = disk.open("a")
    handle.pwrite(b"xyz", 4)
    handle.fdatasync()
    handle.close()
    assert disk.read("a") == b"\0\0\0\0xyz\0\0\0"


def test_an_unlinked_name_is_gone(disk: Files) -> None:
    disk.create_filled("a", 10)
    disk.unlink("a")
    disk.sync_directory()
    assert disk.list() == []


def test_free_space_is_positive(disk: Files) -> None:
    assert disk.free_bytes() > 0


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = OsFiles(tmp_path)
    files.create_filled("a", 8)
    whole = os.pwrite

    def short(descriptor: int, data: bytes, offset: int) -> int:
        return whole(descriptor, data[:3], offset)

    monkeypatch.setattr(os, "pwrite", short)
    handle = files.open("a")
    handle.pwrite(b"abcdefgh", 0)
    handle.close()
    assert files.read("a") == b"abcdefgh"


@pytest.mark.parametrize("fails", ["pwrite", "fsync"])
def test_a_fill_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="no space left"):
        OsFiles(tmp_path).create_filled("a", 10)
    assert list(tmp_path.iterdir()) == []


def test_a_name_whose_directory_cannot_be_synced_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: OsFiles) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(OsFiles, "sync_directory", broken)
    with pytest.raises(OSError, match="input/output"):
        OsFiles(tmp_path).create_filled("a", 10)
    assert list(tmp_path.iterdir()) == []


# --- the simulated disk does what it says ----------------------------------------------------


def test_a_crash_forgets_what_was_not_synced_and_only_that() -> None:
    seen: set[bytes] = set()
    for seed in range(200):
        disk = SimDisk(Random(seed))
        disk.create_filled("a", 2048)
        handle = disk.open("a")
        handle.pwrite(b"s" * 4, 0)
        handle.fdatasync()
        handle.pwrite(b"u" * 1000, 4)
        disk.crash()
        data = disk.read("a")
        assert data.startswith(b"ssss")
        assert data[1004:] == bytes(1044)
        seen.add(data)
    assert b"ssss" + bytes(2044) in seen
    assert b"ssss" + b"u" * 1000 + bytes(1044) in seen
    assert b"ssss" + bytes(508) + b"u" * 492 + bytes(1044) in seen, "sectors get lost out of order"
    assert len(seen) > 20, "and writes end at any byte"


def test_a_crash_may_undo_each_unlink() -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(50):
        disk = SimDisk(Random(seed))
        disk.create_filled("a", 1)
        disk.create_filled("b", 1)
        disk.unlink("a")
        disk.unlink("b")
        disk.crash()
        seen.add(tuple(disk.list()))
    assert seen == {(), ("a",), ("b",), ("a", "b")}


def test_a_failed_sync_is_seen_by_reads_and_lost_by_the_crash() -> None:
    disk = SimDisk(Random(1))
    disk.create_filled("a", 4)
    disk.fail_sync_at = 1
    handle = disk.open("a")
    handle.pwrite(b"data", 0)
    with pytest.raises(OSError, match="injected"):
        handle.fdatasync()
    handle.fdatasync()
    assert disk.read("a") == b"data"
    disk.crash()
    assert disk.read("a") == bytes(4)


def test_a_failed_write_a_full_disk_and_a_flipped_bit() -> None:
    disk = SimDisk(Random(1), capacity=10)
    disk.create_filled("a", 4)
    with pytest.raises(OSError, match="no space"):
        disk.create_filled("b", 7)
    disk.fail_write_at = 1
    with pytest.raises(OSError, match="injected"):
        disk.open("a").pwrite(b"data", 0)
    twin = disk.clone()
    twin.flip("a", 9)
    assert twin.read("a")[1] == disk.read("a")[1] ^ 2


def test_the_power_fails_when_told_and_the_same_seed_gives_the_same_crash() -> None:
    after: list[bytes] = []
    for _ in range(2):
        disk = SimDisk(Random(5))
        disk.create_filled("a", 4096)
        disk.cut_at = 3
        handle = disk.open("a")
        handle.pwrite(b"x" * 3000, 7)
        with pytest.raises(PowerCut):
            handle.fdatasync()
        disk.crash()
        after.append(disk.read("a"))
    assert after[0] == after[1]


def test_sectors_are_cut_at_their_borders() -> None:
    assert sectors(500, 1030) == [(500, 512), (512, 1024), (1024, 1030)]
    assert sectors(5, 7) == [(5, 7)]
