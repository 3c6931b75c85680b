"""What an output is, by its first bytes; whether it can be read is another matter."""

import json
from pathlib import Path
from typing import NamedTuple

from .workbench import Output

_HEAD = 1 << 16


class Kind(NamedTuple):
    """`name` for people, `suffix` for a file."""

    name: str
    suffix: str


ARROW, STREAM = Kind("Arrow", ".arrow"), Kind("Arrow stream", ".arrows")
PARQUET, JSON, TEXT, BINARY = (
    Kind("Parquet", ".parquet"),
    Kind("JSON", ".json"),
    Kind("text", ".txt"),
    Kind("binary", ".bin"),
)
TABLES = (ARROW, STREAM, PARQUET)


def kind_of(output: Output) -> Kind:
    """The kind of an output."""
    if isinstance(output.content, Path):
        with output.content.open("rb") as file:
            head = file.read(_HEAD)
    else:
        head = output.content[:_HEAD]
    for start, kind in ((b"ARROW1", ARROW), (b"\xff\xff\xff\xff", STREAM), (b"PAR1", PARQUET)):
        if head.startswith(start):
            return kind
    if b"\0" in head:
        return BINARY
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a character that the head cuts is none to blame
            return BINARY
    if output.size > len(head):  # what begins so is most often JSON
        return JSON if head.lstrip()[:1] in (b"{", b"[", b'"') else TEXT
    return JSON if _is_json(head) else TEXT


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
