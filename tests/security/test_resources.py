"""Bombs: each ends at its limit, with the limit's name, and nothing of it is left. Small limits: short bombs."""

import io
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import pytest
from accounts import HERE, Account
from accounts import SLOW as SLOW_MACHINE
from evidence import CONTROLS_DONE, NO_CONTROL
from servers import LocalServer, drip, hang, huge, late, plain, sdist, wheel

from security.hostile import HostileRunner, leftovers, runner_for, runs

FAMILY = "resources"
EVERYONE = (("root", "small"), ("user", "small"), ("user", "small-no-proc"))
WIRE = """
import ctypes, errno, mmap, os, resource, signal, socket, sys, threading, time

def fill(size):
    block = bytearray(size)
    for at in range(0, size, 4096):
        block[at] = 1
    return block

def start(count, work):
    # Returns when so many children have done the work. They end with their parent.
    done, ready = os.pipe()
    gone, here = os.pipe()
    for n in range(count):
        if os.fork() == 0:
            os.close(here)
            kept = work()
            os.write(ready, b"x")
            os.read(gone, 1)
            os._exit(0)
    for n in range(count):
        os.read(done, 1)

def wire(entrypoint, params, seed):
    exec(params["code"], dict(globals(), hold=lambda: time.sleep(params["hold"])))
    return {"out": "managed"}
"""


class Bomb(NamedTuple):
    """`ends`: the allowed error types; `control`: whether it can run to its end under the default limits.

    What it has taken it keeps while it calls `hold()`: for an hour, in the control for a moment.
    """

    name: str
    code: str
    ends: tuple[str, ...]
    control: bool = True

    def runner(self, hostile: HostileRunner) -> HostileRunner:
        """Where time is one of its ends it gets little; any other has enough on the slowest machine."""
        return hostile.brief() if "timeout" in self.ends else hostile


