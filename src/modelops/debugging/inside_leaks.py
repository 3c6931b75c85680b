"""Runs in the sandbox: several tasks in one process, as a plain warm worker does, and a look at what they leave there.

The last task is the victim; what is looked at, put back or watched is what the tasks before it change. The request:

    tasks      the tasks, in their order
    preload    modules to import before the first look, so that importing them is no change
    look       compare the state of the process before the first task and before the victim: true, or the keys of the
               places that are compared
    restore    keys of places whose old value is put back before the victim
    each       put it back before every task but the first
    watch      keys of places for which the line is sought that changes them
    seed       modules whose global generator is seeded before the victim

It sends a frame `task.N` for each task (a length, JSON, outputs), `changes`, `restored` and `lines` (JSON), and
`library.N` for the native libraries that changed. The bundle shares this process: it can forge all of it.
"""

import codecs
import contextvars
import copy
import decimal
import encodings
import functools
import gc
import hashlib
import importlib
import locale
import os
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import types
import warnings
from collections import deque
from contextlib import suppress
from json import dumps
from typing import Any

LEAVES, NODES, DEPTH = 500, 20_000, 8  # of one place: leaves told apart, nodes looked at, levels
LOOK_SECONDS, WATCH_SECONDS, WATCH_EVENTS = 20.0, 20.0, 2_000_000  # of processor time: a busy machine hides nothing
TEXT, CHANGES, FILE_BYTES, LIBRARY_BYTES = 120, 1000, 1 << 20, 64 << 20
PAGE, WORD, RANGES = 4096, 8, 256
SCALARS = (type(None), bool, int, float, complex, str, bytes)
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, types.ModuleType)
FUNCTIONS = (types.FunctionType, functools._lru_cache_wrapper, staticmethod, classmethod)
HIDDEN = {"__dict__", "__weakref__", "__doc__", "__module__", "__builtins__", "__loader__", "__spec__", "__cached__",
          "_abc_impl", "__abstractmethods__", "__annotations__", "__file__", "__path__", "__name__", "__package__",
          "__static_attributes__", "__firstlineno__", "__slotnames__"}  # fmt: skip
# What the standard library keeps for itself, and each import, traceback or thread changes.
BOOKKEEPING = {"sys.modules", "sys.path", "sys.path_importer_cache", "sys.argv", "os.environ", "os.environb",
               "warnings.filters", "_warnings.filters", "random._inst", "linecache.cache", "re._cache", "re._cache2",
               "threading._active", "threading._limbo", "threading._dangling", "threading._shutdown_locks",
               "logging._handlers", "logging._handlerList", "logging.root", "encodings._cache",
               "inspect.modulesbyfile", "inspect._filesbymodname", "weakref._weakref", "gc.garbage",
               "typing._cleanups", "decimal.DefaultContext"}  # fmt: skip
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()


def main(request: dict[str, Any], pipe: Any, child: Any) -> None:
    """The instrument: see above."""
    wanted, wire = request["task"], request["wire"]
    process = Process(child)
    if wire:
        with suppress(BaseException):  # each task will meet it again, and report it
            child.load_object(wire)
    for name in wanted.get("preload", ()):
        with suppress(BaseException):
            importlib.import_module(name)
    if load_libraries(process):  # one of them may draw from the C library's generator
        with suppress(Exception):
            importlib.import_module("ctypes")
    keys = wanted.get("look")
    before = process.look(keys) if keys else None
    saved = save(wanted.get("restore", ()), process)
    watcher = Watcher(process, wanted["watch"]) if wanted.get("watch") else None
    known = set(sys.modules)
    for number, task in enumerate(wanted["tasks"]):
        if number == len(wanted["tasks"]) - 1:
            if watcher:
                send_json(pipe, child, "lines", watcher.stop())
            if before is not None:
                report_changes(before, process.look(keys), pipe, child)
            if wanted.get("restore"):
                send_json(pipe, child, "restored", put_back(saved, process))
            seed_generators(wanted.get("seed", ()))
        elif number and wanted.get("each"):
            put_back(saved, process)
            saved = save(saved, process)
        head, body = run(task, wire, child)
        head["modules"] = sorted(set(sys.modules) - known)[:5000]
        text = dumps(head).encode()
        pipe.send(child.OUTPUT, f"task.{number}", struct.pack(">I", len(text)) + text + body)
    pipe.send(child.DONE)


class Sink:
    """A result pipe that keeps what the task sends."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.outputs: dict[str, bytes] = {}
        self.failure: Any = None
        self.done = b""

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        """As the child's own pipe."""
        if kind == self.child.OUTPUT:
            self.outputs[name] = body
        elif kind == self.child.ERROR:
            self.failure = body.decode("utf-8", "replace")
        elif kind == self.child.DONE:
            self.done = body


def run(task: dict[str, Any], wire: str, child: Any) -> tuple[dict[str, Any], bytes]:
    """One task in this process: what there is to say of it, and the bytes of its outputs."""
    sink = Sink(child)
    try:
        child.run_task_code({"task": task, "wire": wire}, sink)
    except BaseException as error:
        sink.outputs.clear()
        child.report_exception(sink, error)
        return {"outputs": [], "failure": sink.failure}, b""
    if sink.done:
        sink.outputs = {"result": sink.done}  # an aggregation's
    sizes = [[name, len(body)] for name, body in sink.outputs.items()]
    return {"outputs": sizes, "failure": None}, b"".join(sink.outputs.values())


def send_json(pipe: Any, child: Any, name: str, value: Any) -> None:
    """One frame of JSON."""
    pipe.send(child.OUTPUT, name, dumps(value, default=repr).encode("utf-8", "replace"))


def seed_generators(names: "list[str]") -> None:
    """Seed the global generators of `random` and `numpy.random`, as far as they are asked for."""
    for name in names:
        if name in sys.modules:
            sys.modules[name].seed(0)


# --- what is in a value: bounded, safe for cycles, never by the value's own methods where there is another way


