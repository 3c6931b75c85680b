"""Manifest and index of a bundle: as the published tool writes them, and whatever else there may be instead."""

import json
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.artifact import (
    TITLE,
    Blob,
    check_index,
    check_paths,
    read_manifest,
    sha256_of,
    write_index,
    write_manifest,
)

BLOBS = Path(__file__).resolve().parent.parent / "registry" / "oci" / "blobs" / "sha256"
INDEX = json.loads((BLOBS.parent.parent / "index.json").read_text())

names = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["..", ".", "a", "A", "con", ".git", "é"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def published() -> bytes:
    return (BLOBS / INDEX["manifests"][0]["digest"].removeprefix("sha256:")).read_bytes()


def test_what_the_published_tool_wrote_byte_for_byte() -> None:
    artifact = read_manifest(published())
    index = (BLOBS / artifact.config.digest).read_bytes()
    body = check_index(index, artifact)
    assert write_manifest(artifact.config, artifact.files) == published()
    assert write_index(artifact.files, body["created"], body["tool"]) == index


@given(st.lists(paths, min_size=1, max_size=4, unique=True))
def test_paths_that_pass_stay_inside_and_apart(found: list[str]) -> None:
    try:
        check_paths(found)
    except BundleError as error:
        assert error.type == "unsafe_file" and str(error).isprintable()
        return
    for path in found:
        assert posixpath.normpath(path) == path and not path.startswith(("/", "../")) and path not in ("", ".", "..")
    assert len({path.casefold() for path in found}) == len(found)
    assert not any(other.startswith(path + "/") for path in found for other in found)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.binary(max_size=8), min_size=1, max_size=5))
def test_there_and_back(files: dict[str, bytes]) -> None:
    blobs = {path: Blob(sha256_of(data), len(data)) for path, data in files.items()}
    index = write_index(blobs, "2026-01-01T00:00:00Z", {"name": "a", "version": "1"})
    artifact = read_manifest(write_manifest(Blob(sha256_of(index), len(index)), blobs))
    assert artifact.files == blobs and artifact.size == sum(map(len, files.values()))
    check_index(index, artifact)


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_artifact_or_an_error(data: bytes) -> None:
    artifact = read_manifest(published())
    for read in (read_manifest, lambda data: check_index(data, artifact)):
        with pytest.raises(BundleError) as error:
            read(data)  # type: ignore[operator]
        assert str(error.value).isprintable()


PLACES: list[tuple[str | int, ...]] = [(), ("config",), ("layers", 0), ("layers", 0, "annotations")]
KEYS = ["schemaVersion", "mediaType", "config", "layers", "annotations", "manifests", "digest", "size", TITLE]


@given(st.sampled_from(PLACES), st.sampled_from(KEYS), values)
def test_any_value_in_any_place(where: tuple[str | int, ...], key: str, value: object) -> None:
    body = place = json.loads(published())
    for step in where:
        place = place[step]
    place[key] = value
    try:
        read_manifest(json.dumps(body).encode())
    except BundleError as error:
        assert str(error).isprintable()
