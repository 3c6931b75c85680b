"""What the code told of itself: audit events of Python, from `inside_audit.py`. It can lie, so it is kept apart."""

import json
from collections.abc import Iterable

from modelops.review.facts import TOLD, Facts

# An audit event, and the kind of fact that it becomes.
KINDS = {
    "compile": "told_code", "exec": "told_code", "ctypes.dlopen": "told_library", "subprocess.Popen": "told_process",
    "os.system": "told_process", "os.exec": "told_process", "os.posix_spawn": "told_process", "os.fork": "told_process",
    "socket.getaddrinfo": "told_lookup", "socket.gethostbyname": "told_lookup", "socket.connect": "told_connect",
    "open": "told_open", "import": "told_import", "sys.addaudithook": "told_hook", "sys.setprofile": "told_hook",
    "sys.settrace": "told_hook",
}  # fmt: skip
FIELDS = ("event", "what", "place", "phase")


def read_told(facts: Facts, parts: Iterable[bytes], phases: frozenset[str]) -> None:
    """Audit events, a JSON array of them in each part; only those of `phases`. What is no event is left out."""
    for part in parts:
        try:
            events = json.loads(part.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        for event in events if isinstance(events, list) else []:
            fields = [event.get(name) for name in FIELDS] if isinstance(event, dict) else []
            words = [field for field in fields if isinstance(field, str)]
            if len(words) != len(FIELDS):
                continue
            name, what, place, phase = words
            by = folder_of(place)
            if phase in phases and name in KINDS and not (name == "import" and by == "python"):
                facts.add(KINDS[name], phase, TOLD, {"event": name, "what": what, "by": by}, place=place)


def folder_of(place: str) -> str:
    """Whose code it was, by the file that the event names: the bundle's, a package's, or Python's own."""
    path = place.rpartition(":")[0]
    if path.startswith("/bundle/"):
        return "bundle"
    _, found, rest = path.partition("/site-packages/")
    return rest.partition("/")[0].removesuffix(".py") if found else "python" if path.startswith("/") else "text"
