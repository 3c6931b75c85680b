"""Two tasks in one kept sandbox (--serve): the first does its worst, the second must not notice."""

import json
import os
import subprocess
from typing import Any, NamedTuple

import pytest
from conftest import parse_line
from evidence import CONTROLS_DONE, TRIED

from security.hostile import PATIENCE, HostileRunner, runs, turns

FAMILY = "envelope"
ACCOUNTS = (("root", "default"), ("user", "default"), ("user", "container"), ("root", "strict"))
WIRE = '''
import ctypes, json, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def frame(kind, name=b"", body=b""):
    return kind + len(name).to_bytes(4, "big") + len(body).to_bytes(8, "big") + name + body

def everywhere(data):
    for fd in range(1, 1024):
        try:
            os.write(fd, data)
        except OSError:
            pass

def look():
    """All that a task could notice of the one before it."""
    libc.syscall.restype = ctypes.c_long
    return {
        "files": sorted(os.listdir("/tmp") + os.listdir("/tmp/home") + os.listdir("/dev/shm")),
        "modes": [os.stat(p).st_mode for p in ("/tmp", "/tmp/home", "/dev/shm", "/dev/pts", "/dev/pts/ptmx")],
        "old": [p for p in ("/tmp", "/dev/shm", "/dev/pts", "/dev/pts/ptmx") if os.stat(p).st_mtime < 10 ** 9],
        "attributes": [os.listxattr(p) for p in ("/tmp", "/tmp/home", "/dev/shm")],
        "limits": [resource.getrlimit(n) for n in range(10)],
        "nice": os.getpriority(0, 0), "cpus": sorted(os.sched_getaffinity(0)), "policy": os.sched_getscheduler(0),
        "io": libc.syscall(ctypes.c_long(252), 1, 0),
        "umask": os.umask(0o22), "cwd": os.getcwd(), "environment": dict(os.environ), "path": sys.path,
        "module": "altered" in globals(), "modules": "antigravity" in sys.modules,
        "handlers": [str(signal.getsignal(n)) for n in (1, 2, 3, 10, 12, 14, 15)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "timer": signal.getitimer(signal.ITIMER_REAL),
        "shm": libc.shmget(0x5EC2E7, 1, 0), "semaphore": libc.semget(0x5EC2E7, 1, 0),
        "queue": libc.mq_open(b"/mine", 0), "socket": try_connect(),
        "processes": alive(), "groups": os.getpgid(0) == os.getpid(),
    }

def alive():
    """How many other processes answer: all that kill(-1, 0) would reach."""
    found = 0
    for pid in range(2, 400):
        try:
            os.kill(pid, 0)
            found += 1
        except OSError:
            pass
    return found

def try_connect():
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex("\\0left")

def wire(entrypoint, params, seed):
    scope = dict(globals(), result={"out": json.dumps(look())})
    exec(params["code"], scope)
    return scope["result"]
'''
FORGED = "frame(b'O', b'forged', b'1') + frame(b'D')"


class Attack(NamedTuple):
    name: str
    code: str


