"""Sources in S3, against a server process on loopback: they give the cohort of the same files on a disk."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from dicom_files import phantom_voxels, write_series
from toy_case import write_noise

import hepar.stages.ingest
from hepar.cases import Cohort
from hepar.errors import DataError, Refusal, StorageError
from hepar.ingest.listing import list_source
from hepar.ingest.sources import open_source, s3
from hepar.ingest.sources.pseudonyms import VARIABLE
from hepar.ingest.sources.source import VolumeFile
from hepar.params import Params
from hepar.prediction.scans import open_scans
from hepar.runtime import remote_cache, s3_client
from hepar.runtime.artifacts import read_manifest, sha256_file

BUCKET = "scans"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty store whose one bucket is `scans`."""
    settings = {
        "ENDPOINT_URL": server,
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "test",
        "DEFAULT_REGION": "eu-west-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, "a key of the tests")
    s3_client.client.cache_clear()
    client = s3_client.client()
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
    s3_client.client.cache_clear()


def upload(client: Any, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


class Fetched:
    """The keys of the objects that this process fetches."""

    def __init__(self, client: Any) -> None:
        self.keys: list[str] = []
        client.meta.events.register("before-call.s3.GetObject", self._note)

    def _note(self, params: Any, **kwargs: Any) -> None:
        self.keys.append(params["url_path"])

    def of(self, ending: str) -> int:
        return sum(key.endswith(ending) for key in self.keys)


def ingested(source: str, cohort: Path, params: Params) -> str:
    hepar.stages.ingest.run(source, cohort, params.ingest, params.modalities)
    return read_manifest(cohort, Cohort.KIND).hash


def test_a_cohort_from_s3_has_the_bytes_of_one_from_the_disk(
    store: Any, phantom_source: Path, tmp_path: Path, tiny: Params
) -> None:
    upload(store, phantom_source, "phantoms/one")
    on_disk = ingested(str(phantom_source), tmp_path / "disk", tiny)
    assert ingested(f"s3://{BUCKET}/phantoms/one", tmp_path / "s3", tiny) == on_disk
    assert ingested(f"s3://{BUCKET}/phantoms/one/cohort.csv", tmp_path / "table", tiny) == on_disk


def test_a_file_a_series_and_a_zip_in_a_bucket_are_fetched_whole_to_be_predicted(store: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "dicom" / "ct", phantom_voxels())
    write_noise(tmp_path / "files" / "scan.nii.gz")
    shutil.make_archive(str(tmp_path / "files" / "ct"), "zip", tmp_path / "dicom")
    upload(store, tmp_path / "dicom", "dicom")
    upload(store, tmp_path / "files", "files")
    for place, size in (("dicom", (24, 20, 12)), ("files/scan.nii.gz", (16, 16, 16)), ("files/ct.zip", (24, 20, 12))):
        with open_scans(f"s3://{BUCKET}/{place}") as found:
            (scan,) = found.scans
            with scan.fetched() as here:
                assert here.image.read().GetSize() == size


def test_an_unchanged_source_is_recognised_without_fetching_a_volume(
    store: Any, phantom_source: Path, tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, phantom_source, "phantoms")
    first = ingested(f"s3://{BUCKET}/phantoms", tmp_path / "cohort", tiny)
    shutil.rmtree(tmp_path / "cache" / "files")
    fetched = Fetched(store)
    assert ingested(f"s3://{BUCKET}/phantoms", tmp_path / "cohort", tiny) == first
    assert fetched.of("cohort.csv") == 1
    assert fetched.of(".nii.gz") == 0
    again = gzip.compress(gzip.decompress((phantom_source / "phantom-ct-0006" / "image.nii.gz").read_bytes()), 1)
    store.put_object(Bucket=BUCKET, Key="phantoms/phantom-ct-0006/image.nii.gz", Body=again)
    assert ingested(f"s3://{BUCKET}/phantoms", tmp_path / "cohort", tiny) != first  # the case records its source's hash
    assert fetched.of("phantom-ct-0006/image.nii.gz") == 1
    assert fetched.of("image.nii.gz") == 1


def test_a_table_on_the_disk_may_name_volumes_in_s3(
    store: Any, phantom_source: Path, tmp_path: Path, tiny: Params
) -> None:
    upload(store, phantom_source, "deep/er")
    table = pd.read_csv(phantom_source / "cohort.csv", dtype=str)
    for column in ("image", "liver", "tumour"):
        table[column] = [f"s3://{BUCKET}/deep/er/{cell}" if isinstance(cell, str) else cell for cell in table[column]]
    table.to_csv(tmp_path / "table.csv", index=False)
    on_disk = ingested(str(phantom_source), tmp_path / "disk", tiny)
    assert ingested(str(tmp_path / "table.csv"), tmp_path / "s3", tiny) == on_disk


def test_a_volume_that_the_store_lacks_refuses_its_case_alone(
    store: Any, phantom_source: Path, tmp_path: Path, tiny: Params
) -> None:
    upload(store, phantom_source, "p")
    store.delete_object(Bucket=BUCKET, Key="p/phantom-ct-0006/image.nii.gz")
    ingested(f"s3://{BUCKET}/p", tmp_path / "cohort", tiny)
    refused = pd.read_csv(tmp_path / "cohort" / Cohort.QUARANTINE)
    assert refused["case_id"].tolist() == ["phantom-ct-0006"]
    assert f"s3://{BUCKET}/p/phantom-ct-0006/image.nii.gz" in refused["value"][0]


def test_dicom_is_listed_by_its_headers_alone(store: Any, tmp_path: Path, tiny: Params) -> None:
    voxels = np.tile(phantom_voxels(), (1, 20, 20))  # 400 x 480: a slice is 375 KiB
    paths = write_series(tmp_path / "source" / "a", voxels)
    write_series(tmp_path / "source" / "b", phantom_voxels(), modality="MR")
    upload(store, tmp_path / "source", "tree")
    with open_source(str(tmp_path / "source"), tiny.ingest) as cases:
        from_disk = {case.case_id: case.image.read() for case in cases}
    with open_source(f"s3://{BUCKET}/tree", tiny.ingest) as cases:
        assert {case.case_id for case in cases} == set(from_disk)
        stubs = [path for case in cases if case.case_id.startswith("ct") for path in case.image.files]
        assert len(stubs) == len(paths)
        assert max(path.stat().st_size for path in stubs) < 8192
        for case in cases:
            assert pickle.loads(pickle.dumps(case)) == case  # cases are sent to other processes
            with remote_cache.local(case, case.remote) as here:
                read = here.image.read()
                assert not set(here.files) & set(case.files)
            assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(from_disk[case.case_id]))
            assert read.GetOrigin() == from_disk[case.case_id].GetOrigin()
            assert not here.files[0].exists()


def test_a_zip_in_s3_is_opened(store: Any, phantom_source: Path, tmp_path: Path, tiny: Params) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in phantom_source.rglob("*"):
            archive.write(path, path.relative_to(phantom_source))
    store.upload_file(str(tmp_path / "all.zip"), BUCKET, "all.zip")
    on_disk = ingested(str(phantom_source), tmp_path / "disk", tiny)
    assert ingested(f"s3://{BUCKET}/all.zip", tmp_path / "s3", tiny) == on_disk


def test_detached_headers_bring_their_voxels(store: Any, tmp_path: Path) -> None:
    volume = sitk.GetImageFromArray(phantom_voxels())
    sitk.WriteImage(volume, str(tmp_path / "scan.mhd"))
    upload(store, tmp_path, "meta")
    buckets = s3.Buckets(tmp_path / "root")
    path = buckets.path(f"s3://{BUCKET}/meta/scan.mhd")
    found = VolumeFile(path)
    assert [file.name for file in found.files] == ["scan.mhd", "scan.raw"]
    with remote_cache.local(found, {file: buckets.remote(file) for file in found.files}) as here:
        assert np.array_equal(sitk.GetArrayFromImage(here.read()), phantom_voxels())


@pytest.mark.parametrize("checksum", [None, "CRC32", "SHA256"])
def test_a_download_with_wrong_bytes_is_refused(
    checksum: str | None, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"ChecksumAlgorithm": checksum} if checksum else {}
    store.put_object(Bucket=BUCKET, Key="x.bin", Body=b"right bytes", **extra)
    item = next(s3.list_objects(BUCKET, "x.bin"))
    item.download(tmp_path / "good")
    assert (tmp_path / "good").read_bytes() == b"right bytes"
    tried = []

    def garbled(bucket: str, key: str, target: str) -> None:
        tried.append(key)
        Path(target).write_bytes(b"wrong bytes")

    monkeypatch.setattr(store, "download_file", garbled)
    monkeypatch.setattr(s3.time, "sleep", lambda seconds: None)
    with pytest.raises(Refusal, match=r"a download matches its checksum: s3://scans/x.bin: checksum"):
        item.download(tmp_path / "bad")
    assert len(tried) == s3.DOWNLOADS


def test_the_etag_of_an_upload_in_parts_is_checked(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(os.urandom(9 * 2**20))
    store.upload_file(str(tmp_path / "big"), BUCKET, "big")
    item = next(s3.list_objects(BUCKET, "big"))
    assert item.etag.endswith("-2")
    head = {"ETag": item.etag}
    assert len(set(s3._checksums(tmp_path / "big", head, item.etag, lambda: 8 * 2**20))) == 1
    with (tmp_path / "big").open("r+b") as stream:
        stream.seek(2**23 + 5)
        stream.write(b"garbled")
    assert len(set(s3._checksums(tmp_path / "big", head, item.etag, lambda: 8 * 2**20))) == 2


def test_an_object_that_changes_during_ingest_ends_the_stage(store: Any, tmp_path: Path) -> None:
    store.put_object(Bucket=BUCKET, Key="x", Body=b"old")
    item = next(s3.list_objects(BUCKET, "x"))
    store.put_object(Bucket=BUCKET, Key="x", Body=b"new")
    with pytest.raises(StorageError, match="changed during ingest"):
        item.download(tmp_path / "x")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://scans/nothing", "no such object, and no object below that prefix"),
        ("s3://no-such-bucket/x", "NoSuchBucket"),
        ("s3:///x", "expected s3://BUCKET/KEY"),
        ("s3://scans/../../etc", "expected s3://BUCKET/KEY"),
    ],
)
def test_a_missing_source_is_named(source: str, words: str, store: Any, tiny: Params) -> None:
    with pytest.raises(DataError, match=words), open_source(source, tiny.ingest):
        pass


def etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_prefix_lists_its_objects_with_size_and_etag(store: Any) -> None:
    store.put_object(Bucket=BUCKET, Key="p/b.nii.gz", Body=b"old")
    store.put_object(Bucket=BUCKET, Key="p/a/c.dcm", Body=b"xy")
    store.put_object(Bucket=BUCKET, Key="pq/other", Body=b"x")
    fetched = Fetched(store)
    for source in ("s3://scans/p", "s3://scans/p/"):
        assert list_source(source) == f"a/c.dcm,2,{etag(b'xy')}\nb.nii.gz,3,{etag(b'old')}\n"
    store.put_object(Bucket=BUCKET, Key="p/b.nii.gz", Body=b"new")
    assert list_source("s3://scans/p") == f"a/c.dcm,2,{etag(b'xy')}\nb.nii.gz,3,{etag(b'new')}\n"
    assert fetched.keys == []


def test_a_table_in_s3_lists_itself_and_the_objects_that_it_names(store: Any, tmp_path: Path) -> None:
    table = (
        b"case_id,modality,image,liver_state,tumour_state\n"
        b"one,CT,one.nii.gz,unknown,unknown\ntwo,CT,s3://scans/q/two.nii.gz,unknown,unknown\n"
    )
    for key, body in (("p/cohort.csv", table), ("p/one.nii.gz", b"1")):
        store.put_object(Bucket=BUCKET, Key=key, Body=body)
    (tmp_path / "table.csv").write_bytes(table)
    own = f"cohort.csv,{len(table)},{sha256_file(tmp_path / 'table.csv')}\n"
    named = f"one.nii.gz,1,{etag(b'1')}\ns3://scans/q/two.nii.gz,,missing\n"
    assert list_source("s3://scans/p/cohort.csv") == own + named
    store.put_object(Bucket=BUCKET, Key="q/two.nii.gz", Body=b"22")
    named = f"one.nii.gz,1,{etag(b'1')}\ns3://scans/q/two.nii.gz,2,{etag(b'22')}\n"
    assert list_source("s3://scans/p/cohort.csv") == own + named
    assert list_source("s3://scans/p") == f"cohort.csv,{len(table)},{etag(table)}\n" + named
    assert list_source(str(tmp_path / "table.csv")).splitlines()[:2] == [
        "one.nii.gz,,missing",
        f"s3://scans/q/two.nii.gz,2,{etag(b'22')}",
    ]


