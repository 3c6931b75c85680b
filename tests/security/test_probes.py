"""Every probe of probes.py inside a real task, by root and by a user, under every profile; its control."""

import contextlib
import ctypes
import ctypes.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accounts import HERE, Account
from conftest import ROOT, TINY_BACKEND
from evidence import CONTROLS_DONE, NO_CONTROL, PROFILES
from servers import listening

from security.hostile import HostileRunner, cases, in_pairs, runner_for
from security.probes import IN_TASK, PACKAGES, PROGRAM, WIRE, Probe

pytestmark = pytest.mark.xdist_group("probes")  # one run answers for all of an account and a profile
SECRET = "s3cret-of-the-caller-f00d"
# What a profile allows on purpose: debug is for an engineer who looks into a task.
TRACES = {"traces a child of its own", "attaches to pid 1"}
WALKS = {"finds a file with set-uid, set-gid or capabilities"}
# The same profile, with leave to watch.
WATCHED = {"default": "watched", "strict": "watched-strict", "container": "watched-container", "debug": "debug"}
NAMES = {"sees the host's name"}  # a container may not set one for the sandbox
# No mount has a size; who passes it is ended (tests/integration/test_limits.py).
FILLS = {
    "writes to a file system with room for more than the profile's",
    "fills /dev/shm beyond the profile's",
}
# What has no sysctl that ends user namespaces, and leaves that to the filter.
FILTER_ALONE = ("container", "bwrap-0.6", "container-bwrap-0.6")
ALLOWED = {
    "debug": {
        "traces a child of its own",
        "attaches to pid 1",
        "switches address randomisation off",
        # All of /usr is there; no mount honours a set-uid bit, and no task gains a capability (below).
        "finds a file with set-uid, set-gid or capabilities",
        "finds a compiler, an assembler or a linker",
        "finds something of /usr/local but the interpreter",
        *(f"reads {path}" for path in PACKAGES if path.startswith("/usr/")),
    },
    "container": NAMES,
    "bwrap-0.6": FILLS,
    "container-bwrap-0.6": NAMES | FILLS,
}


def system_call(module: ModuleType, name: str) -> int:
    return int(module.load_libseccomp().seccomp_syscall_resolve_name(name.encode()))


@contextlib.contextmanager
def process_of_the_host() -> Iterator[int]:
    """The pid of a process that no task should know. A sandbox counts from 1, and so does a new container: there
    it is a child with a pid that no sandbox comes to."""
    if os.getpid() > 3000:
        yield os.getpid()
        return
    pid = 0
    while pid <= 3000:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(pid, 0)
    child = subprocess.Popen(["sleep", "1000"], env={"CALLER_SECRET": SECRET})
    yield child.pid
    child.kill()
    child.wait()


