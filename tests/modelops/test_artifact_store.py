"""The content-addressed store: by checksum, atomic, verified."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelops_contracts import digest_bytes

from modelops.adapters.artifact_store import ArtifactDamaged, ArtifactStore, checksum_of, reference_of


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000))
def test_what_is_put_is_got(artifacts: ArtifactStore, data: bytes) -> None:
    ref = artifacts.put(data, digest_bytes(data))
    assert ref == reference_of(digest_bytes(data)) and artifacts.exists(ref) and artifacts.get(ref) == data


def test_a_wrong_checksum_is_refused_and_nothing_kept(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactDamaged):
        artifacts.put(b"data", digest_bytes(b"other"))
    assert not artifacts.exists(reference_of(digest_bytes(b"data")))
    assert not artifacts.exists(reference_of(digest_bytes(b"other")))


def test_a_file_is_moved_in(artifacts: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    checksum = checksum_of(file)
    assert checksum == digest_bytes(b"x" * 3_000_000)
    assert artifacts.get(artifacts.adopt(file, checksum)) == b"x" * 3_000_000
    assert not file.exists()


def test_a_file_with_another_content_is_refused(artifacts: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(ArtifactDamaged):
        artifacts.adopt(file, digest_bytes(b"y"))
    assert file.exists()


def test_a_damaged_content_is_an_error_and_heals(artifacts: ArtifactStore) -> None:
    ref = artifacts.put(b"data", digest_bytes(b"data"))
    path = artifacts._path(ref)
    path.chmod(0o644)
    path.write_bytes(b"tada")
    with pytest.raises(ArtifactDamaged, match=digest_bytes(b"tada")):
        artifacts.get(ref)
    assert artifacts.get(artifacts.put(b"data", digest_bytes(b"data"))) == b"data"


@pytest.mark.parametrize(
    "ref",
    [
        reference_of("0" * 64),
        "cas://",
        "0" * 64,
        "cas://" + "0" * 63 + "G",
        "cas://../../../../etc/passwd",
        "file:///etc/passwd",
        "cas://" + "0" * 64 + "\n",
        "cas://" + "A" * 64,
    ],
)
def test_unknown_and_strange_references_are_absent(artifacts: ArtifactStore, ref: str) -> None:
    assert not artifacts.exists(ref)
    with pytest.raises(KeyError):
        artifacts.get(ref)


def test_many_threads_put_the_same(artifacts: ArtifactStore) -> None:
    data = os.urandom(100_000)
    with ThreadPoolExecutor(16) as pool:
        refs = set(pool.map(lambda _: artifacts.put(data, digest_bytes(data)), range(64)))
    assert len(refs) == 1 and artifacts.get(refs.pop()) == data
    assert [path for path in artifacts.root.rglob("*") if path.is_file()] == [
        artifacts._path(reference_of(digest_bytes(data)))
    ]


def test_files_are_read_only(artifacts: ArtifactStore) -> None:
    ref = artifacts.put(b"data", digest_bytes(b"data"))
    assert artifacts._path(ref).stat().st_mode & 0o777 == 0o444
