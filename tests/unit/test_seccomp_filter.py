"""The filter, asked about every call that the profile names, without loading it."""

import ctypes
import os
from typing import Any

import pytest
from bpf_simulator import (
    AUDIT_ARCH_AARCH64,
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    X32_SYSCALL_BIT,
    verdict,
)
from conftest import PROFILES

MACHINE = os.uname().machine
ARCH = {"x86_64": AUDIT_ARCH_X86_64, "aarch64": AUDIT_ARCH_AARCH64}.get(MACHINE, 0)
CONDITIONAL = ("clone", "ioctl", "socket", "socketpair")
NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
SIGCHLD = 17
HIGH = 1 << 32

pytestmark = pytest.mark.skipif(not ARCH, reason=f"the filter is for x86_64 and aarch64, not {MACHINE}")


def number(name: str) -> int:
    """The call's number on this machine; negative where it has none."""
    library = ctypes.CDLL("libseccomp.so.2")
    return int(library.seccomp_syscall_resolve_name(name.encode()))


@pytest.fixture(scope="module")
def programs(runner_module: Any, default_profile: Any) -> list[bytes]:
    return list(runner_module.seccomp_programs(default_profile.seccomp))


def ask(programs: list[bytes], name: str, *args: int) -> str:
    nr = number(name)
    assert nr >= 0, f"libseccomp has no number for {name}"
    return verdict(programs, nr, args, ARCH)


def known(names: list[str]) -> list[str]:
    found = [name for name in names if number(name) >= 0]
    assert found
    return found


def test_what_is_allowed_is_allowed(programs: list[bytes], default_profile: Any) -> None:
    for name in known(default_profile.seccomp.allow):
        assert (
            ask(programs, name, *([SIGCHLD] if name == "clone" else [2, 1, 0] if name in CONDITIONAL else []))
            == "allow"
        ), name


def test_what_is_denied_is_denied(programs: list[bytes], default_profile: Any) -> None:
    for name in known(default_profile.seccomp.deny):
        assert ask(programs, name) == "errno:EPERM", name


def test_what_libc_can_do_without_does_not_exist(programs: list[bytes], default_profile: Any) -> None:
    for name in known(default_profile.seccomp.enosys):
        assert ask(programs, name) == "errno:ENOSYS", name
    assert ask(programs, "clone3") == "errno:ENOSYS"


@pytest.mark.parametrize("nr", [500, 1000, 0x3FFFFFFF])
def test_a_call_that_nobody_knows_does_not_exist(programs: list[bytes], nr: int) -> None:
    assert verdict(programs, nr, arch=ARCH) == "errno:ENOSYS"


DENIED_BY_THE_ISSUE = """
unshare setns ptrace process_vm_readv process_vm_writev keyctl add_key request_key bpf perf_event_open
name_to_handle_at open_by_handle_at mount umount2 pivot_root fsopen fsmount fsconfig fspick move_mount
open_tree mount_setattr quotactl acct kexec_load init_module finit_module delete_module swapon swapoff
reboot settimeofday clock_settime adjtimex syslog userfaultfd io_uring_setup io_uring_enter
io_uring_register personality chroot
"""


@pytest.mark.parametrize("profile", ["default", "strict", "container"])
def test_the_calls_of_the_issue_are_denied_in(runner_module: Any, profile: str) -> None:
    made = runner_module.seccomp_programs(runner_module.load_profile(profile, [str(PROFILES)]).seccomp)
    for name in DENIED_BY_THE_ISSUE.split():
        assert ask(made, name) == "errno:EPERM", name
    for name in ("iopl", "ioperm"):
        if number(name) >= 0:
            assert ask(made, name) == "errno:EPERM", name


@pytest.mark.parametrize("flag", NEW, ids=hex)
def test_clone_makes_no_namespace(programs: list[bytes], flag: int) -> None:
    for flags in (flag, flag | SIGCHLD, flag | HIGH, flag | 0x50F00, 0x7E020000):
        assert ask(programs, "clone", flags) == "errno:EPERM", hex(flags)


@pytest.mark.parametrize(
    "flags", [SIGCHLD, 0x003D0F00, 0x01200011, 0x4111], ids=["fork", "thread", "posix_spawn", "vfork"]
)
def test_clone_makes_processes_and_threads(programs: list[bytes], flags: int) -> None:
    assert ask(programs, "clone", flags) == "allow"