class Leaves:
    """The parts of one value: a digest of all, and the first of them by path.

    In a look, what is the value of another place (`roots`, by id) or was taken apart before (`walked`: by id, how
    deep it lay, 0 where all of it was seen) is named, and not taken apart again: what all share would be seen
    thousands of times.
    """

    def __init__(self, value: Any, deadline: float, key: str = "", look: "Look | None" = None) -> None:
        self.found: dict[str, str] = {}
        self.nodes, self.deadline = 0, deadline
        self.key, self.look = key, look
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
        if self.look is not None and self.look.knows(value, self.key, depth):
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
        if self.look is not None and not self.is_full:
            self.look.walked[id(value)] = 0 if self.cuts == cuts else depth

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
        """What neither attributes nor pickling tell of: context variables, generators that wait, databases."""
        if kind is contextvars.ContextVar:
            self.leaf(path, f"ContextVar {value.name}")
            self.walk(in_context(value), path, depth)
        elif kind is types.GeneratorType:
            frame = value.gi_frame
            self.leaf(path, identity(value) if frame is None else f"{identity(value)} at {frame.f_lasti}")
            self.walk({} if frame is None else dict(frame.f_locals), path, depth)
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
        slots = [name for base in type(value).__mro__ for name in slots_of(base)]
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
    """The names of the slots of a class written in Python."""
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots) if isinstance(slots, (list, tuple)) else []
    hidden = [f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
              for name in names]  # fmt: skip
    return [name for name in hidden if name not in ("__dict__", "__weakref__")]


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


# --- places: what can be compared, saved and put back


class Place:
    """Where a value is. `key` names it to the outside; `kind` and `name` are for people."""

    kind = "state"
    own = False

    def __init__(self, key: str, name: str) -> None:
        self.key, self.name = key, name

    def get(self) -> Any:
        """The value now; MISSING where there is none."""
        raise NotImplementedError

    def put(self, value: Any) -> None:
        """Make it that value again."""
        raise NotImplementedError

    def leaves(self, deadline: float) -> Leaves:
        """The value's parts."""
        return Leaves(self.get(), deadline)

    def save(self, others: "dict[int, Any]") -> Any:
        """What `put_back` needs. `others`, by id, are the values of other places, which are not this one's content."""
        value = self.get()
        return value, MISSING if value is MISSING else content_of(value, others)

    def put_back(self, saved: Any) -> None:
        """Bind the old value again, with its old content."""
        value = as_before(*saved)
        if self.get() is not value:
            self.put(value)


def as_before(value: Any, content: Any) -> Any:
    """A value with its old content: itself where it can be filled, so that all who hold it see it."""
    if content is MISSING or same_content(value, content) or fill(value, content):
        return value
    return content


def content_of(value: Any, others: "dict[int, Any]") -> Any:
    """A copy, or what `fill` takes in place of one; MISSING where there is neither."""
    try:
        if type(value) is contextvars.ContextVar:
            return [now if (now := in_context(value)) is MISSING else copied(now, others)]
        if attribute_of(value, "iterdump") and attribute_of(value, "serialize"):  # a database of sqlite3
            return value.serialize()
        if isinstance(value, threading.local):
            return types.SimpleNamespace(**copied(vars(value), others))
        return copied(value, others)
    except Exception:
        pass
    try:  # what can't be copied as a whole, part by part
        if isinstance(value, dict):
            return {key: copied_or_same(item, others) for key, item in dict.items(value)}
        if isinstance(value, (list, set, deque)):
            return [copied_or_same(item, others) for item in value]
        if isinstance(own := attribute_of(value, "__dict__"), dict) and not pickles_itself(type(value)):
            return types.SimpleNamespace(**{key: copied_or_same(item, others) for key, item in own.items()})
    except Exception:
        pass
    return MISSING


def copied(value: Any, others: "dict[int, Any]") -> Any:
    """A deep copy in which other places' values are themselves."""
    memo = dict(others)
    memo.pop(id(value), None)
    return copy.deepcopy(value, memo)


def copied_or_same(value: Any, others: "dict[int, Any]") -> Any:
    """A copy of a part, itself where there is none."""
    try:
        return copied(value, others)
    except Exception:
        return value


def same_content(value: Any, content: Any) -> bool:
    """Whether there is nothing to put back."""
    return type(value) in SCALARS or isinstance(value, CODE) or value is content


def fill(value: Any, content: Any) -> bool:
    """Give an object its old content in place, so that all who hold it see it; false where that can't be done."""
    if type(value) is contextvars.ContextVar:
        if content[0] is MISSING:
            raise TypeError("a context variable that had no value can't be without one again")
        value.set(content[0])
    elif isinstance(value, (list, bytearray)):
        value[:] = content
    elif isinstance(value, (dict, set, deque)):
        value.clear()
        (value.extend if isinstance(value, deque) else value.update)(content)
    elif attribute_of(value, "iterdump") and isinstance(content, bytes):
        value.rollback()
        value.deserialize(content)
    elif hasattr(value, "dtype") and hasattr(value, "flags") and getattr(value, "shape", None) == content.shape:
        value[...] = content
    elif hasattr(value, "getstate") and hasattr(value, "setstate"):  # random.Random
        value.setstate(content.getstate())
    elif hasattr(bits := getattr(value, "bit_generator", value), "state") and hasattr(bits, "random_raw"):  # numpy's
        bits.state = getattr(content, "bit_generator", content).state
    elif pickles_itself(type(value)):
        return False
    elif isinstance(getattr(value, "__dict__", None), dict):
        vars(value).clear()
        vars(value).update(vars(content))
    else:
        return False
    return True


class Attribute(Place):
    """An attribute of a module or of a class."""

    kind = "module attribute"

    def __init__(self, key: str, owner: Any, attribute: str, name: str) -> None:
        super().__init__(key, name)
        self.owner, self.attribute = owner, attribute

    def get(self) -> Any:
        return vars(self.owner).get(self.attribute, MISSING)

    def put(self, value: Any) -> None:
        if value is MISSING:
            delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, value)


class ClassAttribute(Attribute):
    """An attribute of a class."""

    kind = "class attribute"


