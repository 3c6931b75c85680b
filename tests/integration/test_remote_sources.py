"""Sources that lie elsewhere: git, URLs and pages of links, each obeyed or refused by name. Real git, real https."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import GROUP, PROFILES, TINY_BACKEND, Result, Runner, tiny
from servers import LocalServer, local_profile, plain, sdist, wheel, write_tree
from suites import rows

Go = Callable[..., Result]
FOO = "import foo\ndef wire(*a):\n    return {'out': foo.WHOSE}\n"
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def whose(text: str, **more: Any) -> dict[str, str]:
    return tiny("foo", f"WHOSE = {text!r}\n", **more)


class Places:
    """An index with strangers of every name, and beside it what the sources of the tests name."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        for name in ("foo", "bar"):
            server.add(*wheel(name, "99.0", {f"{name}.py": "WHOSE = 'a stranger'\n"}))
        server.add(*wheel("wantsfoo", "1.0", {"wantsfoo.py": ""}, requires=["foo"]))
        many = whose("git", folder="pkgs/foo") | whose("git's top")
        many |= {"pkgs/bar/x": ""} | tiny("bar", "WHOSE = 'git'\n", folder="pkgs/bar")
        self.git = server.git("many", many)
        work = Path(server.folder, "many")
        self.first = self.commit(work)
        (work / "foo.py").write_text("WHOSE = 'a branch'\n")
        self.run(work, "checkout", "-q", "-b", "dev")
        self.run(work, "commit", "-q", "-a", "-m", "x")
        self.run(work, "tag", "v2.0")
        self.run(work, "push", "-q", "../many.git", "dev", "v2.0")
        self.wheel = self.file(*wheel("foo", "2.0", {"foo.py": "WHOSE = 'a wheel'\n"}))
        self.sdist = self.file(*sdist("foo", "2.0", whose("an sdist")))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, text in whose("an archive", folder="many-main/pkgs/foo").items():
                file.writestr(name, text)
        self.archive = self.file("main.zip", archive.getvalue())
        name = self.wheel.rpartition("/")[2]
        digest = hashlib.sha256(server.content[f"/files/{name}"]).hexdigest()
        server.behave("/page", plain(f'<a href="/files/{name}#sha256={digest}">{name}</a>'.encode()))
        self.values = {
            "GIT": self.git, "FIRST": self.first, "A_WHEEL": self.wheel, "SDIST": self.sdist, "ARCHIVE": self.archive,
            "PAGE": server.url("/page"), "SHA256": digest, "HOST": server.host,
        }  # fmt: skip

    def file(self, name: str, data: bytes) -> str:
        self.server.content[f"/files/{name}"] = data
        return self.server.url(f"/files/{name}")

    @staticmethod
    def run(work: Path, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, cwd=work, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, work: Path) -> str:
        return self.run(work, "rev-parse", "HEAD")

    def fill(self, text: str) -> str:
        return re.sub(r"\b[A-Z0-9_]{3,}\b", lambda match: self.values.get(match[0], match[0]), text)


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with LocalServer() as server:
        yield Places(server)


@pytest.fixture
def go(run: Runner, tmp_path: Path, places: Places) -> Go:
    def make(files: Mapping[str, str], *arguments: str) -> Result:
        write_tree(tmp_path / "bundle", {name: places.fill(text) for name, text in files.items()})
        profile = ("--profile", str(local_profile(tmp_path)), "--profiles-dir", str(PROFILES))
        places.server.log.clear()
        return run(tmp_path / "bundle", None, *(arguments or profile), env=places.server.environment())

    return make


def bundle(more: str, dependencies: tuple[str, ...] = ("foo",), code: str = FOO) -> dict[str, str]:
    head = f'[project]\nname = "mywire"\nversion = "1.0"\ndependencies = {json.dumps(dependencies)}\n'
    return {"pyproject.toml": f'{head}[project.entry-points."{GROUP}"]\nx = "model:wire"\n{more}', "model.py": code}


def requirements(text: str) -> dict[str, str]:
    return {"requirements.txt": f"{text}\n./wired\n"} | tiny(
        "wired", FOO, f'[project.entry-points."{GROUP}"]\nx = "wired:wire"\n', "wired"
    )


def source(text: str) -> dict[str, str]:
    return bundle(f"[tool.uv.sources]\nfoo = {text}\n")