@pytest.mark.parametrize("command", [0x5412, 0x541C], ids=["TIOCSTI", "TIOCLINUX"])
@pytest.mark.parametrize("high", [0, HIGH, 0xFFFFFFFF << 32], ids=["plain", "bit 32", "all high bits"])
def test_nothing_is_pushed_into_a_terminal(programs: list[bytes], command: int, high: int) -> None:
    assert ask(programs, "ioctl", 0, command | high) == "errno:EPERM"


@pytest.mark.parametrize("command", [0x5401, 0x5413, 0x541B], ids=["TCGETS", "TIOCGWINSZ", "FIONREAD"])
def test_other_ioctls_work(programs: list[bytes], command: int) -> None:
    assert ask(programs, "ioctl", 0, command) == "allow"


@pytest.mark.parametrize("call", ["socket", "socketpair"])
@pytest.mark.parametrize("high", [0, HIGH])
def test_only_four_socket_families_exist(programs: list[bytes], call: str, high: int) -> None:
    for family in range(64):
        allowed = not high and family in (1, 2, 10, 16)
        expected = "allow" if allowed else "errno:EPERM"
        assert ask(programs, call, family | high, 1, 0) == expected, family


@pytest.mark.parametrize("protocol", [1, 2, 6, 9, 15, 16, HIGH])
def test_of_netlink_only_routes_exist(programs: list[bytes], protocol: int) -> None:
    assert ask(programs, "socket", 16, 3, protocol) == "errno:EPERM"


@pytest.mark.parametrize("flags", [0, 0o4000, 0o2000000, HIGH])
def test_the_old_name_of_packet_sockets_is_refused(programs: list[bytes], flags: int) -> None:
    assert ask(programs, "socket", 2, 10 | flags, 0) == "errno:EPERM"
    assert ask(programs, "socket", 2, 2 | flags, 0) == "allow"


def test_foreign_architectures_are_refused(programs: list[bytes]) -> None:
    for arch in {AUDIT_ARCH_X86_64, AUDIT_ARCH_I386, AUDIT_ARCH_AARCH64, 0} - {ARCH}:
        for nr in (0, 1, 20, 59, 220):
            assert verdict(programs, nr, arch=arch) == "errno:EPERM"


@pytest.mark.skipif(MACHINE != "x86_64", reason="x32 is of x86-64")
def test_x32_calls_are_refused(programs: list[bytes]) -> None:
    for nr in (0, 1, 39, 59, 512, 520, 547):
        assert verdict(programs, nr | X32_SYSCALL_BIT, arch=ARCH) in ("errno:EPERM", "errno:ENOSYS")


def test_debug_takes_its_calls_off_the_list_and_no_others(runner_module: Any, default_profile: Any) -> None:
    debug = runner_module.load_profile("debug", [str(PROFILES)]).seccomp
    made = runner_module.seccomp_programs(debug)
    for name in known(debug.deny):
        assert ask(made, name) == ("allow" if name in debug.also_allow else "errno:EPERM"), name
    assert ask(made, "clone", 0x10000000) == "errno:EPERM"
    assert ask(made, "clone3") == "errno:ENOSYS"


def test_a_filter_on_top_denies_its_calls_alone(runner_module: Any) -> None:
    program = [runner_module.deny_program(["shmget", "msgget"])]
    assert {ask(program, name) for name in ("shmget", "msgget")} == {"errno:EPERM"}
    assert {ask(program, name) for name in ("clone", "openat", "socket", "clone3")} == {"allow"}
    for arch in {AUDIT_ARCH_X86_64, AUDIT_ARCH_I386} - {ARCH}:
        assert verdict(program, 11, arch=arch) == "errno:EPERM"


def test_a_condition_on_a_call_that_nobody_knows_is_an_error(runner_module: Any, default_profile: Any) -> None:
    rule = runner_module.DenyRule(["no_such_call"], [runner_module.Condition(0, "eq", [1])])
    with pytest.raises(runner_module.Failure, match="no_such_call") as caught:
        runner_module.seccomp_programs(default_profile.seccomp._replace(deny_if=[rule]))
    assert (caught.value.phase, caught.value.type) == ("host", "seccomp_unavailable")


def test_equal_policies_give_equal_programs(runner_module: Any, default_profile: Any, programs: list[bytes]) -> None:
    assert runner_module.seccomp_programs(default_profile.seccomp) == programs
    assert all(0 < len(program) // 8 <= 4096 for program in programs)