class FunctionState(Place):
    """What a function carries along: default arguments, closure, attributes."""

    kind = "function state"

    def __init__(self, key: str, function: Any, name: str) -> None:
        super().__init__(key, name)
        self.function = function

    def cells(self) -> "list[tuple[str, Any]]":
        """The cells of its closure by name."""
        return list(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=False))

    def get(self) -> Any:
        function = self.function
        cells = {name: cell_content(cell) for name, cell in self.cells()}
        found = {"default": function.__defaults__, "keyword": function.__kwdefaults__, "closure": cells}
        return {**found, "attributes": {k: v for k, v in vars(function).items() if k != "__wrapped__"}}

    def put_back(self, saved: Any) -> None:
        content = saved[1]
        if content is MISSING:
            return
        function, value = self.function, saved[0]
        function.__defaults__, function.__kwdefaults__ = content["default"], content["keyword"]
        for name, cell in self.cells():
            old = value["closure"][name]
            if old is not MISSING and not isinstance(old, CODE):
                cell.cell_contents = as_before(old, content["closure"][name])
        wrapped = {k: v for k, v in vars(function).items() if k == "__wrapped__"}
        vars(function).clear()
        vars(function).update({**content["attributes"], **wrapped})


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


class Cache(Place):
    """A functools cache. It can be emptied, and not filled."""

    kind = "functools cache"

    def __init__(self, key: str, function: Any, name: str) -> None:
        super().__init__(key, name)
        self.function = function

    def get(self) -> Any:
        return cached_values(self.function)

    def save(self, others: "dict[int, Any]") -> Any:
        return None

    def put_back(self, saved: Any) -> None:
        self.function.cache_clear()


class Setting(Place):
    """A setting of the process, by what reads it and what sets it."""

    def __init__(self, key: str, kind: str, name: str, read: Any, write: Any = None) -> None:
        super().__init__(key, name)
        self.kind, self.read, self.write = kind, read, write

    def get(self) -> Any:
        return self.read()

    def save(self, others: "dict[int, Any]") -> Any:
        return copy.copy(self.read())

    def put_back(self, saved: Any) -> None:
        if self.write is None:
            raise TypeError("it can't be put back")
        self.write(saved)


class Logger(Place):
    """How a logger is set up; one that was not there is given back what a new one has."""

    kind = "logger"
    parts = ("level", "propagate", "disabled", "handlers", "filters")

    def logger(self) -> Any:
        """The logger."""
        return sys.modules["logging"].getLogger(self.key.partition(":")[2] or None)

    def get(self) -> Any:
        return {part: vars(self.logger())[part] for part in self.parts}

    def save(self, others: "dict[int, Any]") -> Any:
        return {part: copy.copy(value) for part, value in self.get().items()}

    def put_back(self, saved: Any) -> None:
        logger = self.logger()
        logger.handlers[:], logger.filters[:] = saved["handlers"], saved["filters"]
        logger.propagate, logger.disabled = saved["propagate"], saved["disabled"]
        logger.setLevel(saved["level"])  # which empties what it remembers of levels


class Variable(Place):
    """An environment variable."""

    kind = "environment variable"

    def get(self) -> Any:
        return os.environ.get(self.name, MISSING)

    def put(self, value: Any) -> None:
        if value is MISSING:
            os.environ.pop(self.name, None)
        else:
            os.environ[self.name] = value
        if self.name == "TZ":
            time.tzset()


class Module(Place):
    """Which module a name stands for."""

    kind = "loaded module"

    def get(self) -> Any:
        return sys.modules.get(self.name, MISSING)

    def put(self, value: Any) -> None:
        if value is MISSING:
            del sys.modules[self.name]
        else:
            sys.modules[self.name] = value


class Folder(Place):
    """A folder below /tmp."""

    kind = "folder"

    def get(self) -> Any:
        return "a folder" if os.path.isdir(self.name) else MISSING

    def put(self, value: Any) -> None:
        if value is MISSING:
            os.rmdir(self.name) if not os.listdir(self.name) else shutil.rmtree(self.name)
        else:
            os.makedirs(self.name)


