"""Profiles: four that ship, and everything that makes one invalid."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILES
from hypothesis import given
from hypothesis import strategies as st

SHIPPED = ("default", "strict", "debug", "container")
DEFAULT = tomllib.loads((PROFILES / "default.toml").read_text())
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_by_name_and_by_path(runner_module: Any, name: str) -> None:
    by_name = runner_module.load_profile(name, [str(PROFILES)])
    assert by_name == runner_module.load_profile(str(PROFILES / f"{name}.toml"), [])
    assert by_name.description


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("phase", ["build", "compile", "execute"])
def test_no_shipped_profile_gives_code_the_network(runner_module: Any, name: str, phase: str) -> None:
    profile = runner_module.load_profile(name, [str(PROFILES)])
    assert getattr(profile, phase).network is False
    assert profile.fetch.network is True


def test_strict_takes_wheels_from_the_index_only_and_allows_no_more_than_default(runner_module: Any) -> None:
    default, strict = (runner_module.load_profile(name, [str(PROFILES)]) for name in ("default", "strict"))
    assert not (strict.dependencies.direct_urls or strict.dependencies.git or strict.dependencies.sdists)
    assert strict.seccomp == default.seccomp
    for phase in ("fetch", "build", "compile", "execute"):
        mine, theirs = getattr(strict, phase), getattr(default, phase)
        assert all(a <= b for a, b in zip(mine.limits, theirs.limits, strict=True)), phase
        assert {*mine.read_only} <= {*theirs.read_only}, phase


def test_container_needs_no_proc_and_leaves_namespaces_to_seccomp(runner_module: Any) -> None:
    sandbox = runner_module.load_profile("container", [str(PROFILES)]).sandbox
    assert (sandbox.proc, sandbox.nested_userns, sandbox.masked) == (False, "seccomp", [])


def test_the_profiles_for_an_older_bwrap_hold_what_the_newer_ones_do(runner_module: Any) -> None:
    """They differ in who holds the sizes of /tmp and /dev/shm; where there is a /proc, in who ends user namespaces."""

    def loaded(name: str) -> Any:
        return runner_module.load_profile(name, [str(PROFILES)])

    for name, older in ("container", "container-bwrap-0.6"), ("default", "bwrap-0.6"):
        mine, theirs = loaded(older), loaded(name)
        nested = theirs.sandbox.nested_userns if name == "container" else "seccomp"
        sandbox = theirs.sandbox._replace(tmpfs_size="polling", nested_userns=nested)
        assert mine == theirs._replace(sandbox=sandbox, description=mine.description), older


def test_debug_adds_calls_and_keeps_the_rest_of_the_filter(runner_module: Any) -> None:
    default, debug = (runner_module.load_profile(name, [str(PROFILES)]).seccomp for name in ("default", "debug"))
    assert "ptrace" in debug.also_allow
    assert debug._replace(also_allow=[]) == default


def test_sizes_are_written_with_binary_units(runner_module: Any, write: Write) -> None:
    path = write('extends = "default"\n[bundle]\nmax_bytes = "3 KiB"\nrequest_bytes = 7\n')
    bundle = runner_module.load_profile(str(path), [str(PROFILES)]).bundle
    assert (bundle.max_bytes, bundle.request_bytes) == (3072, 7)


def test_an_extension_replaces_lists_and_merges_tables(runner_module: Any, write: Write, default_profile: Any) -> None:
    text = 'extends = "default"\n[execute]\nread_only = ["/usr/lib"]\n[execute.environment]\nTZ = "CET"\n'
    profile = runner_module.load_profile(str(write(text)), [str(PROFILES)])
    assert profile.execute.read_only == ["/usr/lib"]
    assert profile.execute.environment == {**default_profile.execute.environment, "TZ": "CET"}
    assert profile.build == default_profile.build


def test_a_base_beside_the_profile_comes_before_the_folders(runner_module: Any, write: Write) -> None:
    text = (PROFILES / "default.toml").read_text().replace('hostname = "sandbox"', 'hostname = "nearer"')
    write(text, "default")
    path = write('extends = "default"')
    assert runner_module.load_profile(str(path), [str(PROFILES)]).sandbox.hostname == "nearer"


def test_an_extension_of_an_extension_is_refused(runner_module: Any, write: Write) -> None:
    write('extends = "default"', "middle")
    path = write('extends = "middle"', "top")
    with pytest.raises(runner_module.Failure, match=r"middle\.toml: extends: .*may not extend") as caught:
        runner_module.load_profile(str(path), [str(PROFILES)])
    assert (caught.value.phase, caught.value.type) == ("host", "profile_invalid")


def test_a_profile_that_is_nowhere_says_where_was_looked(runner_module: Any, tmp_path: Path) -> None:
    with pytest.raises(runner_module.Failure, match=str(tmp_path)) as caught:
        runner_module.load_profile("absent", [str(tmp_path)])
    assert caught.value.type == "profile_not_found"


INVALID = {
    "unknown top key": ("colour = 1", "colour"),
    "unknown inner key": ("[execute.limits]\nwall_secs = 1", "execute.limits.wall_secs"),
    "wrong type": ('[execute.limits]\nprocesses = "many"', "execute.limits.processes"),
    "bool for int": ("[execute.limits]\nprocesses = true", "execute.limits.processes"),
    "int for bool": ("[execute]\nnetwork = 0", "execute.network"),
    "float for int": ("[execute.limits]\nopen_files = 1.5", "execute.limits.open_files"),
    "string for list": ('[execute]\nread_only = "/usr"', "execute.read_only"),
    "wrong item": ('[execute]\nread_only = ["/usr", 1]', "execute.read_only[1]"),
    "value for table": ("execute = 1", "execute"),
    "wrong environment": ("[execute.environment]\nA = 1", "execute.environment.A"),
    "size without unit": ('[bundle]\nmax_bytes = "12"', "bundle.max_bytes"),
    "decimal unit": ('[bundle]\nmax_bytes = "12MB"', "bundle.max_bytes"),
    "fraction of a unit": ('[bundle]\nmax_bytes = "1.5GiB"', "bundle.max_bytes"),
    "endless size": (f'[bundle]\nmax_bytes = "{"9" * 5000}B"', "bundle.max_bytes"),
    "size for a count": ('[bundle]\nmax_files = "1KiB"', "bundle.max_files"),
    "negative": ("[execute.limits]\nprocesses = -1", "execute.limits.processes"),
    "infinite": ("[execute.limits]\nwall_seconds = inf", "execute.limits.wall_seconds"),
    "not a number": ("[execute.limits]\nwall_seconds = nan", "execute.limits.wall_seconds"),
    "zero": ("[execute.limits]\nwall_seconds = 0", "execute.wall_seconds"),
    "zero tmpfs": ('[build]\ntmp_bytes = "0B"', "build.tmp_bytes"),
    "network in build": ("[build]\nnetwork = true", "build.network"),
    "network in compile": ("[compile]\nnetwork = true", "compile.network"),
    "network in execute": ("[execute]\nnetwork = true", "execute.network"),
    "bind of a home": ('[execute]\nread_only = ["/root"]', "execute.read_only"),
    "bind of etc": ('[fetch]\nread_only = ["/etc"]', "fetch.read_only"),
    "bind of the root": ('[execute]\nread_only = ["/"]', "execute.read_only"),
    "bind that climbs": ('[execute]\nread_only = ["/usr/../root"]', "execute.read_only"),
    "bind of a neighbour": ('[execute]\nread_only = ["/usrlocal"]', "execute.read_only"),
    "userns left open": ('[sandbox]\nnested_userns = "no"', "sandbox.nested_userns"),
    "variables of Python": ('[execute]\npass_environment = ["PYTHONPATH"]', "execute.pass_environment"),
    "mask outside proc": ('[sandbox]\nmasked = ["/etc"]', "sandbox.masked"),
    "mask that climbs": ('[sandbox]\nmasked = ["/proc/../etc"]', "sandbox.masked"),
    "uid 0": ("[host]\nuids = [0, 10]", "host.uids"),
    "uids backwards": ("[host]\nuids = [10, 9]", "host.uids"),
    "one uid": ("[host]\nuids = [10]", "host.uids"),
    "uid too large": ("[host]\nuids = [10, 4294967296]", "host.uids"),
    "no errno": ('[seccomp]\ndefault = "EWHATEVER"', "seccomp.default"),
    "a name of the errno module": ('[seccomp]\ndefault = "errorcode"', "seccomp.default"),
    "no errno for foreign": ('[seccomp]\nforeign_architecture = "KILL"', "seccomp.foreign_architecture"),
    "unknown op": (
        '[[seccomp.deny_if]]\ncalls = ["a"]\nwhen = [{arg = 0, op = "has", values = [1]}]',
        "seccomp.deny_if",
    ),
    "seventh argument": (
        '[[seccomp.deny_if]]\ncalls = ["a"]\nwhen = [{arg = 6, op = "eq", values = [1]}]',
        "seccomp.deny_if",
    ),
    "rule without calls": ("[[seccomp.deny_if]]\nwhen = []", "seccomp.deny_if[0].calls"),
    "unshare allowed": ('[seccomp]\nalso_allow = ["unshare"]', "seccomp.allow"),
    "clone3 allowed": ('[seccomp]\nalso_allow = ["clone3"]', "seccomp.allow"),
    "mount allowed": ('[seccomp]\nallow = ["mount"]', "seccomp.allow"),
    "extends a number": ("extends = 1", "extends"),
}


@pytest.mark.parametrize(("text", "key"), INVALID.values(), ids=INVALID.keys())
def test_an_invalid_profile_is_refused_with_its_file_and_key(
    runner_module: Any, write: Write, text: str, key: str
) -> None:
    path = write(text if text.startswith("extends") else f'extends = "default"\n{text}')
    with pytest.raises(runner_module.Failure) as caught:
        runner_module.load_profile(str(path), [str(PROFILES)])
    assert (caught.value.phase, caught.value.type) == ("host", "profile_invalid")
    assert caught.value.error.startswith(f"{path}: {key}: ")


def test_a_missing_key_is_named(runner_module: Any, write: Write) -> None:
    path = write((PROFILES / "default.toml").read_text().replace('hostname = "sandbox"', ""))
    with pytest.raises(runner_module.Failure, match=r"sandbox\.hostname: missing"):
        runner_module.load_profile(str(path), [])


NOT_TOML = [b"\xff\xfe", b"a = ", b"a = 1\na = 2", b"a = " + b"[" * 5000, b"a = " + b"9" * 5000]


@pytest.mark.parametrize("content", NOT_TOML, ids=["bytes", "half", "twice", "deep", "long"])
def test_a_file_that_is_not_toml_is_named(runner_module: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(runner_module.Failure, match=str(path)) as caught:
        runner_module.load_profile(str(path), [])
    assert caught.value.type == "profile_invalid"


def places(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a nested table, as a path."""
    found = []
    for key, value in table.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += places(value, (*prefix, key))
    return found


scalars = st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates() | st.times()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(where=st.sampled_from(places(DEFAULT)), value=values, extra=st.dictionaries(st.text(), values, max_size=2))
def test_any_table_loads_or_names_its_file_and_key(
    runner_module: Any, where: tuple[str, ...], value: Any, extra: dict[str, Any]
) -> None:
    table = {**copy.deepcopy(DEFAULT), **{key: item for key, item in extra.items() if key not in DEFAULT}}
    inner = table
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    try:
        profile = runner_module.read_table(runner_module.Profile, table, "/some/file.toml", "")
        runner_module.check_profile(profile, "/some/file.toml")
    except runner_module.Failure as failure:
        assert (failure.phase, failure.type) == ("host", "profile_invalid")
        assert failure.error.startswith("/some/file.toml: ")
    else:
        assert not extra.keys() - DEFAULT.keys()