MEMORY = ("memory_limit",)
DISK = ("tmpfs_limit", "task_exception", "memory_limit")
SLOW = ("timeout", "cpu_limit")
BOMBS = [
    Bomb("memory of one process", "fill(600 << 20)", MEMORY),
    Bomb(
        "memory by mmap, shared",
        "m = mmap.mmap(-1, 600 << 20)\nfor at in range(0, 600 << 20, 4096): m[at] = 1",
        MEMORY,
    ),
    Bomb(
        "memory of many processes",
        "start(10, lambda: fill(60 << 20)); hold()",
        MEMORY,
    ),
    Bomb(
        "memory of a child that is gone from its parent",
        "r, w = os.pipe()\nif os.fork() == 0:\n os.setsid()\n"
        " if os.fork() == 0:\n  kept = fill(600 << 20); hold(); os._exit(0)\n os._exit(0)\n"
        "os.close(w); os.read(r, 1); hold()",
        MEMORY,
    ),
    Bomb(
        "memory in files that have no name (memfd)",
        "kept = []\nfor n in range(30):\n fd = os.memfd_create('x'); kept.append(fd)\n"
        " for m in range(20): os.write(fd, bytes(1 << 20))\nhold()",
        (*MEMORY, "task_exception"),
    ),
    Bomb(
        "memory in System V segments that nobody has attached",
        "libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p\nfor n in range(30):\n"
        " i = libc.shmget(0, ctypes.c_size_t(20 << 20), 0o1600)\n"
        " if i < 0: raise MemoryError\n p = libc.shmat(i, None, 0)\n"
        " ctypes.memset(p, 1, 20 << 20); libc.shmdt(ctypes.c_void_p(p))\nhold()",
        (*MEMORY, "task_exception"),
    ),
    Bomb(
        "memory in pipes",
        "kept = []\nimport fcntl\nwhile True:\n r, w = os.pipe(); kept += [r, w]\n fcntl.fcntl(w, 1031, 1 << 20)\n"
        " os.write(w, bytes(1 << 20))",
        ("task_exception", *MEMORY),
        control=False,
    ),
    Bomb("memory of one string that grows", "s = 'x'\nwhile len(s) < 700 << 20: s += s", MEMORY),
    Bomb(
        "a file in /tmp",
        "with open('/tmp/big', 'wb') as f:\n for n in range(30): f.write(bytes(1 << 20)); f.flush()\n"
        "for k in range(5):\n with open('/tmp/b%d' % k, 'wb') as f:\n  for n in range(30): f.write(bytes(1 << 20))",
        DISK,
    ),
    Bomb(
        "a file in /dev/shm",
        "for k in range(5):\n with open('/dev/shm/b%d' % k, 'wb') as f:\n  for n in range(20): f.write(bytes(1 << 20))",
        DISK,
    ),
    Bomb(
        "a sparse file over the size limit",
        "os.truncate(os.open('/tmp/s', os.O_CREAT | os.O_RDWR), 1 << 30)",
        ("task_exception", "file_size_limit", "crashed"),
    ),
    Bomb(
        "a file over the size limit",
        "with open('/tmp/one', 'wb') as f:\n for n in range(40): f.write(bytes(1 << 20))",
        ("task_exception", "file_size_limit", "tmpfs_limit"),
    ),
    Bomb(
        "a million empty files",
        "for n in range(10 ** 6): os.mknod('/tmp/f%d' % n)",
        ("task_exception", *DISK, *SLOW),
        control=False,
    ),
    Bomb(
        "a fork bomb",
        "while True:\n try: os.fork()\n except OSError: pass",
        ("pids_limit", *MEMORY, *SLOW),
        control=False,
    ),
    Bomb(
        "a fork bomb that leaves its parents",
        "while True:\n try:\n  if os.fork(): os._exit(0)\n except OSError: pass",
        ("pids_limit", "no_result", *MEMORY, *SLOW),
        control=False,
    ),
    Bomb(
        "100 processes",
        "start(100, lambda: None); hold()",
        ("pids_limit", "task_exception", *MEMORY),
    ),
    Bomb(
        "100 threads",
        "end = threading.Event()\nfor n in range(100): threading.Thread(target=end.wait).start()\nhold(); end.set()",
        ("pids_limit", "task_exception", *MEMORY),
    ),
    Bomb(
        "a flood of zombies",
        "for n in range(200):\n if os.fork() == 0: os._exit(0)\nhold()",
        ("pids_limit", "task_exception", *MEMORY),
    ),
    Bomb("CPU in one thread", "end = threading.Thread(target=hold); end.start()\nwhile end.is_alive(): pass", SLOW),
    Bomb(
        "CPU in many processes",
        "for n in range(4): os.fork()\nwhile True: pass",
        SLOW,
        control=False,
    ),
    Bomb(
        "CPU of children that are gone",
        "end = threading.Thread(target=hold); end.start()\nwhile end.is_alive():\n if os.fork() == 0:\n"
        "  sum(range(10 ** 6)); os._exit(0)\n os.wait()",
        SLOW,
    ),
    Bomb("sleep", "hold()", ("timeout",)),
    Bomb(
        "sleep without signals",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); hold()",
        ("timeout",),
    ),
    Bomb(
        "a task that waits for its own child for ever",
        "if os.fork() == 0: time.sleep(10 ** 6)\nos.wait()",
        ("timeout",),
        control=False,
    ),
    Bomb("open files", "kept = [open('/dev/null') for n in range(500)]", ("task_exception",)),
    Bomb("sockets", "kept = [socket.socketpair() for n in range(200)]", ("task_exception",)),
    Bomb(
        "raises its own limits",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))",
        ("task_exception",),
        control=False,
    ),
]


