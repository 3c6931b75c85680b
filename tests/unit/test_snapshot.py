"""Snapshots: what is copied of a bundle, what its digest depends on, what is refused."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

Take = Callable[..., tuple[str, int]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "pkg" / "deep").mkdir(parents=True)
    (folder / "pkg" / "a.py").write_text("A = 1\n")
    (folder / "pkg" / "deep" / "data.bin").write_bytes(bytes(range(256)))
    (folder / "run.sh").write_text("exit\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("pkg/a.py")
    return folder


@pytest.fixture
def take(runner_module: Any, default_profile: Any, source: Path, tmp_path: Path) -> Take:
    """Snapshot `source` and give its digest and size; options change the policy."""
    count = iter(range(1000))

    def snapshot(**changes: Any) -> tuple[str, int]:
        policy = default_profile.bundle._replace(**changes)
        digest, size = runner_module.snapshot(str(source), str(tmp_path / f"copy{next(count)}"), policy)
        return digest, size

    return snapshot


def listing(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


def test_a_snapshot_is_a_copy(source: Path, take: Take, tmp_path: Path) -> None:
    digest, size = take()
    assert listing(tmp_path / "copy0") == listing(source)
    assert size == len("A = 1\n") + 256 + len("exit\n")
    assert len(digest) == 64


def test_copies_are_new_files_with_plain_modes(source: Path, take: Take, tmp_path: Path) -> None:
    (source / "pkg" / "a.py").chmod(0o4777)
    (source / "pkg" / "deep" / "data.bin").chmod(0o600)
    os.link(source / "run.sh", source / "hard")
    take()
    copy = tmp_path / "copy0"
    modes = {
        str(path.relative_to(copy)): path.stat().st_mode & 0o7777 for path in copy.rglob("*") if not path.is_symlink()
    }
    assert modes == {
        "pkg": 0o755,
        "pkg/a.py": 0o755,
        "pkg/deep": 0o755,
        "pkg/deep/data.bin": 0o644,
        "run.sh": 0o755,
        "hard": 0o755,
    }
    assert all((copy / name).stat().st_nlink == 1 for name in ("hard", "run.sh"))


def test_the_digest_does_not_depend_on_times_or_place(source: Path, take: Take, tmp_path: Path) -> None:
    before = take()
    for path in source.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert take() == before
    source.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(source)
    assert take() == before


def replaced(path: Path) -> Path:
    path.unlink()
    return path


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda folder: (folder / "pkg" / "a.py").write_text("A = 2\n"),
    "length": lambda folder: (folder / "pkg" / "a.py").write_text("A = 1\n\n"),
    "new file": lambda folder: (folder / "new").touch(),
    "new folder": lambda folder: (folder / "new").mkdir(),
    "file gone": lambda folder: (folder / "run.sh").unlink(),
    "name": lambda folder: (folder / "run.sh").rename(folder / "ran.sh"),
    "folder": lambda folder: (folder / "run.sh").rename(folder / "pkg" / "run.sh"),
    "executable": lambda folder: (folder / "run.sh").chmod(0o644),
    "link text": lambda folder: replaced(folder / "link").symlink_to("./pkg/a.py"),
    "link to file": lambda folder: replaced(folder / "link").write_text("A = 1\n"),
    "file to folder": lambda folder: replaced(folder / "run.sh").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_digest_changes_with(source: Path, take: Take, change: Callable[[Path], object]) -> None:
    before = take()[0]
    change(source)
    assert take()[0] != before


def test_moving_bytes_from_a_file_to_the_next_changes_the_digest(source: Path, take: Take) -> None:
    (source / "x").write_text("ab")
    (source / "y").write_text("c")
    before = take()[0]
    (source / "x").write_text("a")
    (source / "y").write_text("bc")
    assert take()[0] != before


def test_excluded_folders_are_left_out_and_files_of_that_name_are_not(source: Path, take: Take, tmp_path: Path) -> None:
    before = take()
    (source / "pkg" / "__pycache__").mkdir()
    (source / "pkg" / "__pycache__" / "a.pyc").write_text("x")
    (source / ".venv").mkdir()
    os.mkfifo(source / ".venv" / "fifo")
    assert take() == before
    (source / "venv").write_text("a file")
    assert take() != before
    assert (tmp_path / "copy2" / "venv").is_file()


def refused(runner_module: Any, take: Take, **changes: Any) -> Any:
    with pytest.raises(runner_module.Failure) as caught:
        take(**changes)
    return caught.value


@pytest.mark.parametrize("text", ["/etc/passwd", "..", "../outside", "pkg/../../outside", "../source/run.sh", "/"])
def test_a_link_out_of_the_bundle_is_refused(runner_module: Any, source: Path, take: Take, text: str) -> None:
    (source / "out").symlink_to(text)
    failure = refused(runner_module, take)
    assert (failure.phase, failure.type) == ("bundle", "unsafe_file")
    assert "'out'" in failure.error


@pytest.mark.parametrize("text", ["a.py", "./deep", "../run.sh", "deep/../a.py", "absent", ".", "../link"])
def test_a_link_inside_the_bundle_is_kept_as_it_is(source: Path, take: Take, tmp_path: Path, text: str) -> None:
    (source / "pkg" / "in").symlink_to(text)
    take()
    assert os.readlink(tmp_path / "copy0" / "pkg" / "in") == text


@pytest.mark.parametrize(("path", "link"), [("a/b", "../../x"), ("a", "/x"), ("a/b/c", "../../../x"), ("a", "b/../..")])
def test_safe_link_refuses(runner_module: Any, path: str, link: str) -> None:
    with pytest.raises(runner_module.Failure):
        runner_module.safe_link(path, link)


@given(
    st.lists(st.sampled_from(["..", ".", "a", "b", ""]), min_size=1),
    st.lists(st.sampled_from("ab"), min_size=1),
)
def test_a_kept_link_stays_inside(runner_module: Any, link: list[str], path: list[str]) -> None:
    text = "/".join(link)
    try:
        runner_module.safe_link("/".join(path), text)
    except runner_module.Failure:
        return
    depth = len(path) - 1
    for part in link:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
    assert depth >= 0 and not text.startswith("/")


def test_a_fifo_is_refused_at_once(runner_module: Any, source: Path, take: Take) -> None:
    os.mkfifo(source / "pkg" / "fifo")
    failure = refused(runner_module, take)
    assert failure.type == "unsafe_file" and "'pkg/fifo'" in failure.error


def test_a_socket_is_refused(runner_module: Any, source: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert refused(runner_module, take).type == "unsafe_file"


def test_a_sparse_file_counts_in_full(runner_module: Any, source: Path, take: Take, tmp_path: Path) -> None:
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    failure = refused(runner_module, take)
    assert (failure.phase, failure.type) == ("bundle", "bundle_too_large")
    assert "'sparse'" in failure.error and "bundle.max_bytes" in failure.error
    assert not list(tmp_path.glob("copy*/sparse")), "what is too large is known before it is copied"


def test_sizes_add_up(runner_module: Any, take: Take) -> None:
    size = take()[1]
    assert take(max_bytes=size)[1] == size
    assert refused(runner_module, take, max_bytes=size - 1).type == "bundle_too_large"


def test_entries_are_counted(runner_module: Any, take: Take) -> None:
    take(max_files=6)
    assert "bundle.max_files" in refused(runner_module, take, max_files=5).error


def test_a_tree_deeper_than_a_path_may_be_long_is_refused(runner_module: Any, source: Path, take: Take) -> None:
    folder = os.open(source, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d" * 20, dir_fd=folder)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    try:
        assert refused(runner_module, take).phase == "bundle"
    finally:  # shutil.rmtree, and so pytest, can't go that deep
        subprocess.run(["rm", "-rf", *source.parent.iterdir()], check=True)


def test_names_of_any_bytes_are_copied(source: Path, take: Take, tmp_path: Path) -> None:
    name = b"\xff\x1b\n\xc3\xa9"
    (source / os.fsdecode(name)).write_text("x")
    take()
    assert name in os.listdir(os.fsencode(tmp_path / "copy0"))


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_bundle_that_is_no_directory(runner_module: Any, default_profile: Any, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(runner_module.Failure, match=kind) as caught:
        runner_module.snapshot(str(tmp_path / kind), str(tmp_path / "copy"), default_profile.bundle)
    assert (caught.value.phase, caught.value.type) == ("input", "bundle_not_found")
