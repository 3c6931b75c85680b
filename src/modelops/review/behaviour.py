"""The trace of one sandbox as facts: what ran, what it read and wrote, whom it called, what was refused it."""

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from modelops.review.facts import KERNEL, Facts
from modelops.review.strace import Event, split_arguments, strings

PROCESSES = 10_000  # that are told one by one
SLEEP = 1.0  # seconds from which a sleep is told

# The path that a call names: the number of its argument, and of the descriptor that it is relative to.
PATHS = {
    "open": (0, None), "openat": (1, 0), "openat2": (1, 0), "creat": (0, None), "execve": (0, None),
    "execveat": (1, 0), "mkdir": (0, None), "mkdirat": (1, 0), "rmdir": (0, None), "unlink": (0, None),
    "unlinkat": (1, 0), "rename": (1, None), "renameat": (3, 2), "renameat2": (3, 2), "link": (1, None),
    "linkat": (3, 2), "symlink": (1, None), "symlinkat": (2, 1), "chmod": (0, None), "fchmodat": (1, 0),
    "fchmodat2": (1, 0), "chown": (0, None), "lchown": (0, None), "fchownat": (1, 0), "truncate": (0, None),
    "mknod": (0, None), "mknodat": (1, 0), "readlink": (0, None), "readlinkat": (1, 0), "access": (0, None),
    "faccessat": (1, 0), "faccessat2": (1, 0), "setxattr": (0, None), "utimensat": (1, 0), "statfs": (0, None),
}  # fmt: skip
READS = {"readlink", "readlinkat", "access", "faccessat", "faccessat2", "statfs"}
WRITING = re.compile(r"\bO_(WRONLY|RDWR|CREAT|TRUNC|APPEND)\b")
IDENTITY = {"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "capset", "setfsuid"}
OTHERS = {"ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"}
KERNEL_CALLS = {
    "add_key", "keyctl", "request_key", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "unshare", "setns",
    "mount", "umount2", "pivot_root", "chroot", "init_module", "finit_module", "kexec_load", "fsopen", "open_tree",
    "move_mount", "mount_setattr", "syslog", "reboot", "swapon", "iopl", "ioperm", "personality",
    "open_by_handle_at", "name_to_handle_at", "fanotify_init", "quotactl", "clock_settime", "settimeofday",
    "sethostname", "setdomainname",
}  # fmt: skip
ADDRESS = re.compile(
    r"sa_family=(AF_[A-Z0-9]+)(?:, sin6?_port=htons\((\d+)\))?(?:.*?inet_(?:addr|pton)\((?:AF_INET6, )?\"([^\"]+)\")?"
)
UNIX = re.compile(r'sun_path=(@?"(?:[^"\\]|\\.)*")')
DESCRIPTOR = re.compile(r"(\d+)(?:<([^<>]*)>)?|AT_FDCWD(?:<([^<>]*)>)?")
RANDOM = re.compile(rb"\btmp[a-z0-9_]{8}\b")  # as tempfile names things: a new name in each run is the same fact
SIGNAL_SENT = re.compile(r"SIG[A-Z0-9_+]+|\b0\b")


@dataclass(slots=True)
class Process:
    """One process of the sandbox. Times are seconds since the interpreter began; `outcome` is an exit or a signal."""

    number: int
    pid: int
    parent: int | None
    started: float
    program: str = ""
    arguments: list[bytes] = field(default_factory=list)
    ended: float | None = None
    outcome: str = ""


class Behaviour:
    """Reads the events of one sandbox into `facts`. What bwrap does before it starts the interpreter is left out."""

    def __init__(self, facts: Facts, phase: str, own: Iterable[str]) -> None:
        self.facts, self.phase = facts, phase
        self.own = tuple(own)  # paths below which reading is no news: bundle, environment, interpreter
        self.setup: set[int] = set()
        self.processes: dict[int, Process] = {}  # by thread
        self.count = 0
        self.begun: float | None = None
        self.executed = 0
        self.addresses: dict[tuple[int, str], str] = {}
        self.memory_files: set[str] = set()
        self.handlers: dict[str, Callable[[Event, Process, list[str]], None]] = self._handlers()

    def read(self, events: Iterable[Event]) -> None:
        for event in events:
            if self.begun is None:
                self._set_up(event)
            elif event.pid not in self.setup:
                self._take(event, self._process(event))
        self._finish()

    # --- who did it

    def _set_up(self, event: Event) -> None:
        """bwrap's own part: it ends where its last child starts the interpreter, the second program of the trace."""
        self.setup.add(event.pid)
        if event.kind == "call" and event.name in ("execve", "execveat") and event.result == 0:
            self.executed += 1
            if self.executed > 1:
                self.begun = event.time
                self.setup.discard(event.pid)
                self._take(event, self._process(event))

    def _process(self, event: Event) -> Process:
        found = self.processes.get(event.pid)
        return found if found else self._born(event.pid, None, event.time)

    def _born(self, pid: int, parent: Process | None, time: float) -> Process:
        self.count += 1
        process = Process(self.count, pid, parent.number if parent else None, self._since(time))
        if parent:
            process.program, process.arguments = parent.program, parent.arguments
        self.processes[pid] = process
        return process

    def _since(self, time: float) -> float:
        return round(time - (self.begun or time), 6)

    # --- what it did

    def _take(self, event: Event, process: Process) -> None:
        if event.kind in ("exit", "killed"):
            if event.pid == process.pid:  # else one of its threads
                process.ended = self._since(event.time)
                process.outcome = event.name or f"exit status {event.result}"
                if process.number > PROCESSES and process.outcome != "SIGKILL":  # not told, and its end is seen
                    del self.processes[event.pid]
            return
        if event.kind != "call":
            return
        if event.error in ("EPERM", "ENOSYS", "EAFNOSUPPORT"):
            self._add("refused", event, process, {"call": event.name, "answer": event.error})
        handler = self.handlers.get(event.name)
        if handler is not None:
            handler(event, process, split_arguments(event.arguments))

    def _add(self, kind: str, event: Event, process: Process, values: dict[str, object]) -> None:
        self.facts.add(kind, self.phase, KERNEL, values, self._since(event.time), process.number)

    def _handlers(self) -> dict[str, Callable[[Event, Process, list[str]], None]]:
        table: dict[str, Callable[[Event, Process, list[str]], None]] = dict.fromkeys(PATHS, self._file)
        table.update(dict.fromkeys(("execve", "execveat"), self._execute))
        table.update(dict.fromkeys(("fork", "vfork", "clone", "clone3"), self._fork))
        table.update(dict.fromkeys(("connect", "bind"), self._connect))
        table.update(dict.fromkeys(("sendto", "sendmsg", "sendmmsg"), self._send))
        table.update(dict.fromkeys(("kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo"), self._signal))
        table.update(dict.fromkeys(("nanosleep", "clock_nanosleep"), self._sleep))
        table.update(dict.fromkeys(("mmap", "mprotect", "pkey_mprotect"), self._executable_memory))
        table.update(dict.fromkeys(IDENTITY, self._named("identity")))
        table.update(dict.fromkeys(OTHERS, self._named("other_process")))
        table.update(dict.fromkeys(KERNEL_CALLS, self._named("kernel_call")))
        table["memfd_create"] = self._memory_file
        table["socket"] = self._socket
        table["prctl"] = self._process_name
        return table

    def _named(self, kind: str) -> Callable[[Event, Process, list[str]], None]:
        def take(event: Event, process: Process, arguments: list[str]) -> None:
            first = arguments[0] if arguments and kind == "other_process" else ""
            self._add(kind, event, process, {"call": event.name, "argument": first, "answer": answer(event)})

        return take

    def _fork(self, event: Event, process: Process, arguments: list[str]) -> None:
        if not event.child:
            return
        known = self.processes.get(event.child)
        if "CLONE_THREAD" in event.arguments:
            self.processes[event.child] = process
        elif known is None:
            self._born(event.child, process, event.time)
        elif known.parent is None and known is not process:  # it was seen before its parent's call returned
            known.parent = process.number
            known.program, known.arguments = known.program or process.program, known.arguments or process.arguments

    def _execute(self, event: Event, process: Process, arguments: list[str]) -> None:
        number, base = PATHS[event.name]
        path = full_path(arguments, number, base)
        words = strings(arguments[number + 1]) if len(arguments) > number + 1 else []
        if event.result == 0:
            process.program, process.arguments = path.decode("utf-8", "backslashreplace"), words
        line = b" ".join(words)
        self._add("execute", event, process, {"program": path, "arguments": line, "answer": answer(event)})
        if path.startswith((b"/memfd:", b"/proc/self/fd/", b"/dev/fd/")) or event.name == "execveat":
            self._add("execute_memory", event, process, {"program": path, "answer": answer(event)})

    def _file(self, event: Event, process: Process, arguments: list[str]) -> None:
        number, base = PATHS[event.name]
        path = full_path(arguments, number, base)
        name = path.decode("utf-8", "backslashreplace")
        opened = event.name in ("open", "openat", "openat2")
        writes = event.name not in READS and (not opened or WRITING.search(event.arguments) is not None)
        if writes:
            action = "write" if opened else event.name.removesuffix("at2").removesuffix("at")
            executable = event.name in ("open", "openat", "creat", "chmod", "fchmodat") and bool(
                re.search(r"\b0[0-7]*[1357][0-7]?[0-7]?\b", arguments[-1] if arguments else "")
            )
            values: dict[str, object] = {"path": path, "action": action, "answer": answer(event)}
            self._add("file_write", event, process, {**values, "executable": "yes"} if executable else values)
        elif not name.startswith(self.own) and not (event.name in READS and event.error):
            self._add("file_read", event, process, {"path": path, "answer": answer(event)})

    def _socket(self, event: Event, process: Process, arguments: list[str]) -> None:
        if event.error:
            family = arguments[0] if arguments else ""
            self._add("socket", event, process, {"family": family, "answer": answer(event)})

    def _connect(self, event: Event, process: Process, arguments: list[str]) -> None:
        where = address_of(event.arguments)
        if not where:
            return
        descriptor = DESCRIPTOR.match(arguments[0])
        self.addresses[process.number, descriptor[1] if descriptor else ""] = where
        kind = "listen" if event.name == "bind" else "connect"
        self._add(kind, event, process, {"address": where, "answer": answer(event)})

    def _send(self, event: Event, process: Process, arguments: list[str]) -> None:
        descriptor = DESCRIPTOR.match(arguments[0]) if arguments else None
        given = address_of(event.arguments)
        where = given or self.addresses.get((process.number, descriptor[1] if descriptor else ""), "")
        if given:
            self._add("connect", event, process, {"address": given, "answer": answer(event)})
        if where.endswith(":53") or not where:
            for data in strings(event.arguments):
                name = dns_question(data)
                if name:
                    self._add("dns", event, process, {"name": name, "server": where})

    def _signal(self, event: Event, process: Process, arguments: list[str]) -> None:
        target = arguments[0].split(" ")[0] if arguments else ""
        sent = next((word for word in arguments[1:] if SIGNAL_SENT.fullmatch(word)), "")
        own = event.name != "kill" and event.name != "pidfd_send_signal"
        if sent != "0" and not (own and sent in ("SIGABRT", "SIGRT_1", "SIGRTMIN")):
            whom = "everything" if target == "-1" else "the sandbox's init" if target == "1" else "a process"
            self._add("signal", event, process, {"signal": sent, "target": whom, "answer": answer(event)})

    def _sleep(self, event: Event, process: Process, arguments: list[str]) -> None:
        if event.seconds is None or event.seconds >= SLEEP:
            took = "until it was ended" if event.seconds is None else f"{round(event.seconds)}"
            self._add("sleep", event, process, {"seconds": took})

    def _executable_memory(self, event: Event, process: Process, arguments: list[str]) -> None:
        executable = "PROT_EXEC" in event.arguments
        if executable and (event.name != "mmap" or "MAP_ANONYMOUS" in event.arguments):
            writable = "PROT_WRITE" in event.arguments
            how = "written to and run" if writable else "made executable"
            self._add("executable_memory", event, process, {"how": how, "answer": answer(event)})

    def _memory_file(self, event: Event, process: Process, arguments: list[str]) -> None:
        name = (strings(event.arguments) or [b""])[0]
        self._add("memory_file", event, process, {"name": name, "answer": answer(event)})

    def _process_name(self, event: Event, process: Process, arguments: list[str]) -> None:
        name = (strings(event.arguments) or [b""])[0]
        if arguments and arguments[0] == "PR_SET_NAME" and not name.decode("utf-8", "replace").isprintable():
            self._add("process_name", event, process, {"name": name})

    def _finish(self) -> None:
        """Processes that were there when the first one had ended, and those whose parent had gone before."""
        by_number = {process.number: process for process in self.processes.values()}
        end = by_number[1].ended if 1 in by_number else None
        for process in by_number.values():
            parent = by_number.get(process.parent or 0)
            if process.parent is None or (process.ended is not None and process.outcome != "SIGKILL"):
                continue
            orphan = parent is None or (  # one of the many that are not kept when they have ended
                parent.number != 1 and parent.ended is not None and (end is None or parent.ended < end)
            )
            values = {"program": process.program, "arguments": b" ".join(process.arguments)}
            kind = "outlives_parent" if orphan else "left_running"
            self.facts.add(kind, self.phase, KERNEL, values, process.started, process.number)

    def tree(self) -> list[dict[str, object]]:
        """The processes in the order of their start, for the report's run part."""
        distinct = {id(process): process for process in self.processes.values()}.values()
        return [
            {
                "number": process.number,
                "parent": process.parent,
                "program": process.program,
                "arguments": [word.decode("utf-8", "backslashreplace") for word in process.arguments],
                "started": process.started,
                "ended": process.ended,
                "outcome": process.outcome,
            }
            for process in sorted(distinct, key=lambda process: process.number)[:PROCESSES]
        ]


def answer(event: Event) -> str:
    """What the kernel said: `ok`, the name of an errno, or that the call never came back."""
    return event.error or ("ok" if event.result is not None else "no return")


def full_path(arguments: list[str], number: int, base: int | None) -> bytes:
    """The path that a call names, made absolute where strace says what it is relative to."""
    if len(arguments) <= number:
        return b""
    path = (strings(arguments[number]) or [b""])[0]
    if base is not None and not path.startswith(b"/"):
        where = DESCRIPTOR.match(arguments[base])
        folder = (where[2] or where[3] or "") if where else ""
        path = folder.encode() + (b"/" if path and not folder.endswith("/") else b"") + path
    return RANDOM.sub(b"tmp********", path)


def address_of(text: str) -> str:
    """`address:port` of the socket address in a call's arguments; the path of a local one; "" where there is none."""
    found = ADDRESS.search(text)
    if found is None or found[1] in ("AF_UNSPEC", "AF_NETLINK"):
        return ""
    if found[1] in ("AF_UNIX", "AF_LOCAL"):
        path = UNIX.search(text)
        return "unix:" + ("@" if path[1].startswith("@") else "") + shown_path(path[1]) if path else ""
    return f"[{found[3]}]:{found[2]}" if found[1] == "AF_INET6" else f"{found[3]}:{found[2]}"


def shown_path(quoted: str) -> str:
    return (strings(quoted) or [b""])[0].decode("utf-8", "backslashreplace")


def dns_question(data: bytes) -> str:
    """The name that a DNS query asks for (RFC 1035, 4.1), or "" where the bytes are no query."""
    if len(data) < 17:
        return ""
    _, flags, questions, answers, _, _ = struct.unpack(">6H", data[:12])
    if flags & 0xF800 or questions != 1 or answers:
        return ""
    labels: list[str] = []
    at = 12
    while at < len(data) and 0 < data[at] < 64 and len(labels) < 128:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "backslashreplace"))
        at += 1 + data[at]
    return ".".join(labels) if labels and at < len(data) and data[at] == 0 else ""