@pytest.fixture(scope="session")
def exploded(accounts: dict[str, Account]) -> Any:
    """`exploded(who, profile)`: what became of each bomb. Most of them wait, so several run at a time."""

    @cache
    def results(who: str, profile: str) -> dict[str, Any]:
        hostile = runner_for(accounts, who, profile)
        bundle, hold = hostile.bundle(WIRE), 1 if profile == "default" else 3600
        bombs = [bomb for bomb in BOMBS if bomb.control or profile != "default"]
        assert hostile(bundle, task_of("0", hold), name="no bomb").outputs == {"out": b"managed"}
        with ThreadPoolExecutor(4) as pool:
            runs = [
                pool.submit(bomb.runner(hostile), bundle, task_of(bomb.code, hold), name=bomb.name) for bomb in bombs
            ]
        return {bomb.name: run for bomb, run in zip(bombs, runs, strict=True)}

    return results


def task_of(code: str, hold: float) -> dict[str, Any]:
    return {"entrypoint": "main", "params": {"code": code, "hold": hold}, "seed": 1}


@pytest.mark.xdist_group("bombs")
@runs(*EVERYONE)
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
def test_bomb(bomb: Bomb, hostile: HostileRunner, exploded: Any) -> None:
    result = exploded(hostile.account.name, hostile.profile)[bomb.name].result()
    assert result.error["phase"] == "execute" and result.error["type"] in bomb.ends, str(result.body)[:1000]
    if result.error["type"].endswith("_limit") and "limit" in result.error:
        assert result.error["limit"].keys() == {"name", "value", "seen"}


@pytest.mark.full("the controls of test_bomb: each goes on as long as it likes")
@pytest.mark.xdist_group("bombs")
@runs(("root", "default"))
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
def test_control(bomb: Bomb, hostile: HostileRunner, exploded: Any) -> None:
    """Under limits that are large enough the same code runs to its end."""
    if not bomb.control:
        NO_CONTROL[bomb.name] = "without a limit it would not end, or not soon"
        return
    assert exploded("root", "default")[bomb.name].result().outputs == {"out": b"managed"}
    CONTROLS_DONE.add(bomb.name)


# --- the phases before the task


@runs(("root", "small"), ("user", "small"))
@pytest.mark.parametrize(
    "code, allowed",
    [
        ("while True: pass", ("timeout", "cpu_limit")),
        ("import time; time.sleep(60)", ("timeout",)),
        ("x = bytearray(600 << 20)", ("memory_limit", "build_failed")),
        (
            "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
            ("pids_limit", "memory_limit", "timeout", "cpu_limit"),
        ),
        ("while True: print('x' * 100_000)", ("output_limit",)),
        (
            "for k in range(9): open('/tmp/%d' % k, 'wb').write(bytes(20 << 20))",
            ("tmpfs_limit", "build_failed"),
        ),
        ("import os; os._exit(0)", ("no_result",)),
        ("import os; os.kill(os.getpid(), 9)", ("crashed",)),
    ],
)
def test_bomb_in_the_build_backend(code: str, allowed: tuple[str, ...], hostile: HostileRunner) -> None:
    bundle = hostile.bundle("def wire(*a): return {}\n", backend=code + "\n")
    runner = hostile.brief() if "timeout" in allowed else hostile
    error = runner(bundle, name=f"build backend: {code[:60]}").error
    assert error["phase"] == "build" and error["type"] in allowed, error


@runs(("root", "small"), ("user", "small"))
def test_a_build_that_makes_a_huge_wheel(hostile: HostileRunner) -> None:
    backend = "def build_wheel(out, *a):\n open(out + '/x-1-py3-none-any.whl', 'wb').write(bytes(30 << 20))\n"
    bundle = hostile.bundle("def wire(*a): return {}\n", backend=backend + " return 'x-1-py3-none-any.whl'\n")
    error = hostile(bundle, name="a wheel of 30 MiB under a limit of 16").error
    assert error["type"] == "output_limit", error


WAITING = [(do, path) for do in (hang, drip) for path in ("/simple/", "/files/")]


