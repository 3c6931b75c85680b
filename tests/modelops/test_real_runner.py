"""Both environments on the real runner and the real sandbox: the same contract, the same bytes."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from environments import ECHO, Environments, runners, sim_task, wait_until
from modelops_contracts import (
    INLINE_CAP,
    AggregationTask,
    ExecutionEnvironment,
    SimReturn,
    TableArtifact,
    digest_bytes,
)
from servers import LocalServer, wheel

from modelops.adapters.artifact_store import reference_of
from modelops.adapters.exec_env.errors import RunnerError
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"

MANY = """
import json, os, sys, time

def wire(entrypoint, params, seed):
    do = params.get("do")
    if do == "raise":
        raise ValueError("no such scenario")
    if do == "exit":
        os._exit(0)
    if do == "crash":
        os.abort()
    if do == "sleep":
        time.sleep(600)
    if do == "nothing":
        return {}
    if do == "mask":
        return {"table": b"", "metadata": {"error": "KeyError: 'beta'"}}
    if do == "return":
        return eval(params["value"])
    if do == "big":
        return {"big": b"x" * params["size"], "same": b"x" * params["size"], "small": b"y"}
    if do == "large":
        return {f"table{n}": bytes([n]) * (300_000 + n) for n in range(3)}
    return {
        "params": json.dumps(dict(params), sort_keys=True),
        "seed": str(seed),
        "entrypoint": entrypoint,
        "arrow": b"ARROW1" + bytes(range(256)),
        "stream": b"\\xff\\xff\\xff\\xff" + b"x",
    }
"""

TARGETS = """
def score(sim_returns, target_data=None):
    seeds = [int(sim["outputs"]["seed"]["inline"]) for sim in sim_returns]
    data = target_data or {}
    return {"loss": sum(seeds) * data.get("scale", 1.0), "diagnostics": {"seeds": seeds}, "extra": [1, 2]}

def total(sim_returns):
    sizes = {name: len(a["inline"]) for sim in sim_returns for name, a in sim["outputs"].items()}
    return {"loss": float(sum(sizes.values())), "diagnostics": sizes}

def nan(sim_returns):
    return {"loss": float("nan")}

def artifact(sim_returns):
    import base64, hashlib
    data = b"table"
    return {"loss": 0, "outputs": {"table": {
        "size": len(data), "checksum": hashlib.blake2b(data, digest_size=32).hexdigest(),
        "inline": base64.b64encode(data).decode(),
    }}}

def nonsense(sim_returns):
    return {"loss": 1, "outputs": [1]}
