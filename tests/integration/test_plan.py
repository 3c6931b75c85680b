"""What a bundle asks for: each way in which projects say what to install, run on the real runner."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import GROUP, PROFILES, Result, Runner, tiny
from servers import LocalServer, local_profile, sdist, wheel, write_tree
from suites import rows

POINTS = f'[project.entry-points."{GROUP}"]\nexecute = "model.main:wire"\n'
VIRTUAL = '[project]\nname = "mywire"\nversion = "1.0"\n'
SIX = "import six\ndef wire(entrypoint, params, seed):\n    return {'out': six.__version__}\n"
MINE = "WHOSE = 'mine'\n"
Go = Callable[..., Result]
# The caller's own index and authorities instead of the local ones.
REAL_INDEX = {"UV_DEFAULT_INDEX": "", "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", "")}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """An index with three versions of six, and things that must never be taken from it."""
    with LocalServer() as running:
        for version in ("1.15.0", "1.16.0", "1.17.0"):
            running.add(*wheel("six", version, {"six.py": f"__version__ = {version!r}\n"}))
        running.add(*wheel("six", "1.18.0rc1", {"six.py": "__version__ = '1.18.0rc1'\n"}))
        for name in ("foo", "mywire", "bar"):
            running.add(*wheel(name, "99.0", {f"{name}.py": "WHOSE = 'a stranger'\n"}))
        running.add(*sdist("onlysource", "1.0", tiny("onlysource", "WHOSE = 'sdist'\n")))
        running.add(*sdist("both", "1.0", tiny("both", "WHOSE = 'sdist'\n")))
        running.add(*wheel("both", "1.0", {"both.py": "WHOSE = 'wheel'\n"}))
        running.add(*wheel("wantsfoo", "1.0", {"wantsfoo.py": ""}, requires=["foo"]))
        running.add(*wheel("outer", "0.1", {"outer.py": "WHOSE = 'of 2019'\n"}))
        for version in ("1.9", "2.0"):
            running.add(*wheel("outer", version, {"outer.py": f"WHOSE = {version!r}\n"}, requires=["deep==1.*", "six"]))
        running.add(*sdist("deep", "1.5", tiny("deep", MINE, version="1.5")))
        running.add(*wheel("deep", "2.0", {"deep.py": ""}))
        running.add(*wheel("beyond", "1.0", {"beyond.py": "WHOSE = 'beyond'\n"}, requires=["outer"]))
        for name, code in (("newer", MINE), ("broken", "raise SystemExit(9)\n")):
            running.add(*wheel(name, "1.0", {f"{name}.py": "WHOSE = 'the wheel'\n"}))
            files = tiny(name, MINE, version="2.0")
            files["backend/tiny_backend.py"] += "" if name == "newer" else code
            running.add(*sdist(name, "2.0", files))
        running.add(*wheel("picky", "1.0", {"picky.py": "WHOSE = 'the wheel'\n"}))
        running.add(*sdist("picky", "2.0", tiny("picky", MINE, 'dependencies = ["six<1.16"]\n', version="2.0")))
        yield running


@pytest.fixture
def go(run: Runner, tmp_path: Path, server: LocalServer) -> Go:
    """Write a bundle and run it against the local index."""
    count = iter(range(100))

    def make(files: Mapping[str, str], *arguments: str, links: Mapping[str, str] | None = None, **env: str) -> Result:
        bundle = tmp_path / f"bundle{next(count)}"
        write_tree(bundle, files)
        for path, target in (links or {}).items():
            (bundle / path).symlink_to(target)
        profile = ("--profile", str(local_profile(tmp_path)), "--profiles-dir", str(PROFILES))
        return run(bundle, None, *(arguments or profile), env={**server.environment(), **env})

    return make


def virtual(code: str = SIX, more: str = "", dependencies: Any = ("six",), **files: str) -> dict[str, str]:
    listed = f"dependencies = {json.dumps(list(dependencies))}\n" if dependencies is not None else ""
    return {"pyproject.toml": VIRTUAL + listed + POINTS + more, "model/main.py": code, **files}


def requirements(text: str, code: str = SIX, **files: str) -> dict[str, str]:
    """A bundle whose requirements.txt says what to install; the wire function is one of a package beside it."""
    wire = tiny("wired", code, f'[project.entry-points."{GROUP}"]\nexecute = "wired:wire"\n', "wired")
    return {"requirements.txt": f"./wired\n{text}", **wire, **files}


def refusal(result: Result, *words: str) -> dict[str, Any]:
    error = result.error
    assert error["type"] in ("dependency_refused", "dependency_conflict"), error
    for word in words:
        assert word in error["error"], error["error"]
    return error


FOO = "import foo\ndef wire(*a):\n    return {'out': foo.WHOSE}\n"


# --- layout


def test_a_project_without_a_build_system_is_virtual(go: Go) -> None:
    code = "import helper, six\nfrom importlib.metadata import version\n"
    code += "def wire(*a):\n    return {'out': helper.X + six.__version__ + version('mywire')}\n"
    folders = {f"{name}/x.txt": "" for name in ("data", "notebooks", "results")}
    result = go(virtual(code, **folders, **{"src/helper.py": "X = 'src '\n"}))
    assert result.outputs == {"out": b"src 1.17.01.0"}
    assert "phase: build" not in result.stderr and "virtual" in result.stderr


def test_a_project_that_says_it_is_no_package_is_virtual(go: Go) -> None:
    files = virtual(more="[tool.uv]\npackage = false\n")
    files["pyproject.toml"] += '[build-system]\nrequires = ["no-such-backend"]\nbuild-backend = "nope"\n'
    assert go(files).outputs == {"out": b"1.17.0"}


def test_child_interpreters_find_the_code_of_a_virtual_project(go: Go) -> None:
    code = "import subprocess, sys\ndef wire(*a):\n    script = 'import helper, model; print(helper.X)'\n"
    code += (
        "    return {'out': subprocess.run([sys.executable, '-c', script], capture_output=True, cwd='/tmp').stdout}\n"
    )
    files = virtual(code, dependencies=(), **{"src/helper.py": "X = 'src'\n", "model/__init__.py": ""})
    assert go(files).outputs == {"out": b"src\n"}


def test_a_setup_cfg_of_other_tools_makes_no_package(go: Go) -> None:
    assert go(virtual(**{"setup.cfg": "[flake8]\nmax-line-length = 100\n"})).outputs == {"out": b"1.17.0"}


SETUP_PY = """from setuptools import find_packages, setup
setup(name="legacy", version="1.0", packages=find_packages(), install_requires=REQUIRES,
      entry_points={"GROUP": ["execute = model.main:wire"]})
""".replace("GROUP", GROUP)
SETUP_CFG = f"""[metadata]
name = legacy
version = 1.0
[options]
packages = find:
install_requires =
    six==1.16.0
[options.entry_points]
{GROUP} =
    execute = model.main:wire