@pytest.fixture(scope="session")
def lures(base: Path, runner_module: ModuleType) -> Iterator[dict[str, Any]]:
    """Things of the host that a task must not reach, all of them open to an ordinary process."""
    libc = ctypes.CDLL(None, use_errno=True)
    scratch = base / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    secret = base / "secret.txt"
    secret.write_text(SECRET)
    name = f"probe-{os.urandom(6).hex()}"  # containers count pids from 1, and may share a namespace
    key, queue = 0x0F00D000 + os.getpid() % 4096, f"/{name}"
    shared = libc.shmget(key, 4096, 0o1666)
    libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    assert libc.mq_open(queue.encode(), os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
    abstract, path = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{name}")
    path.bind(str(base / "socket"))
    os.chmod(base / "socket", 0o777)
    for listener in (abstract, path):
        listener.listen(64)
    with listening() as four, listening(socket.AF_INET6) as six, process_of_the_host() as pid:
        yield {
            "secret": SECRET, "secret_file": str(secret), "folder": str(base), "scratch": "/tmp",
            "pid": pid, "hostname": socket.gethostname(), "port": four.port, "port6": six.port,
            "shm_key": key, "queue": queue, "abstract": name,
            "socket": str(base / "socket"), "own_scratch": str(scratch),
            "socket_call": system_call(runner_module, "socket"),
            **{name: system_call(runner_module, name)
               for name in ("clone", "unshare", "ioctl", "ptrace", "personality", "shmget", "keyctl", "prctl")},
        }  # fmt: skip
    libc.shmctl(shared, 0, None)
    libc.mq_unlink(queue.encode())
    for listener in (abstract, path):
        listener.close()


# --- denied calls, as the profile lists them: with arguments that no call takes


@cache
def refused_calls(module: ModuleType, profile: str) -> dict[str, tuple[int, str]]:
    """Name to number and documented errno, of the calls that this machine has."""
    policy = module.load_profile(profile, [str(ROOT / "sandbox-profiles")]).seccomp
    names = [(name, "EPERM") for name in policy.deny if name not in policy.also_allow]
    names += [(name, "ENOSYS") for name in policy.enosys]
    numbers = {name: (system_call(module, name), answer) for name, answer in names}
    return {name: found for name, found in numbers.items() if found[0] >= 0}


def call_code(number: int) -> str:
    return f"verdict = call({number}, -1, -1, -1, -1, -1, -1)"


# --- the runs

WHOLE = ("cold", "serve")
# Of other modes the default suite asks one probe of each family, as the sandbox is the same; and what a tracer changes.
IN_EACH_MODE = {*{probe.family: probe.name for probe in IN_TASK}.values(), *TRACES}


@pytest.fixture(scope="session")
def verdicts(
    request: pytest.FixtureRequest,
    accounts: dict[str, Account],
    lures: dict[str, Any],
    runner_module: ModuleType,
) -> Any:
    """`verdicts(who, profile, mode)`: the answers of all probes and all refused calls, from one run, from a task of
    a server, from a task that an instrument called, or from one that strace watched; of the last two only those of
    IN_EACH_MODE in the default suite."""
    full = request.config.getoption("--full")

    @cache
    def answers(who: str, profile: str, mode: str = "cold") -> dict[str, Any]:
        runner: HostileRunner = runner_for(accounts, who, WATCHED.get(profile, profile) if mode == "trace" else profile)
        table = {probe.name: probe.code for probe in IN_TASK}
        calls = refused_calls(runner_module, profile)
        table.update({f"calls {name}": call_code(number) for name, (number, _) in calls.items()})
        if mode not in WHOLE and not full:
            table = {name: table[name] for name in IN_EACH_MODE}
        params = {"table": json.dumps(table), "context": json.dumps(lures)}
        task = {"entrypoint": "main", "params": params, "seed": 1}
        starts = {"serve": runner.served, "instrument": runner.instrumented, "trace": runner.traced}
        start = starts.get(mode, runner)
        result = start(
            runner.bundle(WIRE, backend=TINY_BACKEND),
            task,
            env={"CALLER_SECRET": SECRET},
            name=f"probes in a task ({mode})",
        )
        return dict(json.loads(result.outputs["verdicts"]))

    return answers


def asked(*modes: str) -> Any:
    """Parametrise `mode` and `probe` over all probes of a task."""
    left = pytest.mark.full("the same probe, asked in another way")
    rows = []
    for mode in modes:
        for probe in IN_TASK:
            marks = [] if mode in WHOLE or probe.name in IN_EACH_MODE else left
            rows.append(pytest.param(mode, probe, id=f"{mode}-{probe.name}", marks=marks))
    return pytest.mark.parametrize("mode, probe", rows)


@cases(*PROFILES)
@asked("cold")
def test_a_task_can_not(
    probe: Probe, mode: str, hostile: HostileRunner, verdicts: Any, family: Any, record_property: Any
) -> None:
    """The name of the probe ends the sentence."""
    family(probe.family)
    record_property("mode", mode)
    require_held(probe, hostile.profile, verdicts(hostile.account.name, hostile.profile, mode)[probe.name])


@in_pairs(*PROFILES)
@asked("serve", "instrument")
def test_nor_can_it(
    probe: Probe, mode: str, hostile: HostileRunner, verdicts: Any, family: Any, record_property: Any
) -> None:
    """The same sandbox, in another way: each way by each account and under each profile, not by all under all."""
    test_a_task_can_not(probe, mode, hostile, verdicts, family, record_property)


@in_pairs(*PROFILES)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@asked("trace")
def test_a_watched_task_can_not(mode: str, probe: Probe, hostile: HostileRunner, verdicts: Any, family: Any) -> None:
    """The boundary is the same with --trace; only that what is traced can't be traced by another, or trace its init."""
    if hostile.profile not in WATCHED:
        pytest.skip(f"no profile extends {hostile.profile} by what is watched")
    if probe.name in WALKS:
        pytest.skip("it looks at every file of the sandbox, which takes a tracer a minute")
    family(probe.family)
    profile = "default" if probe.name in TRACES else hostile.profile
    require_held(probe, profile, verdicts(hostile.account.name, hostile.profile, mode)[probe.name])


def require_held(probe: Probe, profile: str, verdict: Any) -> None:
    assert isinstance(verdict, str) and not verdict.startswith(("raised", "died")), f"the probe broke: {verdict}"
    if probe.name in ALLOWED.get(profile, ()):
        assert verdict == "ok" or probe.optional
    else:
        assert verdict not in ("ok", "hangs")


DEFAULT_CALLS = [
    "_sysctl", "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime",
    "create_module", "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen",
    "fspick", "get_kernel_syms", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup",
    "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie",
    "migrate_pages", "modify_ldt", "mount", "mount_setattr", "move_mount", "move_pages",
    "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd",
    "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd",
    "query_module", "reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday",
    "swapoff", "swapon", "syslog", "umount2", "unshare", "uselib", "userfaultfd", "vhangup",
    "personality", "clone3",
]  # fmt: skip


def test_the_profile_refuses_what_the_issue_lists(runner_module: ModuleType) -> None:
    """Our own list of calls that must be refused; the tests above take theirs from the profile."""
    for profile in ("default", "strict", "container"):
        missing = {name for name in DEFAULT_CALLS if system_call(runner_module, name) >= 0}
        missing -= refused_calls(runner_module, profile).keys()
        assert not missing, f"{profile} does not refuse {missing}"


@cases(*PROFILES)
@pytest.mark.parametrize("name", sorted(set(DEFAULT_CALLS) | {"mbind", "get_mempolicy", "ustat", "sysfs"}))
def test_a_refused_call_gives_its_errno(
    name: str, hostile: HostileRunner, verdicts: Any, runner_module: ModuleType, family: Any
) -> None:
    calls = refused_calls(runner_module, hostile.profile)
    if name not in calls:
        pytest.skip("not on this machine, or allowed in this profile")
    family("kernel")
    assert verdicts(hostile.account.name, hostile.profile)[f"calls {name}"] == calls[name][1]


# --- the controls: the same code with the protection off


def run_program(
    command: list[str], request_file: Path, table: dict[str, str], context: dict[str, Any], cwd: str
) -> Any:
    request_file.write_text(json.dumps({"table": table, "context": context, "cwd": cwd}))
    request_file.chmod(0o644)
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "CALLER_SECRET": SECRET},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def on_the_host(base: Path, lures: dict[str, Any], runner_module: ModuleType) -> dict[str, str]:
    """The answers of an ordinary process: all probes, and all refused calls but the one that needs no
    argument to do its work."""
    cwd = base / "control"
    cwd.mkdir()
    (cwd / "probe.py").write_text("")
    program = base / "control.py"
    program.write_text(PROGRAM)
    table = {probe.name: probe.code for probe in IN_TASK if probe.control == "host"}
    calls = refused_calls(runner_module, "default")
    table.update({f"calls {name}": call_code(number) for name, (number, _) in calls.items() if name != "vhangup"})
    request = base / "control.json"
    command = [sys.executable, str(program), str(request)]
    return dict(run_program(command, request, table, {**lures, "scratch": lures["own_scratch"]}, str(cwd)))


