"""Both environments with a runner that lies, dies, hangs or says nonsense: every outcome is a clear one."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from environments import ECHO, Environments, runners, sim_task, wait_until
from modelops_contracts import INLINE_CAP, SimReturn, digest_bytes

from modelops.adapters.exec_env import process, server
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv

FAKE = Path(__file__).with_name("fake_runner.py")


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not stop is killed after a moment."""
    monkeypatch.setattr(process.Ending.__init__, "__defaults__", (0.5,))
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.5)


def fake(environments: Environments, kind: str, mode: str = "", **options: Any) -> tuple[SandboxedExecEnv, str]:
    env = {"FAKE_MODE": mode, **options.pop("env", {})}
    return environments(kind, runner_path=FAKE, env=env, **options), environments.add(ECHO)


def details(result: SimReturn) -> dict[str, Any]:
    """The error details, checked as an artifact has to be."""
    assert result.error is not None and result.error_details is not None
    artifact = result.error_details
    assert artifact.inline is not None and artifact.content_type == "application/json"
    assert artifact.size == len(artifact.inline) <= INLINE_CAP and artifact.checksum == digest_bytes(artifact.inline)
    return dict(json.loads(artifact.inline))


@pytest.mark.parametrize(
    ("do", "error_type"),
    [
        ("wrong_checksum", "checksum_mismatch"),
        ("wrong_size", "checksum_mismatch"),
        ("wrong_file", "checksum_mismatch"),
        ("short_file", "checksum_mismatch"),
        ("missing_file", "output_unwritable"),
        ("foreign_path", "runner_protocol"),
        ("not_base64", "runner_protocol"),
        ("no_task_id", "runner_protocol"),
        ("no_outputs", "runner_protocol"),
        ("bad_fatal", "runner_protocol"),
        ("fatal", "some_type"),
        ("long_fatal", "long"),
    ],
)
def test_a_wrong_answer(environments: Environments, kind: str, do: str, error_type: str) -> None:
    exec_env, ref = fake(environments, kind)
    result = exec_env.run(sim_task(ref, {"do": do}))
    assert result.error is not None and result.error.error_type == error_type, result.error
    assert details(result)["type"] == error_type and result.outputs == {}
    assert exec_env.run(sim_task(ref)).error is None, "the next task is not hurt"
    assert not list((environments.tmp_path / "storage").rglob("0" * 64))


@pytest.mark.parametrize("do", ["list", "nan", "two_lines", "text"])
def test_no_answer_of_the_contract(environments: Environments, kind: str, do: str) -> None:
    exec_env, ref = fake(environments, kind)
    result = exec_env.run(sim_task(ref, {"do": do}))
    assert result.error is not None and result.error.retryable
    assert result.error.error_type == ("runner_protocol" if kind == "cold" else "runner_died")
    assert exec_env.run(sim_task(ref)).error is None


def test_the_runners_words_arrive(environments: Environments, kind: str) -> None:
    exec_env, ref = fake(environments, kind)
    result = exec_env.run(sim_task(ref, {"do": "fatal"}))
    assert result.error is not None and (result.error.message, result.error.retryable) == ("words", True)
    assert result.metrics == {"wall_seconds": 2.5}
    assert details(result)["phase"] == "execute"


@pytest.mark.parametrize("do", ["die", "exit"])
def test_a_runner_that_dies(environments: Environments, kind: str, do: str) -> None:
    exec_env, ref = fake(environments, kind)
    assert exec_env.run(sim_task(ref)).error is None
    result = exec_env.run(sim_task(ref, {"do": do}))
    assert result.error is not None and (result.error.error_type, result.error.retryable) == ("runner_died", True)
    if do == "exit":
        assert "last words" in str(details(result))
    assert exec_env.run(sim_task(ref)).error is None


def test_a_kept_server_that_dies_is_replaced_unseen(environments: Environments, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, "warm")
    assert exec_env.run(sim_task(ref)).error is None
    assert exec_env.run(sim_task(ref, {"do": "die_once", "mark": str(tmp_path / "mark")})).error is None


def test_a_server_that_died_while_idle_is_replaced(environments: Environments, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, "warm")
    first = exec_env.run(sim_task(ref, {"do": "pid"})).outputs["out"].inline
    assert first == exec_env.run(sim_task(ref, {"do": "pid"})).outputs["out"].inline, "servers are kept"
    for pid in runners(tmp_path):
        os.kill(pid, 9)
    second = exec_env.run(sim_task(ref, {"do": "pid"}))
    assert second.error is None and second.outputs["out"].inline != first


