"""Every end of a sandbox has one name, and every failed start its remedy."""

import errno
import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

APPARMOR = "apparmor_restrict_unprivileged_userns"
NO_PERMISSIONS = (
    "bwrap: No permissions to create a new namespace, likely because the kernel does not allow non-privileged"
    " user namespaces. On e.g. debian this can be enabled with 'sysctl kernel.unprivileged_userns_clone=1'."
)
NESTING = "Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)"
STARTS = [
    ("bwrap: setting up uid map: Permission denied", "userns_denied", APPARMOR),
    ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "userns_denied", "userns-restrict"),
    (NO_PERMISSIONS, "userns_denied", "seccomp="),
    ("bwrap: Creating new namespace failed: Operation not permitted", "userns_denied", "seccomp="),
    ("bwrap: Creating new namespace failed: Function not implemented", "userns_denied", "seccomp="),
    ("bwrap: setting up uid map: Operation not permitted", "userns_denied", "CAP_SETUID"),
    (f"bwrap: {NESTING}", "userns_denied", "max_user_namespaces"),
    ("bwrap: Creating new namespace failed: No space left on device", "userns_denied", "max_user_namespaces"),
    ("bwrap: Creating new namespace failed: Resource temporarily unavailable", "userns_denied", "NPROC"),
    ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "proc_masked", "profile container"),
    (
        "bwrap: cannot open /proc/sys/user/max_user_namespaces: Read-only file system",
        "userns_sysctl_denied",
        "--profile container",
    ),
    ("bwrap: Can't set hostname to sandbox: Operation not permitted", "hostname_denied", "--profile container"),
    ("bwrap: Failed to make / slave: Permission denied", "mount_denied", "apparmor=unconfined"),
    ("bwrap: Failed to mount tmpfs: Permission denied", "mount_denied", "label=disable"),
    ("bwrap: unshare user ns: Operation not permitted", "userns_denied", "seccomp="),
    ("bwrap: Failed to make / slave: Operation not permitted", "mount_denied", "seccomp="),
    ("bwrap: pivot_root: Operation not permitted", "mount_denied", "seccomp="),
    ("bwrap: unmount old root: Operation not permitted", "mount_denied", "seccomp="),
    ("bwrap: pivot_root: Invalid argument", "mount_denied", "initramfs"),
    ("bwrap: Unexpected capabilities but not setuid, old file caps config?", "capabilities", "drop"),
    ("bwrap: Unknown option --disable-userns", "bwrap_too_old", "0.8.0"),
]


@pytest.mark.parametrize(("message", "kind", "remedy"), STARTS, ids=[message[7:60] for message, _, _ in STARTS])
def test_a_failed_start_has_its_type_and_remedy(runner_module: Any, message: str, kind: str, remedy: str) -> None:
    failure = runner_module.start_failure(message + "\n")
    assert (failure.phase, failure.type, failure.code) == ("host", kind, 3)
    assert remedy in failure.error and message in failure.error


@pytest.mark.parametrize("message", ["", "bwrap: something new: Strange error"])
def test_another_failed_start_is_told_as_it_is(runner_module: Any, message: str) -> None:
    failure = runner_module.start_failure(message)
    assert (failure.phase, failure.type) == ("host", "bwrap_failed")
    assert message in failure.error


def outcome(module: Any, **changes: Any) -> Any:
    plain = module.Outcome(None, None, 0, None, "", module.Usage())
    return plain._replace(**changes)


def test_a_sandbox_that_is_done_did_not_fail(runner_module: Any) -> None:
    assert runner_module.failure_of(outcome(runner_module, done=b""), "execute") is None


@pytest.mark.parametrize("code", [1, 42, 137, None])
def test_the_result_channel_decides_not_the_exit_status(runner_module: Any, code: int | None) -> None:
    assert runner_module.failure_of(outcome(runner_module, done=b"", exit_code=code), "execute") is None


LIMITS = ["timeout", "cpu_limit", "memory_limit", "pids_limit", "output_limit", "tmpfs_limit"]


