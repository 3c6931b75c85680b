"""Bundles whose files, metadata and dependencies are the attack: nothing of them may run, hang or be read."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from evidence import CONTROLS_DONE
from servers import LocalServer, wheel

from security.hostile import HostileRunner, cases, runs, turns

FAMILY = "install"
HOST_FILE = "/etc/shadow"  # what hostile names point at
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': 'ran'}\n"
PROJECT = """
[project]
name = "probe"
version = "1.0"
{more}
[project.entry-points."modelops.wire"]
execute = "probe:wire"
"""


class Hostile(NamedTuple):
    """`make` turns a good bundle into the hostile one. `ends` are the allowed ends: "ran", or phase/type with
    `*` for any type."""

    name: str
    make: Callable[[Path], object]
    ends: tuple[str, ...]


def link(path: str, target: str) -> Callable[[Path], object]:
    return lambda bundle: os.symlink(target, bundle / path)


def replace(path: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / path).write_bytes(text.encode() if isinstance(text, str) else text)


def project(more: str) -> Callable[[Path], object]:
    return replace("pyproject.toml", PROJECT.format(more=more))


def dependency(text: str) -> Callable[[Path], object]:
    return project(f"dependencies = ['''{text}''']")


def requirements(text: str) -> Callable[[Path], object]:
    def make(bundle: Path) -> None:
        (bundle / "pyproject.toml").unlink()
        (bundle / "requirements.txt").write_text(text)

    return make


def build_system(lines: str) -> Callable[[Path], object]:
    return replace("pyproject.toml", f"[build-system]\n{lines}\n")


def entry_point(reference: str) -> Callable[[Path], object]:
    return replace("pyproject.toml", PROJECT.format(more="").replace("probe:wire", reference))


def bound_socket(bundle: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(bundle, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/s")
        os.close(folder)


def sparse(bundle: Path) -> None:
    with open(bundle / "huge", "wb") as file:
        file.truncate(1 << 40)


def nested(levels: int, name: str) -> Callable[[Path], object]:
    """Folders deeper than a path may be long, so made from inside."""

    def make(bundle: Path) -> None:
        program = f"import os\nfor _ in range({levels}):\n os.mkdir('{name}')\n os.chdir('{name}')"
        subprocess.run(["python3", "-c", program], cwd=bundle, check=True)

    return make


def replaced_by_link(name: str, target: str) -> Callable[[Path], object]:
    def make(bundle: Path) -> None:
        (bundle / name).unlink()
        os.symlink(target, bundle / name)

    return make


def swapped(make: Callable[[Path], None]) -> Callable[[Path], object]:
    def act(bundle: Path) -> None:
        (bundle / "pyproject.toml").unlink()
        make(bundle / "pyproject.toml")

    return act


def set_uid(bundle: Path) -> None:
    (bundle / "s").write_text("")
    (bundle / "s").chmod(0o4777)


def emptied(bundle: Path) -> None:
    for name in ("probe.py", "pyproject.toml"):
        (bundle / name).unlink()


def many_files(bundle: Path) -> None:
    (bundle / "many").mkdir()
    for number in range(10_100):
        os.link(bundle / "probe.py", bundle / "many" / str(number))


def odd_names(bundle: Path) -> None:
    for name in (b"\xff\xfe", b"\x1b[31mred", b"a\nb", b"-rf", b"--config-file", b" "):
        (Path(os.fsdecode(os.path.join(os.fsencode(bundle), name)))).write_bytes(b"")


def fake_settings(bundle: Path) -> None:
    (bundle / "uv.toml").write_text("#!/bin/sh\necho ran >> " + str(bundle) + ".marker\n")


def fake_venv(bundle: Path) -> None:
    for name in (
        ".venv/bin/python",
        ".venv/pyvenv.cfg",
        "venv/bin/python",
        "bin/python",
        ".python-version",
    ):
        path = bundle / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\necho ran >> " + str(bundle) + ".marker\n")
        path.chmod(0o755)


REFUSED = ("bundle/*",)
TWICE = 'probe:wire"\nmore = "probe:wire'
NO_PYTHON = (*REFUSED, "host/no_interpreter")
TREES = [
    Hostile("a link to a host file", link("data", HOST_FILE), ("bundle/unsafe_file",)),
    Hostile("a relative link out", link("data", "../../../../../../../etc/shadow"), ("bundle/unsafe_file",)),
    Hostile("a link to a host folder", link("data", "/root"), ("bundle/unsafe_file",)),
    Hostile("a link to itself", link("data", "data"), ("ran", "bundle/unsafe_file")),
    Hostile("a dangling link", link("data", "nothing"), ("ran", "bundle/unsafe_file")),
    Hostile("a link to /proc/self/fd", link("data", "/proc/self/fd/0"), ("bundle/unsafe_file",)),
    Hostile("a FIFO", lambda b: os.mkfifo(b / "pipe"), ("bundle/unsafe_file",)),
    Hostile("a socket", bound_socket, ("bundle/unsafe_file",)),
    Hostile("a sparse file of 1 TiB", sparse, ("bundle/bundle_too_large",)),
    Hostile("a hard link to a file of its own", lambda b: os.link(b / "probe.py", b / "again.py"), ("ran",)),
    Hostile("pyproject.toml is a link to a host file", replaced_by_link("pyproject.toml", HOST_FILE), REFUSED),
    Hostile(
        "pyproject.toml is a link to a file beside it",
        replaced_by_link("pyproject.toml", "probe.py"),
        REFUSED,
    ),
    Hostile(
        "pyproject.toml is a FIFO",
        swapped(os.mkfifo),
        REFUSED,
    ),
    Hostile(
        "pyproject.toml is a folder",
        swapped(os.mkdir),
        REFUSED,
    ),
    Hostile("pyproject.toml is /dev/zero", replaced_by_link("pyproject.toml", "/dev/zero"), REFUSED),
    Hostile("1500 folders deep", nested(1500, "d"), REFUSED),
    Hostile("a path longer than PATH_MAX", nested(40, "x" * 200), REFUSED),
    Hostile("names that are bytes, escapes, options", odd_names, ("ran", "bundle/unsafe_file")),
    Hostile("an interpreter, venv and configuration of its own", fake_venv, ("ran",)),
    Hostile("a uv.toml that is a program", fake_settings, ("bundle/pyproject_invalid",)),
    Hostile(
        "a set-uid file that all may write",
        set_uid,
        ("ran",),
    ),
    Hostile("nothing at all", emptied, REFUSED),
    Hostile("two entry points", entry_point('probe:wire"\nmore = "probe:wire'), ("bundle/many_wire_entry_points",)),
]
TEXTS = [
    Hostile("TOML that is not", replace("pyproject.toml", "[[[[["), REFUSED),
    Hostile("TOML in UTF-16", replace("pyproject.toml", "a=1".encode("utf-16")), REFUSED),
    Hostile("TOML nested 100,000 deep", replace("pyproject.toml", "a=" + "[" * 100_000), REFUSED),
    Hostile("TOML tables nested deep", replace("pyproject.toml", f"[{'a.' * 5_000}a]\n"), (*REFUSED, "ran")),
    Hostile("a TOML key of 60,000 parts", replace("pyproject.toml", "a" + ".a" * 60_000 + "=1\n"), REFUSED),
    Hostile("TOML of 20 MB", replace("pyproject.toml", b"#" * 20_000_000), REFUSED),
    Hostile("requires-python of many digits", project(f'requires-python = ">={"1" * 300_000} x"'), NO_PYTHON),
    Hostile("requires-python of 5000 digits", project(f'requires-python = ">={"1" * 5000}"'), NO_PYTHON),
    Hostile("requires-python is a path", project('requires-python = ">=3.99/../../tmp/python"'), NO_PYTHON),
    Hostile("requires-python is an option", project('requires-python = "--help"'), REFUSED),
    Hostile("a dependency of 4000 spaces", dependency("a" + " " * 4000 + "!"), REFUSED),
    Hostile("a dependency with brackets of 4000 spaces", dependency("a[" + " ," * 2000 + "!"), REFUSED),
    Hostile("a marker nested deep", dependency("a ; " + "(" * 1500 + "1"), (*REFUSED, "fetch/*")),
    Hostile("a requirements line of 300,000 spaces", requirements("a" + " " * 300_000 + "b\n"), REFUSED),
    Hostile("requirements of 100,000 lines", requirements("a\n" * 100_000), (*REFUSED, "fetch/*")),
    Hostile("requirements with NUL", requirements("six\0\n"), REFUSED),
    Hostile("build requirements are a number", build_system("requires = 1"), REFUSED),
    Hostile("a backend path leads out", build_system('requires=[]\nbackend-path=["../.."]'), REFUSED),
    Hostile("a backend is code", build_system('requires=[]\nbuild-backend="os;import os"'), REFUSED),
    Hostile("an entry point is code", entry_point("os:system('x')"), ("execute/*", "bundle/*", "install/*")),
    Hostile("an entry point of 1 MB", entry_point("x" * 1_000_000 + ":y"), ("execute/*", *REFUSED, "install/*")),
]
LINES = [
    "-e /etc", "-r /etc/shadow", "-c /etc/shadow", "--index-url https://127.0.0.1:1/simple/",
    "--find-links /etc", "--extra-index-url=https://127.0.0.1:1/", "-i https://127.0.0.1:1/",
    "--no-binary :all:", "--config-settings x=y", "./dist/x.whl", "../x.whl",
    "/etc/shadow", "file:///etc/shadow", "file://localhost/etc/shadow", "x @ file:///etc/shadow",
    "x @ file:../y", "x @ git+file:///etc", "x @ git+ssh://host/x", "x @ git+http://127.0.0.1:1/x",
    "x @ http://127.0.0.1:1/x.whl", "x @ ftp://host/x.whl", "x @ hg+https://host/x",
    "x @ svn+https://host/x", "x @ -e", "x @ ../a.whl", "x @ https://user:pw@host/a.whl",
    "x @ https://${SECRET}/a.whl", "x @ ${HOME}/a.whl", "${SECRET}", "six===--index-url", "six====1.0",
    "six==1.0 --hash=sha256:zz", "six --config-settings=x", "six --global-option=--x",
    "six \\\n--index-url=x", "x @ https://127.0.0.1/a.whl", "x @ https://localhost/a.whl",
    "x @ https://169.254.169.254/latest/meta-data/a.whl", "x @ https://2130706433/a.whl",
    "x @ https://0x7f.1/a.whl", "x @ https://[::1]/a.whl", "x @ https://127.1/a.whl",
    "x @ https://metadata.google.internal/a.whl", "x @ https://10.0.0.1/a.whl",
    "x @ git+https://[::ffff:127.0.0.1]/r", "x @ git+https://127.0.0.1/r@--upload-pack=x",
    "x @ ext::sh -c touch% /tmp/x",
]  # fmt: skip


def ends(result: Any) -> str:
    if result.code == 0:
        return "ran"
    return f"{result.error['phase']}/{result.error['type']}"


def fits(end: str, allowed: tuple[str, ...]) -> bool:
    return any(end == one or (one.endswith("/*") and end.startswith(one[:-1])) for one in allowed)


def check(hostile: HostileRunner, case: Hostile, **options: Any) -> Any:
    """Run the bundle; it ends as it may, tells nothing of the host, and the store works for the next one."""
    bundle = hostile.bundle(WIRE)
    case.make(bundle)
    before = {path.name for path in bundle.iterdir()}
    result = hostile(bundle, name=case.name, **options)
    assert fits(ends(result), case.ends), f"{ends(result)}: {str(result.body)[:600]}"
    text = str(result.body) + result.stderr
    for line in shadow_lines():
        assert line not in text, "the host's file is in the answer"
    assert {path.name for path in bundle.iterdir()} == before, "the bundle's folder was written to"
    assert not Path(f"{bundle}.marker").exists(), "a program of the bundle ran on the host"
    return result


def shadow_lines() -> list[str]:
    try:
        return [line for line in Path(HOST_FILE).read_text().splitlines() if line]
    except OSError:
        return []


@runs(("root", "default"))
@pytest.mark.parametrize("case", TREES, ids=lambda case: case.name)
def test_tree(case: Hostile, hostile: HostileRunner) -> None:
    check(hostile, case)


@pytest.mark.full("another account and profile for each case of test_tree")
@turns("case", TREES, ("user", "strict"), ("user", "container"), ("user", "default"), ("root", "strict"))
def test_tree_in_turns(case: Hostile, hostile: HostileRunner) -> None:
    check(hostile, case)


@turns("case", TEXTS, ("root", "brief"), ("user", "brief"))
def test_text(case: Hostile, hostile: HostileRunner) -> None:
    check(hostile, case)


@cases("strict")
def test_too_many_files(hostile: HostileRunner) -> None:
    check(hostile, Hostile("10,100 files under a limit of 10,000", many_files, ("bundle/bundle_too_large",)))


NULL = os.makedev(1, 3)


@cases("default")
def test_a_device(hostile: HostileRunner) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make devices")
    try:
        check(hostile, Hostile("a device", lambda b: os.mknod(b / "null", 0o20666, NULL), ("bundle/unsafe_file",)))
    except PermissionError:
        pytest.skip("this container may make no device (CAP_MKNOD)")


@cases("default")
def test_the_store_works_after_them(hostile: HostileRunner) -> None:
    """A bundle that broke the store would break every later one."""
    assert ends(hostile(hostile.bundle(WIRE), name="a good bundle after the hostile ones")) == "ran"


@turns("number", range(len(LINES)), ("root", "default"), ("user", "default"))
def test_dependency_line(number: int, hostile: HostileRunner) -> None:
    """No such line is ever given to a tool; the error names it and tells nothing else. Each line is tried in one
    of the three places; the parser, which knows no place, takes them all."""
    line = LINES[number]
    quoted = line.replace("\\", "\\\\").replace("\n", "\\n")
    places = {
        "requirements.txt": requirements(line + "\n"),
        "project.dependencies": project(f'dependencies = ["{quoted}"]'),
        "build-system.requires": build_system(f'requires = ["{quoted}"]\nbuild-backend = "x"'),
    }
    place = list(places)[number % 3]
    case = Hostile(f"{place}: {line}", places[place], ("bundle/dependency_refused",))
    result = check(hostile, case, env={"SECRET": "s3cr3t"})
    assert "s3cr3t" not in str(result.body) + result.stderr


@pytest.mark.parametrize("line", LINES)
def test_dependency_line_is_refused_by_the_parser(line: str, runner_module: ModuleType, tmp_path: Path) -> None:
    policy = runner_module.load_profile("default", [str(ROOT / "sandbox-profiles")]).dependencies
    with pytest.raises(runner_module.Failure):
        (tmp_path / "requirements.txt").write_bytes(line.encode() + b"\n")
        draft = runner_module.Draft(str(tmp_path), policy, runner_module.index_settings({}))
        draft.read_requirements("requirements.txt", "requirements.txt")
    with pytest.raises(runner_module.Failure):
        runner_module.parse_requirement(line, policy, "pyproject.toml")


INDEX_CONFIGURATIONS = (
    'index-url = "URL"',
    'extra-index-url = ["URL"]',
    'find-links = ["URL"]',
    'find-links = ["/etc"]',
    'override-dependencies = ["dep @ URLdep-9.0-py3-none-any.whl"]',
    'constraint-dependencies = ["dep @ URLdep-9.0-py3-none-any.whl"]',
    '[[tool.uv.index]]\nname = "x"\nurl = "URL"\ndefault = true',
    '[tool.uv.sources]\ndep = {path = "/etc"}',
    '[tool.uv.sources]\ndep = {url = "URLdep-9.0-py3-none-any.whl"}',
    'extra-build-dependencies = {x = ["dep @ URLdep-9.0-py3-none-any.whl"]}',
)


@turns("number", range(len(INDEX_CONFIGURATIONS)), ("root", "default"), ("user", "strict"), ("user", "default"))
def test_configuration_that_names_a_place_of_this_machine(number: int, hostile: HostileRunner) -> None:
    """[tool.uv]: an index, a source, an override. It is refused by name, and nobody is asked."""
    with LocalServer() as own, LocalServer() as attacker:
        table = f"dependencies = ['dep']\n[tool.uv]\n{INDEX_CONFIGURATIONS[number].replace('URL', attacker.url())}\n"
        bundle = hostile.bundle(WIRE)
        replace("pyproject.toml", PROJECT.format(more=table))(bundle)
        result = hostile(bundle, None, env=own.environment(), name="hostile [tool.uv]")
        assert ends(result) == "bundle/dependency_refused"
        assert attacker.log == own.log == []


@cases("default")
def test_configuration_of_tools_is_ignored(hostile: HostileRunner) -> None:
    """pip.conf and what a user has at home are the caller's: in a bundle nobody reads them."""
    with LocalServer() as own, LocalServer() as attacker:
        own.add(*wheel("dep", "1.0", {"dep.py": "whose = 'index'"}))
        attacker.add(*wheel("dep", "9.0", {"dep.py": "whose = 'attacker'"}))
        bundle = hostile.bundle("import dep\ndef wire(*a):\n    return {'out': dep.whose}\n")
        table = f'dependencies = ["dep"]\n[tool.uv.pip]\nindex-url = "{attacker.url()}"\n'
        replace("pyproject.toml", PROJECT.format(more=table))(bundle)
        for name in ("pip.conf", ".config/uv/uv.toml", ".config/pip/pip.conf", ".netrc", "setup.cfg"):
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_text(f'index-url = "{attacker.url()}"\n')
        result = hostile(bundle, None, env=own.environment(), name="hostile configuration of tools")
        assert result.outputs["out"] == b"index"
        assert attacker.log == []
        CONTROLS_DONE.add("hostile configuration of tools") if own.log else None
