"""From a trace to facts: each kind from lines as strace writes them."""

from collections.abc import Iterable

import pytest

from modelops.review.behaviour import PROCESSES, Behaviour, dns_question
from modelops.review.facts import MOST, Fact, Facts
from modelops.review.strace import Reader

SETUP = (
    '5 10.0 execve("/usr/bin/bwrap", ["/usr/bin/bwrap"], 0x1 /* 1 var */) = 0 <0.1>',
    "5 10.1 clone(child_stack=NULL, flags=CLONE_NEWNS|CLONE_NEWUSER|SIGCHLD) = 6 <0.1>",
    '6 10.2 mount(NULL, "/", NULL, MS_REC|MS_SLAVE, NULL) = 0 <0.1>',
    "6 10.3 clone(child_stack=NULL, flags=SIGCHLD) = 2 /* 7 in strace's PID NS */ <0.1>",
    '7 10.4 execve("/venv/bin/python", ["/venv/bin/python", "child"], 0x1 /* 9 vars */) = 0 <0.1>',
)
QUERY = rb"\272n\1\0\0\1\0\0\0\0\0\0\4evil\7example\3com\0\0\1\0\1".decode()


def facts_of(*lines: str) -> tuple[Facts, Behaviour]:
    facts = Facts()
    behaviour = Behaviour(facts, "task", ("/bundle", "/venv/"))
    behaviour.read(Reader().events((line + "\n").encode() for line in (*SETUP, *lines)))
    return facts, behaviour


def kinds(facts: Iterable[Fact]) -> set[str]:
    return {fact.kind for fact in facts} - {"execute"}


def test_bwraps_own_set_up_is_no_fact_of_the_bundle() -> None:
    facts, behaviour = facts_of()
    assert [fact["program"] for fact in facts.seen] == ["/venv/bin/python"]
    assert [process["number"] for process in behaviour.tree()] == [1]


@pytest.mark.parametrize(
    "line, kind, values",
    [
        ('openat(AT_FDCWD</bundle>, "/etc/shadow", O_RDONLY) = -1 ENOENT (No such file) <0.1>', "file_read",
         {"path": "/etc/shadow", "answer": "ENOENT"}),
        ('openat(AT_FDCWD</tmp/home>, ".ssh/id_rsa", O_RDONLY) = 3 <0.1>', "file_read",
         {"path": "/tmp/home/.ssh/id_rsa", "answer": "ok"}),
        ('openat(AT_FDCWD</tmp>, "x", O_WRONLY|O_CREAT, 0644) = 3</tmp/x> <0.1>', "file_write",
         {"path": "/tmp/x", "action": "write"}),
        ('openat(AT_FDCWD</tmp>, "x", O_WRONLY|O_CREAT, 0755) = 3</tmp/x> <0.1>', "file_write", {"executable": "yes"}),
        ('unlink("/tmp/x") = 0 <0.1>', "file_write", {"action": "unlink"}),
        ('rename("/tmp/a", "/tmp/b") = 0 <0.1>', "file_write", {"path": "/tmp/b", "action": "rename"}),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}, 16) = -1 '
         "ENETUNREACH (x) <0.1>", "connect", {"address": "1.2.3.4:80", "answer": "ENETUNREACH"}),
        ('connect(3, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, '
         '"2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = -1 ENETUNREACH (x) <0.1>', "connect",
         {"address": "[2001:db8::1]:443"}),
        ('connect(3, {sa_family=AF_UNIX, sun_path=@"hidden"}, 110) = -1 ECONNREFUSED (x) <0.1>', "connect",
         {"address": "unix:@hidden"}),
        ('bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("127.0.0.1")}, 16) = 0 <0.1>', "listen",
         {"address": "127.0.0.1:0"}),
        (f'sendto(3, "{QUERY}", 34, MSG_NOSIGNAL, NULL, 0) = 34 <0.1>', "dns", {"name": "evil.example.com"}),
        ("socket(AF_PACKET, SOCK_RAW, htons(0x3)) = -1 EPERM (x) <0.1>", "socket", {"family": "AF_PACKET"}),
        ("unshare(CLONE_NEWUSER) = -1 EPERM (x) <0.1>", "kernel_call", {"call": "unshare", "answer": "EPERM"}),
        ("unshare(CLONE_NEWUSER) = -1 EPERM (x) <0.1>", "refused", {"call": "unshare", "answer": "EPERM"}),
        ("setuid(0) = -1 EINVAL (x) <0.1>", "identity", {"call": "setuid"}),
        ("ptrace(PTRACE_ATTACH, 1) = -1 EPERM (x) <0.1>", "other_process",
         {"call": "ptrace", "argument": "PTRACE_ATTACH"}),
        ("mmap(NULL, 4096, PROT_READ|PROT_WRITE|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000 <0.1>",
         "executable_memory", {"how": "written to and run"}),
        ('memfd_create("payload", MFD_CLOEXEC) = 3 <0.1>', "memory_file", {"name": "payload"}),
        ("clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, {tv_sec=99, tv_nsec=1}, NULL) = 0 <20.000129>", "sleep",
         {"seconds": "20"}),
        ('prctl(PR_SET_NAME, "\\33[2J") = 0 <0.1>', "process_name", {"name": "\\x1b[2J"}),
        ("kill(1 /* 6 in strace's PID NS */, SIGKILL) = -1 EPERM (x) <0.1>", "signal",
         {"signal": "SIGKILL", "target": "the sandbox's init"}),
        ("kill(-1, SIGTERM) = 0 <0.1>", "signal", {"target": "everything"}),
    ],
)  # fmt: skip
def test_a_call_becomes_a_fact(line: str, kind: str, values: dict[str, str]) -> None:
    facts, _ = facts_of(f"7 11.0 {line}")
    [fact] = facts.of(kind)
    assert {name: fact[name] for name in values} == values
    assert facts.seen[fact].first == pytest.approx(0.6) and facts.seen[fact].process == 1