@pytest.fixture(scope="session")
def in_a_weaker_box(base: Path, lures: dict[str, Any], runner_module: ModuleType) -> Any:
    """`weaker(options, table)`: the runner's own bwrap command line, with a few options left out and without
    the filter."""
    module = runner_module

    def weaker(options: tuple[str, ...], table: dict[str, str]) -> dict[str, str]:
        profile = module.load_profile("default", [str(ROOT / "sandbox-profiles")])
        interpreter = module.Interpreter(**module.describe_interpreter())
        paths, links = module.system_mounts(profile.execute, [interpreter])
        folder = base / f"weaker-{'-'.join(options).strip('-')}"
        folder.mkdir(exist_ok=True)
        (folder / "program.py").write_text(PROGRAM)
        mounts = [module.Mount(path, path) for path in paths] + [module.Mount(str(folder), "/bundle")]
        command = [interpreter.executable, "-I", "/bundle/program.py", "/bundle/request.json"]
        common = profile.sandbox._replace(masked=[]) if "masked" in options else profile.sandbox
        box = module.Sandbox("execute", profile.execute, common, mounts, links, {}, "/bundle", command)
        status, held = os.pipe()
        try:
            arguments = module.bwrap_arguments(box, module.Descriptors(seccomp=[], status=held))
            at = arguments.index("--json-status-fd")
            kept = [word for word in arguments[:at] + arguments[at + 2 :] if word not in options]
            return dict(run_program([module.find_bwrap(), *kept], folder / "request.json", table, lures, ""))
        finally:
            os.close(status)
            os.close(held)

    return weaker


