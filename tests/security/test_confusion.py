"""Dependency confusion: a name that the bundle brings itself is asked of no index, whoever asks for it and however.

The index of these tests has every such name, in a version that would win. It must never be asked for one.
"""

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
from conftest import BUILD_SYSTEM, GROUP, TINY_BACKEND, Result, tiny
from evidence import CONTROLS_DONE
from servers import LocalServer, protected, status, wheel, write_tree
from suites import rows

from security.hostile import HostileRunner, runs

FAMILY = "install"
BOTH = (("root", "local"), ("user", "local"))
OWN = ("foo", "bar-baz", "mywire", "buildtool")
MINE = "WHOSE = 'mine'\n"
ASKS = "import {module}\ndef wire(entrypoint, params, seed):\n    return {{'out': {module}.WHOSE}}\n"
Go = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """The caller's index: strangers under the bundle's names, and packages that depend on those names."""
    with LocalServer() as running:
        for name in OWN:
            running.add(
                *wheel(name.replace("-", "_"), "99.0", {f"{name.replace('-', '_')}.py": "WHOSE = 'a stranger'\n"})
            )
        running.add(*wheel("wantsfoo", "1.0", {"wantsfoo.py": "import foo\nWHOSE = foo.WHOSE\n"}, requires=["foo"]))
        running.add(*wheel("wantsmuch", "1.0", {"wantsmuch.py": ""}, requires=["wantsfoo", "Bar.Baz>=0.5"]))
        yield running


def bundle(dependencies: list[str], more: str, module: str = "foo", **files: str) -> dict[str, str]:
    """A virtual bundle named mywire whose wire function tells whose `module` it found."""
    head = f'[project]\nname = "mywire"\nversion = "1.0"\ndependencies = {json.dumps(dependencies)}\n'
    points = f'[project.entry-points."{GROUP}"]\nexecute = "model.main:wire"\n'
    return {"pyproject.toml": head + points + more, "model/main.py": ASKS.format(module=module), **files}


FOO = tiny("foo", MINE, folder="libs/foo")
BAR = tiny("bar-baz", MINE, folder="libs/bar")
SOURCE = '[tool.uv.sources]\nfoo = {path = "libs/foo"}\n'
WORKSPACE = '[tool.uv.sources]\nfoo = {workspace = true}\n[tool.uv.workspace]\nmembers = ["libs/*"]\n'
EXTRA = '[project.optional-dependencies]\nsim = ["foo"]\n'
NEEDS_BAR = 'dependencies = ["Bar_Baz"]\n[tool.uv.sources]\nbar-baz = {path = "../bar"}\n'