OBEYED = {
    "git": (source('{git = "GIT"}'), "git's top"),
    "a branch": (source('{git = "GIT", branch = "dev"}'), "a branch"),
    "a tag": (source('{git = "GIT", tag = "v2.0"}'), "a branch"),
    "a commit": (source('{git = "GIT", rev = "FIRST"}'), "git's top"),
    "the beginning of a commit": (source('{git = "GIT", rev = "SHORT"}'), "git's top"),
    "a folder of git": (source('{git = "GIT", subdirectory = "pkgs/foo"}'), "git"),
    "a marker": (
        source('[{git = "GIT", marker = "os_name == \'nt\'"}, {url = "A_WHEEL", marker = "os_name != \'nt\'"}]'),
        "a wheel",
    ),
    "a wheel": (source('{url = "A_WHEEL"}'), "a wheel"),
    "an sdist": (source('{url = "SDIST"}'), "an sdist"),
    "a folder of an archive": (source('{url = "ARCHIVE", subdirectory = "pkgs/foo"}'), "an archive"),
    "asked for by a package of the index": (
        bundle('[tool.uv.sources]\nfoo = {git = "GIT"}\n', ("wantsfoo", "foo")),
        "git's top",
    ),
    "asked for by a package of the index alone": (
        bundle('[tool.uv.sources]\nfoo = {url = "A_WHEEL"}\n', ("wantsfoo",)),
        "a wheel",
    ),
    "poetry's": (bundle('[tool.poetry.dependencies]\nfoo = {git = "GIT", subdirectory = "pkgs/foo"}\n'), "git"),
    "a direct reference to git": (bundle("", ("foo @ git+GIT@v2.0",)), "a branch"),
    "a direct reference to a folder of git": (bundle("", ("foo @ git+GIT@FIRST#subdirectory=pkgs/foo",)), "git"),
    "a direct reference to a wheel": (bundle("", ("foo @ A_WHEEL#sha256=SHA256",)), "a wheel"),
    "a direct reference to an sdist": (bundle("", ("foo[x] @ SDIST ; python_version > '3'",)), "an sdist"),
    "a line of git": (requirements("git+GIT@dev#egg=foo"), "a branch"),
    "an editable line of git": (requirements("-e git+GIT#egg=foo&subdirectory=pkgs/foo"), "git"),
    "a line with a wheel's URL": (requirements("A_WHEEL"), "a wheel"),
    "a line with an archive": (requirements("foo @ ARCHIVE#subdirectory=pkgs/foo"), "an archive"),
    "an override": (
        bundle('[tool.uv]\noverride-dependencies = ["foo @ A_WHEEL"]\n', ("foo==1.0", "wantsfoo")),
        "a wheel",
    ),
}  # fmt: skip


EACH_KIND = (
    *("the beginning of a commit", "a marker", "an sdist", "an override"),
    *("asked for by a package of the index alone", "a direct reference to a wheel", "an editable line of git"),
)


@pytest.mark.parametrize("files, expected", rows(OBEYED, EACH_KIND, "the same source, named in another way"))
def test_a_source_that_lies_elsewhere(files: dict[str, str], expected: str, go: Go, places: Places) -> None:
    """What it says is installed, and the index is not asked for the name."""
    places.values["SHORT"] = places.first[:8]
    assert go(files).outputs == {"out": expected.encode()}
    assert "/simple/foo/" not in places.server.paths()


PAGES = {
    "explicit": bundle('[[tool.uv.index]]\nname = "x"\nurl = "PAGE"\nformat = "flat"\nexplicit = true\n'
                       '[tool.uv.sources]\nfoo = {index = "x"}\n'),
    "beside the index": bundle('[[tool.uv.index]]\nname = "x"\nurl = "PAGE"\nformat = "flat"\n', ("foo<99",)),
    "tool.uv.find-links": bundle('[tool.uv]\nfind-links = ["PAGE"]\n', ("foo<99",)),
    "--find-links": requirements("--find-links PAGE\nfoo<99"),
    "--no-index": requirements("--no-index\n-f PAGE\nfoo"),
}  # fmt: skip


@pytest.mark.parametrize("files", rows(PAGES, ("explicit", "tool.uv.find-links", "--no-index"), "one more index again"))
def test_a_page_of_links(files: dict[str, str], go: Go, places: Places) -> None:
    """It serves what names it, or is one more index; with --no-index, or an explicit one, the index is not asked."""
    assert go(files).outputs == {"out": b"a wheel"}
    assert "/page" in places.server.paths()
    asked_alone = "explicit" in str(files) or "--no-index" in str(files)
    assert ("/simple/foo/" in places.server.paths()) is not asked_alone


