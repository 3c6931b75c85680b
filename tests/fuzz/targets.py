"""What the runner parses of a hostile sender's, as functions of bytes: they raise the runner's own errors or nothing.

Each target takes the runner's module, an empty folder and the bytes; whatever else it raises is a fault of the
runner, which would answer `internal_error` there. What must hold of an accepted input is asserted.
"""

import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fuzz.plan_words import LINES, LOCK, PROJECT, SETTINGS, VALUES, WORDS

LIMIT = 1 << 16
PROFILES = Path(__file__).resolve().parents[2] / "sandbox-profiles"


def frame(kind: bytes, name: bytes = b"", body: bytes = b"") -> bytes:
    return kind + struct.pack(">IQ", len(name), len(body)) + name + body


@cache
def profile(module: ModuleType, name: str) -> Any:
    return module.load_profile(name, [str(PROFILES)])


class Bytes:
    """Draws from a fuzzer's input; at its end everything is 0."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(2), "big") % below

    def part(self) -> bytes:
        return self.take(self.number(300))

    def left(self) -> bool:
        return self.at < len(self.data)


def feed(module: ModuleType, receiver: Any, data: bytes) -> Any:
    """The result pipe's reader, the stream cut at places that the input chooses; None where it is refused."""
    frames = module.Frames(receiver, LIMIT)
    step = 1 + data[0] if data else 1
    try:
        for start in range(1, len(data), step):
            frames.feed(data[start : start + step])
    except (module.Failure, module.OutputLimit):
        return None
    return frames


def answer_of_a_task(module: ModuleType, folder: Path, data: bytes) -> None:
    """The result pipe of a simulation, an aggregation, and what the line of JSON comes to."""
    outputs = module.Outputs(str(folder), 8, profile(module, "default").caches)
    frames = feed(module, outputs, data)
    outputs.remove_partial()
    line = json.dumps({"outputs": outputs.found}, allow_nan=False).encode()
    assert b"\n" not in line
    for name, entry in outputs.found.items():
        assert "/" not in name and name not in (".", "..")
        assert entry["size"] <= LIMIT and ("inline" in entry) != ("path" in entry)
        if "path" in entry:
            assert Path(entry["path"]).parent == folder and os.path.getsize(entry["path"]) == entry["size"]
    assert not [name for name in os.listdir(folder) if name.startswith(".partial")]
    if frames and frames.error:
        failure = module.reported_failure(frames.error, "execute", "")
        assert failure.type in module.CHILD_ERRORS and not failure.retryable
        assert b"\n" not in json.dumps(failure.as_json({}), allow_nan=False).encode()
    if frames and frames.done is not None:
        aggregation(module, folder, frames.done)


def aggregation(module: ModuleType, folder: Path, data: bytes) -> None:
    """The dict of a target."""
    try:
        result = module.parse_aggregation(data)
    except module.Failure:
        return
    assert type(result["loss"]) is float and "metrics" not in result
    assert b"\n" not in json.dumps(result, allow_nan=False).encode()


def files_of_a_phase(module: ModuleType, folder: Path, data: bytes) -> None:
    """The files and notes of a build or fetch: under our names alone."""
    receiver = module.FileReceiver(str(folder / "files"), 5, ("lock",))
    feed(module, receiver, data)
    assert set(os.listdir(folder / "files")) <= {str(number) for number in range(5)}


def notes_of_a_task(module: ModuleType, folder: Path, data: bytes) -> None:
    """What a task tells of its imports and caches: names of modules, and files below the home's cache folders."""
    limits = profile(module, "default")
    outputs = module.Outputs(None, 0, limits.caches)
    feed(module, outputs, data)
    learned = module.Learned(limits, "key")
    learned.take(outputs.notes.found)
    assert all(part.isidentifier() for name in learned.modules for part in name.split("."))
    for name in learned.files:
        assert os.path.normpath(name) == name and name.startswith(".cache/")


