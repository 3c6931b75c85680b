"""What is in a value: bounded, safe for cycles, never by the value's own methods where there is another way."""

import contextvars
import functools
import gc
import hashlib
import io
import time
import types
from collections import deque
from contextlib import suppress
from typing import Any

LEAVES, NODES, DEPTH = 500, 20_000, 8  # of one place: leaves told apart, nodes looked at, levels
IN_MEMORY = (io.StringIO, io.BytesIO)
WORD = 8  # bytes of an address
TEXT = 120  # characters of a value that are shown
SCALARS = (type(None), bool, int, float, complex, str, bytes)
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, types.ModuleType)
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()


class Known:
    """What a look told of by now: the values of places (`roots`, by id), and what was taken apart (`walked`: by id, how
    deep it lay, 0 where all of it was seen)."""

    def __init__(self) -> None:
        self.roots: dict[int, str] = {}
        self.walked: dict[int, int] = {}

    def knows(self, value: Any, key: str, depth: int) -> bool:
        """Whether a value is told of elsewhere, as far as it would be seen from here."""
        return self.roots.get(id(value), key) != key or self.walked.get(id(value), depth + 1) <= depth


class Leaves:
    """The parts of one value: a digest of all, and the first of them by path.

    In a look, what is `known` is named, and not taken apart again: what all share would be seen thousands of times.
    """

    def __init__(self, value: Any, deadline: float, key: str = "", known: "Known | None" = None) -> None:
        self.found: dict[str, str] = {}
        self.nodes, self.deadline = 0, deadline
        self.key, self.known = key, known
        self.cuts, self.is_full = 0, False
        self.seen: dict[int, int] = {}
        self.hash = hashlib.blake2b(digest_size=16)
        self.kept: list[Any] = []  # what was made on the way stays, lest its id is used again
        self.walk(value, "", 0)
        self.seen.clear()
        self.digest = self.hash.digest()

    def leaf(self, path: str, text: str) -> None:
        """Take one part."""
        self.hash.update(f"{path}\0{text}\1".encode("utf-8", "surrogatepass"))
        if len(self.found) < LEAVES:
            self.found[path] = text[:TEXT]

    def walk(self, value: Any, path: str, depth: int) -> None:
        """Take a value apart."""
        self.nodes += 1
        kind = type(value)
        if kind in SCALARS:
            return self.leaf(path, scalar(value))
        if isinstance(value, (*CODE, functools._lru_cache_wrapper)):  # what these carry along are places of their own
            return self.leaf(path, identity(value))
        if id(value) in self.seen:
            return self.leaf(path, f"again {self.seen[id(value)]}")
        if self.known is not None and self.known.knows(value, self.key, depth):
            return self.leaf(path, identity(value))
        if depth > DEPTH:
            self.cuts += 1
            return
        if self.nodes > NODES or time.process_time() > self.deadline:
            self.is_full = True
            return
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        cuts = self.cuts
        self.take_apart(value, kind, path, depth + 1)
        if self.known is not None and not self.is_full:
            self.known.walked[id(value)] = 0 if self.cuts == cuts else depth

    def take_apart(self, value: Any, kind: type, path: str, depth: int) -> None:
        """By the first way that fits. What answers with errors of its own is still the same thing or another."""
        for take in (self.container, self.opaque, self.buffer, self.frame, self.state):
            with suppress(Exception):
                if take(value, kind, path, depth):
                    return
        self.leaf(path, identity(value))

    def container(self, value: Any, kind: type, path: str, depth: int) -> bool:
        """Built-in containers and what is derived from them."""
        if isinstance(value, dict):
            self.leaf(path, f"{kind.__name__} of {len(value)}")
            for key, item in list(dict.items(value))[:NODES]:
                self.walk(item, f"{path}[{label(key)}]", depth)
        elif isinstance(value, (list, tuple, deque)):
            self.leaf(path, f"{kind.__name__} of {len(value)}")
            for index, item in enumerate(list(value)[:NODES]):
                self.walk(item, f"{path}[{index}]", depth)
        elif isinstance(value, (set, frozenset)):
            parts = sorted(label(item) for item in list(value)[:NODES])
            self.leaf(path, f"{kind.__name__} of {len(value)}: {', '.join(parts)}")
        elif isinstance(value, types.MappingProxyType):
            self.walk(dict(value), path, depth)
        else:
            return False
        if kind not in (dict, list, tuple, set, frozenset, deque):
            self.attributes(value, path, depth)
        return True

    def opaque(self, value: Any, kind: type, path: str, depth: int) -> bool:
        """What neither attributes nor pickling tell of: context variables, generators that wait, streams, databases."""
        if kind is contextvars.ContextVar:
            self.leaf(path, f"ContextVar {value.name}")
            self.walk(in_context(value), path, depth)
        elif kind is types.GeneratorType:
            frame = value.gi_frame
            self.leaf(path, identity(value) if frame is None else f"{identity(value)} at {frame.f_lasti}")
            self.walk({} if frame is None else dict(frame.f_locals), path, depth)
        elif isinstance(value, IN_MEMORY) or is_read(value):
            self.leaf(path, f"{kind.__name__} at {position(value)}")
            if isinstance(value, IN_MEMORY):
                self.walk(value.getvalue(), path, depth)
        elif kind.__module__ == "sqlite3" and kind.__name__ == "Connection":
            for number, line in enumerate(value.iterdump()):
                self.walk(line, f"{path}<{number}>", depth)
                if self.nodes > NODES:
                    break
        else:
            return False
        return True

    def buffer(self, value: Any, kind: type, path: str, depth: int) -> bool:
        """Arrays: form and bytes."""
        dtype = getattr(kind, "dtype", None) is not None and getattr(value, "dtype", None)
        if dtype and getattr(dtype, "hasobject", False):
            self.leaf(path, f"{kind.__name__} of {value.shape}")
            for index, item in enumerate(value.ravel().tolist()[:NODES]):
                self.walk(item, f"{path}[{index}]", depth)
            return True
        try:
            view = memoryview(value)
            data = view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()
        except (TypeError, ValueError, NotImplementedError, BufferError):
            return False
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        shown = numbers(value) if 0 < view.nbytes <= 64 * 1024 else ""
        self.leaf(path, f"{kind.__name__} {dtype or view.format} {list(view.shape or [])} {shown}#{digest}")
        return True

    def frame(self, value: Any, kind: type, path: str, depth: int) -> bool:
        """Data frames of pandas and polars, column by column."""
        if kind.__name__ not in ("DataFrame", "Series") or not hasattr(value, "to_numpy"):
            return False
        try:
            columns = list(value.columns) if kind.__name__ == "DataFrame" else [None]
            self.leaf(path, f"{kind.__name__} {getattr(value, 'shape', '')} of {columns!r}"[:4000])
            for name in columns:
                part = value if name is None else value[name]
                self.walk(part.to_numpy(), path if name is None else f"{path}[{label(name)}]", depth)
        except Exception:
            return False
        return True

    def state(self, value: Any, kind: type, path: str, depth: int) -> bool:
        """Objects: their attributes, else what pickling would keep of them."""
        if isinstance(value, (staticmethod, classmethod)):
            self.walk(value.__func__, path, depth)
            return True
        has_attributes = self.attributes(value, path, depth)
        if has_attributes and not pickles_itself(kind):
            return True
        if kind.__module__ in ("_thread", "socket", "_io", "weakref", "types", "_contextvars", "re"):
            return has_attributes
        if kind.__module__ == "builtins" and not pickles_itself(kind):  # iterators do
            return has_attributes
        try:
            parts = value.__reduce_ex__(4)
        except Exception:
            return has_attributes
        if not isinstance(parts, tuple):
            return has_attributes
        self.leaf(path, kind.__name__)
        for index, part in enumerate(parts[1:3]):
            self.walk(part, f"{path}<{('made', 'state')[index]}>", depth)
        return True

    def attributes(self, value: Any, path: str, depth: int) -> bool:
        """Instance attributes and slots; false where there are none."""
        own = attribute_of(value, "__dict__")
        slots = slots_of(type(value))
        if not isinstance(own, dict) and not slots:
            return False
        self.leaf(path, type(value).__qualname__)
        for name, item in list((own or {}).items()):
            self.walk(item, f"{path}.{name}", depth)
        for name in slots:
            try:
                item = object.__getattribute__(value, name)
            except AttributeError:
                continue
            self.walk(item, f"{path}.{name}", depth)
        return True


