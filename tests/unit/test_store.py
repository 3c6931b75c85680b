"""What is kept between runs, where another run is at it in the same moment."""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest


def keep(runner: Any, top: Path) -> Path:
    aside, folder = top / "aside", top / "kept"
    (aside / "bin").mkdir(parents=True)
    (aside / "bin" / "true").write_text("x")
    runner.write_record(str(aside), "bin", {"covered": []})
    runner.remove_tree(str(folder))
    return aside.rename(folder)


def test_what_another_run_keeps_while_it_is_looked_for_stays(
    runner_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runner_module.load_json

    def late(path: str) -> Any:
        found = plain(path)
        keep(runner_module, tmp_path)
        return found

    keep(runner_module, tmp_path)
    assert runner_module.kept_record(str(tmp_path / "kept"), "bin") == {"covered": []}
    (tmp_path / "kept" / "record.json").unlink()
    with monkeypatch.context() as patched:  # what was damaged is made again meanwhile
        patched.setattr(runner_module, "load_json", late)
        assert runner_module.kept_record(str(tmp_path / "kept"), "bin") is None
    assert runner_module.kept_record(str(tmp_path / "kept"), "bin") == {"covered": []}


def test_what_is_gone_before_it_is_used_is_told(runner_module: Any, tmp_path: Path) -> None:
    with runner_module.ExitStack() as cleanup:
        store = runner_module.Store(str(tmp_path / "store"), None, cleanup)
        with pytest.raises(runner_module.Failure) as raised:
            store.once("key", lambda: None, lambda: None)
    assert raised.value.type == "store_unavailable" and raised.value.retryable


def test_a_lock_is_let_go_though_a_fork_has_it_open(runner_module: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    lock = runner_module.open_lock(path, True)
    waiting, pid = os.open(path, os.O_RDWR), os.fork()
    if pid == 0:
        signal.pause()
    try:
        runner_module.close_lock(path, lock)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(waiting)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_another_run_removes_while_it_is_looked_at_is_made_again(
    runner_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = keep(runner_module, tmp_path), runner_module.stamp

    def late(path: str) -> Any:
        runner_module.remove_tree(str(folder))
        return plain(path)

    monkeypatch.setattr(runner_module, "stamp", late)
    assert runner_module.size_of(str(folder)) == 0
    assert runner_module.size_of(str(folder)) == 0
    keep(runner_module, tmp_path)
    assert runner_module.kept_record(str(folder), "bin") is None


def test_what_another_run_prunes_before_it_is_used_is_told(runner_module: Any, tmp_path: Path) -> None:
    tree = tmp_path / "trees" / "key"
    (tree / "files").mkdir(parents=True)

    def failure() -> Any:
        with pytest.raises(FileNotFoundError) as raised:
            (tree / "files" / "module.py").stat()
        return runner_module.host_failure(raised.value)

    assert failure() is None
    runner_module.prune(str(tree), time.time() + 1, str(tmp_path / "aside"))
    assert failure().type == "store_unavailable" and failure().retryable


def test_what_is_just_pruned_is_not_held(runner_module: Any, tmp_path: Path) -> None:
    with runner_module.ExitStack() as cleanup:
        store = runner_module.Store(str(tmp_path / "store"), None, cleanup)
        pruning = os.open(store.path("trees"), os.O_RDONLY)
        fcntl.flock(pruning, fcntl.LOCK_EX)
        with pytest.raises(runner_module.Failure) as raised:
            store.hold(store.path("trees"))
        os.close(pruning)
    assert raised.value.type == "store_unavailable" and raised.value.retryable