def lock_of_a_resolver(module: ModuleType, folder: Path, data: bytes) -> None:
    """The list of files that uv came to, shaped by an index."""
    try:
        entries = module.read_lock(data, profile(module, "default").dependencies)
    except module.Failure:
        return
    for entry in entries:
        assert entry["url"].startswith("https://") or "links/" in entry["url"]
        file_name = module.kept_name(entry).partition("/")[2]
        try:
            wheel = module.keep_wheel(Shelf(folder), file_name, entry["sha256"])
        except module.Failure:
            continue
        assert os.path.normpath(wheel.path) == wheel.path or not entry["sha256"]


class Shelf:
    """A store's folder, as far as naming a wheel needs one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)


def requirements_of_a_backend(module: ModuleType, folder: Path, data: bytes) -> None:
    """What get_requires_for_build_wheel returned, and the lines of a requirements file."""
    policy = profile(module, "strict").dependencies
    try:
        lines = [str(line) for line in module.parse_lines(data)]
    except module.Failure:
        lines = data.decode("utf-8", "replace").splitlines()
    for line in lines[:20]:
        try:
            requirement = module.parse_requirement(line, policy, "the build backend")
        except module.Failure:
            continue
        written = requirement.line()
        assert "\n" not in written and "${" not in written and not written.startswith("-") and not requirement.url


def wheel(module: ModuleType, folder: Path, data: bytes) -> None:
    """A wheel's zip: either raw, or one made of the input's parts with a RECORD that is right or not."""
    draw = Bytes(data)
    content = data if draw.number(4) == 0 else zip_of(draw)
    path = folder / "probe-1-py3-none-any.whl"
    path.write_bytes(content)
    target = folder / "tree"
    target.mkdir()
    try:
        metadata = module.unpack_wheel(str(path), str(target), "python3.11", LIMIT)
        module.wheel_requires(str(path))
    except module.Failure as failure:
        assert failure.type == "wheel_invalid"
        assert len(str(failure)) < 3000
    else:
        json.dumps(metadata)
    check_tree(folder, {path, target})


def source(module: ModuleType, folder: Path, data: bytes) -> None:
    """An sdist or git archive: a zip or tar of the input's parts, or the input itself."""
    draw = Bytes(data)
    path, target = folder / "archive", folder / "tree"
    path.write_bytes((lambda: data[2:], lambda: zip_of(draw), lambda: tar_of(draw))[draw.number(3)]())
    policy = profile(module, "strict").bundle._replace(max_bytes=LIMIT, max_files=50)
    try:
        module.unpack_source(str(path), str(target), policy)
    except module.Failure as failure:
        assert failure.type == "source_invalid", failure.type
    check_tree(folder, {path, target})


def plan_of_a_bundle(module: ModuleType, folder: Path, data: bytes) -> None:
    """Every file that a plan is made of: there is a plan, or one sentence that says why there is none."""
    draw, tree = Bytes(data), folder / "tree"
    for path in ("libs/foo", "libs/six", "wheels"):
        (tree / path).mkdir(parents=True)
    (tree / "link").symlink_to("libs/foo")
    (tree / "wheels/six-1.0-py3-none-any.whl").touch()
    own = [f"tool.uv.{line}" for line in SETTINGS]
    toml_file(draw, tree / "pyproject.toml", ['project.name = "mywire"', *PROJECT, *own])
    toml_file(draw, tree / "libs/foo/pyproject.toml", ['project.name = "foo"', *PROJECT, *own])
    (tree / "libs/six/setup.py").touch()
    for name in ("requirements.txt", "setup.cfg", "x.txt"):
        text_file(draw, tree / name)
    for name, lines in (("uv.toml", SETTINGS), ("pylock.toml", LOCK), ("uv.lock", LOCK)):
        toml_file(draw, tree / name, lines)
    try:
        check_plan(module, read_all_of_it(module, str(tree), draw))
    except module.Failure as failure:
        assert failure.phase == "bundle" and failure.type in REFUSALS, failure.type
        assert 0 < len(str(failure)) < 3000


REFUSALS = ("pyproject_invalid", "dependency_refused", "dependency_conflict", "unsafe_file")


