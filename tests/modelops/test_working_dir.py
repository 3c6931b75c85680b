"""Working directories: their own while their process lives, and swept when it died."""

import os
import subprocess
import sys
from pathlib import Path

from modelops.adapters.working_dir import WorkingDir, clear_away


def test_it_goes_with_its_block(tmp_path: Path) -> None:
    with WorkingDir(tmp_path / "parent") as working:
        (working.path / "file").write_text("x")
        assert working.path.parent == tmp_path / "parent"
    assert list((tmp_path / "parent").iterdir()) == []


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    working = WorkingDir(tmp_path)
    working.close()
    working.close()


def test_one_that_is_in_use_is_not_swept(tmp_path: Path) -> None:
    with WorkingDir(tmp_path) as first, WorkingDir(tmp_path) as second:
        assert first.path.is_dir() and second.path.is_dir()


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from modelops.adapters.working_dir import WorkingDir\n"
        "working = WorkingDir(Path(sys.argv[1])); (working.path / 'file').write_text('x'); os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with WorkingDir(tmp_path) as working:
        assert list(tmp_path.iterdir()) == [working.path]


def test_what_is_left_in_a_storage_directory_is_cleared_away(tmp_path: Path) -> None:
    for name in ("dask", "incoming"):
        (tmp_path / name / ".working-dead").mkdir(parents=True)
    with WorkingDir(tmp_path / "dask") as alive:
        clear_away(tmp_path)
        clear_away(tmp_path / "absent")
        assert list(tmp_path.glob("*/.working-*")) == [alive.path]


def test_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".working-file").write_text("not a directory")
    WorkingDir(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", ".working-file"}
    (tmp_path / ".working-file").unlink()