def is_read(value: Any) -> bool:
    """Whether it is a file that is read: to ask one that is written for its position would write to it."""
    return isinstance(value, io.IOBase) and not value.closed and value.seekable() and not value.writable()


def position(stream: Any) -> Any:
    """Where a stream stands; while one of text is iterated over, its buffer tells."""
    try:
        return stream.tell()
    except OSError:
        return f"{stream.buffer.tell()} of its buffer"


def pickles_itself(kind: type) -> bool:
    """Whether a class has its own word on what its state is, as random.Random, whose state is no attribute."""
    methods = ("__reduce__", "__reduce_ex__")
    return any(getattr(kind, method) is not getattr(object, method) for method in methods)


def cached_values(function: Any) -> "list[Any]":
    """What a functools cache holds, which only the garbage collector can tell."""
    found = []
    for part in gc.get_referents(function):
        if type(part) is dict and part is not getattr(function, "__dict__", None):
            for item in list(part.values()):
                linked = type(item).__name__ == "_lru_list_elem"
                inner = gc.get_referents(item) if linked else [item]
                found.append([nested for nested in inner if type(nested).__name__ != "_lru_list_elem"])
    return found


def slots_of(kind: type) -> list[str]:
    """The names of the slots of a class and its bases, as far as they are written in Python."""
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else list(slots) if isinstance(slots, (list, tuple)) else []
        hidden = f"_{base.__name__.lstrip('_')}"
        found += [hidden + name if name.startswith("__") and not name.endswith("__") else name for name in names]
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def is_plain(kind: type) -> bool:
    """Whether its attributes are all that an object of this class holds: no base of it has data of its own in C."""
    slots = slots_of(kind)
    most = object.__basicsize__ + WORD * (len(slots) + len(("__dict__", "__weakref__")))
    return bool(kind.__dictoffset__ or slots) and kind.__basicsize__ <= most


