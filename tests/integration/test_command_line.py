"""The runner as a shell user meets it: one line on every path through it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PROFILES, RUNNER, Runner, parse_line

Bundle = Callable[..., Path]
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': 'x'}\n"
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'

USAGE = {
    "nothing": [],
    "unknown option": ["--bundle-path", "/tmp", "--colour"],
    "stray word": ["--bundle-path", "/tmp", "word"],
    "option without value": ["--bundle-path"],
    "profile without value": ["--bundle-path", "/tmp", "--profile"],
    "not a number": ["--bundle-path", "/tmp", "--inline-max", "many"],
    "no such choice": ["--cache", "burn"],
    "ambiguous": ["--bundle-path", "/tmp", "--pro", "x"],
    "a terminal for nobody": ["--bundle-path", "/tmp", "--shell"],
    "value for a flag": ["--bundle-path", "/tmp", "--aggregation=yes"],
    "out-dir that is none": ["--bundle-path", "/tmp", "--out-dir", "/nonexistent/folder"],
    "newline": ["--bundle-path", "/tmp", "--x\ny"],
    "not UTF-8": ["--bundle-path", "/tmp", os.fsdecode(b"\xff")],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE.keys())
def test_a_usage_error_is_one_line_and_status_2(run: Runner, arguments: list[str]) -> None:
    error = run(None, None, *arguments).error
    assert (error["phase"], error["type"], error["code"]) == ("input", "usage", 2)


def test_the_exit_status_is_the_code_of_the_error(run: Runner, tmp_path: Path) -> None:
    result = run(tmp_path / "absent")
    assert result.code == result.error["code"] == 2
    assert result.error["type"] == "bundle_not_found" and "absent" in result.error["error"]


def test_a_profile_that_is_nowhere_is_told(run: Runner, bundle: Bundle) -> None:
    error = run(bundle(WIRE), None, "--profile", "no-such").error
    assert (error["phase"], error["type"], error["code"]) == ("host", "profile_not_found", 3)


@pytest.mark.parametrize("profile", ["default", "strict", "debug", "container"])
def test_every_shipped_profile_runs_a_task(run: Runner, bundle: Bundle, profile: str) -> None:
    assert run(bundle(WIRE), None, "--profile", profile).outputs == {"out": b"x"}


@pytest.mark.parametrize("how", ["option", "variable", "path"])
def test_profiles_are_found(run: Runner, bundle: Bundle, tmp_path: Path, how: str) -> None:
    (tmp_path / "mine.toml").write_text(
        (PROFILES / "default.toml").read_text().replace('hostname = "sandbox"', 'hostname = "mine"')
    )
    path = bundle("import socket\ndef wire(*a):\n    return {'out': socket.gethostname()}\n")
    arguments = {
        "option": ["--profile", "mine", "--profiles-dir", str(tmp_path)],
        "variable": ["--profile", "mine"],
        "path": ["--profile", str(tmp_path / "mine.toml")],
    }[how]
    env = {"SANDBOX_PROFILES_DIR": str(tmp_path)} if how == "variable" else {}
    assert run(path, None, *arguments, env=env).outputs == {"out": b"mine"}


@pytest.mark.parametrize("cwd", ["/", "elsewhere"])
def test_relative_paths_and_any_working_directory(run: Runner, bundle: Bundle, tmp_path: Path, cwd: str) -> None:
    path = bundle(WIRE)
    folder = tmp_path if cwd == "elsewhere" else Path(cwd)
    command = run.command("--bundle-path", os.path.relpath(path, folder))
    done = subprocess.run(command, input=TASK, capture_output=True, cwd=folder, env=run.environment())
    assert "outputs" in parse_line(done.stdout)


def test_a_copy_of_the_runner_runs_from_any_path(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    tree = tmp_path / "a path with ü and spaces"
    (tree / "tools").mkdir(parents=True)
    shutil.copy(RUNNER, tree / "tools")
    shutil.copytree(PROFILES, tree / "sandbox-profiles")
    (tmp_path / "link.py").symlink_to(tree / "tools" / RUNNER.name)
    for script in (tree / "tools" / RUNNER.name, tmp_path / "link.py"):
        command = [
            sys.executable,
            str(script),
            "--store-dir",
            str(run.store),
            "--bundle-path",
            str(bundle(WIRE)),
        ]
        done = subprocess.run(command, input=TASK, capture_output=True, env=run.environment())
        assert "outputs" in parse_line(done.stdout)


def test_help_is_for_people() -> None:
    done = subprocess.run([sys.executable, str(RUNNER), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for option in (
        "--bundle-path",
        "--aggregation",
        "--profile",
        "--out-dir",
        "--doctor",
        "--print-bwrap",
        "--cache",
    ):
        assert option in done.stdout


def test_doctor_says_what_this_host_can_do(run: Runner) -> None:
    result = run(None, None, "--doctor")
    report = result.body["doctor"]
    assert result.code == 0 and report["ok"] is True and report["sandbox"] is True
    assert report["bwrap"][0].isdigit() and report["python"] == sys.version.split()[0]
    assert report["root"] == (os.geteuid() == 0) and report["cgroup"] in (None, 1, 2)
    assert all(set(gap) == {"type", "remedy"} for gap in report["gaps"])
    assert "can run sandboxes" in result.stderr


def without_bwrap(tmp_path: Path) -> dict[str, str]:
    """A PATH with a bwrap that fails as an unhappy host's does."""
    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        "if [ $1 = --version ]; then echo bubblewrap 0.8.0; exit; fi\n"
        "echo 'bwrap: setting up uid map: Permission denied' >&2\n"
        "exit 1\n"
    )
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    return {"PATH": f"{fake.parent}:{os.environ['PATH']}"}