def test_an_answer_to_another_task_is_not_believed(environments: Environments) -> None:
    exec_env, ref = fake(environments, "warm")
    result = exec_env.run(sim_task(ref, {"do": "other_id"}))
    assert result.error is not None and result.error.error_type == "runner_died"
    assert exec_env.run(sim_task(ref)).error is None


@pytest.mark.parametrize(
    ("mode", "error_type"),
    [("refuse", "no_wire_entry_point"), ("vanish", "runner_died"), ("odd", "runner_protocol")],
)
def test_a_server_that_does_not_start(environments: Environments, mode: str, error_type: str) -> None:
    exec_env, ref = fake(environments, "warm", mode)
    for _ in range(2):
        result = exec_env.run(sim_task(ref))
        assert result.error is not None and result.error.error_type == error_type


def test_a_server_that_does_not_say_that_it_is_ready(environments: Environments) -> None:
    exec_env, ref = fake(environments, "warm", "mute", timeout_seconds=0.5)
    result = exec_env.run(sim_task(ref))
    assert result.error is not None and result.error.error_type == "timeout"


def test_a_timeout_asks_first(environments: Environments, kind: str, request: pytest.FixtureRequest) -> None:
    """The cold runner answers SIGTERM, and its words are kept; the fake server knows no cancel and is ended."""
    if kind == "warm":
        request.getfixturevalue("short_grace")
    exec_env, ref = fake(environments, kind, timeout_seconds=5)  # in which the runner starts on any machine
    result = exec_env.run(sim_task(ref, {"do": "sleep"}))
    assert result.error is not None and result.error.error_type == "timeout" and not result.error.retryable
    assert details(result)["limit"] == {"name": "timeout_seconds", "value": 5}
    if kind == "cold":
        assert result.metrics == {"wall_seconds": 9.0} and details(result)["stderr"] == "tail"


def test_what_does_not_stop_is_killed(environments: Environments, kind: str, short_grace: None, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, kind, timeout_seconds=1)
    result = exec_env.run(sim_task(ref, {"do": "stubborn"}))
    assert result.error is not None and result.error.error_type == "timeout"
    wait_until(lambda: not runners(tmp_path), "the runner was not killed")


def test_a_server_that_clings_is_killed(environments: Environments, short_grace: None, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, "warm", "clinging")
    assert exec_env.run(sim_task(ref)).error is None
    exec_env.shutdown()
    assert runners(tmp_path) == []


def test_a_call_can_be_cancelled(environments: Environments, kind: str, short_grace: None) -> None:
    exec_env, ref = fake(environments, kind)
    results: list[SimReturn] = []
    task = sim_task(ref, {"do": "sleep"})
    thread = threading.Thread(target=lambda: results.append(exec_env.run(task, key="mine")))
    thread.start()
    wait_until(lambda: exec_env.cancel("mine"), "the call did not begin")
    thread.join(300)
    assert results[0].error is not None and results[0].error.error_type == "cancelled"
    assert not exec_env.cancel("mine") and not exec_env.cancel("other")


def test_a_call_can_be_cancelled_before_it_comes(environments: Environments, kind: str) -> None:
    """On a cluster the word that a task is cancelled may overtake the task itself."""
    exec_env, ref = fake(environments, kind)
    task = sim_task(ref, {"do": "sleep"})
    assert not exec_env.cancel("mine", also_later=True) and not exec_env.cancel("other")
    result = exec_env.run(task, key="mine")
    assert result.error is not None and result.error.error_type == "cancelled"
    assert exec_env.run(sim_task(ref), key="other").error is None


def test_calls_that_wait_for_a_server(environments: Environments, short_grace: None) -> None:
    """One server, taken by a task that sleeps: another waits, and can be cancelled, and runs into its time-out."""
    exec_env, ref = fake(environments, "warm", max_servers=1)
    results: dict[str, SimReturn] = {}

    def run(key: str, params: dict[str, Any]) -> None:
        results[key] = exec_env.run(sim_task(ref, params), key=key)

    threads = [threading.Thread(target=run, args=("first", {"do": "sleep"}))]
    threads[0].start()
    wait_until(lambda: bool(exec_env.health_check()["servers"]), "no server started")
    threads.append(threading.Thread(target=run, args=("second", {})))
    threads[1].start()
    wait_until(lambda: exec_env.cancel("second"), "the call did not begin")
    threads[1].join(300)
    exec_env.timeout_seconds = 0.5
    run("third", {})
    assert "first" not in results
    assert exec_env.cancel("first")
    threads[0].join(300)
    ends = {key: result.error and result.error.error_type for key, result in results.items()}
    assert ends == {"first": "cancelled", "second": "cancelled", "third": "timeout"}