"""


@pytest.fixture
def many(environments: Environments) -> str:
    return environments.add(MANY, files={"fit/targets.py": TARGETS})


@pytest.fixture
def both(environments: Environments) -> tuple[SandboxedExecEnv, SandboxedExecEnv]:
    return environments("cold"), environments("warm")


def comparable(result: SimReturn) -> dict[str, Any]:
    """All of a result but what was measured."""
    error = result.error and (result.error.error_type, result.error.message, result.error.retryable)
    return {"task_id": result.task_id, "outputs": result.outputs, "error": error}


def inline(result: SimReturn, name: str) -> bytes:
    assert result.error is None, result
    content = result.outputs[name].inline
    assert content is not None
    return content


def warm_first(why: str) -> pytest.MarkDecorator:
    """The warm environment alone in the default suite, and why the other is left to the full one."""
    return pytest.mark.parametrize("kind", ["warm", pytest.param("cold", marks=pytest.mark.full(why))])


WARM = warm_first("the other environment, which has no state")  # many tasks at once, or what takes long
AS_WARM = warm_first("test_warm_and_cold_are_equal compares the environments")


def test_it_is_an_execution_environment(environments: Environments, kind: str) -> None:
    exec_env: ExecutionEnvironment = environments(kind)
    assert exec_env.health_check()["healthy"] is True


def test_a_result(environments: Environments, kind: str, many: str) -> None:
    params = {"n": 3, "x": 0.1, "name": "é\u2028\U0001f600", "flag": True, "huge": 10**30, "tiny": 5e-324}
    task = sim_task(many, params, seed=2**64 - 1, entrypoint="probe.model/some-scenario")
    result = environments(kind).run(task)
    assert json.loads(inline(result, "params")) == params
    assert inline(result, "seed") == str(2**64 - 1).encode()
    assert inline(result, "entrypoint") == b"probe.model/some-scenario"
    for artifact in result.outputs.values():
        assert artifact.inline is not None and digest_bytes(artifact.inline) == artifact.checksum
    assert {name: artifact.content_type for name, artifact in result.outputs.items()} == {
        "params": "application/octet-stream",
        "seed": "application/octet-stream",
        "entrypoint": "application/octet-stream",
        "arrow": "application/vnd.apache.arrow.file",
        "stream": "application/vnd.apache.arrow.stream",
    }
    assert result.metrics is not None and result.metrics["wall_seconds"] > 0
    assert all(type(value) is float for value in result.metrics.values())


def test_warm_and_cold_are_equal(both: tuple[SandboxedExecEnv, SandboxedExecEnv], many: str) -> None:
    """Whatever a task does, and after whatever other tasks of the same server."""
    cold, warm = both
    for do in ("", "raise", "mask", "exit", "crash", "nothing", "large", "big"):
        task = sim_task(many, {"do": do, "size": INLINE_CAP + 1}, 2)
        assert comparable(cold.run(task)) == comparable(warm.run(task)) == comparable(warm.run(task)), do


FAILING = {
    "raise": "task_exception",
    "mask": "task_exception",
    "exit": "no_result",
    "crash": "crashed",
    "nothing": "task_exception",
}


@AS_WARM
def test_a_failed_task_is_a_value(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    for do, error_type in FAILING.items():
        result = exec_env.run(sim_task(many, {"do": do}))
        assert result.error is not None and result.error.error_type == error_type, do
        assert result.error_details is not None and result.error_details.inline is not None
        found = json.loads(result.error_details.inline)
        assert found["type"] == error_type and found["phase"] in ("execute", "result")
        if do == "raise":
            assert "no such scenario" in result.error.message and "wire" in found["traceback"]
        if do == "mask":
            assert found["exception"] == {"type": "KeyError", "message": "'beta'"} and not result.outputs
        assert exec_env.run(sim_task(many)).error is None


MASKED = [
    '{"table": b"", "success": False, "error": "KeyError: \'beta\'"}',
    '{"status": "error", "message": "KeyError: \'beta\'", "table": None}',
    '{"table": b"", "traceback": "Traceback (most recent call last):\\n  File x\\nKeyError: \'beta\'"}',
    '{"table": b"", "metadata": {"status": "failed", "message": "KeyError: \'beta\'"}}',
    '{"error": {"error": "\'beta\'", "type": "KeyError", "traceback": "t" * 50_000}}',
]


def test_a_masked_error_of_any_shape_is_a_failure(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    for value in MASKED:
        result = exec_env.run(sim_task(many, {"do": "return", "value": value}))
        assert result.error is not None and result.error.error_type == "task_exception", value
        assert result.error_details is not None and result.error_details.inline is not None
        found = json.loads(result.error_details.inline)["exception"]
        assert found == {"type": "KeyError", "message": "'beta'"} and not result.outputs, value
    value = '{"status": "failed", "attack_rate": 0.5}'
    assert exec_env.run(sim_task(many, {"do": "return", "value": value})).error is None


@AS_WARM
def test_the_task_id_of_an_error(environments: Environments, kind: str, many: str) -> None:
    import hashlib

    task = sim_task(many, {"do": "raise"}, seed=7)
    text = f"{task.params.param_id[:16]}-7-error"
    assert environments(kind).run(task).task_id == hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def test_large_outputs_are_in_the_store(
    environments: Environments, kind: str, many: str, caplog: pytest.LogCaptureFixture
) -> None:
    exec_env = environments(kind)
    size = 2_000_000
    with caplog.at_level(logging.WARNING):
        result = exec_env.run(sim_task(many, {"do": "big", "size": size}))
    assert result.error is None
    big, same, small = (result.outputs[name] for name in ("big", "same", "small"))
    assert big.inline is None and big.size == size and big.ref == same.ref == reference_of(big.checksum)
    assert exec_env.store.get(str(big.ref)) == b"x" * size
    assert small.inline == b"y"
    assert "2.0 MB" in caplog.text
    files = [path for path in (environments.tmp_path / "storage" / "incoming").rglob("*") if path.is_file()]
    assert files == []


@AS_WARM
def test_the_cap_itself_is_inline(environments: Environments, kind: str, many: str) -> None:
    result = environments(kind).run(sim_task(many, {"do": "big", "size": INLINE_CAP}))
    assert len(inline(result, "big")) == INLINE_CAP


def test_the_outputs_that_a_task_names(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    everything = exec_env.run(sim_task(many))
    some = exec_env.run(sim_task(many, outputs=["seed", "params"]))
    assert set(some.outputs) == {"seed", "params"} and some.task_id == everything.task_id
    without = exec_env.run(sim_task(many, {"do": "big", "size": INLINE_CAP + 1}, outputs=["small"]))
    assert set(without.outputs) == {"small"}
    assert not list((environments.tmp_path / "storage" / "artifacts").rglob("*"))
    missing = exec_env.run(sim_task(many, outputs=["seed", "absent"]))
    assert missing.error is not None and missing.error.error_type == "missing_output"
    assert "'absent'" in missing.error.message and "'params'" in missing.error.message


def test_fields_without_a_place_are_refused(environments: Environments, kind: str, many: str) -> None:
    exec_env, refused = environments(kind), ({"config": {"a": 1}}, {"env": {"A": "1"}}, {"outputs": ()})
    for fields in refused:
        result = exec_env.run(sim_task(many, **fields))
        assert result.error is not None and result.error.error_type == "unsupported_field", fields
        assert next(iter(fields)) in result.error.message


def test_empty_fields_are_not(environments: Environments, many: str) -> None:
    exec_env, empty = environments("warm"), ({"config": {}}, {"env": {}}, {"config": None})
    for fields in empty:
        assert exec_env.run(sim_task(many, **fields)).error is None, fields


def test_the_bundle_concerns_the_task(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    unknown = exec_env.run(sim_task("sha256:" + "0" * 64))
    assert unknown.error is not None and unknown.error.error_type == "bundle_not_found"
    odd = exec_env.run(sim_task("../../etc@sha256:" + "0" * 64))
    assert odd.error is not None and odd.error.error_type == "bundle_ref_invalid"
    copy = environments.repository.ensure_local(many)[1]
    (copy / "probe.py").chmod(0o644)
    (copy / "probe.py").write_text("evil")
    changed = exec_env.run(sim_task(many))
    assert changed.error is not None and changed.error.error_type == "bundle_changed"


def test_a_repository_that_fails(environments: Environments, kind: str) -> None:
    class Broken:
        def ensure_local(self, bundle_ref: str) -> tuple[str, Path]:
            raise ConnectionError("the registry is away")

        def exists(self, bundle_ref: str) -> bool:
            return False

    exec_env = environments(kind)
    exec_env._bundle_repo = Broken()
    result = exec_env.run(sim_task("sha256:" + "0" * 64))
    assert result.error is not None and result.error.error_type == "bundle_unavailable" and result.error.retryable


def test_a_bundle_without_a_wire_function(environments: Environments, kind: str) -> None:
    ref = environments.add("x = 1\n", pyproject='[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\n'
        'backend-path = ["backend"]\n[project]\nname = "probe"\nversion = "1.0"\n')  # fmt: skip
    result = environments(kind).run(sim_task(ref))
    assert result.error is not None and result.error.error_type == "no_wire_entry_point"


def test_an_aggregation(both: tuple[SandboxedExecEnv, SandboxedExecEnv], many: str) -> None:
    cold, warm = both
    sims = [cold.run(sim_task(many, seed=seed)) for seed in (3, 4)]
    for data, loss in ((None, 7.0), ({"scale": 0.5}, 3.5)):
        task = AggregationTask(many, "fit.targets:score", sims, data)
        found = cold.run_aggregation(task)
        assert found == warm.run_aggregation(task)
        assert (found.loss, found.n_replicates, found.aggregation_id) == (loss, 2, task.aggregation_id())
        assert found.diagnostics == {"seeds": [3, 4], "extra": [1, 2]} and found.outputs == {}


def test_an_aggregation_reads_references(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    sim = exec_env.run(sim_task(many, {"do": "big", "size": 700_000}))
    found = exec_env.run_aggregation(AggregationTask(many, "fit.targets:total", [sim]))
    assert found.diagnostics == {"big": 700_000, "same": 700_000, "small": 1}


@AS_WARM
def test_an_aggregation_with_an_artifact(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    sim = exec_env.run(sim_task(many))
    found = exec_env.run_aggregation(AggregationTask(many, "fit.targets:artifact", [sim]))
    assert found.outputs["table"].inline == b"table"


BAD_TARGETS = {
    "fit.targets:nan": "bad_result",
    "fit.targets:nonsense": "bad_result",
    "fit.targets:absent": "entrypoint_not_found",
    "absent.module:target": "entrypoint_not_found",
    "probe.model/scenario": "entrypoint_not_found",
}


def test_a_failed_aggregation_raises(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    sim = exec_env.run(sim_task(many))
    for target, error_type in BAD_TARGETS.items():
        with pytest.raises(RunnerError) as error:
            exec_env.run_aggregation(AggregationTask(many, target, [sim]))
        assert error.value.type == error_type == error.value.fatal_error["type"], target
    assert exec_env.run(sim_task(many)).error is None


def test_inputs_that_cannot_be_aggregated(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    good, failed = exec_env.run(sim_task(many)), exec_env.run(sim_task(many, {"do": "raise"}))
    data = b"data"
    wrong = TableArtifact(size=4, inline=data, checksum=digest_bytes(b"other"))
    lost = TableArtifact(size=4, ref=reference_of(digest_bytes(data)), checksum=digest_bytes(data))
    for sims, error_type in (
        ([good, failed], "failed_inputs"),
        ([SimReturn("t", {"out": wrong})], "checksum_mismatch"),
        ([SimReturn("t", {"out": lost})], "artifact_missing"),
    ):
        with pytest.raises(RunnerError) as error:
            exec_env.run_aggregation(AggregationTask(many, "fit.targets:score", sims))
        assert error.value.type == error_type


def test_the_timeout_of_a_call(environments: Environments, kind: str, many: str, tmp_path: Path) -> None:
    exec_env = environments(kind)
    assert exec_env.run(sim_task(many)).error is None
    exec_env.timeout_seconds = 3
    result = exec_env.run(sim_task(many, {"do": "sleep"}))
    assert result.error is not None and result.error.error_type == "timeout"
    exec_env.timeout_seconds = 600
    assert exec_env.run(sim_task(many)).error is None
    assert len(runners(tmp_path)) == (1 if kind == "warm" else 0), "a warm server outlives the cancelled task"


def test_a_task_that_is_too_large(
    environments: Environments, kind: str, many: str, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    _, profile, _, profiles_dir = profile_with('[bundle]\nrequest_bytes = "64KiB"')
    exec_env = environments(kind, profile=profile, profiles_dir=profiles_dir)
    assert exec_env.run(sim_task(many)).error is None
    result = exec_env.run(sim_task(many, {"text": "x" * 3_000_000}))
    assert result.error is not None and result.error.error_type == "input_too_large"
    assert exec_env.run(sim_task(many)).error is None


def test_cancelling_a_task(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    results: list[SimReturn] = []
    thread = threading.Thread(target=lambda: results.append(exec_env.run(sim_task(many, {"do": "sleep"}), key="k")))
    thread.start()
    wait_until(lambda: exec_env.cancel("k"), "the call did not begin")
    thread.join(60)
    assert results[0].error is not None and results[0].error.error_type == "cancelled"
    assert exec_env.run(sim_task(many)).error is None


@WARM
def test_twenty_threads_at_once(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    tasks = [sim_task(many, {"n": n}, seed=n) for n in range(60)]
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(exec_env.run, tasks))
    for n, result in enumerate(results):
        assert inline(result, "seed") == str(n).encode() and json.loads(inline(result, "params")) == {"n": n}
    assert len({result.task_id for result in results}) == 60


def test_nothing_is_left(environments: Environments, kind: str, many: str) -> None:
    exec_env = environments(kind)
    for do in ("", "raise", "big"):
        exec_env.run(sim_task(many, {"do": do, "size": INLINE_CAP + 1}))
    exec_env.shutdown()
    storage = environments.tmp_path / "storage"
    assert [path.name for path in storage.rglob("*") if path.is_file()] == [digest_bytes(b"x" * (INLINE_CAP + 1))]
    assert list((storage / "incoming").iterdir()) == []


STATIC_COUNTER = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static long count = 0;
static PyObject *next(PyObject *self, PyObject *unused) { return PyLong_FromLong(++count); }
static PyMethodDef methods[] = {{"next", next, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "counter", "", -1, methods};
PyMODINIT_FUNC PyInit_counter(void) { return PyModule_Create(&module); }
"""
COUNTER_PROJECT = """
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"
[project]
name = "counting"
version = "1.0"
[project.entry-points."modelops.wire"]
execute = "counting:wire"
[tool.setuptools]
py-modules = ["counting"]
"""
COUNTING = """
import counter
loaded = [0]

def wire(entrypoint, params, seed):
    loaded[0] += 1
    return {"c": str(counter.next()), "python": str(loaded[0])}
"""