def scalar(value: Any) -> str:
    """A plain value, or its length and digest where it is long."""
    if isinstance(value, (str, bytes)) and len(value) > TEXT:
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return f"{type(value).__name__} of {len(value)} #{hashlib.blake2b(data, digest_size=8).hexdigest()}"
    try:
        return repr(value)
    except ValueError:  # an int of too many digits
        return hex(value)[:TEXT] + hashlib.blake2b(hex(value).encode(), digest_size=8).hexdigest()


def attribute_of(value: Any, name: str) -> Any:
    """An attribute, None where there is none: some classes answer what they do not have with errors of their own."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def names_in(module: Any) -> dict[str, Any]:
    """What a module holds, without loading one that waits to be loaded; nothing of what only says that it is one, as
    cffi's libraries do."""
    found: dict[str, Any] = (
        object.__getattribute__(module, "__dict__") if issubclass(type(module), types.ModuleType) else {}
    )
    return found


def label(key: Any) -> str:
    """A key of a container."""
    if type(key) in SCALARS:
        return scalar(key)
    if type(key) is tuple:
        return "(" + ", ".join(label(part) for part in key[:20]) + ")"
    return identity(key)


def identity(value: Any) -> str:
    """What a thing is called, and which one it is."""
    kind, name = type(value).__name__, None
    if isinstance(value, types.ModuleType):  # one that is imported when it is first used is not used here
        name = names_in(value).get("__name__")
    elif isinstance(value, (*CODE, functools._lru_cache_wrapper)):
        name = attribute_of(value, "__qualname__") or attribute_of(value, "__name__")
    return f"{kind} {name} @{id(value):x}" if isinstance(name, str) else f"{kind} @{id(value):x}"


def shown(value: Any) -> str:
    """A value for people."""
    if value is MISSING:
        return "nothing"
    code = attribute_of(value, "__code__")
    if isinstance(code, types.CodeType):
        return f"function {value.__qualname__} ({code.co_filename}:{code.co_firstlineno})"[:TEXT]
    if type(value) in SCALARS:
        return scalar(value)[:TEXT]
    if isinstance(value, CODE):
        return f"{type(value).__name__} {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '?')}"[:TEXT]
    return next(iter(Leaves(value, time.process_time() + 1).found.values()), type(value).__name__)


def numbers(value: Any) -> str:
    """The first numbers of an array."""
    try:
        flat = value.ravel().tolist()[:3]
    except Exception:
        return ""
    return f"{flat!r}"[:60] + " "


def in_context(variable: Any) -> Any:
    """What a context variable holds, its default where nothing else was set."""
    try:
        return variable.get()
    except LookupError:
        return MISSING


def cell_content(cell: Any) -> Any:
    """What a closure's cell holds."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING
