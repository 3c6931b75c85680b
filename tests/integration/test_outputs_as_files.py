"""Large outputs as files: named by their checksum, streamed, and nothing else is written."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner, parse_line

Bundle = Callable[..., Path]
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
WIRE = "def wire(*a):\n    return {'small': b's' * 10, 'edge': b'e' * 100, 'large': b'l' * 101, 'same': b'l' * 101}\n"


def checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def test_outputs_over_the_size_are_files_named_by_their_checksum(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    body = run(bundle(WIRE), None, "--out-dir", str(out), "--inline-max", "100").body["outputs"]
    assert {name for name, entry in body.items() if "inline" in entry} == {"small", "edge"}
    for name in ("large", "same"):
        assert body[name] == {
            "size": 101,
            "checksum": checksum(b"l" * 101),
            "path": str(out / checksum(b"l" * 101)),
        }
    assert [entry.name for entry in out.iterdir()] == [checksum(b"l" * 101)]
    assert (out / checksum(b"l" * 101)).read_bytes() == b"l" * 101


def test_the_result_is_the_same_in_either_form(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    path = bundle(WIRE)
    files = run(path, None, "--out-dir", str(tmp_path), "--inline-max", "0").body
    inline = run(path).body
    assert files["task_id"] == inline["task_id"]
    for name, entry in inline["outputs"].items():
        assert (files["outputs"][name]["size"], files["outputs"][name]["checksum"]) == (
            entry["size"],
            entry["checksum"],
        )


def test_without_out_dir_everything_is_inline(run: Runner, bundle: Bundle) -> None:
    outputs = run(bundle("def wire(*a):\n    return {'out': bytes(3 << 20)}\n"), None, "--inline-max", "10").outputs
    assert outputs == {"out": bytes(3 << 20)}


def test_a_relative_folder_is_given_back_absolute(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    command = run.command("--bundle-path", str(bundle(WIRE)), "--out-dir", ".", "--inline-max", "0")
    done = subprocess.run(command, input=TASK, capture_output=True, cwd=tmp_path, env=run.environment())
    for entry in parse_line(done.stdout)["outputs"].values():
        assert Path(entry["path"]).is_absolute() and Path(entry["path"]).parent == tmp_path


FAILING = {
    "exception": (
        "def wire(*a):\n"
        "    class Out(dict):\n"
        "        def items(self):\n"
        "            yield 'a', b'x' * 1000\n"
        "            raise ValueError\n"
        "    return Out()\n"
    ),
    "crash": (
        "import os\n"
        "def wire(*a):\n"
        "    class Out(dict):\n"
        "        def items(self):\n"
        "            yield 'a', b'x' * 1000\n"
        "            os._exit(1)\n"
        "    return Out()\n"
    ),
    "bad name": "def wire(*a):\n    return {'a': b'x' * 1000, '../b': b'x' * 1000}\n",
}


@pytest.mark.parametrize("code", FAILING.values(), ids=FAILING.keys())
def test_a_failed_run_leaves_no_partial_file(run: Runner, bundle: Bundle, tmp_path: Path, code: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(bundle(code), None, "--out-dir", str(out), "--inline-max", "10").error
    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".partial")] == []


def test_a_folder_that_can_not_be_written(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write to any folder")
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    error = run(bundle(WIRE), None, "--out-dir", str(out), "--inline-max", "0").error
    assert (error["phase"], error["type"]) == ("result", "output_unwritable")


def test_a_link_in_the_folder_is_not_written_through(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.write_text("untouched")
    (out / checksum(b"l" * 101)).symlink_to(elsewhere)
    run(bundle(WIRE), None, "--out-dir", str(out), "--inline-max", "100")
    assert elsewhere.read_text() == "untouched"
    assert (out / checksum(b"l" * 101)).read_bytes() == b"l" * 101


def peak_of(run: Runner, path: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    """The result of a run, and the largest resident set of the runner's own process, by wait4."""
    code = (
        "import os, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:])\n"
        "_, status, used = os.wait4(process.pid, 0)\n"
        "print(used.ru_maxrss, file=sys.stderr)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    command = [sys.executable, "-c", code, *run.command("--bundle-path", str(path), *arguments)]
    done = subprocess.run(command, input=TASK, capture_output=True, env=run.environment())
    return parse_line(done.stdout), int(done.stderr.split()[-1]) * 1024


def test_a_large_output_does_not_pass_through_the_runners_memory(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    size = 256 << 20
    path = bundle(f"def wire(*a):\n    return {{'out': bytes({size})}}\n")
    small, base = peak_of(run, bundle("def wire(*a):\n    return {'out': b'x'}\n"), "--out-dir", str(tmp_path))
    body, peak = peak_of(run, path, "--out-dir", str(tmp_path))
    assert "outputs" in small and body["outputs"]["out"]["size"] == size
    assert os.stat(body["outputs"]["out"]["path"]).st_size == size
    assert peak < base + size / 4