@runs((HERE, "brief"))
def test_indexes_that_take_for_ever(hostile: HostileRunner, accounts: dict[str, Account]) -> None:
    """All at once, as they only wait: an index or a file server that never answers, or one byte a second."""

    def wait(number: int) -> Any:
        behaviour, path = WAITING[number]
        with LocalServer() as server:
            server.add(*wheel("dep", "1.0", {"dep.py": ""}))
            server.behave(path, behaviour)
            name = f"an index that {behaviour.__name__}s at {path}"
            for profile in (hostile.profile, "minute"):  # a busy machine may take the first's time to ask at all
                runner = runner_for(accounts, sorted(accounts)[number % len(accounts)], profile)
                result = runner.afresh(dependent(runner, "dep"), None, env=server.environment(), name=name)
                if server.log:
                    break
            assert server.log, f"nobody asked the index: {name}, {str(result.body)[:800]}"
            return result

    with ThreadPoolExecutor(len(WAITING)) as pool:
        for result in pool.map(wait, range(len(WAITING))):
            # uv reads a dripping wheel as it comes, and may see early that it is none.
            assert result.error["phase"] == "fetch", result.error
            assert result.error["type"] == "dependency_unavailable" or result.error["retryable"], result.error


RAN = "def wire(*a): return {'out': 'ran'}\n"


def dependent(hostile: HostileRunner, *dependencies: str, wire: str = RAN) -> Any:
    return hostile.bundle(wire, needs=dependencies)


@runs(("root", "small"), ("user", "small"))
def test_a_file_that_is_huge(hostile: HostileRunner) -> None:
    """More than fetch's /tmp and output take: an end with a name, and not the resolver's memory."""
    with LocalServer() as server:
        server.add(*wheel("dep", "1.0", {"dep.py": ""}))
        server.behave("/files/", huge(1 << 30))
        result = hostile.afresh(dependent(hostile, "dep"), None,
                         env=server.environment(), name="an index with a file of 1 GiB")  # fmt: skip
        assert result.error["phase"] == "fetch", result.error


@runs(("root", "twelve-seconds"), ("user", "twelve-seconds"))
def test_servers_that_are_each_in_time(hostile: HostileRunner) -> None:
    """Four files that come after 4 s each: fetch may take 12 s in all, however many sandboxes it takes."""
    names = ["one", "two", "three", "four"]
    with LocalServer() as server:
        urls = []
        for name in names:
            file, data = wheel(name, "1.0", {f"{name}.py": ""})
            server.behave(f"/files/{file}", late(4 * SLOW_MACHINE, data))
            urls.append(f"{name} @ {server.url('/files/' + file)}")
        settings = server.environment()
        assert hostile.afresh(dependent(hostile, urls[0]), None, env=settings, name="one late file").code == 0
        result = hostile.afresh(dependent(hostile, *urls), None, env=settings, name="four late files")
        assert (result.error["phase"], result.error["type"]) == ("fetch", "timeout"), result.error
        CONTROLS_DONE.add("four late files")


SAYS_THAT_IT_IMPORTED = """
import importlib.util, sys
def wire(*task):
    sys.modules["dep"] = importlib.util.module_from_spec(importlib.util.find_spec("dep"))
    return {"out": "ran"}
"""


@runs(("root", "small"), ("user", "small"))
def test_source_that_is_hard_to_compile(hostile: HostileRunner) -> None:
    """A module whose bytecode takes more than the compiler gets stays without, and its task runs.

    Compiled is what a run before imported, so here the task says that it did; what fails is not tried again.
    """
    hard = "x = " + "+".join(["[" * 90 + "1" + "]" * 90] * 40_000)
    with LocalServer() as server:
        server.add(*wheel("dep", "1.0", {"dep.py": hard}))
        bundle = dependent(hostile, "dep", wire=SAYS_THAT_IT_IMPORTED)
        for compiled in (False, True, False):
            result = hostile(bundle, env=server.environment(), name="a module that is hard to compile")
            assert result.outputs == {"out": b"ran"}
            assert ("phase: compile" in result.stderr) == compiled, result.stderr