@WARM
def test_state_of_a_c_extension_does_not_leak(environments: Environments, kind: str) -> None:
    """A static counter reads 1 in every task: nothing of one task is there in the next."""
    setup = "from setuptools import Extension, setup\nsetup(ext_modules=[Extension('counter', ['counter.c'])])\n"
    files = {"setup.py": setup, "counter.c": STATIC_COUNTER, "counting.py": COUNTING}
    ref = environments.add(name="counting", pyproject=COUNTER_PROJECT, files=files)
    exec_env = environments(kind)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda seed: exec_env.run(sim_task(ref, seed=seed)), range(9)))
    assert [(inline(result, "c"), inline(result, "python")) for result in results] == [(b"1", b"1")] * 9


@pytest.fixture
def index() -> Iterator[LocalServer]:
    with LocalServer() as server:
        for version in ("1.0", "2.0"):
            server.add(*wheel("dep", version, {"dep.py": f"version = {version!r}"}))
        yield server


@WARM
def test_two_bundles_with_conflicting_dependencies(environments: Environments, kind: str, index: LocalServer) -> None:
    exec_env = environments(kind, env=index.environment())
    refs = []
    for version in ("1.0", "2.0"):
        code = "import dep\n\ndef wire(*_):\n    return {'version': dep.version}\n"
        refs.append(environments.add(code, needs=[f"dep=={version}"]))
    tasks = [sim_task(refs[seed % 2], seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(exec_env.run, tasks))
    assert [inline(result, "version") for result in results] == [b"1.0", b"2.0"] * 6


@pytest.mark.xdist_group("real packages")
def test_a_real_bundle(both: tuple[SandboxedExecEnv, SandboxedExecEnv], environments: Environments, full: bool) -> None:
    """numpy and polars from the package index, and both kinds of target."""
    ref = environments.repository.add(BUNDLES / "sir")
    cold, warm = both
    params = {"population": 1000, "beta": 0.35, "gamma": 0.1, "days": 60}
    tasks = [sim_task(ref, params, seed, entrypoint="sir.model/baseline") for seed in (1, 2)[: 1 + full]]
    sims = [cold.run(task) for task in tasks]
    assert [comparable(sim) for sim in sims] == [comparable(warm.run(task)) for task in tasks]
    assert sims[0].outputs["timeseries"].content_type == "application/vnd.apache.arrow.file"
    for target in ("sir.targets:fit", "sir.targets:prevalence"):
        aggregation = AggregationTask(ref, target, sims)
        assert cold.run_aggregation(aggregation) == warm.run_aggregation(aggregation)


@AS_WARM
def test_echo_is_what_the_other_tests_think(environments: Environments, kind: str) -> None:
    result = environments(kind).run(sim_task(environments.add(ECHO), {"b": 1, "a": 2}, 5))
    assert json.loads(inline(result, "out")) == ["probe.model/baseline", {"a": 2, "b": 1}, 5]