class File(Place):
    """A file below /tmp."""

    kind = "file"

    def get(self) -> Any:
        try:
            info = os.lstat(self.name)
            if os.path.islink(self.name):
                return ("link", os.readlink(self.name))
            if not os.path.isfile(self.name):
                return ("special", info.st_mode)
            if info.st_size > FILE_BYTES:
                return ("large", info.st_size, info.st_mtime_ns)
            with open(self.name, "rb") as file:
                return file.read()
        except OSError:
            return MISSING

    def put(self, value: Any) -> None:
        if value is MISSING:
            os.unlink(self.name)
        elif isinstance(value, bytes) or value[0] == "link":
            os.makedirs(os.path.dirname(self.name), exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(self.name)
            if isinstance(value, tuple):
                return os.symlink(value[1], self.name)
            with open(self.name, "wb") as file:
                file.write(value)
        else:
            raise TypeError("it is too large, or no ordinary file")


class Thread(Place):
    """A thread that was started and goes on; it can't be put back."""

    kind = "thread"

    def get(self) -> Any:
        return MISSING

    def put_back(self, saved: Any) -> None:
        raise TypeError("a thread can't be put back")


class Native(Place):
    """Bytes of a library's writable data."""

    kind = "native data"

    def __init__(self, key: str, library: "Library", offset: int, size: int) -> None:
        super().__init__(key, f"{os.path.basename(library.path)} +{offset:#x}")
        self.library, self.offset, self.size, self.own = library, offset, size, library.own

    def get(self) -> Any:
        return self.library.read(self.offset, self.size)

    def put(self, value: Any) -> None:
        self.library.write(self.offset, value)


class Process:
    """All places of this process."""

    def __init__(self, child: Any) -> None:
        self.stdlib = os.path.dirname(os.__file__)
        self.ours = {sys.modules["__main__"], child}
        self.tops: dict[str, bool] = {}
        self.files: dict[str, bool] = {}
        self.unheard = threads()
        self.libraries: dict[str, Library] = {}

    def is_own(self, module: Any) -> bool:
        """Whether a module is the bundle's: it lies there, or a folder or file of its name does."""
        file = str(names_in(module).get("__file__") or "")
        if file.startswith("/bundle/"):
            return True
        top = str(names_in(module).get("__name__", "")).partition(".")[0]
        if top not in self.tops:
            bases = [base + top for base in ("/bundle/", "/bundle/src/", "/bundle/lib/", "/bundle/python/")]
            self.tops[top] = bool(top) and any(os.path.isdir(b) or os.path.isfile(b + ".py") for b in bases)
        return self.tops[top] and file.startswith("/venv/")

    def is_own_file(self, file: str) -> bool:
        """Whether code of that file is the bundle's: it lies there, or was installed from there."""
        if file not in self.files:
            inside = file.partition("/site-packages/")[2]
            bases = [base + inside for base in ("/bundle/", "/bundle/src/", "/bundle/lib/", "/bundle/python/")]
            installed = file.startswith("/venv/") and bool(inside) and any(os.path.isfile(base) for base in bases)
            self.files[file] = file.startswith("/bundle/") or installed
        return self.files[file]

    def is_theirs(self, file: str) -> bool:
        """Whether code of that file is the bundle's or a dependency's."""
        return file.startswith(("/bundle/", "/venv/")) and not file.startswith(self.stdlib + "/")

    def modules(self) -> "list[tuple[str, Any, bool]]":
        """Every module that has a name, the bundle's own first; and whether its content is looked into."""
        found = []
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and module not in self.ours and not name.startswith("instrument"):
                file = str(names_in(module).get("__file__") or "")
                theirs = self.is_theirs(file) or file.startswith("/tmp/")
                found.append((name, module, theirs))
        return sorted(found, key=lambda entry: (not self.is_own(entry[1]), not entry[2]))

    def places(self) -> "list[Place]":
        """Every place there is now."""
        found: list[Place] = []
        for name, module, theirs in self.modules():
            own = self.is_own(module)
            fresh: list[Place] = []
            found.append(Module(f"module:{name}", name))
            for attribute, value in list(names_in(module).items()):
                if attribute not in HIDDEN:
                    fresh += self.places_of(name, module, attribute, value, theirs)
            for place in fresh:
                place.own = own
            found += fresh
        return [*found, *settings(), *(Variable(f"environ:{name}", name) for name in list(os.environ)), *files()]

    def places_of(self, name: str, module: Any, attribute: str, value: Any, theirs: bool) -> "list[Place]":
        """An attribute of a module, and what lies behind it where it is a class or a function of that module."""
        found: list[Place] = []
        if f"{name}.{attribute}" not in BOOKKEEPING:
            found.append(Attribute(f"attribute:{name}:{attribute}", module, attribute, f"{name}.{attribute}"))
        if not isinstance(value, (type, *FUNCTIONS)) or attribute_of(value, "__module__") != name:
            return found
        if isinstance(value, type):
            return found + self.places_of_class(name, attribute, value, theirs)
        return found + function_places(f"{name}:{attribute}", f"{name}.{attribute}", value) if theirs else found

    def places_of_class(self, name: str, path: str, owner: type, theirs: bool, depth: int = 0) -> "list[Place]":
        """The attributes of a class and of the classes in it; of the standard library's, those that can be patched."""
        found: list[Place] = []
        for inner, item in list(vars(owner).items()):
            if inner in HIDDEN or not (theirs or isinstance(item, (types.FunctionType, *SCALARS))):
                continue
            label = f"{name}.{path}.{inner}"
            found.append(ClassAttribute(f"class:{name}:{path}:{inner}", owner, inner, label))
            if theirs:
                found += function_places(f"{name}:{path}.{inner}", label, item)
            if isinstance(item, type) and item.__qualname__ == f"{owner.__qualname__}.{inner}" and depth < DEPTH:
                found += self.places_of_class(name, f"{path}.{inner}", item, theirs, depth + 1)
        return found

    def place(self, key: str) -> Place | None:
        """The place of a key, also where nothing is there yet."""
        kind, _, rest = key.partition(":")
        by_name = {"environ": Variable, "file": File, "module": Module, "folder": Folder}
        if kind in by_name:
            return by_name[kind](key, rest)
        if kind == "native":
            return self.native_place(key, rest)
        if kind == "logger":
            return Logger(key, rest or "the root logger")
        if kind not in ("attribute", "class", "function", "cache"):
            return next((place for place in settings() if place.key == key), None)
        module = sys.modules.get(rest.partition(":")[0])
        if module is None:
            return None
        found = self.module_place(key, module)
        if found is not None:
            found.own = self.is_own(module)
        return found

    def module_place(self, key: str, module: Any) -> Place | None:
        """The place of a key in a module."""
        kind, _, rest = key.partition(":")
        path = rest.partition(":")[2]
        if kind == "attribute":
            return Attribute(key, module, path, f"{module.__name__}.{path}")
        if kind == "class":
            owner, _, attribute = path.partition(":")
            return ClassAttribute(key, reached(module, owner), attribute, f"{module.__name__}.{owner}.{attribute}")
        owner_name, _, inner = path.partition("<")[0].rpartition(".")
        value = vars(reached(module, owner_name) if owner_name else module).get(inner)
        outer = rest.partition("<")[0]
        return next((p for p in function_places(outer, outer.replace(":", "."), value) if p.key == key), None)

    def native_place(self, key: str, rest: str) -> Place | None:
        """The place of `path:offset:size` in a loaded library."""
        path, offset, size = rest.rsplit(":", 2)
        self.libraries = self.libraries or {library.path: library for library in load_libraries(self)}
        library = self.libraries.get(path)
        return None if library is None else Native(key, library, int(offset, 16), int(size))

    def look(self, keys: Any) -> "Look":
        """The state of the process now: of the places of these keys, of all where `keys` is true."""
        return Look(
            self, self.places() if keys is True else [p for key in keys if (p := self.place(key))], keys is True
        )


def reached(module: Any, path: str) -> Any:
    """What a dotted path in a module leads to."""
    return functools.reduce(getattr, path.split("."), module)


def function_places(key: str, name: str, value: Any, depth: int = 0) -> "list[Place]":
    """What a function carries along, or the cache around it; and likewise the functions inside, as a decorator has."""
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    if isinstance(value, functools._lru_cache_wrapper):
        return [Cache(f"cache:{key}", value, name)]
    if not isinstance(value, types.FunctionType):
        return []
    carries = value.__defaults__ or value.__kwdefaults__ or value.__closure__ or vars(value)
    found: list[Place] = [FunctionState(f"function:{key}", value, name)] if carries else []
    for inner, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
        if depth < 2 and (function := cell_content(cell)) is not value:
            found += function_places(f"{key}<{inner}>", f"{name}<{inner}>", function, depth + 1)
    return found


def settings() -> "list[Place]":
    """What a process has once."""

    def umask() -> int:
        value = os.umask(0o022)
        os.umask(value)
        return value

    def context() -> list[Any]:
        now = decimal.getcontext()
        traps = sorted((trap for trap, on in now.traps.items() if on), key=str)
        return [now.prec, now.rounding, now.Emin, now.Emax, now.capitals, now.clamp, [], traps]

    found: list[Place] = [
        Setting("cwd", "working directory", "the working directory", os.getcwd, os.chdir),
        Setting("umask", "umask", "the umask", umask, os.umask),
        Setting("path", "sys.path", "sys.path", lambda: sys.path, lambda old: sys.path.__setitem__(slice(None), old)),
        Setting("argv", "sys.argv", "sys.argv", lambda: sys.argv, lambda old: sys.argv.__setitem__(slice(None), old)),
        Setting("warnings", "warning filters", "warnings.filters", lambda: warnings.filters, restore_filters),
        Setting("locale", "locale", "the locale", lambda: locale.setlocale(locale.LC_ALL),
                lambda old: locale.setlocale(locale.LC_ALL, old)),
        Setting("decimal", "decimal context", "the decimal context", context,
                lambda old: decimal.setcontext(decimal.Context(*old))),
        Setting("gc", "garbage collector", "gc.isenabled()", gc.isenabled,
                lambda old: gc.enable() if old else gc.disable()),
        Setting("timezone", "time zone", "the time zone", lambda: [*time.tzname, time.timezone, time.altzone],
                lambda old: time.tzset()),
        Setting("alarm", "alarm", "an alarm that waits", lambda: [signal.getitimer(n)[0] > 0 for n in range(3)],
                lambda old: [signal.setitimer(n, 0) for n in range(3) if not old[n]]),
        Setting("sigmask", "blocked signals", "the blocked signals",
                lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
                lambda old: signal.pthread_sigmask(signal.SIG_SETMASK, old)),
        Setting("niceness", "niceness", "the niceness", lambda: os.getpriority(os.PRIO_PROCESS, 0),
                lambda old: os.setpriority(os.PRIO_PROCESS, 0, old)),
        Setting("processors", "processors", "the processors that may be used", lambda: sorted(os.sched_getaffinity(0)),
                lambda old: os.sched_setaffinity(0, old)),
        Setting("stack", "stack size of threads", "threading.stack_size()", stack_size, threading.stack_size),
        Setting("codecs", "codecs", "codecs.register()", codec_functions, unregister_codecs),
        CodecErrors("codec errors", "codecs.register_error()"),
        Setting("descriptors", "open descriptors", "open descriptors", descriptors),
    ]  # fmt: skip
    for number in signal.valid_signals():
        name = signal.Signals(number).name if number in set(signal.Signals) else str(int(number))
        read, write = (functools.partial(call, number) for call in (signal.getsignal, signal.signal))
        found.append(Setting(f"signal:{int(number)}", "signal handler", name, read, write))
    return [*found, *behind_functions(), *c_generator(), *resource_limits(), *loggers(), *generators()]


def stack_size() -> int:
    """The stack size of new threads; to ask for it sets it."""
    size = threading.stack_size()
    threading.stack_size(size)
    return size


def switch(on: Any, off: Any) -> Any:
    """What sets a thing that is on or off."""
    return lambda old: on() if old else off()


def behind_functions() -> "list[Place]":
    """State that modules keep where only their functions reach it, as far as they are loaded."""
    table = (  # the module, what it is, what reads it, what sets it
        ("csv", "csv limit", "field_size_limit", "field_size_limit"),
        ("sys", "recursion limit", "getrecursionlimit", "setrecursionlimit"),
        ("sys", "switch interval", "getswitchinterval", "setswitchinterval"),
        ("sys", "limit of digits", "get_int_max_str_digits", "set_int_max_str_digits"),
        ("sys", "trace function", "gettrace", "settrace"),
        ("sys", "profile function", "getprofile", "setprofile"),
        ("gc", "thresholds", "get_threshold", lambda old: gc.set_threshold(*old)),
        ("gc", "flags", "get_debug", "set_debug"),
        ("socket", "socket time-out", "getdefaulttimeout", "setdefaulttimeout"),
        ("atexit", "functions at exit", "_ncallbacks", None),
        ("faulthandler", "fault handler", "is_enabled", ("enable", "disable")),
        ("tracemalloc", "tracing of memory", "is_tracing", ("start", "stop")),
        ("numpy", "numpy error state", "geterr", lambda old: sys.modules["numpy"].seterr(**old)),
        ("numpy", "numpy error function", "geterrcall", "seterrcall"),
        ("numpy", "numpy buffer size", "getbufsize", "setbufsize"),
        ("polars", "string cache", "using_string_cache", ("enable_string_cache", "disable_string_cache")),
    )
    found: list[Place] = []
    for name, kind, read, write in table:
        module = sys.modules.get(name)
        reader = attribute_of(module, read)
        if reader is None:
            continue
        if isinstance(write, tuple):
            write = switch(*(getattr(module, part) for part in write))
        elif isinstance(write, str):
            write = getattr(module, write)
        found.append(Setting(f"setting:{name}.{read}", kind, f"{name}.{read}()", reader, write))
    return found


class CodecErrors(Place):
    """The handlers of codecs' errors, a table that the interpreter hides."""

    kind = "codec errors"

    @staticmethod
    def table() -> dict[str, Any]:
        """The table: a dict that holds the one of that name. What else holds it so would be taken for the table."""
        strict = codecs.lookup_error("strict")
        tables = [one for one in gc.get_referrers(strict) if type(one) is dict and one.get("strict") is strict]
        return tables[0] if tables else {}

    def get(self) -> Any:
        return {name: identity(handler) for name, handler in self.table().items()}

    def save(self, others: "dict[int, Any]") -> Any:
        return tuple(self.table().items())

    def put_back(self, saved: Any) -> None:
        fill(self.table(), dict(saved))


def codec_functions() -> "tuple[Any, ...]":
    """The functions that look codecs up, of a list that the interpreter hides; as a tuple, which is not that list."""
    first = encodings.search_function
    lists: list[Any] = [one for one in gc.get_referrers(first) if type(one) is list and one[:1] == [first]]
    return tuple(lists[0]) if lists else ()


def unregister_codecs(old: Any) -> None:
    """Take away the functions that came after these."""
    for function in codec_functions()[len(old) :]:
        codecs.unregister(function)


def c_generator() -> "list[Place]":
    """The state of the C library's rand(), which extensions draw from; it lies in a library that is left out."""
    ctypes: Any = sys.modules.get("ctypes")
    if ctypes is None:
        return []
    libc, size = ctypes.CDLL(None), 128
    if not hasattr(libc, "initstate"):
        return []
    libc.initstate.restype = libc.setstate.restype = ctypes.c_void_p
    libc.initstate.argtypes = (ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t)
    libc.setstate.argtypes = (ctypes.c_void_p,)

    def swapped(take: Any) -> Any:
        """With another state in its place, the C library has written all of the real one to memory."""
        other = ctypes.create_string_buffer(size)
        real = libc.initstate(1, other, size)
        try:
            return take(real)
        finally:
            libc.setstate(real)

    def read() -> Any:
        return swapped(lambda at: ctypes.string_at(at, size))

    def write(old: Any) -> None:
        swapped(lambda at: ctypes.memmove(at, old, size))

    return [Setting("rand", "random state", "the C library's rand()", read, write)]


def resource_limits() -> "list[Place]":
    """The soft limits of the process; with the hard one lowered, only as far as that."""
    found: list[Place] = []
    for name in (name for name in dir(resource) if name.startswith("RLIMIT_")):
        number = getattr(resource, name)
        read, write = (functools.partial(call, number) for call in (resource.getrlimit, resource.setrlimit))
        found.append(Setting(f"rlimit:{name}", "resource limit", name, read, write))
    return found


def loggers() -> "list[Place]":
    """Level, handlers, filters and switches of each logger, as far as logging is loaded."""
    logging = sys.modules.get("logging")
    if logging is None:
        return []
    names = [name for name, one in list(logging.root.manager.loggerDict.items()) if isinstance(one, logging.Logger)]
    found: list[Place] = [Setting("logging", "logging", "logging.disable", lambda: logging.root.manager.disable,
                                  logging.disable)]  # fmt: skip
    return found + [Logger(f"logger:{name}", name or "the root logger") for name in ("", *names)]


def generators() -> "list[Place]":
    """The states of the global generators, as far as their modules are loaded."""
    found: list[Place] = []
    if "random" in sys.modules:
        module = sys.modules["random"]
        found.append(Setting("random", "random state", "random's generator", module.getstate, module.setstate))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        found.append(Setting("numpy.random", "random state", "numpy.random's global generator",
                             numpy.random.get_state, numpy.random.set_state))  # fmt: skip
    compiled: Any = sys.modules.get("numba._helperlib")
    for name in ("py", "np") if compiled is not None else ():  # compiled code has generators of its own
        state = getattr(compiled, f"rnd_get_{name}_state_ptr")()
        read, write = (functools.partial(call, state) for call in (compiled.rnd_get_state, compiled.rnd_set_state))
        copied = "random's" if name == "py" else "numpy.random's"
        found.append(Setting(f"numba.{name}", "random state", f"{copied} generator in numba's code", read, write))
    return found


def restore_filters(old: Any) -> None:
    """Put the warning filters back, and let Python notice."""
    filters: Any = warnings.filters
    filters[:] = old
    getattr(warnings, "_filters_mutated", getattr(warnings, "_filters_mutated_lock_held", lambda: None))()


def descriptors() -> dict[str, str]:
    """What each open descriptor is, but for our own look at them."""
    found = {}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):  # the one that lists them
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {name: target for name, target in found.items() if not target.startswith(("/proc/", "pipe:"))}


