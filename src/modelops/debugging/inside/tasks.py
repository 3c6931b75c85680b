"""One task in this process, and what came of it."""

import struct
from json import dumps, loads  # bound before a bundle can patch them
from typing import Any

from .fingerprints import of_failure, of_outputs, plain_result

RESULT = "result"  # an aggregation's one output


class Sink:
    """A result pipe that keeps what the task sends."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.outputs: dict[str, bytes] = {}
        self.failure: str | None = None
        self.done = b""

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        """As the child's own pipe."""
        if kind == self.child.OUTPUT:
            self.outputs[name] = body
        elif kind == self.child.ERROR:
            self.failure = body.decode("utf-8", "replace")
        elif kind == self.child.DONE:
            self.done = body


def run(task: dict[str, Any], wire: str, child: Any) -> "tuple[str | None, dict[str, bytes]]":
    """One task in this process: its failure as JSON, or None and its outputs."""
    sink = Sink(child)
    try:
        child.run_task_code({"task": task, "wire": wire}, sink)
    except BaseException as error:
        child.report_exception(sink, error)
        return sink.failure, {}
    return None, {RESULT: sink.done} if sink.done else sink.outputs  # that of an aggregation is its end


def frame(failure: "str | None", outputs: dict[str, bytes], modules: "list[str]") -> bytes:
    """A task's outcome as it is sent: a length, JSON, outputs one after the other."""
    sizes = [[name, len(body)] for name, body in outputs.items()]
    head = dumps({"outputs": sizes, "failure": failure, "modules": modules}).encode()
    return struct.pack(">I", len(head)) + head + b"".join(outputs.values())


def fingerprint(failure: "str | None", outputs: dict[str, bytes]) -> Any:
    """What of a task's outcome is compared."""
    if failure is not None:
        return of_failure(loads(failure))
    return of_outputs({name: plain_result(body) if [*outputs] == [RESULT] else body for name, body in outputs.items()})
