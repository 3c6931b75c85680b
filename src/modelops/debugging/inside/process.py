"""All places of this process, and their old values."""

import os
import sys
import threading
import types
from abc import ABCMeta
from contextlib import suppress
from typing import Any

from .native import Library, load_libraries
from .places import (
    FUNCTIONS,
    Attribute,
    ClassAttribute,
    File,
    Folder,
    Logger,
    Module,
    Native,
    Place,
    Registry,
    Variable,
    files,
    function_places,
    reached,
)
from .settings import settings
from .values import DEPTH, SCALARS, attribute_of, names_in

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
            if isinstance(module, types.ModuleType) and module not in self.ours and not is_ours(name):
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
        found: list[Place] = (
            [Registry(f"abc:{name}:{path}", owner, f"{name}.{path}")] if isinstance(owner, ABCMeta) else []
        )
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
        if kind not in ("attribute", "class", "function", "cache", "abc"):
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
        if kind == "abc":
            return Registry(key, reached(module, path), f"{module.__name__}.{path}")
        if kind == "class":
            owner, _, attribute = path.partition(":")
            return ClassAttribute(key, reached(module, owner), attribute, f"{module.__name__}.{owner}.{attribute}")
        owner_name, _, inner = path.partition("<")[0].rpartition(".")
        value = vars(reached(module, owner_name) if owner_name else module).get(inner)
        outer = rest.partition("<")[0]
        return next((p for p in function_places(outer, outer.replace(":", "."), value) if p.key == key), None)

    def load_libraries(self) -> list[Library]:
        """The libraries with data that can change, the bundle's own first."""
        return load_libraries(
            {names_in(module).get("__file__") for _, module, _ in self.modules() if self.is_own(module)}
        )

    def native_place(self, key: str, rest: str) -> Place | None:
        """The place of `path:offset:size` in a loaded library."""
        path, offset, size = rest.rsplit(":", 2)
        self.libraries = self.libraries or {library.path: library for library in self.load_libraries()}
        library = self.libraries.get(path)
        return None if library is None else Native(key, library, int(offset, 16), int(size))


def threads() -> dict[int, Any]:
    """The threads that Python knows."""
    return {thread.ident or 0: thread for thread in threading.enumerate()}


def is_ours(name: str) -> bool:
    """Whether a module of that name is of this program."""
    return f"{name}.".startswith(f"{__package__}.")


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


def put_back(saved: dict[str, Any], process: Process) -> None:
    """Put the old values back, as far as that can be done."""
    for key, value in saved.items():
        with suppress(BaseException):
            if place := process.place(key):
                place.put_back(value)