def threads() -> dict[int, Any]:
    """The threads that Python knows."""
    return {thread.ident or 0: thread for thread in threading.enumerate()}


def files() -> "list[Place]":
    """Every folder and file below /tmp, the home among them, and in shared memory; the count is bounded."""
    found: list[Place] = []
    for top in ("/tmp", "/dev/shm"):
        for folder, _, names in os.walk(top):
            paths = [os.path.join(folder, name) for name in sorted(names)]
            found += [Folder(f"folder:{folder}", folder), *(File(f"file:{path}", path) for path in paths)]
            if len(found) > 5000:
                break
    return found


# --- native data


class Library:
    """A loaded shared library: where its writable data lies in memory, by its own program headers."""

    def __init__(self, path: str, start: int, own: bool) -> None:
        self.path, self.own = path, own
        self.memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        self.segments, self.bias = writable_segments(path, start)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an address of the file's own numbering."""
        return os.pread(self.memory, size, self.bias + offset)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes back."""
        os.pwrite(self.memory, data, self.bias + offset)

    def image(self) -> "list[tuple[int, bytes]]":
        """All writable data, a page at most at a time where some of it can't be read."""
        found = []
        for address, size in self.segments:
            try:
                found.append((address, self.read(address, size)))
            except OSError:
                continue
        return found


