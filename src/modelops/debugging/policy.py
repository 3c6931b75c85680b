"""A sandbox profile with other limits: what a person may change for one run. Isolation can't be changed here."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from modelops.adapters.exec_env.runner_settings import RunnerSettings

Policy = dict[str, Any]

PHASES = ("execute", "fetch", "build", "compile")  # in the order in which a limit's bare name is looked for
_SIZE = re.compile(r"[0-9]{1,19}\s*(B|KiB|MiB|GiB|TiB)?")
_POWERS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS = ("_bytes", "_seconds")


class PolicyError(ValueError):
    """A profile that can't be read, or a limit that is none."""


def read_policy(settings: RunnerSettings) -> Policy:
    """The profile of the settings as one table, with what it extends. The runner checks it when it is used."""
    folders = [settings.profiles_dir, os.environ.get("SANDBOX_PROFILES_DIR")]
    places = [Path(folder) for folder in [*folders, settings.runner.parent.parent / "sandbox-profiles"] if folder]
    path = _find(settings.profile, places)
    table = _read(path)
    base = table.pop("extends", None)
    return table if base is None else _merge(_read(_find(str(base), [path.parent, *places])), table)


def limits_of(policy: Policy) -> dict[str, Any]:
    """Every limit of a profile by its dotted key, such as `execute.limits.memory_bytes`."""
    return {key: value for key, value in _flat(policy, "") if _is_limit(key)}


def with_limits(policy: Policy, wanted: Iterable[str]) -> Policy:
    """The same policy with limits as `memory=8GiB`, `tmp=1GiB` or `bundle.max_files=5`."""
    for item in wanted:
        name, equals, text = item.partition("=")
        if not equals:
            raise PolicyError(f"{item!r} is not name=value, such as memory=8GiB")
        key = _key_of(name.strip(), policy)
        policy = _merge(policy, _nested(key, _value(key, text.strip(), limits_of(policy)[key])))
    return policy


def scaled(policy: Policy, names: Iterable[str], factor: int) -> Policy:
    """The same policy with these limits of the execute phase times `factor`."""
    limits = policy["execute"]["limits"]
    return _merge(policy, {"execute": {"limits": {name: in_bytes(limits[name]) * factor for name in names}}})


def with_hash_seed(policy: Policy, seed: str) -> Policy:
    """The same policy with another PYTHONHASHSEED for tasks."""
    return _merge(policy, {"execute": {"environment": {"PYTHONHASHSEED": seed}}})


def in_bytes(value: Any) -> Any:
    """A size such as "8GiB" as a number; a number as it is."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    return int(value.removesuffix(found[1] or "").strip()) << 10 * _POWERS.index(found[1] or "B")


def write_policy(policy: Mapping[str, Any], path: Path) -> Path:
    """Write the policy as a profile, which extends no other. It appears complete: runs may begin meanwhile."""
    aside = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    aside.write_text(tomli_w.dumps({key: value for key, value in policy.items() if key != "extends"}), encoding="utf-8")
    os.replace(aside, path)
    return path


def _find(name: str, folders: Iterable[Path]) -> Path:
    is_path = "/" in name or name.endswith(".toml")
    for candidate in [Path(name)] if is_path else [folder / f"{name}.toml" for folder in folders]:
        if candidate.is_file():
            return candidate.absolute()
    raise PolicyError(f"there is no profile {name!r}")


def _read(path: Path) -> Policy:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"the profile {path} can't be read: {error}") from None


def _merge(base: Policy, over: Policy) -> Policy:
    """As the runner merges: tables key by key, any other value replaces the one below."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _flat(table: Policy, prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_limit(key: str) -> bool:
    """Limits are what stands in a phase's `limits`, and the amounts beside them. An environment is none."""
    *tables, name = key.split(".")
    if "environment" in tables:
        return False
    return "limits" in tables or name.endswith(_UNITS) or name.startswith("max_")


def _key_of(name: str, policy: Policy) -> str:
    known = limits_of(policy)
    tails = [name, *(name + unit for unit in _UNITS)]
    for tail in tails:
        parts = tail.split(".")
        spelled = [tail, f"{parts[0]}.limits.{'.'.join(parts[1:])}"]
        spelled += [f"{phase}.{place}{tail}" for phase in PHASES for place in ("limits.", "")]
        for key in spelled:
            if key in known:
                return key
    names = [key.removeprefix("execute.").removeprefix("limits.") for key in known]
    task = ", ".join(key for key in names if "." not in key)
    raise PolicyError(f"the profile has no limit {name!r}; a task has {task}, and others such as build.memory_bytes")


def _value(key: str, text: str, now: Any) -> Any:
    if key.endswith("_bytes"):
        if _SIZE.fullmatch(text):
            return int(text) if text.isdecimal() else text
        raise PolicyError(f"{text!r} is not a size for {key}, such as 512MiB")
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1 << 63:
        raise PolicyError(f"{text!r} is not a number over zero for {key}")
    if number == int(number):
        return int(number)
    if isinstance(now, int) and not key.endswith("_seconds"):
        raise PolicyError(f"{text!r} is not a whole number for {key}")
    return number


def _nested(key: str, value: Any) -> Policy:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
