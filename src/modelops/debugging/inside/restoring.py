"""Values with their old content: copied before, and put back in place, so that all who hold them see it."""

import contextvars
import copy
import threading
import types
from collections import deque
from typing import Any

from .values import (
    CODE,
    IN_MEMORY,
    MISSING,
    SCALARS,
    attribute_of,
    in_context,
    is_plain,
    is_read,
    pickles_itself,
    slots_of,
)


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
        if isinstance(value, IN_MEMORY):
            return value.getvalue(), value.tell()
        if is_read(value):
            return value.tell()
        if isinstance(value, threading.local):
            return types.SimpleNamespace(**copied(vars(value), others))
        if is_plain(kind := type(value)) and (pickles_itself(kind) or hasattr(kind, "__deepcopy__")):
            names = [*(attribute_of(value, "__dict__") or ()), *slots_of(kind)]
            held = {name: part for name in names if (part := getattr(value, name, MISSING)) is not MISSING}
            return types.SimpleNamespace(**{name: copied_or_same(part, others) for name, part in held.items()})
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
    elif isinstance(value, IN_MEMORY):
        value.seek(0)
        value.truncate()
        value.write(content[0])
        value.seek(content[1])
    elif is_read(value):
        value.seek(content)
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
    elif pickles_itself(type(value)) and not is_plain(type(value)):
        return False
    elif isinstance(own := attribute_of(value, "__dict__"), dict) or slots_of(type(value)):
        slots = slots_of(type(value))
        if isinstance(own, dict):
            own.clear()
            own.update({name: part for name, part in vars(content).items() if name not in slots})
        for name in slots:
            if (part := getattr(content, name, MISSING)) is not MISSING:
                object.__setattr__(value, name, part)
    else:
        return False
    return True