def test_shutdown_stops_what_runs(environments: Environments, kind: str, short_grace: None, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, kind)
    results: list[SimReturn] = []
    tasks = [sim_task(ref, {"do": "sleep"}, seed) for seed in range(3)]
    threads = [threading.Thread(target=lambda task=task: results.append(exec_env.run(task))) for task in tasks]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(runners(tmp_path)) == 3, "the runners did not start")
    exec_env.shutdown()
    assert runners(tmp_path) == []
    for thread in threads:
        thread.join(300)
    assert [result.error and result.error.error_type for result in results] == ["shut_down"] * 3
    assert all(result.error is not None and result.error.retryable for result in results)
    late = exec_env.run(sim_task(ref))
    assert late.error is not None and late.error.error_type == "shut_down"
    exec_env.shutdown()


def test_the_runners_environment(environments: Environments, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exec_env, ref = fake(environments, kind, "seen", venvs_dir=None)
    content = exec_env.run(sim_task(ref, {"do": "env"})).outputs["out"].inline
    assert content is not None
    reuse = "1" if kind == "warm" else None
    assert json.loads(content) == {"FAKE_MODE": "seen", "REUSE": reuse, "VENVS_DIR": None}


def test_options_reach_the_runners_environment(environments: Environments) -> None:
    exec_env, ref = fake(environments, "cold", reuse=True, venvs_dir="/v")
    content = exec_env.run(sim_task(ref, {"do": "env"})).outputs["out"].inline
    assert content is not None and json.loads(content) == {"FAKE_MODE": "", "REUSE": "1", "VENVS_DIR": "/v"}


@pytest.mark.parametrize(("mode", "healthy"), [("", True), ("sick", False), ("mute", False), ("refuse", False)])
def test_health(environments: Environments, kind: str, mode: str, healthy: bool) -> None:
    exec_env, _ = fake(environments, kind, mode)
    report = exec_env.health_check()
    assert report["healthy"] is healthy and report["executor"] == kind and report["runner"] == str(FAKE)
    assert ("error" in report) == (mode in ("mute", "refuse"))


def test_idle_servers_go(environments: Environments, tmp_path: Path) -> None:
    exec_env, ref = fake(environments, "warm", idle_seconds=0.2)
    assert exec_env.run(sim_task(ref)).error is None
    wait_until(lambda: not runners(tmp_path), "the idle server stayed")
    assert exec_env.health_check()["servers"] == []
    assert exec_env.run(sim_task(ref)).error is None


def test_servers_are_bounded_and_the_least_used_goes(environments: Environments, tmp_path: Path) -> None:
    exec_env, _ = fake(environments, "warm", max_servers=2)
    refs = [environments.add(f"# {number}\n{ECHO}") for number in range(3)]

    def pid(ref: str) -> bytes | None:
        assert len(runners(tmp_path)) <= 2
        return exec_env.run(sim_task(ref, {"do": "pid"})).outputs["out"].inline

    first, second = pid(refs[0]), pid(refs[1])
    assert pid(refs[0]) == first
    pid(refs[2])  # in the place of the second, which was used least recently
    assert pid(refs[0]) == first
    assert pid(refs[1]) != second
    assert len(runners(tmp_path)) == 2


def test_a_missing_runner(environments: Environments, kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        environments(kind, runner_path=tmp_path / "absent.py")


def test_a_runner_that_cannot_be_started(
    environments: Environments, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec_env, ref = fake(environments, kind)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    result = exec_env.run(sim_task(ref))
    assert result.error is not None and result.error.error_type == "runner_unavailable" and result.error.retryable


def test_servers_do_not_end_with_the_thread_that_asked(environments: Environments, tmp_path: Path) -> None:
    """The runner stops when the thread that started it ends; kept ones belong to no caller's thread."""
    exec_env, ref = fake(environments, "warm")
    pids = []
    for _ in range(3):
        run = lambda: pids.append(exec_env.run(sim_task(ref, {"do": "pid"})).outputs["out"].inline)  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        time.sleep(0.05)
    assert len(set(pids)) == 1
