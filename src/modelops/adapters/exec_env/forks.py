"""Runs of the runner, each a fork of a process that has imported it: see `fork_server`.

A process of ours has one such server for each runner. It begins with the first run, and anew where it is gone, or where
runs would not be what they are when started from here: the runner changed, or what a process has of its parent.
"""

import marshal
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from .fork_server import BLOCKED

FORK_SERVER = Path(__file__).with_name("fork_server.py")
START_SECONDS = 60.0  # in which the server has imported the runner on any machine
LOST = 255  # the exit status of a run whose server is gone
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_CHUNK = 1 << 20

_lock = threading.Lock()
_servers: dict[Path, "_Server"] = {}
_retired: list["_Server"] = []  # they end with their last runs


def _forget() -> None:
    """In a fork of this process: the servers are the parent's, and no thread is there that may hold the lock."""
    global _lock
    _lock = threading.Lock()
    for server in _servers.values():
        server.retire()
    _servers.clear()


os.register_at_fork(after_in_child=_forget)


class NotStarted(Exception):
    """Why a run could not be started."""


class _Gone(Exception):
    """The server ended before it started the run."""


class Process:
    """A run, as `subprocess.Popen` has a process. Its signals can't reach another that got its pid."""

    def __init__(self, pid: int, ended: int, told: socket.socket, pipes: Sequence[BinaryIO | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = pipes
        self._ended, self._told = FileIO(ended, "rb"), told
        self._lock = threading.Lock()
        self._printed = bytearray()

    def poll(self) -> int | None:
        """The exit status, and None where it has not ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended; subprocess.TimeoutExpired where that is not so in time."""
        if self.returncode is None:
            if not _readable(self._ended.fileno(), timeout):
                raise subprocess.TimeoutExpired("the runner", timeout or 0)
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(_received(self._told) or LOST)
        return self.returncode

    def output(self, timeout: float | None = None) -> bytes:
        """What it printed, once it has ended. Where that is not so in time, TimeoutExpired, and one may ask again."""
        assert self.stdout is not None
        end = None if timeout is None else time.monotonic() + timeout
        while _readable(self.stdout.fileno(), end and end - time.monotonic()):
            chunk = os.read(self.stdout.fileno(), _CHUNK)
            if not chunk:
                self.wait(end and end - time.monotonic())
                return bytes(self._printed)
            self._printed += chunk
        raise subprocess.TimeoutExpired("the runner", timeout or 0)

    def send_signal(self, number: int) -> None:
        """Send a signal; harmless if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._ended.fileno(), number)

    def close(self) -> None:
        """Close what leads to it, now that it has ended and nobody waits for it."""
        self.wait()
        for file in (self._ended, self._told, self.stdin, self.stdout, self.stderr):
            if file is not None:
                with suppress(OSError):  # what was not written yet has nowhere to go
                    file.close()


def start(
    runner: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    data: bytes | None = None,
    stderr: int | None = None,
) -> Process:
    """Start a run in a session of its own, stopped when this process ends; NotStarted where that can't be done.

    Its standard input is `data`, or a pipe; its standard error goes to `stderr`, or into a pipe. A signal that comes
    before it can answer waits until it can.
    """
    try:
        server = _server_of(runner, environment, None)
        try:
            return server.start(arguments, environment, data, stderr)
        except _Gone:  # somebody killed it
            return _server_of(runner, environment, server).start(arguments, environment, data, stderr)
    except (OSError, _Gone) as error:
        raise NotStarted(str(error)) from error


def _server_of(runner: Path, environment: Mapping[str, str], gone: "_Server | None") -> "_Server":
    """The server of this process for that runner."""
    with _lock:
        made_of = _made_of(runner, environment)
        server = _servers.get(runner)
        if server is not None and (server is gone or not server.fits(made_of)):
            _servers.pop(runner).retire()
            _retired.append(server)
            server = None
        _retired[:] = [old for old in _retired if not old.is_over()]
        if server is None:
            server = _servers[runner] = _Server(runner, environment, made_of)
        return server


def _made_of(runner: Path, environment: Mapping[str, str]) -> tuple[object, ...]:
    """What a fork has of its server, and a child of ours would have of us: the rest is sent with each run."""
    file, locale = runner.stat(), [environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    limits = [resource.getrlimit(number) for number in _LIMITS]
    account = os.getresuid(), os.getresgid(), os.getgroups(), os.getpriority(os.PRIO_PROCESS, 0)
    groups = Path("/proc/self/cgroup").read_text() if os.path.exists("/proc/self/cgroup") else ""
    return sys.executable, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, locale, limits, account, groups


class _Server:
    """One fork server, which ends with this process."""

    def __init__(self, runner: Path, environment: Mapping[str, str], made_of: tuple[object, ...]) -> None:
        self._made_of = made_of
        found = find_spec("psutil")
        site = os.path.dirname(os.path.dirname(found.origin)) if found and found.origin else ""
        command = [sys.executable, "-I", "-S", str(FORK_SERVER), str(runner), site, str(os.getpid())]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        with ExitStack() as ours, ExitStack() as passing:
            ours.callback(self._control.close)
            passing.callback(theirs.close)
            passing.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            log = _file(passing, b"")
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
            theirs.close()
            said = _received(self._control) if _readable(self._control.fileno(), START_SECONDS) else b"it is silent"
            if said != b"ready":
                self._process.kill()
                why = said or os.pread(log, _CHUNK, 0)[-2000:] or f"status {self._process.wait()}".encode()
                self._process.wait()
                problem = why.decode("utf-8", "replace").strip()
                raise NotStarted(f"the process that runs are forked from did not start: {problem}")
            ours.pop_all()

    def fits(self, made_of: tuple[object, ...]) -> bool:
        """Whether it is there, and its forks are what runs have to be."""
        return self._made_of == made_of and self._process.poll() is None

    def retire(self) -> None:
        """Ask it for no more runs."""
        self._control.close()

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], data: bytes | None, stderr: int | None
    ) -> Process:
        """Send what makes a run, and receive its process."""
        words = [os.fsencode(word) for word in ("--die-with-parent", str(self._process.pid), *arguments)]
        variables = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        with ExitStack() as ours, ExitStack() as theirs:
            its_in, our_in = _pipe(ours, theirs, to_it=True) if data is None else (_file(theirs, data), None)
            its_out, our_out = _pipe(ours, theirs)
            its_err, our_err = _pipe(ours, theirs) if stderr is None else (stderr, None)
            told, caller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.callback(told.close)
            theirs.callback(caller.close)
            folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            theirs.callback(os.close, folder)
            request = _file(theirs, marshal.dumps((words, variables, os.sched_getaffinity(0))))
            try:
                socket.send_fds(self._control, [b"r"], [caller.fileno(), request, folder, its_in, its_out, its_err])
                theirs.close()
                said, fds, _, _ = socket.recv_fds(told, 4096, 1, socket.MSG_CMSG_CLOEXEC)
            except (BrokenPipeError, ConnectionResetError):
                said, fds = b"", []
            if not said:
                raise _Gone("the process that runs are forked from is gone")
            if not fds:
                raise NotStarted(said.decode())
            ours.pop_all()
            return Process(int(said), fds[0], told, (our_in, our_out, our_err))


def _pipe(ours: ExitStack, theirs: ExitStack, *, to_it: bool = False) -> tuple[int, BinaryIO]:
    """A pipe: its end, and ours."""
    reading, writing = os.pipe()
    its, our = (reading, writing) if to_it else (writing, reading)
    theirs.callback(os.close, its)
    return its, ours.enter_context(open(our, "wb" if to_it else "rb"))


def _file(theirs: ExitStack, data: bytes) -> int:
    """A file in memory that is read from its start."""
    fd = os.memfd_create("runner")
    theirs.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


def _received(from_it: socket.socket) -> bytes:
    try:
        return from_it.recv(4096)
    except ConnectionResetError:
        return b""