def read_all_of_it(module: ModuleType, tree: str, draw: Bytes) -> Any:
    policy, settings = (
        profile(module, ("default", "strict")[draw.number(8) == 7]).dependencies,
        module.index_settings({}),
    )
    plan = module.read_plan(tree, policy, settings)
    if plan.lock == "pylock.toml":
        table = module.read_bundle_toml(tree, plan.lock)
        module.read_pylock(table, plan.lock, module.Draft(tree, policy, settings), {"python_version": "3.11"})
    return plan


def check_plan(module: ModuleType, plan: Any) -> None:
    """What a resolver would be told is what it can't take for anything else."""
    json.dumps([plan.as_json(), plan.lines()], allow_nan=False)
    for item in (*plan.requirements, *plan.project.requires, *plan.project.build_requires, *plan.rules.overrides):
        line = item.line()
        assert not line.startswith("-") and not any(word in line for word in ("\n", "\0", "${", "../")), line
    for origin in (origin for found in plan.origins.values() for origin in found):
        assert origin.target.startswith(("file:", "https://", "git+https://", "index:", "links:")), origin
        assert not (origin.path or "").startswith(("/", "..")), origin


def toml_file(draw: Bytes, path: Path, lines: Sequence[str]) -> None:
    """Lines of TOML, each key once, with any values in them; now and then none, or anything."""
    found: dict[str, str] = {}
    for _ in range(draw.number(10)):
        line = filled(draw, lines[0 if draw.number(6) == 5 else draw.number(len(lines))], toml_value)
        found.setdefault(line.partition(" = ")[0], line)
    write_drawn(draw, path, "\n".join(found.values()))


def text_file(draw: Bytes, path: Path) -> None:
    lines = [
        filled(draw, LINES[draw.number(len(LINES))], lambda draw: WORDS[draw.number(len(WORDS))])
        for _ in range(draw.number(6))
    ]
    write_drawn(draw, path, "\n".join(lines))


def write_drawn(draw: Bytes, path: Path, text: str) -> None:
    choice = draw.number(12)
    if choice and text:
        path.write_bytes(draw.part() if choice == 1 else text.encode("utf-8", "replace"))


def toml_value(draw: Bytes) -> str:
    choice = draw.number(40)
    if choice == 0:
        return VALUES[draw.number(len(VALUES))]
    text = draw.part().decode("utf-8", "replace")[:60] if choice == 1 else WORDS[draw.number(len(WORDS))]
    return json.dumps(text)


def filled(draw: Bytes, line: str, value: Callable[[Bytes], str]) -> str:
    return line.format(*(value(draw) for _ in range(line.replace("{{", "").count("{"))))


def planted(module: ModuleType, folder: Path, data: bytes) -> None:
    """A fault behind three comparisons, to show that the fuzzer finds one."""
    if data[:1] == b"E" and data[1:2] == b"\x7f" and len(data) > 5:
        raise IndexError("planted")


def check_tree(folder: Path, allowed: set[Path]) -> None:
    """Nothing beside the tree; in it folders and plain files alone, of no more bytes than allowed."""
    assert set(folder.iterdir()) <= allowed
    size = 0
    for top, _, names in os.walk(folder / "tree"):
        for name in names:
            status = os.lstat(os.path.join(top, name))
            assert stat.S_ISREG(status.st_mode) and not status.st_mode & 0o7022
            size += status.st_size
    assert size <= 2 * LIMIT


NAMES = (
    "probe-1.dist-info/RECORD", "probe-1.dist-info/METADATA", "probe-1.dist-info/WHEEL",
    "probe-1.dist-info/entry_points.txt", "probe.py", "../x", "/abs", "a/b.py", "a", "probe-1.data/scripts/run",
    "probe-1.data/data/bin/python", "probe-1.data/purelib/p.py", "probe-1.dist-info/RECORD.jws", "x\\y",
)  # fmt: skip


# Found: zipfile raises IndexError for a member without a name.
NAMELESS_MEMBER = b"\0\1\0\4" + b"C" * 127 + b"\0\0\0\0\0\0\0\x0f*"