REFUSED = {
    "ssh": (source('{git = "ssh://git@HOST/many.git"}'), "https"),
    "git's own protocol": (source('{git = "git://HOST/many.git"}'), "https"),
    "git without TLS": (source('{git = "http://HOST/many.git"}'), "https"),
    "a repository of the host": (source('{git = "file:///etc"}'), "https"),
    "a login": (source('{git = "https://u:p@HOST/many.git"}'), "without user"),
    "two revisions": (source('{git = "GIT", tag = "v2.0", branch = "dev"}'), "one of rev, tag and branch"),
    "lfs": (source('{git = "GIT", lfs = true}'), "lfs"),
    "a URL without TLS": (source('{url = "http://HOST/foo-2.0-py3-none-any.whl"}'), "https"),
    "a file of the host": (bundle("", ("foo @ file:///etc/foo-1-py3-none-any.whl",)), "leads out"),
    "a page without TLS": (bundle('[tool.uv]\nfind-links = ["http://HOST/page"]\n'), "https"),
    "hg": (requirements("hg+https://HOST/many#egg=foo"), "git+https"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_is_refused_by_name(name: str, go: Go, places: Places) -> None:
    files, word = REFUSED[name]
    error = go(files).error
    assert error["phase"] == "bundle" and error["type"] == "dependency_refused" and word in error["error"], error
    assert places.server.log == []


FAILED = {
    "out of the repository": (source('{git = "GIT", subdirectory = "../x"}'), "leads out"),
    "no such folder": (source('{git = "GIT", subdirectory = "nowhere"}'), "nowhere"),
    "no such branch": (source('{git = "GIT", branch = "nowhere"}'), "nowhere"),
    "no such commit": (source('{git = "GIT", rev = "deadbeef"}'), "deadbeef"),
    "another project": (
        source('{git = "GIT", subdirectory = "pkgs/bar"}'),
        "is the project bar",
    ),
    "another hash": (bundle("", (f"foo @ A_WHEEL#sha256={'0' * 64}",)), "sha256"),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_source_that_is_not_what_it_says(name: str, go: Go, places: Places) -> None:
    """An error that names it, and no reason to ask the index."""
    files, word = FAILED[name]
    error = go(files).error
    assert word in error["error"] and error["type"] != "internal_error", error
    assert "/simple/foo/" not in places.server.paths()


@pytest.mark.parametrize(
    "files, key",
    [(source('{git = "GIT"}'), "dependencies.git"), (bundle("", ("foo @ A_WHEEL",)), "dependencies.direct_urls"),
     (bundle('[tool.uv]\nfind-links = ["PAGE"]\n'), "dependencies.indexes")],
)  # fmt: skip
def test_strict_refuses_by_name(files: dict[str, str], key: str, go: Go) -> None:
    error = go(files, "--profile", "strict").error
    assert error["type"] == "dependency_refused" and key in error["error"], error


# --- what builds need


def needs(requirement: str) -> dict[str, str]:
    """A local source whose backend wants something."""
    checks = f"{TINY_BACKEND}\nimport buildtool\nTOLD = buildtool.VERSION\n"
    files = whose("built", folder="libs/foo", requires=json.dumps(requirement))
    return files | {"libs/foo/backend/tiny_backend.py": checks}


def wheels(*versions: str) -> dict[str, bytes]:
    made = [wheel("buildtool", version, {"buildtool.py": f"VERSION = {version!r}\n"}) for version in versions]
    return {f"wheels/{name}": data for name, data in made}


def test_no_index_is_for_builds_too(go: Go, places: Places, tmp_path: Path) -> None:
    """As pip has it: what a build needs comes from the folder of wheels, or is an error; no index is asked."""
    text = "--no-index\n--find-links ./wheels\n./libs/foo"
    places.server.add(*wheel("buildtool", "9.0", {"buildtool.py": "VERSION = '9.0'\n"}))
    files = requirements(text) | needs("buildtool") | {"wheels/README": ""}
    error = go(files).error
    assert "buildtool" in error["error"] and error["error"].endswith("(to build foo)"), error
    assert "/simple/buildtool/" not in places.server.paths()
    write_tree(tmp_path / "bundle", wheels("1.0"))
    assert go({}).outputs == {"out": b"built"}
    assert "/simple/buildtool/" not in places.server.paths()


def test_the_lowest_versions_are_not_for_builds(go: Go, places: Places) -> None:
    """As uv has it: a backend's lowest version is one that nobody ever tried."""
    for version in ("0.1", "1.0"):
        places.server.add(
            *wheel("lowtool", version, {"buildtool.py": f"VERSION = {version!r}\nassert VERSION == '1.0'\n"})
        )
    more = '[tool.uv]\nresolution = "lowest"\n[tool.uv.sources]\nfoo = {path = "libs/foo"}\n'
    assert go(bundle(more) | needs("lowtool")).outputs == {"out": b"built"}


DATES = ("project.version", "project.name", "project.requires-python", "project.dependencies", "tool.uv.exclude-newer")


@pytest.mark.parametrize("key", DATES)
def test_a_date_is_no_text(key: str, go: Go, places: Places) -> None:
    """TOML has dates, which look like words without quotes."""
    table, _, name = key.rpartition(".")
    value = "[2024-01-01]" if name == "dependencies" else "2024-01-01"
    said = {"name": '"mywire"', "version": '"1.0"', "dependencies": "[]"} if table == "project" else {}
    lines = {**said, name: value}
    head = "" if said else '[project]\nname = "mywire"\nversion = "1.0"\n'
    text = f"{head}[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
    error = go({"pyproject.toml": f'{text}[project.entry-points."{GROUP}"]\nx = "model:wire"\n', "model.py": FOO}).error
    assert error["phase"] == "bundle" and name in error["error"], error
    assert places.server.log == []