def test_doctor_names_the_gap_and_the_remedy(run: Runner, tmp_path: Path) -> None:
    result = run(None, None, "--doctor", env=without_bwrap(tmp_path))
    assert result.code == 1 and result.body["doctor"]["ok"] is False
    assert [gap["type"] for gap in result.body["doctor"]["gaps"]][:1] in (
        ["userns_denied"],
        ["bwrap_failed"],
        ["source_unreachable"],
    )
    assert "can't run sandboxes" in result.stderr


def test_without_bwrap_there_is_no_sandbox_and_no_weaker_one(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = run(bundle(WIRE), env={"PATH": str(tmp_path / "empty")}).error
    assert (error["phase"], error["type"]) == ("host", "bwrap_unavailable")
    assert "install bubblewrap" in error["error"]


def test_print_bwrap_shows_every_phase_and_runs_nothing(run: Runner) -> None:
    result = run(None, None, "--print-bwrap")
    assert result.code == 0 and set(result.body["phases"]) == {"fetch", "build", "compile", "execute"}
    for phase, shown in result.body["phases"].items():
        assert ("--unshare-net" in shown["bwrap"]) == (phase != "fetch")
        assert set(shown) >= {"bwrap", "environment", "limits"}
        assert f"# {phase}" in result.stderr
    assert "ptrace" in result.body["seccomp"]["deny"] and result.body["profile"] == "default"
    if os.geteuid() == 0:
        assert result.body["host_uid"] >= 60000


def test_print_bwrap_shows_what_a_profile_changes(run: Runner) -> None:
    shown = run(None, None, "--print-bwrap", "--profile", "container").body["phases"]["execute"]["bwrap"]
    assert "--proc" not in shown and "--disable-userns" not in shown


def test_psutil_missing_is_told_with_a_way_to_get_it(bundle: Bundle) -> None:
    command = [sys.executable, "-I", "-S", str(RUNNER), "--bundle-path", str(bundle(WIRE))]
    done = subprocess.run(command, input=TASK, capture_output=True)
    error = parse_line(done.stdout)["_fatal_error"]
    assert done.returncode == error["code"] == 3
    assert error["type"] == "psutil_missing" and "pip install psutil" in error["error"]


def test_without_uv_only_bundles_without_dependencies_run(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python3*/site-packages"))
    (site / "psutil.pth").write_text(str(Path(psutil.__file__).parents[1]))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bwrap").symlink_to(str(shutil.which("bwrap")))

    def go(path: Path | None) -> "subprocess.CompletedProcess[bytes]":
        arguments = ("--bundle-path", str(path)) if path else ("--doctor",)
        command = [str(tmp_path / "venv" / "bin" / "python"), *run.command(*arguments)[1:]]
        return subprocess.run(command, input=TASK, capture_output=True, env={"PATH": str(tmp_path / "bin")})

    path = bundle(WIRE)
    assert go(path).returncode == 0
    text = (path / "pyproject.toml").read_text().replace("[project]", "[project]\ndependencies = ['numpy']")
    (path / "pyproject.toml").write_text(text)
    error = parse_line(go(path).stdout)["_fatal_error"]
    assert (error["phase"], error["type"]) == ("host", "no_resolver") and "pip install uv" in error["error"]
    broken = tmp_path / "bin" / "uv"  # as one for another kind of machine
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    (path / "pyproject.toml").write_text(text.replace("[project]", "[project]\nrequires-python = '>=3.98'"))
    error = parse_line(go(path).stdout)["_fatal_error"]
    assert (error["phase"], error["type"]) == ("host", "no_resolver") and "uv can't be used" in error["error"]
    told = {gap["type"]: gap["remedy"] for gap in parse_line(go(None).stdout)["doctor"]["gaps"]}
    assert "pip install uv" in told["no_resolver"]


def old_pythons() -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {int(path.parts[-3].split(".")[1]): str(path) for path in sorted(root.glob("3.*/bin/python3"))}
    return [path for minor, path in sorted(found.items()) if 6 <= minor < 11]


UNREAD = pytest.mark.full("it says so before it reads its arguments")


@pytest.mark.parametrize("python", old_pythons() or [None])
@pytest.mark.parametrize(
    "arguments", [["--bundle-path", "/tmp"], *(pytest.param(row, marks=UNREAD) for row in (["--doctor"], []))]
)
def test_an_old_python_says_so_in_one_line(python: str | None, arguments: list[str]) -> None:
    if python is None:
        pytest.skip("this host has no Python 3.6 to 3.10 in pyenv")
    done = subprocess.run([python, str(RUNNER), *arguments], input=TASK, capture_output=True)
    error = parse_line(done.stdout)["_fatal_error"]
    assert done.returncode == error["code"] == 3
    assert (error["phase"], error["type"]) == ("host", "unsupported_host")
    assert "3.11" in error["error"]


def shell(run: Runner, path: Path, redirect: str) -> "subprocess.CompletedProcess[bytes]":
    command = run.command("--bundle-path", str(path))
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *command],
        input=TASK,
        capture_output=True,
        env=run.environment(),
    )