def zip_of(draw: Bytes) -> bytes:
    import base64
    import hashlib

    files: dict[str, bytes] = {}
    while draw.left() and len(files) < 20:
        choice = draw.number(len(NAMES) + 1)
        name = NAMES[choice] if choice < len(NAMES) else draw.part().decode("utf-8", "replace")
        files[name] = draw.part() * (1 + 200 * (draw.number(8) == 7))
    if draw.data[-1:] != b"\x00":  # most often the RECORD is right, or nothing behind it would be reached
        rows = [
            f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()},{len(body)}"
            for name, body in files.items()
        ]
        files.setdefault("probe-1.dist-info/METADATA", b"Name: probe\nRequires-Dist: six\n")
        files["probe-1.dist-info/RECORD"] = "\n".join(rows).encode("utf-8", "replace")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)[len(body) % 3]
            info.external_attr = (len(body) * 7919) << 16 & 0xFFFF_FFFF
            archive.writestr(info, body)
    return spoiled(packed.getvalue(), draw)


def tar_of(draw: Bytes) -> bytes:
    import tarfile

    packed = io.BytesIO()
    mode = ("w", "w:gz", "w:bz2", "w:xz")[draw.number(4)]
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for _ in range(20):
            if not draw.left():
                break
            choice = draw.number(len(NAMES) + 1)
            info = tarfile.TarInfo(NAMES[choice] if choice < len(NAMES) else draw.part().decode("utf-8", "replace"))
            info.type = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)[
                draw.number(5)
            ]
            info.linkname, info.mode = "/etc/passwd", draw.number(0o10000)
            body = draw.part()
            info.size = len(body) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(body))
    return spoiled(packed.getvalue(), draw)


def spoiled(data: bytes, draw: Bytes) -> bytes:
    """The same with a few bytes changed, where the input says so."""
    changed = bytearray(data)
    for _ in range(draw.number(4)):
        changed[draw.number(len(changed))] = draw.number(256)
    return bytes(changed)


def seeds(target: Callable[..., None]) -> list[bytes]:
    """Inputs from which the fuzzer starts: one of each shape that the reader knows."""
    report = {"type": "task_exception", "exception": {"type": "E", "message": "m"}, "traceback": "t"}
    streams = [
        b"\x07" + frame(b"S") + frame(b"O", b"a", b"12345678901") + frame(b"D"),
        b"\xff" + frame(b"O", b"0", b"x") + frame(b"N", b"lock", b"[]") + frame(b"D", b"", b'{"loss": 1.5}'),
        b"\x20" + frame(b"O", b"lib/a.py", b"code") + frame(b"O", b"lib/b/c.py", b"code") + frame(b"D"),
        b"\x01" + frame(b"E", b"", json.dumps(report).encode()),
    ]
    locked = {"name": "six", "version": "1", "url": "https://x.example/six-1-py3-none-any.whl", "sha256": "a" * 64}
    requirements = ["six", 'six>=1; python_version < "4"', "a[b] @ https://x.example/a.whl", "-r x", "${A}"]
    parts = bytes(range(256)) * 4
    return {
        "aggregation": [b'{"loss": 1, "diagnostics": {"a": [1e308, null]}}', b'{"loss": NaN}', b'{"loss": 1e999}'],
        "lock_of_a_resolver": [json.dumps([locked]).encode(), json.dumps([{**locked, "url": "links/x"}]).encode()],
        "requirements_of_a_backend": [json.dumps(requirements).encode(), "\n".join(requirements).encode()],
        "plan_of_a_bundle": [
            bytes(range(256)) * 8,
            b"\0\3\0\1" * 500,
            b"".join(n.to_bytes(2, "big") for n in range(900)),
        ],
        "wheel": [parts, b"\0\1\0\4\0\x0aprint('hi')", b"\0\1" + parts, NAMELESS_MEMBER],
        "source": [b"\0\1" + parts, b"\0\2" + parts, b"\0\0" + tar_of(Bytes(parts)), b"\0\0" + zip_of(Bytes(parts))],
    }.get(target.__name__, streams)


TARGETS = {
    target.__name__: target
    for target in (
        answer_of_a_task, aggregation, files_of_a_phase, notes_of_a_task, lock_of_a_resolver, requirements_of_a_backend,
        wheel, source, plan_of_a_bundle, planted,
    )
}  # fmt: skip