"""
SETUPTOOLS = '[build-system]\nrequires = ["setuptools>=68"{more}]\nbuild-backend = "setuptools.build_meta"\n'
PACKAGES = '[tool.setuptools]\npackages = ["model"]\n'
HATCH = '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\nbuild-backend = "hatchling.build"\n'
DYNAMIC = '[project]\nname = "mywire"\ndynamic = ["version"]\n' + POINTS
VERSION = "from importlib.metadata import version\ndef wire(*a):\n    return {'out': version('mywire')}\n"
MODEL = {"model/__init__.py": "", "model/main.py": SIX}
LEGACY = {
    "setup.py": {"setup.py": SETUP_PY.replace("REQUIRES", "['six==1.16.0']"), **MODEL},
    "setup.cfg": {"setup.cfg": SETUP_CFG, **MODEL},
    "setup.cfg and a setup.py that only calls": {
        "setup.cfg": SETUP_CFG, "setup.py": "__import__('setuptools').setup()\n", **MODEL,
    },
    "requirements.txt and setup.py": {
        "setup.py": SETUP_PY.replace("REQUIRES", "[]"), "requirements.txt": "six==1.16.0\n", **MODEL,
    },
    "[tool.poetry] without a build system": {
        "pyproject.toml": '[tool.poetry]\nname = "mywire"\nversion = "1"\ndescription = ""\nauthors = []\n'
        'packages = [{include = "model"}]\n[tool.poetry.dependencies]\nsix = "1.16.0"\n'
        f'[tool.poetry.plugins."{GROUP}"]\nexecute = "model.main:wire"\n', **MODEL,
    },
    "[tool.setuptools] without a build system": {
        "pyproject.toml": VIRTUAL + 'dependencies = ["six==1.16.0"]\n' + POINTS + PACKAGES, **MODEL,
    },
}  # fmt: skip
SCM = {
    "setuptools-scm": SETUPTOOLS.format(more=', "setuptools-scm"')
    + DYNAMIC + "[tool.setuptools_scm]\n" + PACKAGES,
    "hatch-vcs": HATCH + DYNAMIC + '[tool.hatch.version]\nsource = "vcs"\n'
    + '[tool.hatch.build.targets.wheel]\npackages = ["model"]\n',
}  # fmt: skip
ASKS_THE_INDEX = pytest.mark.full("asks the caller's own package index for real backends")


@ASKS_THE_INDEX
@pytest.mark.parametrize("files", LEGACY.values(), ids=LEGACY.keys())
def test_projects_that_their_tools_build(go: Go, files: dict[str, str]) -> None:
    assert go(files, **REAL_INDEX).outputs == {"out": b"1.16.0"}


@ASKS_THE_INDEX
@pytest.mark.parametrize("git", [{}, {".git": "gitdir: /nowhere/at/all\n"}], ids=["no .git", ".git is a file"])
@pytest.mark.parametrize("name", SCM)
def test_a_version_from_a_repository_that_is_not_there(go: Go, name: str, git: dict[str, str]) -> None:
    """A version that names the bundle's digest, and a line in the log that says so."""
    result = go({"pyproject.toml": SCM[name], "model/__init__.py": "", "model/main.py": VERSION, **git}, **REAL_INDEX)
    assert re.fullmatch(rb"0\+bundle\.d[0-9a-f]{12}", result.outputs["out"]), result.outputs
    assert "the version names the bundle's digest" in result.stderr


@ASKS_THE_INDEX
def test_nothing_newer_than_a_day(go: Go) -> None:
    code = "import six\ndef wire(*a):\n    return {'out': six.__version__}\n"
    files = virtual(code, '[tool.uv]\nexclude-newer = "2021-01-01T00:00:00Z"\n', ["six"])
    assert go(files, **REAL_INDEX).outputs == {"out": b"1.15.0"}


def test_a_python_that_is_not_there(go: Go) -> None:
    files = virtual(dependencies=[])
    files["pyproject.toml"] = files["pyproject.toml"].replace("version =", 'requires-python = ">=3.99"\nversion =')
    error = go(files).error
    assert error["type"] == "no_interpreter" and "uv python install '>=3.99'" in error["error"]


def test_the_python_that_a_source_of_the_bundle_needs(go: Go) -> None:
    """As uv has it for a workspace; not where another is only needed under a marker."""
    sources = '[tool.uv.sources]\nfoo = {path = "libs/foo"}\nbar = {path = "libs/bar"}\n'
    newer = tiny("bar", MINE, 'requires-python = ">=3.99"\n', "libs/bar")
    needing = {**tiny("foo", MINE, 'dependencies = ["bar"]\n', "libs/foo"), **newer}
    error = go(virtual(FOO, sources, ("foo",), **needing)).error
    assert error["type"] == "no_interpreter" and ">=3.99" in error["error"]
    elsewhere = {**tiny("foo", MINE, "", "libs/foo"), **newer}
    mine = go(virtual(FOO, sources, ("foo", "bar ; sys_platform == 'win32'"), **elsewhere))
    assert mine.outputs == {"out": b"mine"}


@ASKS_THE_INDEX
def test_data_that_only_the_build_puts_into_a_package(go: Go) -> None:
    """The folder of a flat layout hides the installed package, and has what the build adds all the same."""
    text = HATCH + VIRTUAL + POINTS + '[tool.hatch.build.targets.wheel]\npackages = ["model"]\n'
    text += '[tool.hatch.build.targets.wheel.force-include]\n"data" = "model/inner/data"\n'
    code = "from importlib.resources import files\ndef wire(*a):\n"
    code += "    return {'out': (files('model') / 'inner/data/a.csv').read_text()}\n"
    files = {"pyproject.toml": text, "model/__init__.py": "", "model/main.py": code, "data/a.csv": "7"}
    assert go(files, **REAL_INDEX).outputs == {"out": b"7"}


def test_a_poetry_project_that_is_no_package(go: Go) -> None:
    text = '[tool.poetry]\npackage-mode = false\n[tool.poetry.dependencies]\nsix = "*"\n'
    refusal(go({"pyproject.toml": text, "main.py": SIX}), "package-mode", "[project]")


@pytest.mark.parametrize("version", ["", "version = 1\n"])
def test_what_a_virtual_project_must_say(go: Go, version: str) -> None:
    error = go({"pyproject.toml": f"[project]\n{version}{POINTS}", "model/main.py": SIX}).error
    assert error["type"] == "pyproject_invalid"


def test_an_extra_of_the_project_itself(go: Go, server: LocalServer) -> None:
    server.log.clear()
    more = '[project.optional-dependencies]\nsim = ["mywire[deep]"]\ndeep = ["six<1.16"]\nnever = ["no-such-thing"]\n'
    files = virtual(dependencies=("mywire[sim]",))
    files["pyproject.toml"] += more
    assert go(files).outputs == {"out": b"1.15.0"}
    assert "/simple/mywire/" not in server.paths()


