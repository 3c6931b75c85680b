"""What a server learns of its tasks: names and files of hostile processes, bounded."""

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def learned(runner_module: Any, default_profile: Any) -> Any:
    caches = default_profile.caches._replace(max_files=3, max_bytes=100)
    serve = default_profile.serve._replace(max_modules=5)
    return runner_module.Learned(default_profile._replace(caches=caches, serve=serve), "key")


def told(*modules: Any) -> dict[str, bytearray]:
    return {"learned": bytearray(json.dumps({"modules": modules}).encode())}


def test_names_come_in_the_order_of_import_and_once(learned: Any) -> None:
    assert learned.take(told("b", "a.c", "b"))
    assert not learned.take(told("a.c"))
    assert [*learned.modules] == ["b", "a.c"]


BAD_NAMES = ["", ".", "a.", "a b", "a\0", "../a", "a-b", "x" * 256, 1, None, ["a"], "__main__", "a;import os"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_of_a_module_is_left_out(learned: Any, name: Any) -> None:
    assert not learned.take(told(name))


def test_names_are_bounded(learned: Any) -> None:
    learned.take(told(*(f"m{number}" for number in range(10_000))))
    assert len(learned.modules) == 5


NO_NOTES = [b"", b"[]", b"1", b'{"modules": 1}', b'{"modules": {"a": 1}}x', b"\xff", b"[" * 100_000]


@pytest.mark.parametrize("note", NO_NOTES)
def test_a_note_that_is_none_is_left_out(learned: Any, note: bytes) -> None:
    assert not learned.take({"learned": bytearray(note)})


def test_files_below_the_cache_folders_are_taken(learned: Any) -> None:
    assert learned.take({"cache/.cache/numba/a.nbi": bytearray(b"1")})
    assert learned.take({"cache/.cache/numba/a.nbi": bytearray(b"2")})
    assert not learned.take({"cache/.cache/numba/a.nbi": bytearray(b"2")})
    assert learned.files == {".cache/numba/a.nbi": b"2"}


BAD_FILES = [
    "x", ".cache", ".cache/", "/.cache/x", ".cache/../x", ".cache/./x", ".cache//x", ".bashrc", "../.cache/x",
    ".cache/\n", ".cache/" + "a" * 2000, ".cache/" + "/".join("a" * 20), ".cachex/a",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_other_files_are_left_out(learned: Any, name: str) -> None:
    assert not learned.take({"cache/" + name: bytearray(b"1")})


def test_files_are_bounded(learned: Any) -> None:
    assert not learned.take({"cache/.cache/large": bytearray(101)})
    for number in range(10):
        learned.take({f"cache/.cache/{number}": bytearray(1)})
    assert len(learned.files) == 3
    assert not learned.take({"cache/.cache/0": bytearray(99)})


def test_servers_of_one_bundle_share_and_those_of_another_do_not(
    runner_module: Any, default_profile: Any, tmp_path: Path
) -> None:
    def server(key: str) -> Any:
        learned = runner_module.Learned(default_profile, key)
        learned.share(str(tmp_path / "learned"))
        return learned

    first, second = server("a"), server("a")
    first.take({**told("one"), "cache/.cache/x": bytearray(b"\0\xff")})
    first.write()
    second.take(told("two"))
    second.write()
    assert {*server("a").modules} == {"one", "two"} and server("a").files == {".cache/x": b"\0\xff"}
    assert not server("b").modules and not server("b").files
    assert [path.name for path in tmp_path.iterdir()] == ["learned"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "key"}', b'{"key": "key", "modules": 1, "files": 2}'])
def test_a_damaged_file_is_not_used(learned: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "learned").write_bytes(content)
    learned.share(str(tmp_path / "learned"))
    assert not learned.modules and not learned.files


def test_notes_are_bounded(runner_module: Any, default_profile: Any) -> None:
    notes = runner_module.Notes(default_profile.caches._replace(max_files=2, max_bytes=10))
    with pytest.raises(runner_module.Failure):
        notes.add("cache/a", bytes(17 << 20))
    for name in ("other", "learned", "cache/x"):
        notes = runner_module.Notes(default_profile.caches._replace(max_files=2))
        notes.add("learned", b"x")
        notes.add("cache/x", b"x")
        with pytest.raises(runner_module.Failure):
            notes.add(name, b"x")


@pytest.mark.parametrize("why", ["full disk", "signal"])
def test_what_could_not_be_written_leaves_nothing(
    runner_module: Any, learned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def fail(path: str, _: Any) -> None:
        Path(path).write_text("half")
        raise OSError(errno.ENOSPC, "full") if why == "full disk" else runner_module.Killed(15)

    monkeypatch.setattr(runner_module, "write_json", fail)
    learned.share(str(tmp_path / "learned"))
    with suppress(runner_module.Killed):
        learned.write()
    assert [*tmp_path.iterdir()] == []