def writable_segments(path: str, start: int) -> "tuple[list[tuple[int, int]], int]":
    """Address and size of each writable PT_LOAD less its PT_GNU_RELRO, and what to add for an address in memory."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return [], 0
        at, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(at)
        table = file.read(size * min(count, 64))
    loads, relro = [], (0, 0)
    for index in range(min(count, 64)):
        kind, flags, _, address, _, _, length, _ = struct.unpack_from("<IIQQQQQQ", table, index * size)
        if kind == 1:
            loads.append((address, length, flags))
        elif kind == 0x6474E552:
            relro = (address, address + length)
    lowest = min((address for address, _, _ in loads), default=0)
    found = []
    for address, length, flags in loads:
        if flags & 2 and length <= 256 << 20:
            first = max(address, relro[1]) if relro[0] <= address < relro[1] else address
            found.append((first, address + length - first))
    return [entry for entry in found if entry[1] > 0], start - lowest // PAGE * PAGE


def load_libraries(process: Process) -> "list[Library]":
    """The libraries of the bundle's environment. The interpreter, libc and allocators are left out."""
    starts: dict[str, int] = {}
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                parts = line.split(None, 5)
                if len(parts) == 6 and parts[5].startswith(("/venv/", "/bundle/", "/tmp/")):
                    path = parts[5].rstrip("\n")
                    starts.setdefault(path, int(parts[0].partition("-")[0], 16))
    except OSError:
        return []
    left_out = ("libpython", "libjemalloc", "libmimalloc", "libtcmalloc")
    own = {names_in(module).get("__file__") for _, module, _ in process.modules() if process.is_own(module)}
    found = []
    for path, start in starts.items():
        if ".so" in os.path.basename(path) and not os.path.basename(path).startswith(left_out):
            try:
                found.append(Library(path, start, path in own or path.startswith("/bundle/")))
            except (OSError, struct.error):
                continue
    return sorted(found, key=lambda library: not library.own)