CASES: dict[str, Mapping[str, str]] = {
    "a path": bundle(["foo"], SOURCE, **FOO),
    "a path with a version that only the stranger has": bundle(["foo<100"], SOURCE, **FOO),
    "an editable path": bundle(["foo"], '[tool.uv.sources]\nfoo = {path = "libs/foo", editable = true}\n', **FOO),
    "a member of the workspace": bundle(["foo"], WORKSPACE, **FOO),
    "a member that nothing but another member names": bundle(
        ["foo"], WORKSPACE, **tiny("foo", "import bar_baz\nWHOSE = bar_baz.WHOSE\n",
        'dependencies = ["bar-baz"]\n[tool.uv.sources]\nbar-baz = {workspace = true}\n', "libs/foo"), **BAR,
    ),
    "an extra of the project itself": bundle(["mywire[sim]"], EXTRA + SOURCE, **FOO),
    "an extra of the project itself, spelled otherwise": bundle(["My.Wire[SIM]"], EXTRA + SOURCE, **FOO)
    | {"pyproject.toml": bundle(["my_wire[sim]"], EXTRA + SOURCE)["pyproject.toml"].replace('"mywire"', '"My.Wire"')},
    "a local source of a local source": bundle(
        ["foo"], SOURCE, **tiny("foo", "import bar_baz\nWHOSE = bar_baz.WHOSE\n", NEEDS_BAR, "libs/foo"), **BAR
    ),
    "a name spelled otherwise": bundle(
        ["Bar.Baz"], '[tool.uv.sources]\nBAR_BAZ = {path = "libs/bar"}\n', "bar_baz", **BAR
    ),
    "a package of the index that wants it": bundle(["wantsfoo"], SOURCE, "wantsfoo", **FOO),
    "a package of the index that wants what wants it": bundle(
        ["wantsmuch"], SOURCE + 'bar-baz = {path = "libs/bar"}\n', "wantsfoo", **FOO, **BAR
    ),
    "a path of poetry's": bundle(
        ["foo"], '[tool.poetry.dependencies]\nfoo = {path = "libs/foo", develop = true}\n', **FOO
    ),
    "a path of a group of poetry's": bundle(
        ["foo"], '[tool.poetry.group."dev.x".dependencies]\nfoo = [{path = "libs/foo", python = ">=3.9"}]\n',
        **FOO,
    ),
    "an editable source of pdm's": bundle(
        ["foo"], '[tool.pdm.dev-dependencies]\ndev = ["-e file:///${PROJECT_ROOT}/libs/foo#egg=foo"]\n', **FOO
    ),
    "an override": bundle(["wantsfoo"], SOURCE + '[tool.uv]\noverride-dependencies = ["foo>0.5"]\n', **FOO),
    "a constraint": bundle(["foo"], SOURCE + '[tool.uv]\nconstraint-dependencies = ["foo<=99"]\n', **FOO),
    "a group that includes another": bundle(
        ["foo"], SOURCE + '[dependency-groups]\nsim = ["foo>2"]\ndev = [{include-group = "sim"}]\n', **FOO
    ),
    "an extra that it does not have": bundle(["foo[fast]"], SOURCE, **FOO),
    "a workspace in the workspace": bundle(
        ["foo"], WORKSPACE, **tiny("foo", "import bar_baz\nWHOSE = bar_baz.WHOSE\n",
        'dependencies = ["bar-baz"]\n[tool.uv.sources]\nbar-baz = {path = "../bar"}\n[tool.uv.workspace]\n',
        "libs/foo"), **BAR,
    ),
    "a requirements file": {
        "requirements.txt": "./libs/foo\n./wired\nwantsfoo\n", **FOO,
        **tiny("wired", ASKS.format(module="foo"), f'[project.entry-points."{GROUP}"]\nx = "wired:wire"\n', "wired"),
    },
}  # fmt: skip


@pytest.fixture
def go(hostile: HostileRunner, server: LocalServer) -> Go:
    def make(files: Mapping[str, str], **env: str) -> Result:
        place = hostile.bundle()
        (place / "pyproject.toml").unlink()
        write_tree(place, files)
        return hostile(place, None, env={**server.environment(), **env}, name="a name that the bundle brings")

    return make


def asked_for_own(server: LocalServer) -> list[str]:
    """Every request that names something of the bundle's."""
    return [path for path in server.paths() if any(name.replace("-", "") in path.replace("-", "").replace("_", "")
            for name in OWN) and "wants" not in path]  # fmt: skip


# One of each place that names it, and of each way in which it comes to be asked for.
SOME = (
    "a path", "a member that nothing but another member names", "an extra of the project itself, spelled otherwise",
    "a local source of a local source", "a package of the index that wants what wants it", "a path of poetry's",
    "an editable source of pdm's", "an override", "a group that includes another", "a requirements file",
)  # fmt: skip


@runs(*BOTH)
@pytest.mark.parametrize("case", rows({name: name for name in CASES}, SOME, "another spelling of a kind"))
def test_the_index_is_not_asked(case: str, go: Go, server: LocalServer) -> None:
    result = go(CASES[case])
    assert result.outputs == {"out": b"mine"}
    assert asked_for_own(server) == []


@runs(*BOTH)
def test_control(go: Go, server: LocalServer) -> None:
    """The same bundle without the line that says whose it is gets the stranger's."""
    assert go(bundle(["foo"], "", **FOO)).outputs == {"out": b"a stranger"}
    assert asked_for_own(server)
    CONTROLS_DONE.add("a name that the bundle brings")