@pytest.mark.parametrize("redirect", ["<&-", "</dev/null"])
def test_a_standard_input_that_holds_nothing_is_an_input_error(run: Runner, bundle: Bundle, redirect: str) -> None:
    done = shell(run, bundle(WIRE), redirect)
    error = parse_line(done.stdout)["_fatal_error"]
    assert (error["phase"], error["code"], done.returncode) == ("input", 2, 2)


def test_a_closed_standard_error_is_no_hindrance(run: Runner, bundle: Bundle) -> None:
    done = shell(run, bundle("def wire(*a):\n    print('x')\n    return {'out': 'x'}\n"), "2>&-")
    assert done.returncode == 0 and "outputs" in parse_line(done.stdout)


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_standard_output_that_takes_nothing_is_a_failure(run: Runner, bundle: Bundle, redirect: str) -> None:
    done = shell(run, bundle(WIRE), redirect)
    assert done.returncode != 0 and done.stdout == b""
    assert not [name for name in os.listdir(run.store / "run") if name.startswith(".run-")]


def test_a_reader_that_leaves_is_no_traceback(run: Runner, bundle: Bundle) -> None:
    process = run.start(bundle(WIRE))
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(TASK)
    process.stdin.close()
    log = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0 and b"Traceback" not in log


def test_what_a_bundle_is_called_can_not_break_the_line(run: Runner, tmp_path: Path) -> None:
    for name in ("new\nline", "quote\"'", "ü\u2028", os.fsdecode(b"\xff\xfe")):
        body: dict[str, Any] = run(tmp_path / name).body
        assert body["_fatal_error"]["type"] == "bundle_not_found"
        json.dumps(body).encode()