ATTACKS = [
    Attack("files", "for p in ('/tmp/a', '/tmp/home/b', '/dev/shm/c'): open(p, 'w').close()"),
    Attack("folders 1500 deep", "os.chdir('/tmp')\nfor n in range(1500): os.mkdir('d'); os.chdir('d')"),
    Attack("the mode of /tmp", "os.chmod('/tmp', 0o1755); os.chmod('/dev/shm', 0o1770)"),
    Attack("the mode of terminals", "os.chmod('/dev/pts/ptmx', 0); os.chmod('/dev/pts', 0)"),
    Attack("times", "for p in ('/tmp', '/dev/shm', '/dev/pts', '/dev/pts/ptmx'): os.utime(p, (1, 1))"),
    Attack("a /tmp that nobody may enter", "os.chmod('/tmp', 0)"),
    Attack(
        "attributes of /tmp",
        "for p in ('/tmp', '/dev/shm'):\n try: os.setxattr(p, 'user.left', b'1')\n except OSError: pass",
    ),
    Attack("folders that nobody may enter", "os.makedirs('/tmp/x/y'); os.chmod('/tmp/x', 0)"),
    Attack(
        "a link to /proc", "os.symlink('/proc/1', '/tmp/l'); os.rmdir('/tmp/home')\nos.symlink('/bundle', '/tmp/home')"
    ),
    Attack("a full /tmp", "os.truncate(os.open('/tmp/s', os.O_CREAT | os.O_RDWR), 1 << 20); os.mkfifo('/tmp/f')"),
    Attack("shared memory", "libc.shmget(0x5EC2E7, 4096, 0o1666)"),
    Attack("a semaphore", "libc.semget(0x5EC2E7, 1, 0o1666)"),
    Attack("a message queue", "libc.mq_open(b'/mine', os.O_CREAT | os.O_RDWR, 0o666, None)"),
    Attack("a daemon", "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(60)\n os._exit(0)"),
    Attack(
        "a daemon with a socket",
        "if os.fork() == 0:\n os.setsid(); s = socket.socket(socket.AF_UNIX); s.bind('\\0left')\n"
        " s.listen(); time.sleep(60)\ntime.sleep(0.2)",
    ),
    Attack(
        "a daemon that forks on", "if os.fork() == 0:\n while True:\n  if os.fork(): os._exit(0)\n  time.sleep(0.001)"
    ),
    Attack("a daemon that writes frames", f"if os.fork() == 0:\n while True: everywhere({FORGED})\ntime.sleep(0.1)"),
    Attack("frames after the end", f"everywhere(frame(b'D') + {FORGED} * 50)"),
    Attack("half a frame at the end", "everywhere(frame(b'D') + b'O' + (3).to_bytes(4, 'big'))"),
    Attack(
        "a pipe full of frames",
        f"threading.Thread(target=lambda: everywhere(frame(b'D') + {FORGED} * 3000)).start()\ntime.sleep(0.2)",
    ),
    Attack("a module", "sys.modules['probe'].altered = sys.modules['antigravity'] = 1"),
    Attack("the environment", "os.environ['X'] = 'y'; os.umask(0); sys.path.insert(0, '/tmp')"),
    Attack(
        "handlers and timers",
        "for n in (14, 15): signal.signal(n, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_REAL, 0.3)",
    ),
    Attack(
        "limits of the parent",
        "for n in (0, 1, 6, 7):\n try: resource.prlimit(os.getppid(), n, (100, 100))\n"
        " except (OSError, ValueError): pass",
    ),
    Attack("the parent's priority", "os.setpriority(0, os.getppid(), 19)"),
    Attack("the parent's CPUs", "os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))})"),
    Attack("the parent's scheduling", "os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))"),
    Attack("the parent's I/O priority", "libc.syscall(ctypes.c_long(251), 1, os.getppid(), ctypes.c_long(3 << 13))"),
    Attack("stops the parent", "os.kill(os.getppid(), signal.SIGSTOP)"),
    Attack("kills the parent", "os.kill(os.getppid(), 9)"),
    Attack("interrupts the parent", "os.kill(os.getppid(), signal.SIGINT); os.kill(os.getppid(), signal.SIGUSR1)"),
    Attack("kills everything", "os.kill(-1, 9)"),
    Attack("the parent's memory", "open('/proc/%d/mem' % os.getppid(), 'r+b').read(1)"),
    Attack(
        "the parent's descriptors",
        "top = '/proc/%d/fd/' % os.getppid()\nfor fd in os.listdir(top): open(top + fd, 'wb').write(b'x')",
    ),
    Attack("exits without a word", "os._exit(0)"),
    Attack("crashes", "os.abort()"),
]


def serve(hostile: HostileRunner, *codes: str, options: tuple[str, ...] = ()) -> tuple[list[dict[str, Any]], int]:
    """The answers to tasks of one --serve, in order, without the greeting; and its exit status."""
    bundle = hostile.bundle(WIRE)
    lines = [json.dumps({"entrypoint": "main", "params": {"code": code}, "seed": 1}) for code in codes]
    command = hostile.command("--bundle-path", str(bundle), "--serve", *options)
    done = subprocess.run(
        command,
        input=("\n".join(lines) + "\n").encode(),
        capture_output=True,
        env=hostile.environment(),
        timeout=PATIENCE + 2 * len(codes),
        **hostile.privileges(),
    )
    answers = [parse_line(line + b"\n") for line in done.stdout.splitlines()]
    assert "serving" in answers[0], answers[0]
    return answers[1:], done.returncode


def notices(answer: dict[str, Any]) -> dict[str, Any]:
    import base64

    assert "outputs" in answer, str(answer)[:1000]
    assert answer["outputs"].keys() == {"out"}, "an output was forged"
    return dict(json.loads(base64.b64decode(answer["outputs"]["out"]["inline"])))