# --- local sources

SOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "path": ('[tool.uv.sources]\nfoo = {path = "libs/foo"}\n', {}),
    "editable": ('[tool.uv.sources]\nfoo = {path = "libs/foo", editable = true}\n', {}),
    "another spelling": ('[tool.uv.sources]\nFoo = {path = "./libs/../libs/foo/"}\n', {}),
    "workspace": ('[tool.uv.workspace]\nmembers = ["libs/*"]\n[tool.uv.sources]\nfoo = {workspace = true}\n', {}),
    "workspace, not named": ('[tool.uv.workspace]\nmembers = ["libs/f*", "libs/x*"]\nexclude = ["libs/x*"]\n', {}),
    "list with markers": (
        "[tool.uv.sources]\nfoo = [{path = 'libs/none', marker = \"sys_platform == 'win32'\"}, "
        "{path = 'libs/foo', marker = \"sys_platform == 'linux'\"}]\n",
        {"libs/none/pyproject.toml": '[project]\nname = "foo"\nversion = "3"\n'},
    ),
}


FIRST = ("workspace, not named", "list with markers")


@pytest.mark.parametrize(("more", "files"), rows(SOURCES, FIRST, "another way to name a source of the bundle"))
def test_a_local_source_is_built_from_the_bundle(go: Go, server: LocalServer, more: str, files: dict[str, str]) -> None:
    server.log.clear()
    inner = tiny(
        "foo", "import six\nWHOSE = 'mine, six ' + six.__version__\n", 'dependencies = ["six<1.17"]\n', "libs/foo"
    )
    result = go(virtual(FOO, more, ("foo",), **inner, **files))
    assert result.outputs == {"out": b"mine, six 1.16.0"}
    assert "/simple/foo/" not in server.paths() and "/simple/six/" in server.paths()


def test_local_sources_depend_on_one_another(go: Go, server: LocalServer) -> None:
    server.log.clear()
    more = '[tool.uv.sources]\nfoo = {path = "libs/foo"}\n'
    bar = 'dependencies = ["bar"]\n[tool.uv.sources]\nbar = {path = "../bar"}\n'
    files = {**tiny("foo", "from bar import WHOSE\n", bar, "libs/foo"), **tiny("bar", MINE, "", "libs/bar")}
    assert go(virtual(FOO, more, ("foo",), **files)).outputs == {"out": b"mine"}
    assert server.paths() == []


def test_wheels_and_sdists_of_the_bundle(go: Go, tmp_path: Path) -> None:
    (name, data), (archive, packed) = wheel("foo", "1.0", {"foo.py": MINE}), sdist("bar", "1.0", tiny("bar", MINE))
    more = f'[tool.uv.sources]\nfoo = {{path = "dist/{name}"}}\nbar = {{path = "dist/{archive}"}}\n'
    code = "import foo, bar\ndef wire(*a):\n    return {'out': foo.WHOSE + bar.WHOSE}\n"
    files: dict[str, Any] = {f"dist/{name}": data, f"dist/{archive}": packed}
    assert go(virtual(code, more, ("foo", "bar"), **files)).outputs == {"out": b"minemine"}


MODEL = f'[project.entry-points."{GROUP}"]\nexecute = "model:wire"\n'


def test_dependencies_are_fetched_before_the_bundle_is_built(go: Go) -> None:
    result = go(tiny("model", SIX, f'dependencies = ["six<1.16"]\n{MODEL}'))
    assert result.outputs == {"out": b"1.15.0"}
    phases = [line for line in result.stderr.splitlines() if line.startswith("phase: ")]
    told = [phase for phase in phases if phase != "phase: compile"]  # of what another test was seen to import
    assert told == ["phase: fetch", "phase: build", "phase: execute"]


PART = pytest.mark.full("a part of the other row")


@pytest.mark.parametrize(
    "told", [pytest.param('["six==1.16.0"]', marks=PART), '["six; extra == \'none\'", "beyond", "six<1.17,>1.15"]']
)
def test_what_a_backend_says_is_obeyed_where_the_pyproject_says_something_else(go: Go, told: str) -> None:
    files = tiny("model", SIX, f'dependencies = ["six<1.16"]\n{MODEL}')
    files["backend/tiny_backend.py"] = files["backend/tiny_backend.py"].replace('project.get("dependencies", [])', told)
    assert go(files).outputs == {"out": b"1.16.0"}


def test_what_a_build_needs_of_the_bundle_is_built_before_it(go: Go) -> None:
    more = f'dependencies = ["six", "bar"]\n{MODEL}[tool.uv.sources]\nbar = {{ path = "bar" }}\n'
    files = tiny("model", SIX, more, requires='"bar"') | tiny("bar", MINE, folder="bar")
    files["backend/tiny_backend.py"] += "\nimport bar\nassert bar.WHOSE == 'mine'\n"
    assert go(files).outputs == {"out": b"1.17.0"}


def test_metadata_that_names_the_place_of_a_build(go: Go) -> None:
    """As poetry and hatch write the path of a dependency: absolute, where the backend ran."""
    more = 'dependencies = ["foo @ file:///tmp/source/libs/foo"]\n'
    files = tiny("wired", FOO, more + f'[project.entry-points."{GROUP}"]\nexecute = "wired:wire"\n')
    assert go({**files, **tiny("foo", MINE, "", "libs/foo")}).outputs == {"out": b"mine"}


@pytest.mark.parametrize(
    "root", rows({"hatch": "{root:uri}", "pdm": "file:///${PROJECT_ROOT}"}, ("hatch",), "another word for the folder")
)
def test_the_words_of_hatch_and_pdm_for_a_projects_folder(go: Go, root: str) -> None:
    files = tiny("foo", MINE, "", "libs/foo")
    assert go(virtual(FOO, "", (f"foo @ {root}/libs/foo",), **files)).outputs == {"out": b"mine"}
    refusal(go(virtual(FOO, "", (f"foo @ {root}/../foo",), **files)), "out of the bundle")


def test_members_of_a_workspace_without_a_project_are_installed(go: Go) -> None:
    points = f'dependencies = ["bar"]\n[project.entry-points."{GROUP}"]\nexecute = "foo:wire"\n'
    points += "[tool.uv.sources]\nbar = {workspace = true}\n"
    code = "import bar\ndef wire(*a):\n    return {'out': bar.WHOSE}\n"
    files = {**tiny("foo", code, points, "packages/foo"), **tiny("bar", MINE, "", "packages/bar")}
    assert go({"pyproject.toml": '[tool.uv.workspace]\nmembers = ["packages/*"]\n', **files}).outputs == {
        "out": b"mine"
    }