@runs(("root", "small"), ("user", "small"))
def test_a_wheel_with_a_huge_directory(hostile: HostileRunner, full: bool) -> None:
    """400,000 names: the zip module would hold half a gigabyte of them."""
    name, data = wheel("dep", "1.0", {"dep.py": ""})
    start = data.index(b"PK\x01\x02")
    entry = data[start : data.index(b"PK\x01\x02", start + 4)]

    def with_names(count: int) -> bytes:
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entry) * count, start, 0)
        return data[:start] + entry * count + end

    with LocalServer() as server:
        server.behave(f"/files/{name}", plain(with_names(400_000)))
        bundle = dependent(hostile, f"dep @ {server.url('/files/' + name)}")
        settings = server.environment()
        result = hostile.afresh(bundle, None, env=settings, name="400,000 names in a wheel")
    assert (result.error["phase"], result.error["type"]) == ("install", "wheel_invalid"), result.error
    assert hostile.peak < 150 << 20
    count = 400_000 if full else 4_000  # which take the module seconds
    assert len(zipfile.ZipFile(io.BytesIO(with_names(count))).infolist()) == count  # the control: it is a zip
    CONTROLS_DONE.add("400,000 names in a wheel")


ANOTHER = pytest.mark.full("the same bomb in another place")


@runs(("root", "small"), ("user", "small"))
@pytest.mark.parametrize(
    "member", ["METADATA", *(pytest.param(name, marks=ANOTHER) for name in ("RECORD", "entry_points.txt", "other"))]
)
def test_a_wheel_that_unpacks_to_much(member: str, hostile: HostileRunner) -> None:
    """1 MB that becomes 200 MB; the runner says no before it holds that in memory."""
    name, data = wheel("dep", "1.0", {"dep.py": ""}, entry_points={"x": {"a": "b:c"}})
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, content + (b"\n" * (200 << 20) if info.filename.endswith(member) else b""))
        if member == "other":
            new.writestr("other", bytes(200 << 20))
    with LocalServer() as server:
        server.add(name, buffer.getvalue())
        result = hostile.afresh(
            dependent(hostile, "dep"),
            None,
            env=server.environment(),
            name=f"a bomb in {member}",
        )
        assert result.error["type"] in ("wheel_invalid", "dependency_unavailable"), result.error
        assert hostile.peak < 150 << 20, f"the runner itself took {hostile.peak} bytes"


@runs(("root", "small"), ("user", "small"))
@pytest.mark.parametrize("kind", ["x", *(pytest.param(kind, marks=ANOTHER) for kind in "LKg")])
def test_an_sdist_whose_header_is_huge(kind: str, hostile: HostileRunner) -> None:
    """A long name or a pax header of 200 MB: tarfile would read it into memory."""
    import tarfile

    member = tarfile.TarInfo("x")
    member.type, member.size = kind.encode(), 200 << 20
    with LocalServer() as server:
        server.add(*sdist("dep", "1.0", {"setup.py": ""}, members=[(member, bytes(200 << 20))]))
        result = hostile.afresh(
            dependent(hostile, "dep"),
            None,
            env=server.environment(),
            name=f"an sdist with a header {kind!r} of 200 MB",
        )
        assert result.error["phase"] in ("fetch", "build") and result.error["type"] != "internal_error", result.error
        assert hostile.peak < 150 << 20, f"the runner itself took {hostile.peak} bytes"


@runs(("root", "small"), ("user", "small"))
def test_notes_of_a_build_backend(hostile: HostileRunner) -> None:
    """Frames that no build sends are not collected in the runner's memory."""
    backend = (
        "import os\n"
        "def build_wheel(*a):\n"
        " for n in range(15):\n"
        "  data = b'N' + (2).to_bytes(4, 'big') + (1 << 20).to_bytes(8, 'big') + b'%02d' % n + bytes(1 << 20)\n"
        "  for fd in range(3, 20):\n"
        "   try: os.write(fd, data)\n"
        "   except OSError: pass\n"
    )
    bundle = hostile.bundle("def wire(*a): return {}\n", backend=backend)
    result = hostile(bundle, name="notes from a build backend")
    assert result.error["type"] == "bad_result", result.error


def test_nothing_is_left(base: Any) -> None:
    """No process of any bomb is alive."""
    assert leftovers(str(base)) == []
