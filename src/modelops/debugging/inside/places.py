"""Places: where state is, which can be compared, saved and put back."""

import _abc  # type: ignore[import-not-found]
import copy
import functools
import os
import shutil
import sys
import time
import types
from contextlib import suppress
from typing import Any

from .native import Library
from .restoring import as_before, content_of
from .values import CODE, MISSING, Leaves, cached_values, cell_content, identity

TOPS = ("/dev/shm", "/tmp")  # where a task can write, its home among them
FILE_BYTES = 1 << 20  # of a file that can be put back
FUNCTIONS = (types.FunctionType, functools._lru_cache_wrapper, staticmethod, classmethod)


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


class Registry(Place):
    """The classes that were registered with an abstract class, of which its attributes do not tell."""

    kind = "registered classes"

    def __init__(self, key: str, owner: Any, name: str) -> None:
        super().__init__(key, name)
        self.owner = owner

    def get(self) -> Any:
        found = [one for reference in _abc._get_dump(self.owner)[0] if (one := reference()) is not None]
        return {identity(one): one for one in found}

    def save(self, others: "dict[int, Any]") -> Any:
        return self.get()

    def put_back(self, saved: Any) -> None:
        _abc._reset_registry(self.owner)
        _abc._reset_caches(self.owner)
        for one in saved.values():
            self.owner.register(one)


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


def files() -> "list[Place]":
    """Every folder and file below /tmp, the home among them, and in shared memory; the count is bounded."""
    found: list[Place] = []
    folders = [*TOPS]
    while folders and len(found) <= 5000:  # not os.walk: up to Python 3.11 it recurses, and a task nests as it likes
        folder = folders.pop()
        found.append(Folder(f"folder:{folder}", folder))
        for path, is_folder in sorted(entries(folder), reverse=True):
            if is_folder:
                folders.append(path)
            else:
                found.append(File(f"file:{path}", path))
    return found


def entries(folder: str) -> "list[tuple[str, bool]]":
    """Path of what a folder holds, and whether it is a folder; none where it can't be read."""
    try:
        with os.scandir(folder) as found:
            return [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in found]
    except OSError:
        return []