@runs(*BOTH)
def test_a_project_whose_name_is_not_read_is_no_other_bundles(go: Go) -> None:
    """As setup.py alone has it: only the build tells the name, and what is kept is kept for this bundle."""
    backend = TINY_BACKEND.replace('"pyproject.toml"', '"other.toml"')
    code = "from importlib.metadata import version\ndef wire(*a):\n    return {'out': version('nameless')}\n"
    for number in ("1.0", "2.0"):
        points = f'[project.entry-points."{GROUP}"]\nexecute = "main:wire"\n'
        said = f'[project]\nname = "nameless"\nversion = "{number}"\n{points}'
        files = {
            "pyproject.toml": BUILD_SYSTEM,
            "other.toml": said,
            "backend/tiny_backend.py": backend,
            "main.py": code,
        }
        assert go(files).outputs == {"out": number.encode()}


@runs(*BOTH)
def test_what_a_build_needs(go: Go, server: LocalServer) -> None:
    """A backend's requirement that the bundle brings: of the bundle's own build, and of a local source's."""
    tool = tiny("buildtool", MINE, folder="libs/tool")
    checks = TINY_BACKEND + "\nimport buildtool\nassert buildtool.WHOSE == 'mine', buildtool.WHOSE\n"
    source = '[tool.uv.sources]\nbuildtool = {path = "../tool"}\n'
    foo = tiny("foo", MINE, source, "libs/foo", '"buildtool"') | {"libs/foo/backend/tiny_backend.py": checks}
    assert go(bundle(["foo"], SOURCE + 'buildtool = {path = "libs/tool"}\n', **foo, **tool)).outputs == {"out": b"mine"}
    own = f'[project.entry-points."{GROUP}"]\nx = "built:wire"\n[tool.uv.sources]\nbuildtool = {{path = "libs/tool"}}\n'
    built = tiny("built", "def wire(*a):\n    return {'out': 'mine'}\n", own, "", '"buildtool"')
    assert go({**built, "backend/tiny_backend.py": checks, **tool}).outputs == {"out": b"mine"}
    assert asked_for_own(server) == []


@runs(*BOTH)
@pytest.mark.parametrize(
    "source",
    [
        'foo = {path = "libs/foo", marker = "python_version < \'3\'"}',
        'foo = {path = "libs/nothing-there"}',
        'foo = {path = "libs/other"}',
        'foo = {workspace = true}',
    ],
)  # fmt: skip
def test_a_source_that_is_no_good_is_an_error_and_no_reason_to_ask(source: str, go: Go, server: LocalServer) -> None:
    other = tiny("other", MINE, folder="libs/other")
    result = go(bundle(["foo"], f"[tool.uv.sources]\n{source}\n", **FOO, **other))
    assert "foo" in result.error["error"] and asked_for_own(server) == []


LOCKED = """version = 1
requires-python = ">=3.11"
[[package]]
name = "mywire"
version = "1.0"
source = { virtual = "." }
dependencies = [{ name = "foo" }]
[package.metadata]
requires-dist = [{ name = "foo" }]
[[package]]
name = "foo"
version = "99.0"
source = { registry = "https://pypi.org/simple" }
wheels = [{ url = "https://pypi.org/foo-99.0-py3-none-any.whl", hash = "sha256:00" }]
"""
PYLOCK = """lock-version = "1.0"
created-by = "someone"
[[packages]]
name = "foo"
version = "99.0"
wheels = [{ url = "INDEX/files/foo-99.0-py3-none-any.whl", hashes = { sha256 = "00" } }]
"""
SECOND = {
    "a lock that names a stranger": bundle(["foo"], SOURCE, **FOO, **{"uv.lock": LOCKED}),
    "a pylock.toml that names a stranger": bundle(["foo"], SOURCE, **FOO, **{"pylock.toml": PYLOCK}),
    "a source for a group alone": bundle(
        ["foo"], '[dependency-groups]\ndev = ["foo"]\n' + SOURCE.replace("}", ', group = "dev"}'), **FOO
    ),
    "a source for an extra alone, and a package that wants it": bundle(
        ["wantsfoo"], EXTRA + SOURCE.replace("}", ', extra = "sim"}'), "wantsfoo", **FOO
    ),
    "a constraint of the stranger's version": {
        "requirements.txt": "-c versions.txt\n./libs/foo\n./wired\n", "versions.txt": "foo==99.0\n", **FOO,
        **tiny("wired", ASKS.format(module="foo"), f'[project.entry-points."{GROUP}"]\nx = "wired:wire"\n', "wired"),
    },
    "a version that only the stranger has": bundle(["foo==99.0"], SOURCE, **FOO),
}  # fmt: skip


