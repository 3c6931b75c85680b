"""One runner that was started with `--serve`: a sandbox that is kept, and answers one task after the other.

The conversation is one line of JSON each way. A server is used by one thread at a time; other threads
only ask for the end of a call.
"""

import os
import selectors
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelops_contracts import INLINE_CAP

from .answer import parse_line, require_result
from .call import Call
from .errors import RunnerError
from .forks import Process
from .payload import encode
from .process import GRACE_SECONDS, Ending, log_stderr, start
from .runner_settings import RunnerSettings

_CHUNK = 1 << 20
_TAIL_LINES = 50  # of the log, for the error of a server that died


class ServerDied(Exception):
    """The server ended, or can't be talked to, before it answered."""


class Server:
    """A serving runner. `usable` says whether it can take another task; `out_dir` goes with it."""

    def __init__(self, settings: RunnerSettings, bundle: Path, learned: Path, out_dir: Path, call: Call) -> None:
        """Start it and wait until its sandbox is ready. RunnerError where it does not come to that.

        `learned` is a file that the servers of the bundle share: see the runner's `--learned`.
        """
        self.out_dir = out_dir
        self.usable = True
        self._tasks, self._closing = 0, False
        options = [
            "--serve",
            "--bundle-path",
            str(bundle),
            "--out-dir",
            str(out_dir),
            "--inline-max",
            str(INLINE_CAP),
            "--learned",
            str(learned),
        ]
        try:
            call.require_time()
            self._process = start(settings, options)
        except BaseException:
            shutil.rmtree(out_dir, ignore_errors=True)
            raise
        self._ending = Ending(self._process)
        self._conversation = _Conversation(self._process)
        self._log: deque[str] = deque(maxlen=_TAIL_LINES)
        self._log_reader = threading.Thread(target=self._read_log, name=f"runner-{self._process.pid}-log", daemon=True)
        self._log_reader.start()
        try:
            self._await_ready(call)
        except BaseException:
            self.usable = False
            self.close()
            raise

    def ask(self, payload: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """The result of one task. RunnerError where it has none, ServerDied where the server is to blame."""
        self._tasks += 1
        name = str(self._tasks)
        line = encode({**payload, "id": name})
        self.usable = False  # until the answer has come, and is that of this task
        try:
            body = parse_line(self._conversation.exchange(line, encode({"cancel": name}), call))
        except (_Closed, _Expired, RunnerError) as error:
            if call.is_over():
                raise call.failure({}) from None
            raise ServerDied(self._describe(error)) from None
        answered = body.pop("id", None)
        self.usable = answered == name and self._conversation.in_step
        try:
            result = require_result(body)
        except RunnerError as error:
            if error.type in ("cancelled", "killed") and call.is_over():
                raise call.failure(error.fatal_error) from None
            if not self.usable and error.fatal_error.get("phase") != "input":
                raise ServerDied(self._describe(error)) from None  # its last words, which concern no task
            raise
        if not self.usable:
            raise ServerDied(f"the serving runner answered the task {answered!r} instead of {name!r}")
        return result

    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def begin_close(self) -> None:
        """Make the server end, and return at once."""
        if self._closing:
            return
        if self.usable:
            self._conversation.close_input()
        else:
            self._ending.begin()  # it may have a task, which it would finish first
        self.usable, self._closing = False, True

    def close(self) -> None:
        """Make the server end, and wait until it has."""
        self.begin_close()
        timer = threading.Timer(GRACE_SECONDS, self._ending.begin)
        timer.daemon = True
        timer.start()
        self._process.wait()
        timer.cancel()
        self._log_reader.join(GRACE_SECONDS)
        self._conversation.close()
        self._ending.finish()
        shutil.rmtree(self.out_dir, ignore_errors=True)

    def _await_ready(self, call: Call) -> None:
        try:
            body = require_result(parse_line(self._conversation.exchange(b"", None, call)))
        except (_Closed, _Expired) as error:
            if call.is_over():
                raise call.failure({}) from None
            raise RunnerError.of("host", "runner_died", self._describe(error), True) from None
        if "serving" not in body:
            raise RunnerError.of("host", "runner_protocol", f"the runner does not serve; it said {str(body)[:200]!r}")

    def _describe(self, error: Exception) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # where it is about to end, its status and last words say why
            self._log_reader.join(0.5)
        status = self._process.poll()
        state = "is there, but" if status is None else f"ended with status {status} and"
        log = " | ".join(list(self._log))[-2000:]
        return f"the serving runner {state} did not answer the task ({error}); its log: {log or 'empty'}"

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line.decode("utf-8", "replace").rstrip())
            log_stderr(line)


class _Closed(Exception):
    """The other side is gone."""


class _Expired(Exception):
    """The other side did not answer in time."""


class _Conversation:
    """Both ends of a server's pipes, without ever blocking on one of them alone."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._input, self._output = process.stdin, process.stdout
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._received, self._searched = bytearray(), 0
        self.in_step = True  # whether the last line was sent as a whole before it was answered

    def exchange(self, line: bytes, cancel: bytes | None, call: Call) -> bytes:
        """Send `line` and return the line that comes back.

        When the call is over, `cancel` is sent once, and the answer has the grace to come; without a
        `cancel` the call ends at once.
        """
        outgoing = memoryview(line)
        deadline = call.deadline
        cancelled = False
        with call.on_stop(lambda: os.eventfd_write(self._wake, 1)), selectors.PollSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while (end := self._line_end()) < 0:
                if call.is_over() and not cancelled:
                    if cancel is None:
                        raise _Expired("its time was over")
                    outgoing = memoryview(bytes(outgoing) + cancel)
                    cancelled, deadline = True, time.monotonic() + GRACE_SECONDS
                if time.monotonic() >= deadline:
                    raise _Expired(f"it was silent for {GRACE_SECONDS:g} seconds after it was told to cancel")
                outgoing = self._step(selector, outgoing, deadline)
            self.in_step = not outgoing
        answer = bytes(memoryview(self._received)[: end + 1])
        del self._received[: end + 1]
        self._searched = 0
        return answer

    def close_input(self) -> None:
        """Tell the server that no task will come."""
        with suppress(OSError):  # gone already
            self._input.close()

    def close(self) -> None:
        """Release what is not the process's own."""
        os.close(self._wake)

    def _line_end(self) -> int:
        end = self._received.find(b"\n", self._searched)
        self._searched = len(self._received)
        return end

    def _step(self, selector: selectors.BaseSelector, outgoing: memoryview, deadline: float) -> memoryview:
        """Wait until something can be read or written, and do that. Returns what is left to be sent."""
        if outgoing and self._input not in selector.get_map():
            selector.register(self._input, selectors.EVENT_WRITE)
        for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
            if key.fileobj is self._wake:
                os.eventfd_read(self._wake)
            elif key.fileobj is self._output:
                self._receive()
            else:
                outgoing = self._send(outgoing)
        if not outgoing and self._input in selector.get_map():
            selector.unregister(self._input)
        return outgoing

    def _receive(self) -> None:
        data = os.read(self._output.fileno(), _CHUNK)
        if not data:
            raise _Closed("it closed its output")
        self._received += data

    def _send(self, outgoing: memoryview) -> memoryview:
        try:
            return outgoing[os.write(self._input.fileno(), outgoing[:_CHUNK]) :]
        except BlockingIOError:
            return outgoing
        except BrokenPipeError:
            return outgoing[:0]  # it takes no more; it may have said why