ALONE = (
    "files",
    "a /tmp that nobody may enter",
    "a daemon that writes frames",
    "limits of the parent",
    "kills the parent",
)


@turns(
    "attack", ATTACKS, *ACCOUNTS, first=ALONE, why="alone; test_nor_in_a_template_that_learned has all on one server"
)
def test_the_next_task_notices_nothing(attack: Attack, hostile: HostileRunner) -> None:
    answers, _ = serve(hostile, "0", attack.code, "0", "0")
    line = json.dumps(answers[1])[:400]
    TRIED.append(
        {"name": f"serve: {attack.name}", "as": hostile.account.name, "profile": hostile.profile, "line": line}
    )
    assert len(answers) == 4
    before, after, again = notices(answers[0]), notices(answers[2]), notices(answers[3])
    assert after == before and again == before, {name: after[name] for name in after if after[name] != before[name]}


@runs(("root", "default"), ("user", "default"))
def test_control(hostile: HostileRunner) -> None:
    """What is looked at does show a difference within the task that makes it."""
    codes = [attack.code for attack in ATTACKS if attack.name in ("files", "the environment")]
    answers, _ = serve(hostile, "0", *(code + "\nresult = {'out': json.dumps(look())}" for code in codes))
    seen = [notices(answer) for answer in answers]
    assert seen[1]["files"] != seen[0]["files"] and seen[2]["environment"] != seen[0]["environment"]
    CONTROLS_DONE.add("what a task notices of the one before")


@runs(("root", "small"), ("user", "small"))
@pytest.mark.parametrize(
    "code", ["time.sleep(60)", "while True: pass", "x = bytearray(600 << 20)", "while True: print('x' * 9999)"]
)
def test_a_limit_ends_one_task_only(code: str, hostile: HostileRunner) -> None:
    timed = code in ("time.sleep(60)", "while True: pass")
    answers, _ = serve(hostile.brief() if timed else hostile, "0", code, "0")
    assert answers[1]["_fatal_error"]["type"] in (
        "timeout",
        "cpu_limit",
        "memory_limit",
        "output_limit",
        "task_exception",
    )
    assert notices(answers[2]) == notices(answers[0])


LEARN = """
import colorsys, fileinput
os.makedirs('/tmp/home/.cache/tool', exist_ok=True)
open('/tmp/home/.cache/tool/made', 'w').write('content')
"""
LOOK_CLOSER = """
made = {name: open(os.path.join(top, name)).read() for top, _, names in os.walk('/tmp/home') for name in names}
there = 'colorsys' in sys.modules
import colorsys
result = {'out': json.dumps({**look(), 'caches': made, 'there': there, 'altered': hasattr(colorsys, 'altered')})}
"""
MADE = "made = '/tmp/home/.cache/tool/made'\n"
MORE = [
    Attack("a module that was preloaded", "import colorsys; colorsys.altered = 1; colorsys.rgb_to_hsv = None"),
    Attack(  # a file whose size or time differs is what the task's cache grew to, and is kept
        "a cache file, with its old size and time",
        MADE + "open(made, 'w').write('altered'); os.utime(made, (315532800, 315532800))",
    ),
    Attack("a link for a cache file", MADE + "os.unlink(made); os.symlink('/etc/passwd', made)"),
    Attack(
        "a link for the cache folder",
        "import shutil; shutil.rmtree('/tmp/home/.cache'); os.symlink('/bundle', '/tmp/home/.cache')",
    ),
    Attack("the state of random", "import random; random.seed(1)"),
]


@runs(("root", "default"), ("user", "default"))
def test_nor_in_a_template_that_learned(hostile: HostileRunner) -> None:
    """All attacks one after another on a server that began with modules and caches of earlier tasks."""
    shared = hostile.account.folder / f"learned-{os.getpid()}"
    shared.unlink(missing_ok=True)
    options = ("--learned", str(shared))
    serve(hostile, LEARN, LEARN, LEARN, options=options)
    attacks = [*ATTACKS, *MORE]
    codes = [code for attack in attacks for code in (attack.code, LOOK_CLOSER)]
    answers, _ = serve(hostile, LOOK_CLOSER, *codes, options=options)
    before = notices(answers[0])
    assert before["there"] and before["caches"] == {"made": "content"}
    for attack, after in zip(attacks, answers[2::2], strict=True):
        seen = notices(after)
        assert seen == before, (attack.name, {name: seen[name] for name in seen if seen[name] != before[name]})