def test_a_listing_of_nothing_is_refused(store: Any) -> None:
    with pytest.raises(DataError, match=r"^source s3://scans/none: no such object, and no object below that prefix$"):
        list_source("s3://scans/none")


def test_a_key_that_is_a_file_and_a_folder_is_named(store: Any, tiny: Params) -> None:
    for key in ("a/b.json", "a/b.json/c.json"):
        store.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with pytest.raises(StorageError, match=r"s3://scans/a/b\.json"), open_source(f"s3://{BUCKET}/a", tiny.ingest):
        pass


def test_a_key_that_climbs_out_is_refused(store: Any, tiny: Params) -> None:
    store.put_object(Bucket=BUCKET, Key="a/../../../evil.nii.gz", Body=b"x")
    with pytest.raises(DataError, match="the key leaves its bucket"), open_source(f"s3://{BUCKET}/a", tiny.ingest):
        pass


def test_a_store_that_does_not_answer_fails_the_stage_and_refuses_no_case(
    store: Any, phantom_source: Path, tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, phantom_source, "p")
    before = ingested(f"s3://{BUCKET}/p", tmp_path / "cohort", tiny)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    s3_client.client.cache_clear()
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        ingested(f"s3://{BUCKET}/p", tmp_path / "cohort", tiny)
    assert read_manifest(tmp_path / "cohort", Cohort.KIND).hash == before
    assert len(Cohort.load(tmp_path / "cohort").cases) == 8


