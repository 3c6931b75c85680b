"""The process that runs are forked from: it has imported the runner, which is half of what a short run takes.

    python -I -S fork_server.py RUNNER PSUTIL'S-FOLDER PARENT     (its standard input is the parent's socket)

`forks` starts it and asks it for runs. It has one thread and reads nothing of a task: a message is descriptors alone,
and what they hold is read by the fork, which is a process as a script's would be. It ends with its parent, and its runs
are then told by the kernel (the runner's --die-with-parent); asked for no more, it ends with its last run.
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
    poll = select.poll()
    for fd in (control.fileno(), watched):
        poll.register(fd, select.POLLIN)
    asked = True
    while asked or runs:
        for fd, _ in poll.poll():
            if fd == watched:
                return
            if fd in runs:
                poll.unregister(fd)
                os.close(fd)
                tell_end(*runs.pop(fd))
                continue
            message, given, _, _ = socket.recv_fds(control, 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            asked = bool(message)
            if not asked:
                poll.unregister(fd)
            elif len(given) < DESCRIPTORS:  # no more can be opened here; the caller sees its socket closed
                for one in given:
                    os.close(one)
            elif started := start(given, run):
                runs[started[0]] = started[1:]
                poll.register(started[0], select.POLLIN)


def start(given: Sequence[int], run: Main) -> tuple[int, int, int] | None:
    """Fork a run, and send its caller its pid and a descriptor of it; None, and why, where that can't be done."""
    caller = given[0]
    with socket.socket(fileno=caller) as told:
        try:
            pid = os.fork()
            if pid == 0:
                become(given, run)
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
    _, words, folder, *streams = given
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