@pytest.mark.parametrize(
    "line",
    [
        'openat(AT_FDCWD</bundle>, "data.csv", O_RDONLY) = 3</bundle/data.csv> <0.1>',
        'readlink("/etc/malloc.conf", 0x1, 4096) = -1 ENOENT (x) <0.1>',
        "mmap(NULL, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_DENYWRITE, 3</usr/lib/libc.so.6>, 0) = 0x7f <0.1>",
        "clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=1000}, NULL) = 0 <0.000129>",
        'connect(3, {sa_family=AF_UNSPEC, sa_data=""}, 16) = 0 <0.1>',
        "tgkill(2, 2, SIGRT_1) = 0 <0.1>",
        'prctl(PR_SET_NAME, "worker") = 0 <0.1>',
    ],
)
def test_what_every_program_does_is_no_fact(line: str) -> None:
    facts, _ = facts_of(f"7 11.0 {line}")
    assert kinds(facts.seen) == set()


def test_processes_threads_and_who_outlives_whom() -> None:
    _facts, behaviour = facts_of(
        "7 11.0 clone(child_stack=0x1, flags=CLONE_VM|CLONE_THREAD) = 3 /* 8 in strace's PID NS */ <0.1>",
        "7 11.1 vfork() = 4 /* 9 in strace's PID NS */ <0.1>",
        '9 11.2 execve("/bin/sh", ["sh", "-c", "sleep 100 &"], 0x1 /* 9 vars */) = 0 <0.1>',
        "9 11.3 fork() = 5 /* 10 in strace's PID NS */ <0.1>",
        '10 11.35 execve("/bin/sleep", ["sleep", "100"], 0x1 /* 9 vars */) = 0 <0.1>',
        "9 11.4 +++ exited with 0 +++",
        "8 11.5 +++ exited with 0 +++",
        "7 12.0 +++ exited with 0 +++",
        "10 12.1 +++ killed by SIGKILL +++",
    )
    tree = [
        (process["number"], process["parent"], process["program"], process["outcome"]) for process in behaviour.tree()
    ]
    assert tree == [
        (1, None, "/venv/bin/python", "exit status 0"),
        (2, 1, "/bin/sh", "exit status 0"),
        (3, 2, "/bin/sleep", "SIGKILL"),
    ]
    [orphan] = _facts.of("outlives_parent")
    assert orphan["program"] == "/bin/sleep"


def test_random_names_of_temporary_files_are_one_fact() -> None:
    lines = (
        f'7 11.0 openat(AT_FDCWD</>, "/tmp/tmp{name}/x", O_WRONLY|O_CREAT, 0600) = 3 <0.1>'
        for name in ("ab12_x9z", "zzzzzzzz")
    )
    facts, _ = facts_of(*lines)
    assert [fact["path"] for fact in facts.of("file_write")] == ["/tmp/tmp********/x"]


def test_facts_are_bounded_and_what_is_left_out_is_counted() -> None:
    facts, _ = facts_of(*(f'7 11.0 unlink("/tmp/{number}") = 0 <0.1>' for number in range(MOST + 7)))
    assert len(list(facts.of("file_write"))) == MOST
    assert facts.dropped == {("file_write", "task"): 7}


def test_text_of_a_process_is_printable_and_short() -> None:
    facts, _ = facts_of('7 11.0 unlink("/tmp/\\33[2J\\n' + "x" * 5000 + '") = 0 <0.1>')
    [fact] = facts.of("file_write")
    assert fact["path"].startswith("/tmp/\\x1b[2J\\nxxx") and fact["path"].isprintable() and len(fact["path"]) < 1100


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", bytes(range(200))])
def test_what_is_no_query_names_nothing(data: bytes) -> None:
    assert dns_question(data) == ""


def test_of_very_many_processes_those_that_have_ended_are_not_kept() -> None:
    """And one that they left behind is found all the same."""
    born = "clone(child_stack=NULL, flags=SIGCHLD) = 9 /* {} in strace's PID NS */ <0.1>"
    many = range(100, 100 + PROCESSES + 50)
    lines = [line for pid in many for line in (f"7 11.0 {born.format(pid)}", f"{pid} 11.1 +++ exited with 0 +++")]
    lines += [f"7 12.0 {born.format(50_000)}", f"50000 12.1 {born.format(50_001)}", "50000 12.2 +++ exited with 0 +++"]
    facts, behaviour = facts_of(*lines, "7 13.0 +++ exited with 0 +++", "50001 13.1 +++ killed by SIGKILL +++")
    assert len(behaviour.processes) <= PROCESSES + 1 and len(behaviour.tree()) == PROCESSES
    assert [fact.kind for fact in facts.of("outlives_parent", "left_running")] == ["outlives_parent"]
