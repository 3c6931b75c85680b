"""The digest of a bundle's content, and its copy."""

import os
import random
import shutil
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.content import copy_bundle, digest_of
from modelops.adapters.working_dir import remove_tree

names = st.text("abcXYZ0.é_-", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
trees = st.recursive(
    st.binary(max_size=20), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def write(tree: object, path: Path, order: random.Random) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    assert isinstance(tree, dict)
    path.mkdir()
    items = list(tree.items())
    order.shuffle(items)
    for name, inner in items:
        write(inner, path / name, order)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "src").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "src" / "a.py").write_text("x = 1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("src/a.py")
    return folder


@given(tree=trees, other=trees)
def test_it_depends_on_content_alone(tree: object, other: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("trees")
    try:
        for number in (1, 2):
            write(tree, top / f"same{number}", random.Random(number))
        os.utime(top / "same1", (1, 1))
        write(other, top / "other", random.Random(3))
        assert digest_of(top / "same1") == digest_of(top / "same2")
        assert (digest_of(top / "other") == digest_of(top / "same1")) == (tree == other)
        assert (
            copy_bundle(top / "same1", top / "copy") == digest_of(top / "copy", exclude=()) == digest_of(top / "same1")
        )
        remove_tree(top / "copy")
        assert not (top / "copy").exists()
    finally:
        shutil.rmtree(top)


def test_it_is_stable(source: Path) -> None:
    """The digest names bundles in other people's references: it may not change by accident."""
    assert digest_of(source) == "dd995ca9840427eb84c4a25fe38d776deed00d7bd545dc37f33e3547fed37b81"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "src" / "a.py").write_text("x = 2\n"),
        lambda folder: (folder / "src" / "b.py").write_text(""),
        lambda folder: (folder / "src" / "empty").mkdir(),
        lambda folder: (folder / "src" / "a.py").unlink(),
        lambda folder: (folder / "src" / "a.py").rename(folder / "src" / "c.py"),
        lambda folder: (folder / "src" / "a.py").chmod(0o755),
        lambda folder: ((folder / "link").unlink(), (folder / "link").symlink_to("run.sh")),
        lambda folder: ((folder / "link").unlink(), (folder / "link").write_text("src/a.py")),
    ],
)
def test_every_change_shows(source: Path, change: object) -> None:
    before = digest_of(source)
    change(source)  # type: ignore[operator]
    assert digest_of(source) != before


@pytest.mark.parametrize("name", [".git", ".venv", "__pycache__", "src/__pycache__", "node_modules"])
def test_what_tools_leave_is_no_part_of_it(source: Path, tmp_path: Path, name: str) -> None:
    before = digest_of(source)
    (source / name).mkdir()
    (source / name / "file").write_text("x")
    assert digest_of(source) == before
    copy_bundle(source, tmp_path / "copy")
    assert not (tmp_path / "copy" / name).exists()


def test_what_is_put_into_a_copy_shows(source: Path, tmp_path: Path) -> None:
    copy_bundle(source, tmp_path / "copy")
    before = digest_of(tmp_path / "copy", exclude=())
    (tmp_path / "copy").chmod(0o755)
    (tmp_path / "copy" / "__pycache__").mkdir()
    assert digest_of(tmp_path / "copy", exclude=()) != before


def test_a_copy_is_read_only(source: Path, tmp_path: Path) -> None:
    copy_bundle(source, tmp_path / "copy")
    modes = {
        path.name: path.lstat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*") if not path.is_symlink()
    }
    assert modes == {"src": 0o555, "a.py": 0o444, "run.sh": 0o555, "pyproject.toml": 0o444}
    assert os.readlink(tmp_path / "copy" / "link") == "src/a.py"


@pytest.mark.parametrize("link", ["/etc/passwd", "..", "../other", "src/../../x", "src/../.."])
def test_a_link_that_leads_out_is_refused(source: Path, link: str) -> None:
    (source / "evil").symlink_to(link)
    with pytest.raises(BundleError, match="evil") as error:
        digest_of(source)
    assert error.value.type == "unsafe_file"


def test_special_files_are_refused(source: Path, tmp_path: Path) -> None:
    os.mkfifo(source / "fifo")
    with pytest.raises(BundleError, match="fifo"):
        digest_of(source)
    (source / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "s"))
        with pytest.raises(BundleError, match="'s'"):
            digest_of(source)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        digest_of(tmp_path / "absent")
    assert error.value.type == "bundle_not_found"