def test_the_cache_stays_below_its_limit_and_keeps_the_newest(tmp_path: Path, store: Any) -> None:
    items = []
    for number in range(6):
        store.put_object(Bucket=BUCKET, Key=f"{number}", Body=bytes([number]) * 1000)
        items.append(next(s3.list_objects(BUCKET, f"{number}")))
    cache = remote_cache.Cache(tmp_path / "small", limit_bytes=3500)
    for number, item in enumerate(items):
        cache.place(item, tmp_path / "out" / item.key)
        os.utime(cache._kept(item), (number, number))
    cache.trim()
    assert [cache._kept(item).is_file() for item in items] == [False] * 3 + [True] * 3
    for number, item in enumerate(items):
        assert (tmp_path / "out" / item.key).read_bytes() == bytes([number]) * 1000
    assert cache.digests(items) == [sha256_file(tmp_path / "out" / item.key) for item in items]
    assert not cache._kept(items[0]).is_file()  # its digest came from the index
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "small", tmp_path / "small" / "files")] == [0, 0]


@pytest.mark.parametrize("limit", ["0", "-1", "much"])
def test_an_invalid_limit_is_named(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote_cache.LIMIT_VARIABLE, limit)
    with pytest.raises(DataError, match=f"HEPAR_CACHE_GIB is '{limit}'"):
        remote_cache.Cache.of_user()