def changed_ranges(old: bytes, new: bytes) -> "list[tuple[int, int]]":
    """Offset and size of what differs: pages first, words in those, neighbours as one."""
    found: list[tuple[int, int]] = []
    for page in range(0, min(len(old), len(new)), PAGE):
        if old[page : page + PAGE] == new[page : page + PAGE]:
            continue
        for word in range(page, min(page + PAGE, len(new)), WORD):
            if old[word : word + WORD] != new[word : word + WORD]:
                size = min(WORD, len(new) - word)
                if found and sum(found[-1]) == word:
                    found[-1] = (found[-1][0], found[-1][1] + size)
                else:
                    found.append((word, size))
                    if len(found) >= RANGES:
                        return found
    return found


# --- before and after


class Look:
    """The state of the process at one moment. It holds what it saw, so that no identity is used twice."""

    def __init__(self, process: Process, places: "list[Place]", with_native: bool) -> None:
        deadline = time.process_time() + LOOK_SECONDS
        self.places: dict[str, Place] = {}
        self.values: dict[str, Any] = {}
        self.leaves: dict[str, Leaves] = {}
        self.roots: dict[int, str] = {}
        self.walked: dict[int, int] = {}
        for place in places:
            with suppress(Exception):
                if place.key not in self.places:
                    self.values[place.key] = value = place.get()
                    self.places[place.key] = place
                    if isinstance(place, Attribute):
                        self.roots.setdefault(id(value), place.key)
        for key, value in self.values.items():
            self.leaves[key] = Leaves(value, deadline, key, self)
        self.complete = time.process_time() < deadline
        self.threads = threads()
        libraries = load_libraries(process) if with_native else []
        self.images = {library.path: (library, library.image()) for library in libraries}

    def knows(self, value: Any, key: str, depth: int) -> bool:
        """Whether a value is told of elsewhere, as far as it would be seen from here."""
        return self.roots.get(id(value), key) != key or self.walked.get(id(value), depth + 1) <= depth


def report_changes(before: Look, after: Look, pipe: Any, child: Any) -> None:
    """Send what differs, the bundle's own first, and the libraries whose data changed."""
    python = python_changes(before, after)
    native = native_changes(before, after)
    started = [thread_change(ident, thread) for ident, thread in after.threads.items() if ident not in before.threads]
    for number, path in enumerate(sorted({change["library"] for change in native})):
        if os.path.getsize(path) <= LIBRARY_BYTES and number < 16:
            with open(path, "rb") as file:
                pipe.send(child.OUTPUT, f"library.{number}", file.read())
            for change in native:
                if change["library"] == path:
                    change["file"] = number
    changes = sorted([*started, *python, *native], key=likelihood)
    report = {"changes": changes[:CHANGES], "left_out": max(0, len(changes) - CHANGES)}
    report["complete"] = before.complete and after.complete
    report["native"] = "looked at" if os.access("/proc/self/maps", os.R_OK) else "no /proc in this sandbox"
    send_json(pipe, child, "changes", report)


def likelihood(change: "dict[str, Any]") -> "tuple[bool, int]":
    """What comes first: the bundle's own, then what a process has once, and caches before native data."""
    ranks = {"attribute": 2, "class": 2, "function": 3, "cache": 4, "native": 5}
    return not change["own"], ranks.get(change["key"].partition(":")[0], 1)


def python_changes(before: Look, after: Look) -> "list[dict[str, Any]]":
    """Places that are new, gone, bound to something else, or changed in content; one object counts once."""
    found, told = [], set()
    for key in [*after.places, *(key for key in before.places if key not in after.places)]:
        old, new = before.values.get(key, MISSING), after.values.get(key, MISSING)
        place = after.places.get(key) or before.places[key]
        leaves = [look.leaves[key].found if key in look.leaves else {} for look in (before, after)]
        digests = [look.leaves[key].digest if key in look.leaves else b"" for look in (before, after)]
        if digests[0] == digests[1] or (key not in before.places and place.kind == "function state"):
            continue
        owner = key.split(":")[1] if key.startswith(("attribute:", "class:")) else ""
        if owner and key not in before.places and not any(k.startswith(f"attribute:{owner}:") for k in before.places):
            continue  # a module that was imported meanwhile
        if key.startswith("module:") and old is MISSING and attribute_of(new, "__spec__") is not None:
            continue  # likewise, and not put there by hand
        if id(new) in told and old is new:
            continue
        told.add(id(new))
        how = "added" if key not in before.places else "gone" if key not in after.places else \
            "content" if old is new or isinstance(place, (FunctionState, Setting, Cache)) else "rebound"  # fmt: skip
        parts = [] if how in ("added", "gone") else different_leaves(*leaves)
        found.append({"key": key, "kind": place.kind, "name": place.name, "how": how, "own": place.own,
                      "old": shown(old), "new": shown(new), "parts": parts})  # fmt: skip
    return found


def different_leaves(old: dict[str, str], new: dict[str, str]) -> "list[list[str]]":
    """The first parts that differ: path, old, new."""
    found = []
    for path in [*old, *(path for path in new if path not in old)]:
        if old.get(path) != new.get(path):
            found.append([path[:TEXT], old.get(path, "nothing"), new.get(path, "nothing")])
            if len(found) >= 5:
                break
    return found