BAD_SOURCES = {
    "out of the bundle": ('foo = {path = "../foo"}', {}, "out of the bundle"),
    "absolute": ('foo = {path = "/etc"}', {}, "out of the bundle"),
    "missing": ('foo = {path = "libs/foo"}', {}, "no 'libs/foo'"),
    "no metadata": ('foo = {path = "libs/foo"}', {"libs/foo/x.py": ""}, "pyproject.toml"),
    "two kinds": ('foo = {path = "libs/foo", index = "x"}', {"libs/foo/x.py": ""}, "one of"),
    "no such index": ('foo = {index = "nope"}', {}, "nope"),
    "no such member": ("foo = {workspace = true}", {}, "tool.uv.workspace"),
    "unknown": ('foo = {svn = "x"}', {}, "svn"),
    "ssh": ('foo = {git = "ssh://git@github.com/o/r"}', {}, "https"),
}


@pytest.mark.parametrize(("source", "files", "word"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_a_source_that_can_not_be(go: Go, source: str, files: dict[str, str], word: str) -> None:
    refusal(go(virtual(FOO, f"[tool.uv.sources]\n{source}\n", ("foo",), **files)), word)


UNNEEDED = {
    "a path out of the bundle": '[tool.uv.sources]\nfoo = {path = "../foo", editable = true}\n',
    "a folder that is not there": '[tool.uv.sources]\nfoo = {path = "libs/foo"}\n',
    "ssh": '[tool.uv.sources]\nfoo = {git = "ssh://git@github.com/o/r"}\n',
    "no member": "[tool.uv.sources]\nfoo = {workspace = true}\n",
    "poetry's group": '[tool.poetry.group.dev.dependencies]\nfoo = {path = "../foo", develop = true}\n',
}


@pytest.mark.parametrize(
    "source", rows(UNNEEDED, ("a path out of the bundle", "poetry's group"), "another source of the same kind")
)
def test_a_source_that_can_not_be_is_no_error_where_nothing_needs_it(go: Go, server: LocalServer, source: str) -> None:
    """As those of a group for development; the log has it, and no index is asked for what comes to need the name."""
    group = f'[dependency-groups]\ndev = ["foo"]\n{source}'
    result = go(virtual(more=group))
    assert result.outputs == {"out": b"1.17.0"} and "it is an error once something needs foo" in result.stderr
    server.log.clear()
    error = refusal(go(virtual(FOO, group, ("wantsfoo",))), "foo")
    assert "/simple/foo/" not in server.paths(), error


def test_a_build_that_needs_a_source_that_can_not_be(go: Go, server: LocalServer) -> None:
    """What another bundle's build had of the index is kept, and is not for this one."""
    source = '[tool.uv.sources]\nfoo = {path = "../foo"}\n'
    points = f'[project.entry-points."{GROUP}"]\nexecute = "built:wire"\n'
    other = tiny("built", "def wire(*a):\n    return {'out': 'x'}\n", points, "", '"wantsfoo"')
    assert go(other).outputs == {"out": b"x"}
    refusal(go({**other, "pyproject.toml": other["pyproject.toml"] + source}), "foo", "out of the bundle")


def test_a_member_may_depend_on_the_project_at_the_top(go: Go) -> None:
    more = '[tool.uv.workspace]\nmembers = ["libs/*"]\n[tool.uv.sources]\nfoo = {workspace = true}\n'
    needs = 'dependencies = ["mywire"]\n[tool.uv.sources]\nmywire = {workspace = true}\n'
    assert go(virtual(FOO, more, ("foo",), **tiny("foo", MINE, needs, "libs/foo"))).outputs == {"out": b"mine"}


def test_a_group_without_quotation_marks(go: Go) -> None:
    files = virtual(dependencies=())
    files["pyproject.toml"] = files["pyproject.toml"].replace(f'"{GROUP}"', GROUP)
    error = go(files).error
    assert error["type"] == "pyproject_invalid" and f'[project.entry-points."{GROUP}"]' in error["error"]


def test_a_source_without_a_name_of_its_own_is_named_by_who_asked(go: Go, server: LocalServer) -> None:
    files = tiny("nameless", MINE)
    files["pyproject.toml"] = files["pyproject.toml"].partition("[project]")[0]
    server.add(*sdist("nameless", "1.0", {**files, "backend/tiny_backend.py": "raise OSError('no luck')\n"}))
    error = go(virtual(dependencies=("nameless",))).error
    assert error["type"] == "build_failed" and error["error"].startswith("nameless: the build phase raised OSError")


def test_a_source_behind_a_link_is_refused(go: Go) -> None:
    files = virtual(FOO, '[tool.uv.sources]\nfoo = {path = "foo"}\n', ("foo",), **tiny("foo", MINE, "", "libs/foo"))
    refusal(go(files, links={"foo": "libs/foo"}), "symbolic link")


def test_a_source_with_another_name_is_refused(go: Go) -> None:
    files = virtual(
        FOO, '[tool.uv.sources]\nfoo = {path = "libs/foo"}\n', ("foo",), **tiny("bar", MINE, "", "libs/foo")
    )
    error = go(files).error
    assert "bar" in error["error"] and "foo" in error["error"]


def test_builds_that_need_one_another(go: Go) -> None:
    def needing(name: str, other: str) -> dict[str, str]:
        more = f'[tool.uv.sources]\n{other} = {{path = "../{other}"}}\n'
        files = tiny(name, MINE, more, f"libs/{name}")
        path = f"libs/{name}/pyproject.toml"
        return {**files, path: files[path].replace("requires = []", f'requires = ["{other}"]')}

    more = '[tool.uv.sources]\nfoo = {path = "libs/foo"}\n'
    error = go(virtual(FOO, more, ("foo",), **needing("foo", "bar"), **needing("bar", "foo"))).error
    assert error["type"] == "build_failed" and "foo needs bar needs foo" in error["error"]


# --- [tool.uv]

SETTINGS = {
    "constraint": ('constraint-dependencies = ["six<1.17"]', "1.16.0"),
    "override": ('override-dependencies = ["six==1.15.0"]', "1.15.0"),
    "prerelease": ('prerelease = "allow"', "1.18.0rc1"),
    "lowest": ('resolution = "lowest"\nconstraint-dependencies = ["six>=1.16"]', "1.16.0"),
    "without effect": ('link-mode = "copy"\ndev-dependencies = ["no-such-thing"]', "1.17.0"),
}


@pytest.mark.parametrize(
    ("more", "version"), rows(SETTINGS, ("override", "prerelease"), "another setting that uv takes")
)
def test_settings_of_uv_are_obeyed(go: Go, more: str, version: str) -> None:
    assert go(virtual(more=f"[tool.uv]\n{more}\n")).outputs == {"out": version.encode()}


def test_uv_toml_comes_before_tool_uv(go: Go) -> None:
    files = virtual(more='[tool.uv]\nconstraint-dependencies = ["six<1.16"]\n')
    files["uv.toml"] = 'constraint-dependencies = ["six<1.17"]\n'
    assert go(files).outputs == {"out": b"1.16.0"}


def test_an_excluded_dependency_is_left_out(go: Go) -> None:
    code = "import wantsfoo\ndef wire(*a):\n    return {'out': 'alone'}\n"
    files = virtual(code, '[tool.uv]\nexclude-dependencies = ["foo"]\n', ("wantsfoo",))
    result = go(files)
    assert result.outputs == {"out": b"alone"}


@pytest.mark.parametrize(
    "more", ['torch-backend = "cpu"', "no-sources = true", 'index-strategy = "unsafe-best-match"', "x = 1"]
)
def test_settings_of_uv_that_are_refused_by_name(go: Go, more: str) -> None:
    refusal(go(virtual(more=f"[tool.uv]\n{more}\n")), more.partition(" ")[0], "uv")


def test_groups_and_extras_are_not_installed(go: Go) -> None:
    more = '[project.optional-dependencies]\nx = ["no-such"]\n'
    more += '[dependency-groups]\ndev = ["no-such", {include-group = "y"}]\ny = []\n'
    assert go(virtual(more=more)).outputs == {"out": b"1.17.0"}


# --- locks


def locked(server: LocalServer, folder: Path, files: Mapping[str, str], *export: str) -> str:
    """What uv itself locks for a bundle, with what the test's index has."""
    write_tree(folder, files)
    uv = shutil.which("uv")
    assert uv
    environment = {
        "PATH": "/usr/bin:/bin",
        "UV_CACHE_DIR": str(folder / ".cache"),
        "HOME": str(folder),
        **server.environment(),
    }
    subprocess.run([uv, "lock", "-q"], cwd=folder, env=environment, check=True)
    if not export:
        return (folder / "uv.lock").read_text()
    done = subprocess.run([uv, "export", "-q", *export], cwd=folder, env=environment, check=True, capture_output=True)
    return done.stdout.decode()


def test_uv_lock_rules(go: Go, server: LocalServer, tmp_path: Path, full: bool) -> None:
    """A lock that pins an old version, of a project that has members, an index package from source, and an extra."""
    more = '[project.optional-dependencies]\nsim = ["onlysource"]\n[tool.uv.workspace]\nmembers = ["libs/*"]\n'
    more += "[tool.uv.sources]\nfoo = {workspace = true}\n"
    code = "import foo, onlysource, six\n"
    code += "def wire(*a):\n    return {'out': six.__version__ + foo.WHOSE + onlysource.WHOSE}\n"
    files = virtual(code, more, ("six>=1.10", "foo", "mywire[sim]"), **tiny("foo", MINE, "", "libs/foo"))
    old = {**files, "pyproject.toml": files["pyproject.toml"] + '[tool.uv]\nconstraint-dependencies = ["six<1.16"]\n'}
    lock = locked(server, tmp_path / "locked", old)
    result = go({**files, "uv.lock": lock})
    assert result.outputs == {"out": b"1.15.0minesdist"}
    assert "uv.lock: " in result.stderr and "hashes" in result.stderr
    assert "phase: compile" in result.stderr
    for _ in range(2 * full):  # the first of them compiles what the run before imported
        again = go({**files, "uv.lock": lock})
    if full:
        assert again.outputs == result.outputs and "phase: compile" not in again.stderr  # where uv reads a lock
    bad = lock.replace(hashlib.sha256(server.content["/files/six-1.15.0-py3-none-any.whl"]).hexdigest(), "0" * 64)
    assert bad != lock
    assert go({**files, "uv.lock": bad}).error["type"] == "hash_mismatch"


def test_a_lock_that_no_longer_fits(go: Go, server: LocalServer, tmp_path: Path) -> None:
    lock = locked(server, tmp_path / "locked", virtual(dependencies=("six>=1.10",)))
    for dependencies in (("six>=1.16",), ("six>=1.10", "both"), ()):
        refusal(go({**virtual(dependencies=dependencies), "uv.lock": lock}), "uv.lock", "no longer fits", "uv lock")
    assert go({**virtual(dependencies=("six >= 1.10",)), "uv.lock": lock}).outputs == {"out": b"1.17.0"}


LOCKED = {
    "the same, in other words": ("dependencies = [ \"Six>=1.10 ; python_version>='3'\" ]", ""),
    "a marker": ("dependencies = [\"six>=1.10; python_version < '3'\"]", "(six)"),
    "a marker that always holds left out": ('dependencies = ["six>=1.10"]', ""),
    "another extra": ("sim = []", "(both)"),
    "another Python": ('requires-python = ">=3.11,<3.99"', "Python requirement"),
    "a source": ("[tool.uv.sources]\nsix = {path = 'libs/six'}\n", "(six)"),
    "a constraint": ('[tool.uv]\nconstraint-dependencies = ["six<1.17"]\n', "(six)"),
    "an override": ('[tool.uv]\noverride-dependencies = ["six<1.17"]\n', "(six)"),
    "a day": ('[tool.uv]\nexclude-newer = "2024-01-01T00:00:00Z"\n', "exclude newer"),
}


CHANGED = ("the same, in other words", "a marker", "a source")


@pytest.mark.parametrize("line, word", rows(LOCKED, CHANGED, "something else that uv compares"))
def test_a_lock_fits_in_all_that_it_was_made_of(
    go: Go, server: LocalServer, tmp_path: Path, line: str, word: str
) -> None:
    """uv itself compares: markers, extras, the Python, sources and settings. `line` takes the place of its like."""
    more = '[project.optional-dependencies]\nsim = ["both"]\n'
    files = virtual(more=more, dependencies=("six>=1.10; python_version >= '3'",), **tiny("six", SIX, "", "libs/six"))
    project = files["pyproject.toml"].replace("[project]", '[project]\nrequires-python = ">=3.11"', 1)
    lock = locked(server, tmp_path / "locked", {**files, "pyproject.toml": project})
    key = line.partition(" =")[0]
    changed = re.sub(rf"(?m)^{key} = .*$", line, project) if f"\n{key} =" in project else project + line
    assert changed != project
    result = go({**files, "pyproject.toml": changed, "uv.lock": lock})
    if word:
        refusal(result, "uv.lock", "no longer fits", "uv lock", word)
    else:
        assert result.outputs == {"out": b"1.17.0"}


def test_a_lock_of_a_project_whose_version_only_a_build_tells(go: Go, server: LocalServer, tmp_path: Path) -> None:
    """uv would build before it says that the dependencies are others, and can't."""
    points = POINTS.replace("model.main", "mywire")
    lock = locked(server, tmp_path / "locked", tiny("mywire", SIX, 'dependencies = ["six"]\n' + points))
    lock = lock.replace('name = "mywire"\nversion = "1.0"\n', 'name = "mywire"\n')

    def handed_in(dependencies: str) -> Result:
        more = f"dependencies = {dependencies}\ndynamic = ['version']\n{points}"
        files = tiny("mywire", SIX, more, requires='"nothere"')
        return go({path: text.replace('version = "1.0"\n', "") for path, text in files.items()} | {"uv.lock": lock})

    assert handed_in('["six"]').error["type"] == "dependency_unavailable"  # it fits, and is built
    refusal(handed_in('["six", "both"]'), "uv.lock", "no longer fits", "requirements for mywire", "uv lock")


def test_pylock_is_taken_as_it_is(go: Go, server: LocalServer, tmp_path: Path) -> None:
    files = virtual(dependencies=("six>=1.10",))
    old = {**files, "pyproject.toml": files["pyproject.toml"] + '[tool.uv]\nconstraint-dependencies = ["six<1.16"]\n'}
    lock = locked(server, tmp_path / "locked", old, "--format", "pylock.toml", "--no-emit-project")
    assert go({**files, "pylock.toml": lock}).outputs == {"out": b"1.15.0"}
    refusal(go({**files, "pylock.toml": "lock-version = '9'\n"}), "pylock.toml")


@pytest.mark.parametrize(
    ("dependency", "word"),
    [("bar", "bar is not in the lock"), ("six>=1.16", "six 1.15.0, and the dependency is six>=")],
)
def test_a_pylock_that_no_longer_fits(go: Go, server: LocalServer, tmp_path: Path, dependency: str, word: str) -> None:
    files = virtual(dependencies=("six==1.15.0",))
    lock = locked(server, tmp_path / "locked", files, "--format", "pylock.toml", "--no-emit-project")
    changed = virtual(dependencies=(dependency, "six", "foo ; sys_platform == 'win32'"))
    refusal(go({**changed, "pylock.toml": lock}), "pylock.toml", "no longer fits", word)


ANOTHER = pytest.mark.full("another name in the same list")
UNREAD = ("requirements.lock", "conda-lock.yml", "Pipfile.lock", "conda-env.yaml", "environment-gpu.yml")


@pytest.mark.parametrize("name", ["poetry.lock", *(pytest.param(name, marks=ANOTHER) for name in UNREAD)])
def test_a_lock_that_is_not_read_is_named(go: Go, name: str) -> None:
    result = go(virtual(**{name: "x"}))
    assert result.outputs and f"{name} is not read" in result.stderr


def test_dependencies_of_pixi_are_named(go: Go) -> None:
    files = virtual("import numpy\ndef wire(*a):\n    pass\n", "[tool.pixi.dependencies]\nnumpy = '*'\n", ())
    result = go(files)
    assert "tool.pixi is not read" in result.stderr
    assert "declares it in tool.pixi.dependencies alone" in result.error["error"]


CONDA = ("env.yaml", "env-dev.yml", "pixi.toml", "Pipfile")


@pytest.mark.parametrize("name", ["environment.yml", *(pytest.param(name, marks=ANOTHER) for name in CONDA)])
def test_a_conda_environment_and_nothing_else(go: Go, name: str) -> None:
    refusal(
        go({name: "dependencies:\n  - numpy\n", "model.py": SIX}),
        name,
        "not read",
        "pyproject.toml",
        "requirements.txt",
    )


def test_a_project_that_is_not_at_the_top_is_named(go: Go) -> None:
    result = go({f"python/{path}": text for path, text in virtual().items()})
    assert result.error["type"] == "no_wire_entry_point"
    assert "python/pyproject.toml is not read: its folder is not the bundle's" in result.stderr


# --- requirements files

FILES: dict[str, tuple[str, dict[str, str], str]] = {
    "included, with constraints": (
        "-r requirements/base.txt\n-c constraints.txt\n",
        {
            "requirements/base.txt": "six  # what for\n-r more.txt",
            "requirements/more.txt": "",
            "constraints.txt": "six==1.15.0",
        },
        "1.15.0",
    ),
    "long options": (
        "--requirement=base.txt\n--constraint 'c.txt'\n",
        {"base.txt": "six", "c.txt": "six<1.17"},
        "1.16.0",
    ),
    "continued": ("six \\\n  < 1.16 \\\n  ; python_version > '3'\n", {}, "1.15.0"),
    "pre-releases": ("--pre\nsix\n", {}, "1.18.0rc1"),
    "prefer binary": ("--prefer-binary\n--trusted-host pypi.org\nsix\n", {}, "1.17.0"),
    "the index that there is anyway": ("--index-url https://pypi.org/simple\nsix\n", {}, "1.17.0"),
    "another encoding": ("# -*- coding: latin-1 -*-\nsix==1.15.0\n", {}, "1.15.0"),
    "only binary": ("--only-binary :all:\nsix\n", {}, "1.17.0"),
}


READ = ("included, with constraints", "pre-releases")


@pytest.mark.parametrize(("text", "files", "version"), rows(FILES, READ, "another option of the same reader"))
def test_a_requirements_file(go: Go, text: str, files: dict[str, str], version: str) -> None:
    assert go(requirements(text, **files)).outputs == {"out": version.encode()}


def test_a_requirements_file_of_windows(go: Go) -> None:
    files: dict[str, Any] = requirements("")
    files["requirements.txt"] = "./wired\r\nsix==1.15.0\r\n".encode("utf-16")
    assert go(files).outputs == {"out": b"1.15.0"}


PATHS = {
    "path": "./libs/foo\n",
    "editable": "-e libs/foo\n",
    "editable, with a marker": "-e libs/foo ; python_version >= '3'  # ours\n",
    "name": "foo @ file:libs/foo\n",
    "extras": "./libs/foo[x,y]\n",
}


@pytest.mark.parametrize("line", rows(PATHS, ("editable", "extras"), "another spelling of a path"))
def test_a_path_in_a_requirements_file(go: Go, server: LocalServer, line: str) -> None:
    server.log.clear()
    assert go(requirements(line, FOO, **tiny("foo", MINE, "", "libs/foo"))).outputs == {"out": b"mine"}
    assert server.paths() == []


def test_an_editable_line_is_never_a_name_alone(go: Go, server: LocalServer) -> None:
    """As pip has it: a folder, though it has no slash."""
    server.log.clear()
    files = requirements("-e foo[x]\n", FOO, **tiny("foo", MINE, "", "foo"))
    assert go(files).outputs == {"out": b"mine"}
    refusal(go(requirements("-e bar\n", FOO)), "no 'bar'", "line 2")
    assert server.paths() == []


ANOTHER_SPELLING = pytest.mark.full("another spelling of the bundle itself")


@pytest.mark.parametrize("line", ["-e .", "", *(pytest.param(line, marks=ANOTHER_SPELLING) for line in (".", ".[x]"))])
def test_the_bundle_itself_in_a_requirements_file(go: Go, line: str) -> None:
    files = tiny("wired", SIX, f'dynamic = ["x"]\n[project.entry-points."{GROUP}"]\nexecute = "wired:wire"\n')
    assert go({**files, "requirements.txt": f"six<1.16\n{line}\n"}).outputs == {"out": b"1.15.0"}


DYNAMIC = pytest.param('dynamic = ["dependencies"]', marks=pytest.mark.full("the same line, where none is listed"))


@pytest.mark.parametrize("dependencies", ['dependencies = ["bar"]', DYNAMIC])
def test_a_requirements_file_that_installs_the_project(go: Go, dependencies: str) -> None:
    """Also where pyproject.toml lists the dependencies. Without such a line it is not read, and the log says so."""
    more = f'{dependencies}\n[project.entry-points."{GROUP}"]\nx = "m:wire"\n'
    files = tiny("m", SIX, more) | {"requirements.txt": "-r requirements/all.txt\n"}
    files |= {"requirements/all.txt": "-c versions.txt\n-e .\nsix\n", "requirements/versions.txt": "six==1.15.0\n"}
    assert go(files).outputs == {"out": b"1.15.0"}
    result = go(files | {"requirements/all.txt": "six==1.15.0\n--no-such-option\n"})
    assert "six" in result.error["error"] and "requirements.txt is not read" in result.stderr


def test_dependencies_that_no_build_will_tell(go: Go) -> None:
    """`dynamic` says that the build tells them, and a virtual project has none."""
    files = virtual(dependencies=None, **{"requirements.txt": "six==1.15.0\n"})
    files["pyproject.toml"] = files["pyproject.toml"].replace("version =", 'dynamic = ["dependencies"]\nversion =')
    assert go(files).outputs == {"out": b"1.15.0"}


def test_what_is_left_out_of_a_workspace_need_not_be_a_project(go: Go) -> None:
    more = '[tool.uv.workspace]\nmembers = ["libs/*"]\nexclude = ["libs/old"]\n'
    more += "[tool.uv.sources]\nfoo = {workspace = true}\n"
    files = {"libs/old/pyproject.toml": "not TOML at all ["}
    assert go(virtual(FOO, more, ("foo",), **tiny("foo", MINE, folder="libs/foo"), **files)).outputs == {"out": b"mine"}


@pytest.mark.full("test_an_extra_of_the_project_itself, by one extra more")
def test_extras_of_the_project_that_name_one_another(go: Go) -> None:
    extras = '[project.optional-dependencies]\na = ["six==1.15.0"]\nb = ["bar"]\nall = ["mywire[a,b]"]\n'
    code = "import bar\n" + SIX
    assert go(virtual(code, extras, ("mywire[all]",))).outputs == {"out": b"1.15.0"}


def test_an_index_for_an_extra_that_is_not_installed(go: Go, server: LocalServer, second: LocalServer) -> None:
    """As projects offer torch for a processor or a GPU: the index is named, and asked for nothing."""
    more = f'[project.optional-dependencies]\ncpu = ["torch"]\n[[tool.uv.index]]\nname = "x"\nurl = "{second.url()}"\n'
    more += 'explicit = true\n[tool.uv.sources]\ntorch = [{index = "x", extra = "cpu"}]\n'
    assert go(virtual(more=more)).outputs == {"out": b"1.17.0"}
    assert second.log == []


def test_a_folder_of_wheels(go: Go, server: LocalServer) -> None:
    """A name that the folder has is the bundle's to give: the index is not asked for it, also where it has more."""
    server.log.clear()
    old, new = (
        wheel("foo", "0.9", {"foo.py": "WHOSE = 'old'\n"}),
        wheel("foo", "0.10", {"foo.py": MINE}, requires=["six<1.16"]),
    )
    other = wheel("foo", "2.0", {"foo.py": "WHOSE = 'of another Python'\n"}, tag="cp27-cp27m-linux_x86_64")
    files: dict[str, Any] = {f"wheels/{name}": data for name, data in (old, new, other)}
    for text in ("--find-links ./wheels\nfoo\n", "--no-index\n-f wheels\nfoo\n"):
        result = go(
            requirements(
                text,
                FOO,
                **files,
                **(
                    {"wheels/" + wheel("six", "1.15.0", {})[0]: wheel("six", "1.15.0", {"six.py": ""})[1]}
                    if "no-index" in text
                    else {}
                ),
            )
        )
        assert result.outputs == {"out": b"mine"}
    assert "/simple/foo/" not in server.paths() and "/simple/six/" in server.paths()


def test_an_index_that_is_a_folder(go: Go, server: LocalServer) -> None:
    """An explicit one serves what names it, and is an error where it has no such file."""
    server.log.clear()
    name, data = wheel("foo", "0.9", {"foo.py": MINE})
    _, other = wheel("six", "1.15.0", {"six.py": "__version__ = 'of the folder'\n"})
    index = '[[tool.uv.index]]\nname = "here"\nurl = "./wheels"\nformat = "flat"\nexplicit = true\n'
    code = "import foo, six\ndef wire(*a):\n    return {'out': foo.WHOSE + six.__version__}\n"
    files: dict[str, Any] = {f"wheels/{name}": data, "wheels/six-1.15.0-py3-none-any.whl": other}
    sources = '[tool.uv.sources]\nfoo = {index = "here"}\n'
    assert go(virtual(code, index + sources, ("foo", "six"), **files)).outputs == {"out": b"mine1.17.0"}
    assert "/simple/foo/" not in server.paths()
    refusal(go(virtual(code, index + sources + 'bar = {index = "here"}\n', ("foo", "bar"), **files)), "has no bar")


def test_from_source_by_name(go: Go) -> None:
    code = "import both\ndef wire(*a):\n    return {'out': both.WHOSE}\n"
    assert go(requirements("both\n", code)).outputs == {"out": b"wheel"}
    assert go(requirements("--no-binary both\nboth\n", code)).outputs == {"out": b"sdist"}


NEWEST = {
    "a dependency of the newest has no wheel": ("outer", "2.0"),
    "so has one of a dependency": ("beyond", "beyond"),
    "the newest has none itself": ("newer", "mine"),
    "a version that was asked for": ("newer==2.0", "mine"),
}


BUILT = ("so has one of a dependency",)


@pytest.mark.parametrize("line, whose", rows(NEWEST, BUILT, "a part of another row"))
def test_the_newest_is_taken_also_where_it_must_be_built(go: Go, line: str, whose: str) -> None:
    """As pip and uv have it. With wheels alone, the answer would be an old version, and nobody would be told."""
    name = line.partition("=")[0]
    code = "from importlib.metadata import version\nimport {0}\n{1}\ndef wire(*a):\n    return {{'out': {0}.WHOSE}}\n"
    check = "assert (version('outer'), version('deep')) == ('2.0', '1.5')" if name == "beyond" else ""
    result = go(virtual(code.format(name, check), dependencies=(line,)))
    assert result.outputs == {"out": whose.encode()} and "phase: build" in result.stderr


def test_who_gets_an_old_version_is_told(go: Go, full: bool) -> None:
    ask = "import {0}\ndef wire(*a):\n    return {{'out': {0}.WHOSE}}\n"
    told = "older versions are taken, as newer ones have no wheel: {0} ({1}"
    outer = go(virtual(ask.format("outer"), dependencies=("outer",)), "--profile", "strict")
    assert outer.outputs == {"out": b"of 2019"} and told.format("deep", "sources are not built") in outer.stderr
    broken = go(virtual(ask.format("broken"), dependencies=("broken",)))
    assert broken.outputs == {"out": b"the wheel"} and told.format("broken", "broken: the build") in broken.stderr
    if not full:  # the other reasons are told by the same words, and that a build failed by those of who asked for it
        return
    assert go(virtual(ask.format("broken"), dependencies=("broken==2.0",))).error["type"] == "build_failed"
    picky = go(virtual(ask.format("picky"), dependencies=("picky", "six>=1.17")))
    assert picky.outputs == {"out": b"the wheel"} and told.format("picky", "the dependencies") in picky.stderr
    error = go(virtual(SIX, dependencies=("picky==2.0", "six>=1.17"))).error
    assert error["type"] in ("dependency_unavailable", "dependency_conflict") and "six<1.16" in error["error"]
    quiet = go(virtual(SIX, dependencies=("six<1.17", "wantsfoo")))
    assert quiet.outputs and "older versions" not in quiet.stderr and "phase: build" not in quiet.stderr


def test_hashes_of_every_kind(go: Go, server: LocalServer, full: bool) -> None:
    data = server.content["/files/six-1.15.0-py3-none-any.whl"]
    for algorithm in ("sha256", "sha384", "sha512") if full else ("sha512",):  # locks have sha256
        line = f"six==1.15.0 --hash={algorithm}:{hashlib.new(algorithm, data).hexdigest()}\n"
        assert go(requirements(line)).outputs == {"out": b"1.15.0"}
        wrong = line.replace(hashlib.new(algorithm, data).hexdigest()[:9], "0" * 9)
        assert go(requirements(wrong)).error["type"] == "hash_mismatch"
    assert go(requirements("--require-hashes\nsix\n")).error["type"] == "hash_mismatch"


REFUSED = {
    "out of the bundle": "-r ../x.txt\n",
    "absolute": "-r /etc/shadow\n",
    "missing": "-r nowhere.txt\n",
    "itself": "-r requirements.txt\n",
    "variable": "six @ https://${TOKEN}@h.example/six-1-py3-none-any.whl\n",
    "option": "--no-build-isolation\nsix\n",
    "of one line": "six --global-option=x\n",
    "everything from source": "--no-binary :all:\nsix\n",
    "ssh": "-e git+ssh://git@github.com/o/r.git#egg=x\n",
    "conda's": "numpy @ file:///croot/numpy_1/work\n",
    "http": "--index-url http://h.example/simple\nsix\n",
    "credentials": "--index-url https://u:p@h.example/simple\nsix\n",
    "no folder": "--find-links ./nowhere\nsix\n",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_a_line_that_is_refused_by_name(go: Go, text: str) -> None:
    error = refusal(
        go({"requirements.txt": text, "x.py": ""}),
        "requirements.txt, line 1" if "nowhere.txt" not in text else "nowhere.txt",
    )
    assert "s3cr3t" not in error["error"]


# --- indexes


@pytest.fixture
def second() -> Iterator[LocalServer]:
    with LocalServer() as running:
        running.add(*wheel("torch", "2.0+cpu", {"torch.py": "V = 'cpu'\n"}, requires=["six"]))
        running.add(*wheel("six", "9.0", {"six.py": "__version__ = 'of the second index'\n"}))
        yield running


TORCH = "import six, torch\ndef wire(*a):\n    return {'out': torch.V + six.__version__}\n"


def test_an_explicit_index_serves_what_names_it(go: Go, server: LocalServer, second: LocalServer) -> None:
    more = f'[[tool.uv.index]]\nname = "pytorch-cpu"\nurl = "{second.url()}"\nexplicit = true\n'
    more += '[tool.uv.sources]\ntorch = {index = "pytorch-cpu"}\n'
    assert go(virtual(TORCH, more, ("torch",))).outputs == {"out": b"cpu1.17.0"}
    assert {path for path in second.paths() if path.startswith("/simple/")} == {"/simple/torch/"}
    assert "/simple/torch/" not in server.paths()


def test_a_further_index_of_a_requirements_file(go: Go, second: LocalServer) -> None:
    assert go(requirements(f"--extra-index-url {second.url()}\ntorch\n", TORCH)).outputs == {
        "out": b"cpuof the second index"
    }


def test_another_default_index(go: Go, second: LocalServer, server: LocalServer) -> None:
    server.log.clear()
    assert go(requirements(f"-i {second.url()}\ntorch\n", TORCH)).outputs == {"out": b"cpuof the second index"}
    assert server.log == []


def test_strict_asks_the_callers_indexes_alone(go: Go, second: LocalServer, server: LocalServer) -> None:
    index = f'[[tool.uv.index]]\nname = "x"\nurl = "{second.url()}"\n'
    refusal(go(virtual(more=index), "--profile", "strict"), "dependencies.indexes", second.url())
    refusal(
        go({"requirements.txt": f"-i {second.url()}\nsix\n"}, "--profile", "strict"), "dependencies.indexes", "line 1"
    )
    own = f'[[tool.uv.index]]\nname = "x"\nurl = "{server.url()}"\nexplicit = true\n'
    own += '[tool.uv.sources]\nsix = {index = "x"}\n'
    assert go(virtual(more=own), "--profile", "strict").outputs == {"out": b"1.17.0"}


def test_an_index_of_this_machine_is_refused(go: Go, second: LocalServer) -> None:
    error = refusal(
        go(virtual(more=f'[tool.uv]\nindex-url = "{second.url()}"\n'), "--profile", "default"), "private_addresses"
    )
    assert second.log == [] and error["phase"] == "bundle"


# --- what is said


def test_a_misspelt_name(go: Go, server: LocalServer) -> None:
    error = go(virtual(dependencies=("six", "sixx"))).error
    assert error["type"] == "dependency_unavailable" and "sixx" in error["error"]
    assert "overrides" not in error["error"] and "warning" not in error["error"]
    assert "six?" in error["error"]


def test_the_plan_is_shown(run: Runner, tmp_path: Path) -> None:
    files = virtual(
        more='[tool.uv]\nconstraint-dependencies = ["six<1.16"]\n[tool.uv.sources]\nfoo = {path = "libs/foo"}\n'
    )
    write_tree(tmp_path / "bundle", {**files, **tiny("foo", MINE, "", "libs/foo")})
    body = run(tmp_path / "bundle", None, "--print-bwrap").body
    plan = body["plan"]
    assert (plan["kind"], plan["project"]["requires"]) == ("virtual", ["six"])
    assert plan["origins"]["foo"] == [["file:libs/foo", ""]] and plan["rules"]["constraints"] == ["six<1.16"]
    assert body["phases"]["execute"]["bwrap"]