@runs(*BOTH)
@pytest.mark.parametrize("case", SECOND)
def test_who_says_two_things_gets_the_bundles_own_or_an_error(case: str, go: Go, server: LocalServer) -> None:
    files = {name: text.replace("INDEX", server.url().removesuffix("/simple/")) for name, text in SECOND[case].items()}
    result = go(files)
    assert "_fatal_error" in result.body or result.outputs == {"out": b"mine"}
    assert "foo" in str(result.body.get("_fatal_error", {}).get("error", "foo")), result.body
    assert asked_for_own(server) == []


@runs(*BOTH)
def test_a_folder_beside_the_bundle_for_a_group_alone_is_not_the_bundles(go: Go) -> None:
    """As a developer's own checkout: the task gets what the index has, as everybody does."""
    more = '[dependency-groups]\ndev = ["foo"]\n[tool.uv.sources]\nfoo = {path = "../foo", group = "dev"}\n'
    assert go(bundle(["foo"], more)).outputs == {"out": b"a stranger"}


# --- credentials: the caller's are for the caller's indexes


@runs(*BOTH)
def test_an_index_of_the_bundle_gets_nothing_of_the_caller(hostile: HostileRunner, server: LocalServer) -> None:
    """A second index records every header: none has the caller's login. If explicit, it has what names it alone."""
    with LocalServer() as second:
        second.add(*wheel("extra", "1.0", {"extra.py": MINE}))
        server.behave("/simple/", protected("caller:s3cr3t")(server))
        server.behave("/files/", protected("caller:s3cr3t")(server))
        more = f'[[tool.uv.index]]\nname = "second"\nurl = "{second.url()}"\nEXPLICIT[tool.uv.sources]\n'
        more += 'extra = {index = "second"}\n'
        env = server.environment(UV_DEFAULT_INDEX=server.url(credentials="caller:s3cr3t"))
        for explicit in (True, False):
            place = hostile.bundle()
            (place / "pyproject.toml").unlink()
            said = more.replace("EXPLICIT", "explicit = true\n" if explicit else "")
            write_tree(place, bundle(["extra", "bar-baz"], said, "extra"))
            second.log.clear()
            result = hostile.afresh(place, None, env=env, name="an index of the bundle's own")
            assert result.outputs == {"out": b"mine"}
            assert server.saw("caller:s3cr3t") and second.log and not second.saw("s3cr3t")
            assert explicit is not any("bar" in path for path in second.paths())
            assert "s3cr3t" not in str(result.body) + result.stderr


@runs(*BOTH)
@pytest.mark.parametrize(
    "callers, bundles",
    [("localhost", "LOCALHOST"), ("LocalHost", "localhost"), ("localhost", "localhost."), ("localhost", "localhost")],
)
def test_an_index_on_the_host_of_the_callers_is_refused(
    callers: str, bundles: str, hostile: HostileRunner, server: LocalServer
) -> None:
    """Its credentials are sent to a host, however that is spelled: another folder there is not the caller's."""
    server.behave("/tenant/", status(401, "Who"))
    url = f"https://{bundles}:{server.port}/tenant/simple/"
    more = f'[[tool.uv.index]]\nname = "second"\nurl = "{url}"\n'
    place = hostile.bundle()
    (place / "pyproject.toml").unlink()
    write_tree(place, bundle(["wantsfoo"], more, "wantsfoo"))
    env = server.environment(UV_DEFAULT_INDEX=f"https://caller:s3cr3t@{callers}:{server.port}/simple/")
    result = hostile(place, None, env=env, name="an index on the host of the caller's")
    assert "a host for which the caller has credentials" in result.error["error"]
    assert [path for path in server.paths() if path.startswith("/tenant/")] == []
