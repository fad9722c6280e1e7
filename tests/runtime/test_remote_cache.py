"""The cache of remote files: what is damaged in it is fetched again, and only its owner may read it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hepar.runtime import remote_cache
from hepar.runtime.artifacts import sha256_file
from hepar.runtime.remote_cache import Cache

CONTENT = b"voxels " * 100


@dataclass(frozen=True)
class Remote:
    """A file of a store that counts its downloads."""

    downloads: list[Path] = field(default_factory=list)
    url: str = "store://a"
    version: str = "a 1"

    def download(self, target: Path) -> None:
        self.downloads.append(target)
        target.write_bytes(CONTENT)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", limit_bytes=2**20)


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"], ids=["empty", "short", "changed"])
@pytest.mark.parametrize("used", [0, 1], ids=["unused", "used before"])
def test_a_damaged_file_is_fetched_again(cache: Cache, damaged: bytes, used: int, tmp_path: Path) -> None:
    remote = Remote()
    cache.digests([remote])
    for number in range(used):
        cache.place(remote, tmp_path / f"before-{number}")
    kept = cache._kept(remote)
    kept.unlink()
    kept.write_bytes(damaged)
    cache.place(remote, tmp_path / "first")
    cache.place(remote, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == CONTENT
    assert len(remote.downloads) == 2


def test_a_file_without_a_hash_is_fetched_again(cache: Cache, tmp_path: Path) -> None:
    remote = Remote()
    cache._kept(remote).write_bytes(CONTENT)
    cache.place(remote, tmp_path / "placed")
    assert len(remote.downloads) == 1


def test_a_sound_file_is_hashed_once(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, hashed = Remote(), []

    def note(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    cache.digests([remote])
    monkeypatch.setattr(remote_cache, "sha256_file", note)
    for number in range(3):
        cache.place(remote, tmp_path / f"{number}")
    assert hashed == [cache._kept(remote)]
    assert len(remote.downloads) == 1


def test_bytes_are_on_the_disk_before_a_file_gets_its_name(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, synced = Remote(), []
    kept = cache._kept(remote)

    def note(descriptor: int) -> None:
        assert not kept.exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    cache.digests([remote])
    assert synced == [kept.stat().st_ino]


def test_only_the_owner_may_read_the_index(cache: Cache) -> None:
    cache.folder.mkdir(mode=0o755)
    for _ in range(2):
        cache.digests([Remote()])
        with cache._digests() as table:
            table.execute("INSERT OR REPLACE INTO digest VALUES ('b 1', '0')")
            modes = {path.name: path.stat().st_mode & 0o777 for path in cache.folder.iterdir() if path.is_file()}
        assert modes == {"digests.sqlite": 0o600, "digests.sqlite-journal": 0o600}
        (cache.folder / "digests.sqlite").chmod(0o644)  # as an earlier version left it