@pytest.mark.parametrize("probe", IN_TASK, ids=lambda probe: probe.name)
def test_control(probe: Probe, request: pytest.FixtureRequest) -> None:
    """Where the protection is off, the probe succeeds; so it can't hold for no reason."""
    if probe.control == "none":
        NO_CONTROL[probe.name] = probe.optional
        return
    if probe.control == "host":
        verdict = request.getfixturevalue("on_the_host")[probe.name]
    else:
        weaker = request.getfixturevalue("in_a_weaker_box")
        verdict = weaker(tuple(probe.control.split()[1:]), {probe.name: probe.code})[probe.name]
    if verdict == "ok":
        CONTROLS_DONE.add(probe.name)
    elif probe.optional or os.geteuid() != 0:
        NO_CONTROL[probe.name] = f"{probe.optional or 'the tests do not run as root'} ({verdict})"
    else:
        raise AssertionError(f"the control did not succeed: {verdict}")


def test_controls_of_the_refused_calls(
    on_the_host: dict[str, str], in_a_weaker_box: Any, runner_module: ModuleType
) -> None:
    """Without the filter, on the host or in the sandbox, a refused call gives another answer."""
    calls = refused_calls(runner_module, "default")
    boxed = in_a_weaker_box((), {f"calls {name}": call_code(number) for name, (number, _) in calls.items()})
    for name, (_, answer) in calls.items():
        key = f"calls {name}"
        seen = {on_the_host.get(key, answer), boxed[key]}
        if seen - {answer}:
            CONTROLS_DONE.add(key)
        else:
            NO_CONTROL[key] = f"this kernel answers {answer} without a filter too"
    assert len([key for key in CONTROLS_DONE if key.startswith("calls ")]) > 40


def test_controls_of_the_namespaces(in_a_weaker_box: Any, lures: dict[str, Any]) -> None:
    """Without the filter and the sysctl, a task can make a user namespace in all three ways."""
    table = {
        probe.name: probe.code for probe in IN_TASK if "user namespace" in probe.name and "int 0x80" not in probe.name
    }
    found = in_a_weaker_box(("--disable-userns", "--assert-userns-disabled"), table)
    assert found["makes a user namespace by clone"] == found["makes a user namespace by unshare"] == "ok"
    assert found["makes a user namespace by clone3"] == "ok"


def test_the_filter_alone_holds_namespaces(verdicts: Any, full: bool) -> None:
    """Some profiles have no sysctl: seccomp alone refuses each way, with the errno that libc needs."""
    profile = next((name for name in PROFILES if name in FILTER_ALONE), "container")
    for who in ("root", "user") if full and HERE == "root" else (HERE,):
        found = verdicts(who, profile)
        assert found["makes a user namespace by clone"] == found["makes a user namespace by unshare"] == "EPERM"
        assert found["makes a user namespace by clone3"] == "ENOSYS"
