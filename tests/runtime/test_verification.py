"""Verification: damage is found and named, and content is hashed only where a file may have changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest

import hepar.runtime.verification
from hepar.errors import ArtifactError
from hepar.runtime.artifacts import (
    MANIFEST,
    link_or_copy,
    read_manifest,
    sha256_file,
    write_artifact,
)
from hepar.runtime.chunked import write_chunked
from hepar.runtime.seals import sealed_ns
from hepar.runtime.verification import find_damage, verify_artifact

FILES = ("a.txt", "cases/b.txt", "cases/c.b2nd")


def let_the_clock_move() -> None:
    """A file that changed in the tick of the seal is hashed to be sure, so no test should depend on it."""
    time.sleep(0.03)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with write_artifact(tmp_path / "pool", "pool", {"cohort": "c0"}) as folder:
        (folder / "a.txt").write_text("arrays")
        (folder / "cases").mkdir()
        (folder / "cases" / "b.txt").write_text("0123456789")
        write_chunked(folder / "cases" / "c.b2nd", np.arange(64**3, dtype=np.int32).reshape(64, 64, 64))
    let_the_clock_move()
    verify_artifact(tmp_path / "pool", "pool")
    return tmp_path / "pool"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from here on."""
    names: list[str] = []

    def record(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(hepar.runtime.verification, "sha256_file", record)
    return names


def overwrite(path: Path, content: bytes) -> None:
    """Change a file in place and give it its old time back."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_manifest_lists_the_size_of_each_file_and_the_bytes_that_a_codec_made(pool: Path) -> None:
    manifest = read_manifest(pool, "pool")
    assert set(manifest.files) == set(FILES)
    assert manifest.sizes == {name: (pool / name).stat().st_size for name in FILES}
    assert manifest.stored == {"cases/c.b2nd": sha256_file(pool / "cases" / "c.b2nd")}


def test_a_sealed_artifact_is_verified_by_sizes_and_times_alone(pool: Path, hashed: list[str]) -> None:
    assert verify_artifact(pool, "pool") == read_manifest(pool, "pool")
    assert hashed == []
    verify_artifact(pool, "pool", deep=True)
    assert sorted(hashed) == ["a.txt", "b.txt", "c.b2nd"]


def test_a_file_that_changed_is_named_with_what_differs(pool: Path) -> None:
    overwrite(pool / "cases" / "b.txt", b"0123456780")
    with pytest.raises(
        ArtifactError,
        match=r"pool is damaged: cases/b\.txt has changed since it was sealed \(SHA-256 [0-9a-f]{12}…",
    ):
        verify_artifact(pool, "pool")
    verify_artifact(pool, "pool", ["a.txt"])  # the others may still be read


def test_a_truncated_an_emptied_and_a_missing_file_are_named(pool: Path) -> None:
    overwrite(pool / "a.txt", b"arr")
    with pytest.raises(ArtifactError, match=r"pool is damaged: a\.txt has 3 bytes but had 6 when it was sealed$"):
        verify_artifact(pool, "pool")
    overwrite(pool / "a.txt", b"")
    with pytest.raises(ArtifactError, match=r"a\.txt has 0 bytes but had 6"):
        verify_artifact(pool, "pool", ["a.txt"])
    (pool / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"pool is damaged: a\.txt is missing$"):
        verify_artifact(pool, "pool", ["cases/b.txt", "a.txt"])
    with pytest.raises(ArtifactError, match=r"pool is damaged: d\.txt is not listed in manifest\.json$"):
        verify_artifact(pool, "pool", ["d.txt"])


def test_damage_is_found_again_and_again(pool: Path) -> None:
    overwrite(pool / "a.txt", b"arrayz")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"a\.txt has changed"):
            verify_artifact(pool, "pool")
    for _ in range(2):
        assert len(list(find_damage(pool, read_manifest(pool, "pool")))) == 1


def test_every_damaged_file_is_listed(pool: Path) -> None:
    manifest = read_manifest(pool, "pool")
    overwrite(pool / "a.txt", b"arrayz")
    (pool / "cases" / "b.txt").unlink()
    for _ in range(2):
        damage = list(find_damage(pool, manifest))
        assert [text.split()[0] for text in damage] == ["cases/b.txt", "a.txt"]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_a_chunked_array_with_flipped_bits_never_reaches_its_decoder(
    pool: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blosc2, "open", lambda *_, **__: pytest.fail("damaged bytes reached the decoder"))
    content = bytearray((pool / "cases" / "c.b2nd").read_bytes())
    start = int(share * len(content))
    content[start : start + 64] = bytes(byte ^ 0xFF for byte in content[start : start + 64])
    overwrite(pool / "cases" / "c.b2nd", bytes(content))
    with pytest.raises(ArtifactError, match=r"pool is damaged: cases/c\.b2nd has changed"):
        verify_artifact(pool, "pool")


@pytest.mark.parametrize("command", [["cp", "-r"], ["cp", "-a"]])
def test_a_copy_is_hashed_once(pool: Path, tmp_path: Path, hashed: list[str], command: list[str]) -> None:
    subprocess.run([*command, str(pool), str(tmp_path / "copy")], check=True)
    let_the_clock_move()
    verify_artifact(tmp_path / "copy", "pool")
    assert sorted(hashed) == ["a.txt", "b.txt", "c.b2nd"]
    verify_artifact(tmp_path / "copy", "pool")
    assert len(hashed) == 3


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy2])
def test_damage_before_a_copy_is_found_in_the_copy(pool: Path, tmp_path: Path, copy: object) -> None:
    overwrite(pool / "cases" / "b.txt", b"0123456780")
    (tmp_path / "copy" / "cases").mkdir(parents=True)
    for name in (*FILES, MANIFEST):  # the manifest last, so that it is newer than all files
        copy(pool / name, tmp_path / "copy" / name)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=r"copy is damaged: cases/b\.txt has changed"):
        verify_artifact(tmp_path / "copy", "pool")


def test_a_file_replaced_by_an_older_one_of_its_size_is_found(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "older").write_bytes(b"9876543210")
    os.utime(tmp_path / "older", (0, 0))
    (tmp_path / "older").rename(pool / "cases" / "b.txt")
    with pytest.raises(ArtifactError, match=r"cases/b\.txt has changed"):
        verify_artifact(pool, "pool")


def test_linked_files_are_trusted_in_the_artifact_that_links_them(
    pool: Path, tmp_path: Path, hashed: list[str]
) -> None:
    earlier = read_manifest(pool, "pool")
    with write_artifact(tmp_path / "next", "pool", {}, earlier.files, earlier.stored) as folder:
        for name in FILES:
            link_or_copy(pool / name, folder / name)
        let_the_clock_move()
    assert read_manifest(tmp_path / "next", "pool") == replace(earlier, parents={})
    verify_artifact(tmp_path / "next", "pool")
    assert hashed == []


def test_part_of_an_artifact_does_not_seal_the_rest(pool: Path, hashed: list[str]) -> None:
    os.utime(pool / MANIFEST)
    verify_artifact(pool, "pool", ["a.txt"])
    verify_artifact(pool, "pool", ["cases/b.txt"])
    assert hashed == ["a.txt", "b.txt"]
    assert sealed_ns(pool / MANIFEST) == 0


KEYS = {"hash": "0" * 64, "files": {"a.txt": "0" * 64}, "kind": "model", "parents": {"cohort": "0" * 64}}
KEYS |= {"sizes": {"a.txt": 1}, "stored": {}, "manifest_sha256": "0" * 64, "another": 1}


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_manifest_is_damaged(pool: Path, key: str) -> None:
    written = json.loads((pool / MANIFEST).read_text())
    (pool / MANIFEST).write_text(json.dumps(written | {key: KEYS[key]}))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged, or of another version of hepar: it "):
        read_manifest(pool, "pool")


def test_a_manifest_without_a_hash_of_itself_is_of_another_version(pool: Path) -> None:
    written = json.loads((pool / MANIFEST).read_text())
    del written["manifest_sha256"]
    (pool / MANIFEST).write_text(json.dumps(written))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged, or of another version of hepar"):
        read_manifest(pool, "pool")


def test_a_file_with_a_known_hash_that_was_not_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"^cases/b\.txt was not written, so the pool is incomplete$"),
        write_artifact(tmp_path / "pool", "pool", {}, {"a.txt": "a0", "cases/b.txt": "b0"}) as folder,
    ):
        (folder / "a.txt").write_text("a")
    assert list(tmp_path.iterdir()) == []