@pytest.mark.parametrize("kind", LIMITS)
def test_a_limit_is_named_with_its_value_and_what_was_seen(runner_module: Any, kind: str) -> None:
    violation = runner_module.Violation(kind, "some_limit", 10, 12.5)
    failure = runner_module.failure_of(outcome(runner_module, violation=violation, stderr="tail"), "execute")
    assert (failure.phase, failure.type) == ("execute", kind)
    assert "execute.some_limit" in failure.error and "10" in failure.error
    assert failure.details["limit"] == {"name": "some_limit", "value": 10, "seen": 12.5}
    assert failure.details["stderr"] == "tail"


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("memory_bytes", 4 << 30, "4.0 GiB"),
        ("file_bytes", 3 << 19, "1.5 MiB"),
        ("inline_bytes", 12, "12 bytes"),
        ("wall_seconds", 600, "10 minutes"),
        ("wall_seconds", 1, "1 second"),
        ("cpu_seconds", 2.5, "2.5 seconds"),
        ("wall_seconds", 7200, "2 hours"),
        ("processes", 1024, "1,024"),
    ],
)
def test_limits_in_words(runner_module: Any, name: str, value: float, words: str) -> None:
    assert runner_module.quantity(name, value) == words


def test_a_limit_comes_before_what_the_child_says(runner_module: Any) -> None:
    violation = runner_module.Violation("timeout", "wall_seconds", 1, 2)
    error = {"type": "task_exception", "exception": {"type": "E", "message": ""}, "traceback": ""}
    failure = runner_module.failure_of(outcome(runner_module, violation=violation, error=error, done=b""), "execute")
    assert failure.type == "timeout"


def reported(module: Any, kind: str, phase: str, message: str = "words") -> Any:
    error = {"type": kind, "exception": {"type": "ValueError", "message": message}, "traceback": "lines"}
    return module.failure_of(outcome(module, error=error, stderr="tail"), phase)


def test_a_task_exception_carries_everything(runner_module: Any) -> None:
    failure = reported(runner_module, "task_exception", "execute")
    assert (failure.phase, failure.type, failure.retryable) == ("execute", "task_exception", False)
    assert failure.error == "the task raised ValueError: words"
    assert failure.details == {
        "exception": {"type": "ValueError", "message": "words"}, "traceback": "lines", "stderr": "tail",
    }  # fmt: skip


@pytest.mark.parametrize("phase", ["fetch", "build"])
def test_an_exception_in_another_phase_is_that_phases(runner_module: Any, phase: str) -> None:
    failure = reported(runner_module, "task_exception", phase)
    assert (failure.phase, failure.type) == (phase, f"{phase}_failed")


@pytest.mark.parametrize(("words", "retryable"), [("error sending request for url", True), ("no such package", False)])
def test_only_a_network_error_is_worth_another_try(runner_module: Any, words: str, retryable: bool) -> None:
    failure = reported(runner_module, "dependency_unavailable", "fetch", words)
    assert (failure.type, failure.retryable) == ("dependency_unavailable", retryable)


@pytest.mark.parametrize("kind", ["entrypoint_not_found", "bad_result", "memory_limit"])
def test_what_the_child_names_keeps_its_name(runner_module: Any, kind: str) -> None:
    assert reported(runner_module, kind, "execute").type == kind


SIGNALS = [
    (9, "SIGKILL", "crashed"),
    (11, "SIGSEGV", "crashed"),
    (24, "SIGXCPU", "cpu_limit"),
    (25, "SIGXFSZ", "file_size_limit"),
]


@pytest.mark.parametrize(("number", "name", "kind"), SIGNALS)
def test_a_signal_is_named(runner_module: Any, number: int, name: str, kind: str) -> None:
    failure = runner_module.failure_of(outcome(runner_module, exit_code=128 + number), "execute")
    assert (failure.phase, failure.type, failure.details["signal"]) == ("execute", kind, name)


@pytest.mark.parametrize("code", [0, 1, 128, 192, 255])
def test_an_end_without_a_result_is_an_error_whatever_the_status(runner_module: Any, code: int) -> None:
    failure = runner_module.failure_of(outcome(runner_module, exit_code=code), "execute")
    assert failure.phase == "execute" and failure.type in ("no_result", "crashed")


def test_without_an_exit_status_the_command_never_ran(runner_module: Any) -> None:
    failure = runner_module.failure_of(outcome(runner_module, exit_code=None, stderr=STARTS[0][0]), "execute")
    assert (failure.phase, failure.type) == ("host", "userns_denied")


