"""`.modelops-bundle/registry.yaml`: what a bundle says of its models and targets. It is read as data, and not believed.

version: "1.0"
models: {sir: {entrypoint: "models.sir:SIR", scenarios: [..], parameters: [..], outputs: [..], data: [..]}}
targets: {prevalence: {entrypoint: "targets.fit:prevalence", model_output: .., data: [..]}}
target_sets: {all: {targets: [prevalence]}}
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import BundleError

REGISTRY = Path(".modelops-bundle") / "registry.yaml"
MAX_BYTES = 1 << 20


class _Plain(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """Texts, lists and mappings, and what is empty. YAML's other kinds (numbers by sixty, merged mappings) can take
    hours to read, and of a key that is there twice it would drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            problem = "a key is there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return found


_EMPTY = "tag:yaml.org,2002:null"
_Plain.add_implicit_resolver(_EMPTY, re.compile(r"(?:~|null|Null|NULL|)"), ["~", "n", "N", ""])
_Plain.add_constructor(_EMPTY, lambda loader, node: None)


@dataclass(frozen=True)
class Entry:
    """A model or a target: its entry point, and the names that the registry gives with it."""

    entrypoint: str
    scenarios: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class BundleRegistry:
    """Models and targets by name, and the targets of each target set."""

    models: Mapping[str, Entry] = field(default_factory=dict)
    targets: Mapping[str, Entry] = field(default_factory=dict)
    target_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_registry(bundle: Path) -> BundleRegistry:
    """The registry of a bundle, empty where it has none. BundleError of type `registry_invalid` where it is not one."""
    try:
        text = _read(bundle / REGISTRY)
    except (FileNotFoundError, NotADirectoryError):
        return BundleRegistry()
    except OSError as error:
        raise _invalid(f"can't be read: {error.strerror}") from None
    return parse_registry(text)


def parse_registry(text: bytes) -> BundleRegistry:
    """The registry in a file's content, as `read_registry` has it."""
    try:
        body = yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(f"is not YAML: {error}") from None
    if body is None:
        return BundleRegistry()
    top = _mapping(body, "the file")
    return BundleRegistry(
        models={str(name): _entry(value, f"models.{name}") for name, value in _part(top, "models").items()},
        targets={str(name): _entry(value, f"targets.{name}") for name, value in _part(top, "targets").items()},
        target_sets={
            str(name): _texts(_mapping(value, f"target_sets.{name}"), "targets", f"target_sets.{name}")
            for name, value in _part(top, "target_sets").items()
        },
    )


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _invalid("is not a regular file")
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise _invalid(f"has more than {MAX_BYTES // 1024} KiB")
    return text


def _part(top: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    return _mapping(top.get(key) or {}, key)


def _entry(value: Any, where: str) -> Entry:
    entry = _mapping(value, where)
    entrypoint = entry.get("entrypoint")
    if not isinstance(entrypoint, str):
        raise _invalid(f"has no entrypoint at {where}")
    names = {key: _texts(entry, key, where) for key in ("scenarios", "parameters", "outputs", "data")}
    return Entry(entrypoint, **names)


def _texts(entry: Mapping[Any, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid(f"has no list of names at {where}.{key}")
    return tuple(value)


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"has no mapping at {where}")
    return value


def _invalid(problem: str) -> BundleError:
    return BundleError("registry_invalid", f"the bundle's {REGISTRY} {problem}")