def native_changes(before: Look, after: Look) -> "list[dict[str, Any]]":
    """Ranges of writable data that differ, by library and address in its file."""
    found = []
    for path, (library, image) in after.images.items():
        old = dict(before.images[path][1]) if path in before.images else {}
        for address, data in image:
            if address in old:
                for offset, size in changed_ranges(old[address], data):
                    at = address + offset
                    both = [part[offset : offset + size] for part in (old[address], data)]
                    values = [hexed(part) for part in both]
                    found.append({"key": f"native:{path}:{at:x}:{size}", "kind": "native data", "how": "content",
                                  "name": f"{os.path.basename(path)} +{at:#x}", "own": library.own,
                                  "old": values[0], "new": values[1], "parts": [], "library": path,
                                  "offset": at, "size": size,
                                  "points": any(map(points, both))})  # fmt: skip
    return found


def points(data: bytes) -> bool:
    """Whether one of the words looks like an address: what an allocator keeps, and harm to put back."""
    words = (int.from_bytes(data[at : at + WORD], "little") for at in range(0, len(data), WORD))
    return any(0x5000_0000_0000 <= word < 0x8000_0000_0000 for word in words)


def hexed(data: bytes) -> str:
    """Bytes, as the numbers that they are where they are some."""
    if len(data) > WORD and len(data) % WORD == 0:
        words = [hexed(data[at : at + WORD]) for at in range(0, min(len(data), 3 * WORD), WORD)]
        return ", ".join(words) + (f" .. ({len(data) // WORD} words)" if len(data) > 3 * WORD else "")
    if len(data) == WORD:
        whole, real = int.from_bytes(data, "little"), struct.unpack("<d", data)[0]
        if whole < 1 << 40:
            return str(whole)
        if 1e-12 < abs(real) < 1e15:
            return f"{real!r} (as a double)"
    return data[:24].hex(" ", 8) + (" .." if len(data) > 24 else "")


def thread_change(ident: int, thread: Any) -> "dict[str, Any]":
    """A thread that goes on, and where it stands."""
    frame = sys._current_frames().get(ident)
    lines: list[str] = []
    while frame is not None and len(lines) < 20:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {called(frame.f_code)}")
        frame = frame.f_back
    theirs = [line for line in lines if line.startswith(("/bundle", "/venv", "/tmp"))]
    return {"key": f"thread:{thread.name}", "kind": "thread", "name": f"the thread {thread.name!r}", "how": "added",
            "own": True, "old": "nothing", "new": (theirs or lines or ["nowhere"])[0][:TEXT], "parts": []}  # fmt: skip


def save(keys: Any, process: Process) -> dict[str, Any]:
    """What `put_back` needs of each place that there is."""
    if not keys:
        return {}
    others: dict[int, Any] = {id(module): module for module in list(sys.modules.values())}
    for other in process.places():
        if isinstance(other, Attribute):
            with suppress(Exception):
                value = other.get()
                others[id(value)] = value
    return {key: place.save(others) for key in keys if (place := process.place(key))}


def put_back(saved: dict[str, Any], process: Process) -> dict[str, str]:
    """Put the old values back; key and problem of each that could not be."""
    problems = {}
    for key, value in saved.items():
        try:
            place = process.place(key)
            if place is None:
                raise LookupError("it is not there any more")
            place.put_back(value)
        except BaseException as error:
            problems[key] = f"{type(error).__name__}: {error}"[:TEXT]
    return problems


# --- the line that does it


class Watcher:
    """Looks at some places after every line of the bundle's code; of a dependency's too, where a place is its own."""

    def __init__(self, process: Process, keys: "list[str]") -> None:
        self.places = {key: place for key in keys if (place := process.place(key))}
        self.state = {key: self.glance(place) for key, place in self.places.items()}
        self.lines: dict[str, dict[str, Any]] = {}
        self.last: tuple[Any, int] | None = None
        self.events, self.deadline = 0, time.process_time() + WATCH_SECONDS
        kinds = (Attribute, FunctionState, Cache)
        theirs = any(isinstance(place, kinds) and not place.own for place in self.places.values())
        self.is_watched = process.is_theirs if theirs else process.is_own_file
        sys.settrace(self.on_event)

    @staticmethod
    def glance(place: Place) -> Any:
        """Enough of a value to see that it changes."""
        try:
            return place.leaves(time.process_time() + 1).digest
        except Exception:
            return None

    def on_event(self, frame: Any, event: str, _: Any) -> Any:
        """Called by the interpreter."""
        if not self.is_watched(frame.f_code.co_filename):
            return None
        self.events += 1
        if self.events > WATCH_EVENTS or time.process_time() > self.deadline or len(self.lines) == len(self.places):
            sys.settrace(None)
            return None
        self.check()
        if event == "return":
            caller = frame.f_back
            watched = caller is not None and self.is_watched(caller.f_code.co_filename)
            self.last = (caller.f_code, caller.f_lineno) if watched else self.last
        else:
            self.last = (frame.f_code, frame.f_lineno)
        return self.on_event

    def check(self) -> None:
        """Charge what changed since the last line to that line."""
        for key, place in self.places.items():
            now = None if key in self.lines else self.glance(place)
            if now is not None and now != self.state[key]:  # it is None where there is no stack left to look
                self.state[key] = now
                if self.last:
                    code, line = self.last
                    self.lines[key] = {"file": code.co_filename, "line": line, "function": called(code),
                                       "text": source_line(code.co_filename, line)}  # fmt: skip

    def stop(self) -> dict[str, Any]:
        """The line of each key for which there is one."""
        goes_on = sys.gettrace() == self.on_event  # Python ends it where there is no stack left for it
        sys.settrace(None)
        if goes_on:
            self.check()
        return self.lines


def called(code: Any) -> str:
    """The name of a function, with its class where this Python knows it."""
    return str(getattr(code, "co_qualname", code.co_name))


def source_line(file: str, number: int) -> str:
    """A line of a source file."""
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            for count, line in enumerate(source, 1):
                if count == number:
                    return line.strip()[:TEXT]
    except OSError:
        pass
    return ""
