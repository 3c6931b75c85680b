"""The process that runs are forked from: it has imported the runner, which is half of what a short run takes.

    python -I -S fork_server.py RUNNER PSUTIL'S-FOLDER PARENT     (its standard input is the parent's socket)

`forks` starts it and asks it for runs. It has one thread and reads nothing of a task: a message is descriptors alone,
and what they hold is read by the fork, which is a process as a script's would be. The next one is forked ahead. It ends
with its parent, and its runs are then told by the kernel (the runner's --die-with-parent); asked for no more, it ends
with its last run.
Multiprocessing's own fork server is not for this: a process has but one, which the caller's code may use as well, and
each of its forks imports the caller's main module.
"""

import gc
import marshal
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

DESCRIPTORS = 6  # of a run: its caller's socket, its words, its working directory, standard input, output and error
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # until the runner can answer them; by the server, always
LIKELY = (
    "_struct",
    "base64",
    "copy",
    "ctypes",
    "encodings.utf_8_sig",
    "importlib.util",
    "psutil",
    "resource",
    "select",
)
QUIET_MS = 20  # after a start, before the next run is forked ahead: a run has the machine for its own start
NONE_PENDING = "\nShdPnd:\t0000000000000000\n"  # of the signals to a process that are blocked, see proc_pid_status(5)
MADV_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14

Main = Callable[[list[str]], int]


def main(runner: str, site: str, parent: int) -> None:
    """Import the runner, say so or why not, and start runs."""
    watched = os.pidfd_open(parent)
    control = socket.socket(fileno=os.dup(0))
    if os.getppid() != parent:
        return
    try:
        run = load(runner, site)
    except BaseException as error:
        control.send(f"{type(error).__name__}: {error}".encode()[:4096])
        return
    control.send(b"ready")
    serve(control, watched, run)


def load(runner: str, site: str) -> Main:
    """The runner's main, with what most runs import. Nothing of it is garbage, now or in a fork.

    Its bytecode is kept beside it, where whoever may write can write the runner itself. Without `site`, whose .pth
    files cost as much as the rest, psutil is found by its folder.
    """
    gc.disable()
    sys.path += [os.path.dirname(runner), site]
    found: Main = import_module(os.path.splitext(os.path.basename(runner))[0]).main
    for name in LIKELY:
        with suppress(ImportError):  # the run says what is missing
            import_module(name)
    gc.freeze()
    gc.enable()
    sys.argv = [runner]
    return found


def serve(control: socket.socket, watched: int, run: Main) -> None:
    """Start what is asked for and tell how it ended, until the parent is gone, or wants no more and all have ended."""
    runs: dict[int, tuple[int, int]] = {}  # by a descriptor of its process: its pid, and its caller's socket
    poll, spare = select.poll(), Spare(run)
    for fd in (control.fileno(), watched):
        poll.register(fd, select.POLLIN)
    asked = wanted = True
    while asked or runs:
        happened = poll.poll(QUIET_MS if wanted else None)
        if not happened:
            spare.fork()
            wanted = False
        for fd, _ in happened:
            if fd == watched:
                return
            if fd in runs:
                poll.unregister(fd)
                os.close(fd)
                tell_end(*runs.pop(fd))
                continue
            message, given, _, _ = socket.recv_fds(control, 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            wanted = asked = bool(message)
            if not asked:
                poll.unregister(fd)
                spare.dismiss()
            elif len(given) < DESCRIPTORS:  # no more can be opened here; the caller sees its socket closed
                for one in given:
                    os.close(one)
            elif started := start(given, run, spare):
                runs[started[0]] = started[1:]
                poll.register(started[0], select.POLLIN)


class Spare:
    """The next run's process, which waits for what makes it one. Its pages are its own by then: to copy them one by
    one, as it writes to them, takes a run a tenth of its time."""

    def __init__(self, run: Main) -> None:
        self.run, self.pid = run, 0
        self.door: socket.socket

    def fork(self) -> None:
        """Have one, if that can be."""
        if self.pid:
            return
        with suppress(OSError):
            self.door, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self.pid = os.fork()
                if self.pid == 0:
                    wait_for_run(its.fileno(), self.run)

    def take(self, given: Sequence[int]) -> int:
        """Make it a run. Its pid, or 0 where there is none, or somebody asked it to end: it is no run's affair."""
        pid, self.pid = self.pid, 0
        if not pid:
            return 0
        with self.door, suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as status:
            if NONE_PENDING in status.read():
                socket.send_fds(self.door, [b"r"], given)
                return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return 0

    def dismiss(self) -> None:
        """Have none any more."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def wait_for_run(door: int, run: Main) -> None:
    """In a fork ahead: have nothing open but the door, and become what comes through it."""
    try:
        os.dup2(door, 0)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        own_pages()
        with socket.socket(fileno=0) as asked:
            given = socket.recv_fds(asked, 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)[1]
        if given:
            become(given, run)
        os._exit(0)
    finally:
        os._exit(70)


def own_pages() -> None:
    """Have the kernel copy now what this process would write to, which is most of it: reference counts."""
    with suppress(ImportError, OSError):
        import ctypes

        advise = ctypes.CDLL(None).madvise
        with open("/proc/self/maps", encoding="utf-8") as file:
            places = [line.split()[0].split("-") for line in file if " rw-p " in line]
        for start, end in ((int(start, 16), int(end, 16)) for start, end in places):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_POPULATE_WRITE)


def start(given: Sequence[int], run: Main, spare: Spare) -> tuple[int, int, int] | None:
    """Begin a run, and send its caller its pid and a descriptor of it; None, and why, where that can't be done."""
    caller = given[0]
    with socket.socket(fileno=caller) as told:
        try:
            pid = spare.take(given[1:]) or os.fork()
            if pid == 0:
                become(given[1:], run)
            try:
                ended = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            with suppress(OSError):  # a caller that is gone has no more to ask
                socket.send_fds(told, [str(pid).encode()], [ended])
            told.detach()
            return ended, pid, caller
        except OSError as error:
            with suppress(OSError):
                told.send(str(error).encode())
            return None
        finally:
            for fd in given[1:]:
                os.close(fd)


def tell_end(pid: int, caller: int) -> None:
    """Send the exit status, as subprocess has it."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with socket.socket(fileno=caller) as told, suppress(OSError):
        told.send(str(status).encode())


def become(given: Sequence[int], run: Main) -> None:
    """In the fork: be the run. What it has of this process is the interpreter and what was imported."""
    words, folder, *streams = given
    try:
        os.setsid()
        with suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write("runner")  # for who looks at processes: the command line is the server's
        signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED)
        arguments, environment, processors = marshal.loads(os.pread(words, os.fstat(words).st_size, 0))
        os.fchdir(folder)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if os.sched_getaffinity(0) != processors:
            os.sched_setaffinity(0, processors)
        os.environb.clear()
        os.environb.update(environment)
        sys.argv += map(os.fsdecode, arguments)
        os._exit(run(sys.argv[1:]))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(70)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    os._exit(0)
