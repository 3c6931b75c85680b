"""A program for the runner's `--instrument`: in the sandbox, it imports what a bundle names, and says what it found.

Its input is `{"entrypoints": [..], "targets": [..]}`; its output, named `found`, is a JSON object with the Python and
platform of the environment, and an error for each name that can't be had.
"""

import json
import platform
import sys
import sysconfig
from typing import Any

LONGEST = 2000  # characters of a message


def main(request: dict[str, Any], pipe: Any, child: Any) -> None:
    """The entry of `--instrument`."""
    asked = request["task"]
    names = [("wire", request["wire"])] if request["wire"] else []
    names += [("entrypoint", name) for name in asked["entrypoints"]]
    names += [("target", name) for name in asked["targets"]]
    problems = []
    for kind, name in names:
        error = problem_of(child, kind, name)
        if error:
            problems.append({"kind": kind, "name": name, "error": error[:LONGEST]})
    found = {
        "wire": request["wire"],
        "python": platform.python_version(),
        "implementation": sys.implementation.cache_tag,
        "platform": sysconfig.get_platform(),
        "problems": problems,
    }
    pipe.send(child.OUTPUT, "found", json.dumps(found).encode())
    pipe.send(child.DONE)


def problem_of(child: Any, kind: str, name: str) -> str:
    """Why a name can't be had, or nothing."""
    error = ""
    for reference in references(kind, name):
        try:
            found = child.load_object(reference)
        except BaseException as raised:  # a module may also call sys.exit
            error = error or f"{type(raised).__name__}: {raised}"
            continue
        if callable(found) or (kind == "target" and hasattr(found, "evaluate")):
            return ""
        error = error or f"{reference} is {type(found).__name__}, which can't be called"
    return error or f"{name!r} is not of the form module:object"


def references(kind: str, name: str) -> list[str]:
    """What a name may stand for: `module:object`, or a target's old form `module.object/name`."""
    if ":" in name:
        return [name]
    path, slash, last = name.partition("/")
    if not slash or kind != "target":
        return []
    module, _, attribute = path.rpartition(".")
    return [f"{module}:{attribute}", f"{path}:{last}"] if module else [f"{path}:{last}"]