@given(st.integers(0, 255) | st.none(), st.text(), st.none() | st.binary())
def test_every_outcome_is_a_result_or_one_json_line(
    runner_module: Any, code: int | None, stderr: str, done: bytes | None
) -> None:
    failure = runner_module.failure_of(outcome(runner_module, exit_code=code, stderr=stderr, done=done), "execute")
    assert (failure is None) == (done is not None)
    if failure:
        line = json.dumps(failure.as_json({}), allow_nan=False)
        assert "\n" not in line and failure.phase in runner_module.EXIT_CODES


def test_exit_codes_tell_the_phases_apart(runner_module: Any) -> None:
    phases = ["input", "host", "bundle", "fetch", "build", "install", "execute", "result"]
    assert list(runner_module.EXIT_CODES) == phases
    codes = list(runner_module.EXIT_CODES.values())
    assert len({*codes}) == len(codes) and not {0, 1} & {*codes}


def test_a_failure_is_the_fatal_error_of_the_contract(runner_module: Any) -> None:
    failure = runner_module.Failure("build", "x", "words", True, stderr="", signal=None, traceback="lines")
    body = failure.as_json({"wall_seconds": 1.0})["_fatal_error"]
    assert body == {
        "code": 6, "phase": "build", "type": "x", "error": "words", "retryable": True, "traceback": "lines",
        "metrics": {"wall_seconds": 1.0},
    }  # fmt: skip


def test_an_unforeseen_error_is_one_of_the_host(runner_module: Any) -> None:
    failure = runner_module.internal_error(KeyError("x"))
    assert (failure.phase, failure.type, failure.code) == ("host", "internal_error", 70)


@given(st.text(max_size=300), st.integers(0, 3))
def test_clip_keeps_both_ends(runner_module: Any, text: str, factor: int) -> None:
    long = text * (factor * 1000)
    clipped = runner_module.clip(long)
    assert len(clipped) <= runner_module.TEXT_CAP + 100
    if len(long) <= runner_module.TEXT_CAP:
        assert clipped == long
    else:
        assert clipped[:1000] == long[:1000] and clipped[-1000:] == long[-1000:]


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_printable_leaves_nothing_that_steers_a_terminal(runner_module: Any, text: str) -> None:
    shown = runner_module.printable(text)
    assert all(character.isprintable() or character == "\t" for character in shown)
    if all(character.isprintable() for character in text):
        assert shown == text


def test_the_log_is_bounded(
    runner_module: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner_module.Log, "left", 100)
    for _ in range(50):
        runner_module.Log.line("x" * 20)
    text = capfd.readouterr().err
    assert len(text) < 200 and text.endswith("[log limit reached]\n")


def test_the_wire_is_the_one_entry_point(runner_module: Any) -> None:
    assert runner_module.choose_wire([["execute", "a:b"]], "g") == "a:b"


def test_no_wire_and_many_wires_are_two_errors(runner_module: Any) -> None:
    with pytest.raises(runner_module.Failure, match="'g'") as none:
        runner_module.choose_wire([], "g")
    with pytest.raises(runner_module.Failure, match="x = a:b, y = c:d") as many:
        runner_module.choose_wire([["x", "a:b"], ["y", "c:d"]], "g")
    assert (none.value.type, many.value.type) == ("no_wire_entry_point", "many_wire_entry_points")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_stop_the_runner(runner_module: Any, number: signal.Signals) -> None:
    assert number in runner_module.Killed.SIGNALS


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/store/x"), "/store/x"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (MemoryError(), "ulimit -v"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_runner(runner_module: Any, error: Exception, words: str) -> None:
    failure = runner_module.host_failure(error)
    assert (failure.phase, failure.type, failure.retryable) == ("host", "host_exhausted", True)
    assert words in failure.error and runner_module.is_own(error)


def test_a_library_that_memory_is_too_short_for(runner_module: Any) -> None:
    failure = runner_module.host_failure(ImportError("_ctypes.so: failed to map segment from shared object"))
    assert failure.type == "host_exhausted" and runner_module.host_failure(ImportError("no module")) is None


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no"), ValueError("no"), KeyError("no")])
def test_another_error_is_not_a_shortage(runner_module: Any, error: Exception) -> None:
    assert runner_module.host_failure(error) is None and not runner_module.is_own(error)
