"""What the files of a bundle are, read as data: kinds, and what is unusual among them."""

import base64
import binascii
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from modelops.review.facts import FILES, Facts

READ_BYTES = 8 << 20  # of a file; text beyond is not looked at
HUGE_BYTES = 64 << 20
LINE_CHARS = 5_000  # a line of code over this is not written by hand
ENTROPY_BITS = 5.2  # of a character; source text has 4 to 5, base64 6
ENCODED = re.compile(rb"[A-Za-z0-9+/]{120,}={0,2}|[A-Za-z0-9_-]{120,}={0,2}")
CODE = re.compile(
    rb"\b(import |exec\(|eval\(|def |lambda|__import__|subprocess|socket|os\.system)|#!|https?://|PK\x03\x04|\x7fELF"
)
HOST = re.compile(rb"\bgethostname\s*\(|\bplatform\.node\s*\(|/etc/hostname|\buname\s*\(\)\s*(\.nodename|\[1\])")
SOURCE = (".py", ".pyi", ".pyx", ".r", ".jl", ".c", ".cc", ".cpp", ".h", ".hpp", ".f90", ".rs", ".sh", ".toml", ".cfg")
MAGICS = (
    (b"\x7fELF", "native code"), (b"MZ", "native code (Windows)"), (b"\xcf\xfa\xed\xfe", "native code (macOS)"),
    (b"PK\x03\x04", "archive"), (b"\x1f\x8b", "archive"), (b"BZh", "archive"), (b"\xfd7zXZ\x00", "archive"),
    (b"7z\xbc\xaf\x27\x1c", "archive"), (b"\x28\xb5\x2f\xfd", "archive"), (b"#!", "script"),
    (b"ARROW1", "Arrow"), (b"PAR1", "Parquet"), (b"\x89PNG", "image"), (b"\x93NUMPY", "array"),
    (b"SQLite format 3", "SQLite"),
)  # fmt: skip


def read_identity(facts: Facts, bundle: Path) -> None:
    """Facts about each unusual file below `bundle`, and how many files and bytes of each kind there are."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for path, name in files_of(bundle):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            count["link"] += 1
            facts.add("unusual_file", "bundle", FILES, {"path": name, "what": f"link to {os.readlink(path)}"})
            continue
        head = beginning(path)
        kind = kind_of(name, head)
        count[kind] += 1
        size[kind] += status.st_size
        for what in unusual(name, head, kind, status):
            facts.add("unusual_file", "bundle", FILES, {"path": name, "what": what})
    for kind in sorted(count):
        facts.add("files", "bundle", FILES, {"of": kind, "files": count[kind], "bytes": size[kind]})


def files_of(top: Path) -> Iterator[tuple[Path, str]]:
    """Every file and link below, in a fixed order, with its name relative to `top`; links are not followed."""
    for folder, subfolders, names in os.walk(top):
        subfolders.sort()
        linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *linked]):
            path = Path(folder, name)
            yield path, str(path.relative_to(top))


def beginning(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(READ_BYTES)


def kind_of(name: str, head: bytes) -> str:
    """What a file is, by its first bytes, else by its ending."""
    for magic, kind in MAGICS:
        if head.startswith(magic):
            return kind
    if b"\0" in head[:4096]:
        return "binary data"
    suffix = os.path.splitext(name)[1].lower()
    return "source text" if suffix in SOURCE else f"text{' (' + suffix + ')' if suffix else ''}"


def unusual(name: str, head: bytes, kind: str, status: os.stat_result) -> Iterator[str]:
    """What a reviewer would stop at, a phrase each."""
    base = os.path.basename(name)
    if kind.startswith("native code") or kind == "archive":
        yield kind
    if status.st_mode & 0o111 and kind not in ("script",) and not kind.startswith("native code"):
        yield "executable"
    if any(part.startswith(".") for part in name.split("/")) and base not in (".gitignore", ".gitattributes", ".keep"):
        yield "hidden"
    if status.st_size > HUGE_BYTES:
        yield f"huge: {status.st_size} bytes"
    if not name.isprintable():
        yield "a name with characters that do not print"
    if name.endswith(".pth"):
        yield "runs at every start of Python, where it is installed"
    if kind == "source text" or kind == "script":
        yield from packed(name, head)


def packed(name: str, head: bytes) -> Iterator[str]:
    """Signs that text is not what a person wrote: lines without end, too many different characters, hidden code."""
    longest = max((len(line) for line in head.split(b"\n")), default=0)
    if longest > LINE_CHARS:
        yield f"a line of {longest} characters"
    if len(head) > 2000 and entropy(head) > ENTROPY_BITS:
        yield f"looks packed: {entropy(head):.1f} bits a character"
    host = HOST.search(head)
    if host:
        yield f"line {line_of(head, host.start())}: asks for the host's name"
    for match in ENCODED.finditer(head):
        hidden = decoded(match[0])
        found = CODE.search(hidden) if hidden else None
        if found:
            line = line_of(head, match.start())
            shown = hidden[max(0, found.start() - 20) : found.start() + 80]
            yield f"line {line}: base64 that decodes to code or a URL: {shown.decode('utf-8', 'backslashreplace')}"


def line_of(text: bytes, at: int) -> int:
    return text.count(b"\n", 0, at) + 1


def decoded(text: bytes) -> bytes:
    """What a run of base64 stands for, also where it is compressed; empty where it is none."""
    import zlib

    try:
        plain = base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
    try:
        return zlib.decompressobj(47).decompress(plain, 1 << 20)
    except zlib.error:
        return plain


def entropy(data: bytes) -> float:
    """Shannon's, in bits a byte."""
    return -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())
