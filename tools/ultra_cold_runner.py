#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["psutil"]
# ///
"""Run one task of one untrusted Python bundle in a fresh sandbox and print one line of JSON.

    python ultra_cold_runner.py --bundle-path DIR [--aggregation] [--profile NAME] < task.json

The file has two parts. What stands above `END_OF_CHILD` runs inside the sandbox: it is copied from here, alone, for
each of them. What stands below it runs on the host and is the security boundary; it believes nothing that comes out of
a sandbox. No sandbox has a writable path on the host: wheels, bytecode and outputs come back as frames on a pipe.

The sections, in the order of the data's way, and what each may touch:

    inside    execute, learn, serve, build,      what its sandbox shows it; a function a phase
              compile, fetch
    host      profiles                           the caller's TOML; all policy is there
              request                            standard input
              requirements, markers, bundle,     the attacker's files, as data: copied without following links,
              plan, a project, locks             parsed, never run
              host                               interpreters, tools, a uid of the run's own
              store                              the one folder that is written, entry by entry, by rename
              wheels                             unpacks into the store; names, sizes and digests checked
              seccomp, sandbox                   nothing: from profile and paths to filters and bwrap's arguments
              cgroup, watching, supervision      starts one sandbox, limits it, reads its frames, ends all of it
              what an outcome means, hints       nothing: from how it ended to words
              phases: fetch, build, install,     each turns what one sandbox gave into what the next one is given
              execute
              the run, serve, commands, main     the order of all this; the one line on standard output

How is network kept out?                    bwrap_arguments (--unshare-net), check_profile: fetch alone may have it
What of the host can be read?               system_mounts and write_etc, from the profile's read_only
What can be written?                        file_systems: a private /tmp and /dev/shm, with a size
Who limits it, and from when on?            Supervisor.confine and Cgroup, before its first instruction
What can a task change that outlives it?    nothing; between tasks of --serve: end_others, lay_out, sandbox_state
What ends it?                               Supervisor.end and Cgroup.kill; --die-with-parent where the runner is killed
What is believed of what comes back?        Frames, Receiver and parse_child_error; checksums are made on this side
Who sees credentials?                       index_settings, for the fetch sandbox; redact takes them out of errors
Whose package is it?                        Plan.origins, Resolver.own_places: a name of the bundle is asked of nobody
"""

import builtins
import importlib
import marshal
import os
import sys

TYPE_CHECKING = False  # as typing has it, without the time that importing typing takes
if TYPE_CHECKING:
    from typing import Any

# ----------------------------------------------------------------------------------------------------
# Part one: inside the sandbox. Standard library only; imports what costs time where it is needed.
# ----------------------------------------------------------------------------------------------------

# A frame on the result pipe: kind (1 byte), length of name (4), length of body (8), name, body.
OUTPUT, ERROR, NOTE, STARTED, DONE = b"O", b"E", b"N", b"S", b"D"
HEADER_BYTES = 13
TEXT_CAP = 64 * 1024  # bytes of a message or traceback that a child reports
BUNDLE, VENV, TREE, SOURCE, TOOLS, CHILD = "/bundle", "/venv", "/tree", "/source", "/tools", "/runner/child"
BUILD_TREE = "/tmp/source"  # where a source is built, a copy of /source
INSTRUMENT = "/runner/instrument"
SHADOW = "/tmp/bundle"  # see Shadow
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"


class ChildError(Exception):
    """A failure that the child itself names; `type` is one of the contract's error types."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class ResultPipe:
    """The only way out of a sandbox. Writes whole frames, from any thread."""

    def __init__(self, fd: int) -> None:
        import _thread

        self.fd = fd
        self.lock = _thread.allocate_lock()
        self.before_done: Any = None

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        if kind == DONE and self.before_done:
            self.before_done()
        with self.lock:
            self.begin(kind, name, len(body))
            write_all(self.fd, body)

    def begin(self, kind: bytes, name: str, size: int) -> None:
        label = name.encode("utf-8", "surrogatepass")
        write_all(self.fd, kind + len(label).to_bytes(4, "big") + size.to_bytes(8, "big") + label)

    def send_file(self, name: str, path: str) -> None:
        import stat

        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file, self.lock:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ChildError("bad_result", path + " is not a regular file")
            size = os.fstat(fd).st_size
            self.begin(OUTPUT, name, size)
            while size > 0:
                chunk = file.read(min(size, 1 << 20))
                if not chunk:
                    raise ChildError("bad_result", path + " shrank while it was read")
                write_all(self.fd, chunk)
                size -= len(chunk)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def child_main() -> None:
    """Read the request from descriptor 0, do the phase's work, report, leave.

    The request is written by the host with marshal, so there is no import to pay for. Where the interpreter is a
    venv's, .pth files have run: code of the bundle, under all the limits, which the host has set from outside.
    """
    sys.path[:] = [entry for entry in sys.path if entry != "/runner"]
    del sys.argv[1:]  # whoever parses a command line finds an empty one
    request = marshal.loads(b"".join(read_chunks(0)))
    pipe = ResultPipe(request["result_fd"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd in (pipe.fd, request["stacks_fd"], *request["descriptors"].values()):
        os.set_inheritable(fd, False)
    tell_stacks(request["stacks_fd"])
    pipe.send(STARTED)
    work_and_leave(pipe, lambda: PHASES[request["phase"]](request, pipe))


def work_and_leave(pipe: ResultPipe, work: "Any") -> None:
    """Report what the work raises, and end this process: no atexit handlers, no waiting for threads."""
    try:
        work()
    except BaseException as error:
        close_others([pipe.fd])  # the work is over, and may have used up the descriptors
        report_exception(pipe, error)
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(0)


STACKS_SIGNAL = 60  # a real-time signal, which no library takes for its own


def tell_stacks(fd: int) -> None:
    """Write the stacks of all threads to a pipe of their own when a signal ends this process, or the host asks."""
    import faulthandler

    faulthandler.enable(fd, all_threads=True)
    faulthandler.register(STACKS_SIGNAL, fd, all_threads=True)


def read_chunks(fd: int) -> "Iterator[bytes]":
    return iter(lambda: os.read(fd, 1 << 20), b"")


def close_others(kept: "list[int]") -> None:
    """Close every descriptor above 2 but `kept`."""
    last = 2
    for fd in [*sorted(kept), 65536]:
        os.closerange(last + 1, fd)
        last = fd


def set_rlimits(limits: "dict[str, Any]", pid: int = 0) -> None:
    """Set hard limits on the calling process, or on another; where the host is stricter, it stays so.

    That of processor time is a second over the soft one, whose signal says what it was (setrlimit(2)).
    """
    import resource

    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.prlimit(pid, number)[1]
        most = value + (name == "RLIMIT_CPU")
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, number, (min(value, most), most))


def report_exception(pipe: ResultPipe, error: BaseException) -> None:
    import json
    import traceback

    try:
        message = str(error)
    except BaseException:
        message = "<the exception's __str__ raised>"
    if isinstance(error, ChildError):
        kind = error.type
    elif isinstance(error, MemoryError):
        kind = "memory_limit"
    else:
        kind = "task_exception"
    causes: list[Any] = []
    try:
        causes = [describe_cause(cause) for cause in chain_of(error, True)]
        left_out = sum(cut_traceback(cause) for cause in chain_of(error, False))
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        text += "[of the frames above, " + str(left_out) + " in the middle were left out]\n" if left_out else ""
    except BaseException:
        text = "<the traceback could not be formatted>"
    body = {
        "type": kind,
        "exception": {"type": str(type(error).__name__)[:256], "message": clip(message)},
        "traceback": clip(text),
        "causes": causes,
    }
    pipe.send(ERROR, "", json.dumps(body).encode("utf-8", "replace"))


def chain_of(error: BaseException, hidden: bool, limit: int = 10) -> "list[Any]":
    """The exception and those that it came from, as a traceback tells them, or with those that `from None` hides too.

    A longer chain is cut.
    """
    chain: list[Any] = []
    link: Any = error
    while link is not None and link not in chain:
        if len(chain) == limit:
            chain[-1].__cause__ = chain[-1].__context__ = None
            break
        chain.append(link)
        group = isinstance(link, getattr(builtins, "BaseExceptionGroup", ()))  # from Python 3.11 on
        held = (*link.args[:1], *(link.exceptions if group else ()))
        inner = [value for value in held if isinstance(value, BaseException)]  # a group's, or a library's own way
        context = link.__context__ if hidden or not link.__suppress_context__ else None
        link = next((cause for cause in (link.__cause__, context, *inner) if cause is not None), None)
    return chain


def describe_cause(error: "Any") -> "dict[str, Any]":
    """What the host needs to say whether the sandbox was the cause."""
    import re
    import traceback

    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    code, held = (last.tb_frame.f_code, last.tb_frame.f_locals) if last is not None else (None, {})
    names = [kind.__module__ + "." + kind.__qualname__ for kind in type(error).__mro__]
    found = getattr(error, "filename", None) or (held.get("file") if code and code.co_name == "_execvpe" else None)
    line = "".join(frame.line or "" for frame in traceback.extract_tb(last))
    call = re.search(r"\b(exec[lv]e?|posix_spawnp?|sqlite3\.connect)\(\s*(?:f?(['\"])(.+?)\2|(\w+))", line)
    if call and not found:  # Python's word for it has no name: the first argument, where the line has it
        found = call[3] or {**last.tb_frame.f_globals, **held}.get(call[4])
    spawned = None if call or found else spawned_program(last, str(error))
    found = spawned or (str(found) if isinstance(found, os.PathLike) else found)
    place = os.path.basename(code.co_filename) + ":" + code.co_name if code else ""
    return {
        "types": [str(name)[:256] for name in names[:12]],
        "message": str(error)[:4096],
        "errno": error.errno if isinstance(getattr(error, "errno", None), int) else 0,
        "filename": os.fsdecode(found)[:4096] if isinstance(found, (str, bytes)) else "",
        "module": str(error.name)[:256] if isinstance(error, ImportError) else "",
        "status": error.returncode if isinstance(getattr(error, "returncode", None), int) else 0,
        "raised_in": "spawn" if spawned else call[1] if call else place,
        "no_folder": held.get("child_exec_never_called") is True,
    }


def spawned_program(last: "Any", message: str) -> str:
    """os.spawn* leaves but a status, 127: the program that the function which raised wanted, where it is not there and
    the exception speaks of that program or status."""
    import linecache
    import re
    import shutil

    if last is None:
        return ""
    code = last.tb_frame.f_code
    source = "".join(linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : last.tb_lineno])
    wanted = re.findall(r"\bspawn[lv]p?e?\(\s*[\w.]+,\s*(?:f?(['\"])(.+?)\1|(\w+))", source)
    path = wanted[-1][1] or {**last.tb_frame.f_globals, **last.tb_frame.f_locals}.get(wanted[-1][2]) if wanted else ""
    if not isinstance(path, str) or not path or shutil.which(path):
        return ""
    said = r"(?<!\w)(?:-?127|32512|" + re.escape(os.path.basename(path)) + r")(?!\w)"
    return path if re.search(said, message) else ""


ENDS = 100  # frames at either end of a traceback that are told
CUT: "list[Any]" = []  # what was cut off: to free it frame by frame takes longer than all the rest


def cut_traceback(error: "Any") -> int:
    """Take the middle out of a long traceback, as that of a recursion is. Returns how many frames it had."""
    count = 0
    front = behind = walk = error.__traceback__
    while walk is not None:
        count += 1
        front = walk if count == ENDS else front
        behind = behind.tb_next if count > ENDS else behind
        walk = walk.tb_next
    if count <= 2 * ENDS:
        return 0
    CUT.append(front.tb_next)
    front.tb_next = behind
    return count - 2 * ENDS


def clip(text: str) -> str:
    """Both ends of a text that may be far too long: the first line and the last frames matter."""
    if len(text) <= TEXT_CAP:
        return text
    half = TEXT_CAP // 2
    return text[:half] + "\n[... " + str(len(text) - TEXT_CAP) + " characters left out ...]\n" + text[-half:]


def load_object(reference: str) -> "Any":
    """Import `package.module:attribute.path`; extras after the reference are ignored, as PEP 621 says."""
    module_name, _, path = reference.partition("[")[0].strip().partition(":")
    found = importlib.import_module(module_name.strip())
    for part in filter(None, path.strip().split(".")):
        found = getattr(found, part)
    return found


# --- execute: one simulation or one aggregation


def execute(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    caches = Caches(request["caches"], request["cached"])
    caches.put()
    enter_bundle()
    enter_working_directory(request["shadow"])
    known = len(sys.modules)
    pipe.before_done = lambda: tell_learned(pipe, caches, known)
    run_task_code(request, pipe)


def enter_bundle() -> None:
    sys.path.insert(0, BUNDLE)
    importlib.invalidate_caches()


def enter_working_directory(limit: int) -> None:
    """Go where a task runs: into the bundle itself where `limit` is 0, else into a new shadow of it."""
    os.chdir(BUNDLE)
    if limit:
        Shadow(limit).make()
        enter_place()


class Shadow:
    """The bundle's folders as folders of the tmpfs, and its files as links to the read-only ones.

    Links of the bundle stay as they are, and lead to the shadow's own. Where the bundle has more than `limit`
    entries only its top level is mirrored, and the folders in it are links too. With a limit of 0 there is none.
    """

    def __init__(self, limit: int) -> None:
        self.folders, self.links = ([""] if limit else []), []  # type: list[str], list[tuple[str, str]]
        entries: list[tuple[str, bool, bool]] = []
        for folder in self.folders:  # which grows meanwhile
            for entry in os.scandir(BUNDLE + folder):
                path = folder + "/" + entry.name
                entries.append((path, entry.is_symlink(), entry.is_dir(follow_symlinks=False)))
                if entries[-1][2]:
                    self.folders.append(path)
            if len(entries) > limit:
                entries = [(path, link, False) for path, link, _ in entries if path.count("/") == 1]
                self.folders = [""]
                break
        for path, is_link, is_folder in entries:
            if not is_folder:
                self.links.append((os.readlink(BUNDLE + path) if is_link else BUNDLE + path, SHADOW + path))

    def make(self, mode: int = 0o755) -> None:
        """Make it anew, with this mode of its folders."""
        for folder in self.folders:
            os.mkdir(SHADOW + folder)
        for target, path in self.links:
            os.symlink(target, path)
        for folder in self.folders:
            os.chmod(SHADOW + folder, mode)


def run_task_code(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    if "target_entrypoint" in request["task"]:
        aggregate(request["task"], pipe)
    else:
        simulate(request["task"], request["wire"], pipe)


def simulate(task: "dict[str, Any]", wire: str, pipe: ResultPipe) -> None:
    require_module(task["entrypoint"])
    from collections.abc import Mapping

    function = load_entry_point(wire, "the entry point")
    try:
        outputs = function(task["entrypoint"], task["params"], task["seed"])
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        raise TypeError(str(error) + "; it is called as wire(entrypoint, params, seed)") from None
    if not isinstance(outputs, Mapping):  # a data frame has items, too
        raise ChildError("bad_result", "the wire function must return a dict of bytes, not " + type_name(outputs))
    for name, value in outputs.items():
        if not isinstance(name, str):
            raise ChildError("bad_result", "output names must be str, not " + type_name(name))
        pipe.send(OUTPUT, name, to_bytes(name, value))
    pipe.send(DONE)


def load_entry_point(reference: str, what: str, fits: "Any" = callable) -> "Any":
    """A wire function or a target. What is wrong with the entry point itself is told of it, and not of its module."""
    module = reference.partition("[")[0].partition(":")[0].strip()
    try:
        found = load_object(reference)
    except ModuleNotFoundError as error:
        if not error.name or not (module + ".").startswith(error.name + "."):
            raise
        cause: Any = error
    except AttributeError as error:
        below: Any = error.__traceback__
        if below.tb_next.tb_next is not None:  # raised below load_object
            raise
        cause = error
    else:
        if fits(found):
            return found
        cause = TypeError("that is a " + type_name(found) + ", and no function; write module:function")
    raise ChildError("entrypoint_not_found", what + " " + repr(reference) + ": " + str(cause)) from cause


def type_name(value: "Any") -> str:
    return type(value).__name__


def require_module(entrypoint: str) -> None:
    """Fail early where an entry point in object form (`module:object`) names no module."""
    module_name, colon, _ = entrypoint.partition(":")
    if not colon or not all(part.isidentifier() for part in module_name.split(".")):
        return
    from importlib.util import find_spec

    try:
        found = find_spec(module_name)
    except ModuleNotFoundError:
        found = None
    except ValueError:  # a module without a spec is there all the same
        return
    if found is None:
        text = (
            "the entry point names the module " + repr(module_name) + ", which the bundle's environment does not have"
        )
        raise ChildError("entrypoint_not_found", text)


def to_bytes(name: str, value: "Any") -> bytes:
    """A value as people mean it: bytes, text, a data frame as an Arrow IPC file, an array as .npy, the rest as JSON.

    No library is imported for a value that is none of its own.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    import json

    problem: Any = None
    kinds = [kind.__module__.partition(".")[0] + "." + kind.__name__ for kind in type(value).__mro__]
    known = next((kind for kind in kinds if kind in WRITERS or kind in WRITE_INSTEAD), "")
    try:
        if isinstance(value, str):
            return value.encode()
        if known in WRITERS:
            return bytes(WRITERS[known](value))
        if not known:
            return json.dumps(value, allow_nan=False, default=plain).encode()
    except (TypeError, ValueError, RecursionError, ImportError) as error:
        problem = error
    except Exception as error:  # the library's own kinds
        if known not in WRITERS:
            raise
        problem = error
    text = "output " + repr(name) + " is " + type_name(value) + ", neither bytes nor JSON"
    if problem is not None:
        text += ": " + (type_name(problem) + ": " if known else "") + str(problem)
        text += next((hint for start, hint in JSON_REMEDIES.items() if str(problem).startswith(start)), "")
    if known in WRITE_INSTEAD:
        text += "; return " + WRITE_INSTEAD[known]
    raise ChildError("bad_result", text)


def written_by(write: "Any") -> bytes:
    """What a library's function writes to a file."""
    import io

    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def arrow_of_polars(frame: "Any") -> bytes:
    return written_by(frame.write_ipc)


def arrow_of_pyarrow(table: "Any") -> bytes:
    """An IPC file, which is what published wire functions write, rather than a stream."""
    pyarrow = importlib.import_module("pyarrow")
    for number, column in enumerate(table.columns):
        if hasattr(column.type, "index_type") and column.null_count:  # pandas puts -1 there, which polars can't read
            again = column.cast(column.type.value_type).dictionary_encode()
            table = table.set_column(number, table.schema.field(number).name, again)

    def write(buffer: "Any") -> None:
        with pyarrow.ipc.new_file(buffer, table.schema) as writer:
            writer.write(table)

    return written_by(write)


def arrow_of_pandas(frame: "Any") -> bytes:
    """By pyarrow, else by polars. An index that is more than a count from 0 becomes columns."""
    index = frame.index
    if type_name(index) != "RangeIndex" or index.start != 0 or index.step != 1 or index.name is not None:
        frame = frame.reset_index()
    try:
        return arrow_of_pyarrow(importlib.import_module("pyarrow").Table.from_pandas(frame, preserve_index=False))
    except ModuleNotFoundError:
        polars = importlib.import_module("polars")
    return arrow_of_polars(polars.DataFrame({str(name): column.tolist() for name, column in frame.items()}))


def npy_of(array: "Any") -> bytes:
    numpy = importlib.import_module("numpy")
    return written_by(lambda buffer: numpy.save(buffer, numpy.asarray(array), allow_pickle=False))


WRITERS: "dict[str, Any]" = {
    "polars.DataFrame": arrow_of_polars,
    "polars.LazyFrame": lambda frame: arrow_of_polars(frame.collect()),
    "polars.Series": lambda series: arrow_of_polars(series.to_frame()),
    "pyarrow.Table": arrow_of_pyarrow,
    "pyarrow.RecordBatch": arrow_of_pyarrow,
    "pyarrow.RecordBatchReader": lambda reader: arrow_of_pyarrow(reader.read_all()),
    "pandas.DataFrame": arrow_of_pandas,
    "pandas.Series": lambda series: arrow_of_pandas(series.to_frame()),
    "numpy.ndarray": npy_of,
    "jaxlib.ArrayImpl": npy_of,
    "torch.Tensor": lambda tensor: npy_of(tensor.detach().cpu()),
}
# One line to write, for what has no form of its own or where a writer fails.
WRITE_INSTEAD = {
    "pandas.DataFrame": "frame.to_csv(), or a frame whose columns have one type and one name each, with pyarrow or "
    "polars in the bundle's dependencies",
    "pandas.Series": "series.to_csv(), or one of a single type, with pyarrow or polars in the bundle's dependencies",
    "numpy.ndarray": "array.tolist(), or an array of numbers",
    "numpy.MaskedArray": "array.filled(..)",
    "polars.DataFrame": "a frame without columns of type Object",
    "pyarrow.ChunkedArray": "pyarrow.table({name: array}), or array.to_pylist()",
    "pyarrow.Buffer": "buffer.to_pybytes()",
    "xarray.Dataset": "dataset.to_dataframe().reset_index(), or bytes(dataset.to_netcdf())",
    "xarray.DataArray": "array.to_dataframe(name).reset_index(), or array.values",
    "duckdb.DuckDBPyRelation": "relation.pl() or relation.arrow()",
    "_duckdb.DuckDBPyRelation": "relation.pl() or relation.arrow()",
    "scipy._spbase": "matrix.toarray()",
    "scipy.spmatrix": "matrix.toarray()",
    "matplotlib.Figure": "the bytes of a file: buffer = io.BytesIO(); figure.savefig(buffer); buffer.getvalue()",
    "pathlib.PurePath": "what is in the file: path.read_bytes()",
    "_io.BytesIO": "buffer.getvalue()",
    "_io.StringIO": "buffer.getvalue()",
    "_io._IOBase": "what is in the file: file.read()",
}


JSON_REMEDIES = {
    "Out of range float": "; write None for NaN and infinity",
    "keys must be": "; write {str(key): value for key, value in ..}",
}
PLAIN_INSTEAD = {
    "set": "sorted(..), as a set has no order",
    "frozenset": "sorted(..), as a set has no order",
    **dict.fromkeys(
        ["generator", "deque", "range", "map", "zip", "dict_keys", "dict_values", "dict_items"], "list(..)"
    ),
    "bytes": "it as an output of its own",
    "timedelta": "value.total_seconds()",
    "Fraction": "float(..)",
    "UUID": "str(..)",
    "NAType": "None",
    "Scalar": "value.as_py()",
    "DataArray": "array.values",
    "GroupBy": "an aggregate of it, as .mean()",
    "Decimal": "float(..), or str(..) where each digit matters",
    "Enum": "its value: member.value",
    "complex": "[value.real, value.imag]",
}


def plain(value: "Any") -> "Any":
    """Inside of JSON: arrays and scalars of numpy and its like as lists and numbers, dates and paths as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "columns"):
        raise TypeError("a " + type_name(value) + " is inside of it; return each data frame as an output of its own")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    kinds = {kind.__name__ for kind in type(value).__mro__}
    hint = next((text for kind, text in PLAIN_INSTEAD.items() if kind in kinds), "")
    instead = {"__dataclass_fields__": "dataclasses.asdict(..)", "__attrs_attrs__": "attrs.asdict(..)"}
    instead["model_dump_json"] = ".model_dump_json()"
    hint = next((text for name, text in instead.items() if hasattr(value, name)), hint)
    raise TypeError("an object of type " + type_name(value) + ("; write " + hint if hint else ""))


def aggregate(task: "dict[str, Any]", pipe: ResultPipe) -> None:
    import json
    import math

    reference = task["target_entrypoint"]
    target = load_entry_point(reference, "the target", lambda found: callable(found) or hasattr(found, "evaluate"))
    result = call_target(target, task["sim_returns"], task["target_data"])
    if not isinstance(result, dict) or "loss" not in result:
        raise ChildError("bad_result", "the target must return a dict with 'loss', not " + type_name(result))
    for reserved in ("metrics", "_fatal_error"):
        if reserved in result:
            raise ChildError("bad_result", "the target's dict uses the reserved key " + repr(reserved))
    result["loss"] = float(result["loss"])
    if not math.isfinite(result["loss"]):
        raise ChildError("bad_result", "the loss is " + str(result["loss"]) + "; it must be finite")
    try:
        body = json.dumps(result, allow_nan=False, default=plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ChildError("bad_result", "the target's dict can't be written as JSON: " + str(error)) from None
    pipe.send(DONE, "", body)


def call_target(target: "Any", sim_returns: "list[Any]", target_data: "Any") -> "Any":
    """Call either kind of target; the signature says which it is. An object that has `evaluate` is called by it."""
    import inspect

    if hasattr(target, "evaluate") and not isinstance(target, type):
        if hasattr(target, "model_output"):
            return evaluate_target_object(target, sim_returns)
        target = target.evaluate
    parameters = inspect.signature(target).parameters
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind not in rest]
    if required in ([], ["data_paths"]):
        return evaluate_target_object(target(), sim_returns)
    if "target_data" in parameters:
        return target(sim_returns, target_data=target_data)
    return target(sim_returns)


def evaluate_target_object(target: "Any", sim_returns: "list[Any]") -> "dict[str, Any]":
    evaluation = target.evaluate([read_tables(sim["outputs"]) for sim in sim_returns])
    return {
        "loss": loss_of(evaluation),
        "diagnostics": {
            "target_type": type_name(target),
            "model_output": target.model_output,
            "target_name": getattr(evaluation, "name", None),
            "weight": getattr(evaluation, "weight", None),
        },
        "outputs": {},
        "n_replicates": len(sim_returns),
    }


def loss_of(evaluation: "Any") -> float:
    """The evaluation's `.loss`, or the negative log of the mean likelihood over replicates."""
    import math

    if getattr(evaluation, "loss", None) is not None:
        return float(evaluation.loss)
    values = [float(value) for value in evaluation.loglik_per_rep]
    top = max(values)
    if math.isinf(top):
        return -top
    return -(top + math.log(sum(math.exp(value - top) for value in values)) - math.log(len(values)))


def read_tables(outputs: "dict[str, Any]") -> "dict[str, Any]":
    """The outputs that are Arrow IPC (file or stream format), as polars data frames."""
    import io

    tables = {}
    for name, artifact in outputs.items():
        data = artifact["inline"]
        if name in ("metadata", "error") or not data.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            continue
        polars = importlib.import_module("polars")

        read = polars.read_ipc if data[:6] == b"ARROW1" else polars.read_ipc_stream
        try:
            tables[name] = read(io.BytesIO(data))
        except Exception as error:
            print("output", repr(name), "is not Arrow after all:", error, file=sys.stderr)
    return tables


# --- learn: what a task imported and left in the home's cache folders, so that the next is spared the time

HOME = "/tmp/home"
CONSTANT_TIME = 315532800  # 1980-01-01, the mtime of files that a cache may know by it


class Caches:
    """The files of the home's cache folders: put there for a task, and looked through after it."""

    def __init__(self, policy: "dict[str, Any]", files: "dict[str, bytes]") -> None:
        self.policy, self.files = policy, files
        self.made: list[str] = []  # folders of the home that an import made, and may rely on

    def put(self) -> None:
        from contextlib import suppress

        for folder in self.made:
            os.makedirs(folder, exist_ok=True)
        for name, content in self.files.items():
            with suppress(OSError):  # two names may exclude each other
                path = HOME + "/" + name
                os.makedirs(os.path.dirname(path), exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, content)
                os.close(fd)
                os.utime(path, (CONSTANT_TIME, CONSTANT_TIME))

    def grown(self) -> "Any":
        """Name and content of each regular file that is new or was changed, within the policy's limits."""
        import stat

        room, left = self.policy["bytes"], self.policy["files"]
        for folder in self.policy["folders"]:
            for top, names in folders_below(HOME + "/" + folder):
                for name in sorted(names):
                    path = top + "/" + name
                    status = os.lstat(path)
                    known = self.files.get(path[len(HOME) + 1 :])
                    same = known is not None and (len(known), CONSTANT_TIME) == (status.st_size, status.st_mtime)
                    if same or not stat.S_ISREG(status.st_mode) or status.st_size > room or left <= 0:
                        continue
                    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                        content = file.read(status.st_size)
                    room, left = room - len(content), left - 1
                    yield path[len(HOME) + 1 :], content


def tell_learned(pipe: ResultPipe, caches: "Any" = None, known: int = sys.maxsize, told: int = 0) -> None:
    """NOTE frames before a task's last word. Nothing of this may fail a task.

    `learned` is JSON: `modules`, the names of all but the `known` first, in the order of their import; `sources`, paths
    below the venv of modules that have no bytecode, of all but the `told` first. And `cache/<path in the home>` for
    each file that the caches got. What is not asked for is not touched: in a fork each name is a page to copy.
    """
    import json
    from contextlib import suppress
    from itertools import islice

    with suppress(Exception):
        learned: dict[str, Any] = {"modules": [], "sources": []}
        last = [*islice(reversed(sys.modules), max(0, len(sys.modules) - told))]
        for number, name in enumerate(reversed(last), told):
            spec = getattr(sys.modules.get(name), "__dict__", {}).get("__spec__")
            if spec is None or spec.name != name:
                continue  # an alias, or made by hand: importing the name would make something else
            if number >= known:
                learned["modules"].append(name)
            origin, cached = str(spec.origin), spec.cached
            if origin.startswith(VENV + "/") and origin.endswith(".py") and cached and not os.path.exists(cached):
                learned["sources"].append(origin[len(VENV) + 1 :])
        if any(learned.values()):
            pipe.send(NOTE, "learned", json.dumps(learned).encode())
        for name, content in caches.grown() if caches and caches.policy["told"] else ():
            pipe.send(NOTE, "cache/" + name, content)


# --- serve: many tasks of one bundle, each in a fork of a process that has imported, and run none

TASK, KILL, READY, ENDED = b"T", b"K", b"R", b"E"


def serve(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Fork for each task that comes in; between two tasks leave nothing that the next one could notice.

    The host writes TASK (with a length and a body) and KILL. It reads READY (with JSON: what `preload` came to)
    and ENDED (with an exit status, four bytes). The fork is made before its task comes, and has neither descriptor.
    """
    tasks, control = request["descriptors"]["tasks"], request["descriptors"]["control"]
    caches, shadow = Caches(request["caches"], request["cached"]), Shadow(request["shadow"])
    generators, files = Generators(), OpenFiles([0, 1, 2, pipe.fd, request["stacks_fd"]], [tasks, control])
    caches.put()
    enter_bundle()
    tell_host(control, READY, preload(request, caches, shadow, generators, files))
    end_others()
    lay_out(caches, shadow)
    known, state = len(sys.modules), sandbox_state()
    pipe.before_done = lambda: tell_learned(pipe, caches, known)
    leave_out_of_collections()
    pid, door = fork_ahead(request, pipe, generators)
    seen = False
    while True:
        kind = os.read(tasks, 1)
        while kind == KILL:  # of a task that had ended by then
            kind = os.read(tasks, 1)
        if kind != TASK:
            os._exit(0)
        if not seen:
            set_dumpable(False)  # until now the host may look at what the imports made of this process
            seen = True
        hand_over(tasks, door)
        status = wait_for_task(pid, tasks)
        end_others()
        files.put_back()
        pipe.before_done = lambda: tell_learned(pipe, caches, known, known)
        pid, door = fork_ahead(request, pipe, generators)  # it gets ready while this process cleans up
        lay_out(caches, shadow)
        if sandbox_state() != state:
            os._exit(1)  # the task changed what the next one would notice; the host makes a new sandbox
        tell_host(control, ENDED, status.to_bytes(4, "big"))


def lay_out(caches: Caches, shadow: Shadow) -> None:
    """Empty what can be written, and make what each task finds."""
    empty_folders()
    caches.put()
    shadow.make()


def tell_host(control: int, kind: bytes, body: bytes) -> None:
    os.write(control, kind + len(body).to_bytes(4, "big") + body)


def leave_out_of_collections() -> None:
    """What is there now is never garbage: a collection in a fork would only copy its pages."""
    import gc

    gc.collect()
    gc.freeze()


def fork_ahead(request: "dict[str, Any]", pipe: ResultPipe, generators: "Generators") -> "tuple[int, int]":
    """A fork that waits for its task, and the descriptor to write it to."""
    reading, writing = os.pipe()
    generators.renew()
    pid = fork()
    if pid == 0:
        for fd in (writing, *request["descriptors"].values()):
            os.close(fd)
        work_and_leave(pipe, lambda: run_forked(reading, request, pipe, generators))
    os.close(reading)
    return pid, writing


def hand_over(tasks: int, door: int) -> None:
    """Pass a task on to the fork that waits for it; where that is dead, to nobody."""
    from contextlib import suppress

    left = int.from_bytes(read_exactly(tasks, 8), "big")
    while left > 0:
        chunk = read_exactly(tasks, min(left, 1 << 16))
        left -= len(chunk)
        with suppress(BrokenPipeError):
            write_all(door, chunk)
    os.close(door)


def preload(
    request: "dict[str, Any]", caches: Caches, shadow: Shadow, generators: "Generators", files: "OpenFiles"
) -> bytes:
    """Import the wire function, then what earlier tasks were seen to import; nothing of a task is run here.

    It happens where each task will stand, but where nothing can be left: what an import writes to its working
    directory fails here, and is written by each task that imports anew. Returns JSON: how many `modules` of the
    tasks' are here; in words the `problem`, where forks of this process would not be like a fresh one, and the `doubt`,
    where they may not. Threads that a fork would lose, and memory that forks would share, are seen from outside, where
    there is a /proc.
    """
    import importlib.util  # noqa: F401 (every task needs it)
    import json

    problem, doubt, learned = "", "", {*request["modules"]}
    if request["preload"]:
        generators.look()
        shadow.make(0o555)
        enter_place()
        try:
            load_object(request["wire"])
        except BaseException as error:  # each task will meet it again, and report it
            print("preload:", type_name(error), file=sys.stderr)
        learned -= sys.modules.keys()
        problem, doubt = import_learned(request["modules"])
        load_machine_code()
        problem = generators.look_again() or problem
        leave_working_directory()
        problem = problem or left_behind(caches)
    problem = files.look() or problem
    let_threads_end()
    return json.dumps({"modules": len(learned & sys.modules.keys()), "problem": problem, "doubt": doubt}).encode()


def enter_place() -> None:
    """Go where a task runs, once it is made."""
    os.environ["PWD"] = SHADOW if os.path.isdir(SHADOW) else BUNDLE
    os.chdir(os.environ["PWD"])


def leave_working_directory() -> None:
    os.chdir(BUNDLE)
    for folder, _ in folders_below(SHADOW):
        os.chmod(folder, 0o755)
    if os.path.isdir(SHADOW):
        remove_folder(SHADOW)


def import_learned(names: "list[str]") -> "tuple[str, str]":
    """Import modules in the order in which a task did. Returns what keeps tasks from starting there, and what may."""
    for name in ("random", "numpy.random"):  # first, so that it shows whether another one seeds them
        if name in names:
            importlib.import_module(name)
    before, generators = traces_of_imports(), global_generators()
    for name in names:
        try:
            if name not in sys.modules:
                importlib.import_module(name)
        except BaseException as error:
            if not isinstance(error, ModuleNotFoundError) or not (name + ".").startswith(str(error.name) + "."):
                return "importing " + name + " raised " + type_name(error) + ": " + clip(str(error))[:500], ""
    after = traces_of_imports()
    changed = [what for what, was in before.items() if after[what] != was]
    drawn: list[str] = []
    for what, (words, put_back) in generators.items():
        now = global_generators()[what][0]
        if now != words:
            alone = drawn_alone(words[:624], now[:624])
            (drawn if alone else changed).append(what if alone else "the state of " + what)
        put_back()  # as for who has not imported it yet
    problem = "importing its modules changes " + " and ".join(changed) if changed else ""
    return problem, "importing its modules draws from " + " and ".join(drawn) if drawn else ""


def traces_of_imports() -> "dict[str, Any]":
    """What a module may change that a task which has not imported it yet would notice."""
    import signal

    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "the working directory": os.getcwd(),
        "the umask": umask,
        "the handlers of signals": [signal.getsignal(number) for number in range(1, 65)],
    }


def global_generators() -> "dict[str, Any]":
    """The state of random's and numpy's as words, those of the twister first, and a call that puts it back."""
    found: dict[str, Any] = {}
    if "random" in sys.modules:
        module = sys.modules["random"]
        state = module.getstate()
        found["random"] = (*state[1], state[2]), lambda: module.setstate(state)
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None and hasattr(mtrand._rand._bit_generator, "_legacy_seeding"):
        legacy = mtrand._rand.get_state(legacy=False)
        words = (*words_of(mtrand._rand._bit_generator), legacy["state"]["pos"], legacy["has_gauss"], legacy["gauss"])
        found["numpy.random"] = words, lambda: mtrand._rand.set_state(legacy)
    return found


class Generators:
    """The generators of random, numpy and numba, which in each fork are as in a process of its own: a seed that an
    import set holds there, and where none did, each begins anew. (A fork reseeds the global ones of random and numba,
    always, and no other.)"""

    def __init__(self) -> None:
        self.before: Any = None
        self.renewals: list[Any] = []  # calls before each fork, where they copy no pages
        self.seeded: list[Any] = []  # calls in it
        self.undo: list[Any] = []
        self.drawn: set[int] = set()  # what numpy seeded a generator with that was given no seed
        self.own: dict[int, Any] = {}  # those of random that an import made: a reference, and whether it gave no seed

    def renew(self) -> None:
        for begin_anew in self.renewals:
            begin_anew()

    def restore(self) -> None:
        for set_again in self.seeded:
            set_again()

    def look(self) -> None:
        import random
        from importlib.util import find_spec

        self.before = random.getstate()
        self.watch(random.Random, "seed", self.note_own)
        self.watch(random.Random, "setstate", self.note_own)
        if find_spec("numpy"):
            import secrets

            self.watch(secrets, "randbits", lambda value, *_: self.drawn.add(value))

    def watch(self, owner: "Any", name: str, told: "Any") -> None:
        """Have calls of a function told, with what it gave, until `look_again`."""
        plain = getattr(owner, name)

        def watched(*arguments: "Any", **named: "Any") -> "Any":
            value = plain(*arguments, **named)
            told(value, *arguments, *named.values())
            return value

        setattr(owner, name, watched)
        self.undo.append(lambda: setattr(owner, name, plain))

    def note_own(self, _: None, generator: "Any", seed: "Any" = None, *version: "Any") -> None:
        import weakref

        self.own[id(generator)] = (weakref.ref(generator), seed is None)

    def look_again(self) -> str:
        """Find those of the imports. Returns what keeps tasks from starting here: of what all would draw the same."""
        import random

        for put_back in self.undo:
            put_back()
        state = random.getstate()
        if not drawn_alone(self.before[1][:-1], state[1][:-1]):
            self.seeded.append(lambda: random.setstate(state))
        own = [reference() for reference, unseeded in self.own.values() if unseeded]
        self.renewals += [generator.seed for generator in own if generator is not None]
        self.look_at_numba(sys.modules.get("numba._helperlib"))
        return self.look_at_numpy()

    def look_at_numpy(self) -> str:
        import gc

        mtrand, made = sys.modules.get("numpy.random.mtrand"), sys.modules.get("numpy.random.bit_generator")
        if mtrand is None or made is None:
            return ""
        made.__dict__["randbits"] = sys.modules["secrets"].randbits  # it took the one that was watched
        kinds = (made.BitGenerator, made.SeedSequence, mtrand.RandomState)
        found = [item for item in gc.get_objects() if issubclass(type(item), kinds)]
        seeds = {id(item): item for item in found if isinstance(item, made.SeedSequence) and self.is_drawn(item)}
        unseeded = [item for item in found if seeds.pop(id(getattr(item, "_seed_seq", None)), None)]  # seed() drops it
        for generator in unseeded:
            if generator is not mtrand._rand._bit_generator:
                self.renewals.append(lambda kept=generator: kept.__setstate__(type(kept)().__reduce__()[2]))
            elif drawn_alone(*(words_of(item) for item in (type(generator)(generator._seed_seq), generator))):
                self.renewals.append(mtrand.seed)
        for legacy in found:
            if isinstance(legacy, mtrand.RandomState) and legacy._bit_generator in unseeded:
                self.renewals.append(lambda kept=legacy: kept.set_state({**kept.get_state(False), "has_gauss": 0}))
        return "importing its modules makes a numpy SeedSequence without a seed" if seeds else ""

    def is_drawn(self, seeds: "Any") -> bool:
        return isinstance(seeds.entropy, int) and seeds.entropy in self.drawn

    def look_at_numba(self, helper: "Any") -> None:
        """numba keeps two generators in each thread. Of one that was drawn from nothing tells whether it was seeded."""
        for name in ("rnd_get_py_state_ptr", "rnd_get_np_state_ptr") if helper else ():
            place = getattr(helper, name)
            state = helper.rnd_get_state(place())
            if is_just_seeded(state[1]):
                self.seeded.append(lambda place=place, state=state: helper.rnd_set_state(place(), state))


def is_just_seeded(words: "list[int]") -> bool:
    """Whether the state of a Mersenne Twister follows from its first word, as a seed of 32 bits makes it (init_genrand
    of Matsumoto and Nishimura's mt19937ar.c)."""
    following = (1812433253 * (word ^ word >> 30) + number for number, word in enumerate(words, 1))
    return all(word == value & 0xFFFFFFFF for word, value in zip(words[1:], following, strict=False))


def words_of(generator: "Any") -> "tuple[int, ...]":
    """The state of numpy's Mersenne Twister."""
    return tuple(map(int, generator.state["state"]["key"]))


def drawn_alone(first: "tuple[int, ...]", now: "tuple[int, ...]") -> bool:
    """Whether a Mersenne Twister (its 624 words) can have come to `now` by drawing, up to 60,000 numbers of 32 bits."""
    from random import Random

    twister = Random()
    twister.setstate((3, (*first, 624), None))
    for _ in range(100):
        if twister.getstate()[1][:-1] == now:
            return True
        twister.getrandbits(32 * 624)
    return False


F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032  # fcntl has names for them from Python 3.10 on


class OpenFiles:
    """What forks have open in common with this process ("open file descriptions" in open(2)): an offset that a task
    moves, a flag that it sets and a lock that it takes are there for the next task, too."""

    def __init__(self, own: "list[int]", apart: "list[int]") -> None:
        self.own, self.apart = own, apart  # what this program opened; of it, what no fork has
        self.found: list[tuple[int, int, int, int]] = []  # descriptor, flags, offset, size of a pipe

    def look(self) -> str:
        """Remember how they are. Returns what keeps tasks from starting here: what can't be put back, left open."""
        import fcntl
        import resource
        import stat

        for fd in {*range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])} - {*self.apart}:
            try:
                status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
            except OSError:
                continue
            if flags & os.O_PATH:
                continue  # it has none of these
            has_offset = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            reading = has_offset and flags & os.O_ACCMODE == os.O_RDONLY
            device = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == 1  # /dev/null, zero, urandom
            if not (reading or device or fd in self.own):
                return "importing its modules leaves open " + place_of_file(fd)
            offset = os.lseek(fd, 0, os.SEEK_CUR) if has_offset else -1
            size = fcntl.fcntl(fd, F_GETPIPE_SZ) if stat.S_ISFIFO(status.st_mode) else 0
            self.found.append((fd, flags, offset, size))
        return ""

    def put_back(self) -> None:
        """Whatever goes wrong ends this process."""
        import fcntl

        for fd, flags, offset, size in self.found:
            fcntl.flock(fd, fcntl.LOCK_UN)
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            if offset >= 0:
                os.lseek(fd, offset, os.SEEK_SET)
            if size and fcntl.fcntl(fd, F_GETPIPE_SZ) != size:
                fcntl.fcntl(fd, F_SETPIPE_SZ, size)


def place_of_file(fd: int) -> str:
    try:
        return os.readlink("/proc/self/fd/" + str(fd))
    except OSError:
        return "the descriptor " + str(fd)


def load_machine_code() -> None:
    """Let numba read what its cache has for the functions that are imported: in each fork it would take longer."""
    dispatchers = sys.modules.get("numba.core.dispatcher")
    if dispatchers is None:
        return
    import gc

    for found in [item for item in gc.get_objects() if issubclass(type(item), dispatchers.Dispatcher)]:
        try:
            cache, codegen = found._cache, found.targetctx.codegen()
            for key in list(cache._cache_file._load_index()) if hasattr(cache, "_cache_file") else ():
                if cache._index_key(key[0], codegen) == key:
                    found.compile(key[0])
        except Exception as error:  # another numba than those we know; the task does without
            print("preload:", type_name(error), error, file=sys.stderr)


def left_behind(caches: Caches) -> str:
    """What an import left besides modules and caches: it goes before the first task, and would be missed."""
    try:
        os.kill(-1, 0)
        return "importing its modules starts a process"
    except ProcessLookupError:
        pass
    kept = [HOME + "/" + folder for folder in caches.policy["folders"]]
    for top, names in [*folders_below("/tmp"), *folders_below("/dev/shm")]:
        if names and not any((top + "/").startswith(folder + "/") for folder in kept):
            return "importing its modules leaves the file " + top + "/" + names[0]
        caches.made += [top] if top not in ("/tmp", "/dev/shm", HOME) else []
    return ""


def folders_below(top: str) -> "Iterator[tuple[str, list[str]]]":
    """Each folder and the names of its files, as `os.walk`, which recurses up to Python 3.11; no link is followed."""
    left = [] if os.path.islink(top) else [top]
    while left:
        folder = left.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        yield folder, [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        left += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def remove_folder(top: str) -> None:
    """As `shutil.rmtree`, which recurses up to Python 3.12; a folder is moved up first, as its path may be too long."""
    left = [top]
    while left:
        deeper = []
        for entry in list(os.scandir(left[-1])):
            if entry.is_dir(follow_symlinks=False):
                deeper.append(top + "/" + os.urandom(8).hex())
                os.rename(entry.path, deeper[-1])
            else:
                os.unlink(entry.path)
        if not deeper:
            os.rmdir(left.pop())
        left += deeper


def read_exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(1)
        data += chunk
    return bytes(data)


def set_dumpable(value: bool) -> None:
    """A process that is not dumpable can't be opened through /proc by others of its uid (prctl(2))."""
    import ctypes

    ctypes.CDLL(None).prctl(4, int(value), 0, 0, 0)  # PR_SET_DUMPABLE


LASTING = ("/tmp", "/dev/shm", "/dev/pts", "/dev/pts/ptmx")  # what a task may change and can't take away


def sandbox_state() -> "tuple[Any, ...]":
    """What a task can change without a trace among files or processes: in this process, or of what outlives it."""
    import resource

    limits = [resource.getrlimit(value) for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    scheduling = (os.sched_getaffinity(0), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
    return (limits, scheduling, os.getcwd(), [(os.stat(path).st_mode, os.listxattr(path)) for path in LASTING])


def fork() -> int:
    """Python 3.12 warns where there are threads; which ones may be there is checked."""
    if sys.version_info < (3, 12):
        return os.fork()
    import warnings

    with warnings.catch_warnings(action="ignore"):
        return os.fork()


def let_threads_end() -> None:
    """Fork once: OpenBLAS ends its threads before a fork, and starts none in a process that does not compute."""
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def run_forked(door: int, request: "dict[str, Any]", pipe: ResultPipe, generators: "Generators") -> None:
    set_rlimits(request["task_rlimits"])
    generators.restore()
    set_dumpable(True)  # no process is there that could look
    rehearse()
    body = b"".join(read_chunks(door))
    os.close(door)
    if not body:
        os._exit(0)  # the server is closed
    pipe.send(STARTED)
    enter_place()
    run_task_code({"task": marshal.loads(body), "wire": request["wire"]}, pipe)


def rehearse() -> None:
    """Do what is done around each task, before there is one: a fork copies each page that it writes to, and in a third
    of the time of a small task it did nothing else."""
    from contextlib import suppress

    with suppress(BaseException), open("/dev/null", "wb", buffering=0) as nowhere:
        pipe = ResultPipe(nowhere.fileno())
        pipe.before_done = lambda: tell_learned(pipe, None, 0, len(sys.modules))
        pipe.send(STARTED)
        task = marshal.loads(marshal.dumps({"entrypoint": "", "params": {}, "seed": 0}))
        simulate(task, __name__ + ":rehearsed", pipe)


def rehearsed(*task: "Any") -> "dict[str, bytes]":
    return {"": b""}


def wait_for_task(pid: int, tasks: int) -> int:
    """The task's exit status, as a shell has it. A KILL, or the end of the host, ends it."""
    import select

    ended = open_process(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(tasks, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if ended in ready:
            break
        if os.read(tasks, 1) != TASK:
            os.kill(-1, 9)
            poll.unregister(tasks)
    os.close(ended)
    status = os.waitpid(pid, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def open_process(pid: int) -> int:
    """pidfd_open(2), which Python has from 3.9 on."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    import ctypes

    return int(ctypes.CDLL(None).syscall(434, pid, 0))


def end_others() -> None:
    """End every other process of the sandbox. Whatever goes wrong ends this one."""
    import time

    for _ in range(1000):
        try:
            os.kill(-1, 9)  # all at once, so no fork escapes; none left is ESRCH
        except ProcessLookupError:
            break
        time.sleep(0.001)
    else:
        os._exit(1)


def empty_folders() -> None:
    """Remove what lies where a task can write. Whatever goes wrong ends this process."""
    for folder in ("/tmp", "/dev/shm"):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                remove_folder(entry.path)
            else:
                os.unlink(entry.path)
    os.mkdir(HOME)
    for path in LASTING:
        os.utime(path)


def instrument(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Run a program of the caller's where the task would run: its `main(request, pipe, this module)`."""
    import runpy

    enter_bundle()
    enter_working_directory(request["shadow"])
    runpy.run_path(INSTRUMENT, run_name="instrument")["main"](request, pipe, sys.modules[__name__])


# --- build: a wheel from a source tree, through its PEP 517 backend


def build(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Call the hooks directly, on a copy in the tmpfs: some backends write into their source."""
    pipe.before_done = lambda: tell_learned(pipe)
    import json

    work, out = os.path.normpath(os.path.join(BUILD_TREE, request["folder"])), "/tmp/wheel"
    copy_source(request["folder"], work)
    os.mkdir(out)
    os.chdir(work)
    if request["pkg_info"]:
        with open("PKG-INFO", "w", encoding="utf-8") as file:
            file.write(request["pkg_info"])
    os.environ.update(request["environment"])
    sys.path[:0] = [os.path.join(work, entry) for entry in request["backend_path"]]
    importlib.invalidate_caches()
    backend = load_object(request["backend"])
    requires = list(getattr(backend, "get_requires_for_build_wheel", lambda settings: [])(None))
    if requires and not request["requires_met"]:
        pipe.send(DONE, "requires", json.dumps(requires).encode())
        return
    name = os.path.basename(backend.build_wheel(out, None))
    pipe.send_file(name, os.path.join(out, name))
    pipe.send(DONE)


def copy_source(folder: str, work: str) -> None:
    """Copy the folder that is built; of what lies beside it and above it, links are enough."""
    import shutil

    above, source = BUILD_TREE, SOURCE
    for part in [part for part in folder.split("/") if part != "."]:
        os.mkdir(above)
        for name in os.listdir(source):
            if name != part:
                os.symlink(os.path.join(source, name), os.path.join(above, name))
        above, source = os.path.join(above, part), os.path.join(source, part)
    shutil.copytree(source, work, symlinks=True)


# --- compile: bytecode of an unpacked wheel


def compile_tree(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Send the bytecode of modules, named `<tree>/<path>`, as `unchecked-hash` pycs (PEP 552): they depend on
    nothing but the source. A file that does not compile (a template, Python 2) is left out."""
    workers = []
    for index in range(request["workers"]):
        pid = os.fork()
        if pid == 0:
            compile_share(request["modules"], index, request["workers"])
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
    for number, module in enumerate(request["modules"]):
        if os.path.exists("/tmp/" + str(number)):
            pipe.send_file(module, "/tmp/" + str(number))
    pipe.send(DONE)


def compile_share(modules: "list[Any]", first: int, step: int) -> None:
    import py_compile
    from contextlib import suppress

    for number in range(first, len(modules), step):
        with suppress(py_compile.PyCompileError, ValueError, RecursionError, MemoryError):
            py_compile.compile(
                TREE + "/" + modules[number],
                cfile="/tmp/" + str(number),
                dfile=VENV + "/" + modules[number].partition("/")[2],
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


# --- fetch: the only phase with network. Nothing of the bundle but names and numbers comes in here.


def fetch(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Resolve (wheels only), then download what the host does not have yet.

    Sends a NOTE `lock` (the resolved files), an OUTPUT for each downloaded file, named by its number in
    the lock, and for each git source an OUTPUT `git/<n>` (a tar).
    """
    import json
    from concurrent.futures import ThreadPoolExecutor

    gate = Gate(request["gate"]) if request["gate"] is not None else None
    if gate:
        os.environ.update(dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), gate.url))
        os.environ.update(NO_PROXY="", no_proxy="")
    try:
        for number, source in enumerate(request["git"]):
            pipe.send_file("git/" + str(number), clone(source, number))
        files = request["locked"]
        if files is None:
            files, without = resolve(request)
            pipe.send(NOTE, "without wheels", ", ".join(without).encode())
        pipe.send(NOTE, "lock", json.dumps(files).encode())
        have = set(request["have"])
        wanted = [n for n, file in enumerate(files) if file["url"].startswith("https://")]
        missing = [n for n in wanted if kept_name(files[n]) not in have]
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda n: download(files[n], str(n), request, pipe), missing):
                pass
    except ChildError as error:
        if gate and gate.refused:
            told = [gate.reason(), str(error).removeprefix("exit status -9")]  # Gate.tunnel ended it
            raise ChildError("dependency_unavailable", ": ".join(filter(None, told))) from None
        raise
    pipe.send(DONE)


class Gate:
    """A proxy of this sandbox's own, for what the bundle named: tunnels to public addresses alone, and to hosts that
    the caller named ("*" is all of them). What looks a name up also connects, so no second answer of a name server can
    differ. Where the caller has a proxy the tunnel leads through it, once the name was seen to be public here."""

    REMEDY = " (dependencies.private_addresses)"

    def __init__(self, open_hosts: "list[Any]") -> None:
        import base64
        import socket
        import threading
        import urllib.request

        self.open_hosts = set(open_hosts)
        self.callers = urllib.request.getproxies_environment()
        self.refused: dict[str, str] = {}
        secret = os.urandom(16).hex()  # the network is shared: other users of the host could reach the port
        self.expected = "basic " + base64.b64encode(("gate:" + secret).encode()).decode()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://gate:" + secret + "@127.0.0.1:" + str(self.listener.getsockname()[1])
        threading.Thread(target=self.serve, daemon=True).start()

    def reason(self) -> str:
        return ": ".join(sorted(self.refused.items())[0])

    def serve(self) -> None:
        import threading

        while True:
            client = self.listener.accept()[0]
            threading.Thread(target=self.tunnel, args=(client,), daemon=True).start()

    def tunnel(self, client: "Any") -> None:
        import contextlib

        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(60)
            head = b""
            while b"\r\n\r\n" not in head and len(head) < 8192:
                part = client.recv(4096)
                if not part:
                    return
                head += part
            first, *fields = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = dict(field.lower().split(": ", 1) for field in fields if ": " in field)
            if headers.get("proxy-authorization") != self.expected.lower():
                client.sendall(
                    b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic realm=gate\r\n"
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"  # git asks first, then logs in anew
                )
                return
            try:
                server = self.connect(method, target)
            except (ValueError, ConnectionError) as error:
                self.refused[target[:200]] = str(error)
                client.sendall(b"HTTP/1.1 403 Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                if isinstance(error, ValueError) and TOOLS_RUN:
                    TOOLS_RUN[0].kill()  # uv takes it for a fault that passes, and would ask four times
                return
            with server:
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                relay(client, server)

    def connect(self, method: str, target: str) -> "Any":
        """A connection to where it may be; ValueError where it may not, ConnectionError where another try may help."""
        import socket
        import urllib.request

        host, _, port = target.rpartition(":")
        if method != "CONNECT":
            raise ValueError("it is not on https")
        proxy = self.callers.get("https", "")
        if urllib.request.proxy_bypass_environment(target, self.callers):  # type: ignore[attr-defined]
            proxy = ""
        named = bool({target, "*"} & self.open_hosts)
        if named and proxy:
            return self.through(proxy, target)
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            unknown = "; a proxy is not asked for what no one here can tell to be public" + self.REMEDY
            kind = ConnectionError if error.errno == socket.EAI_AGAIN else ValueError
            raise kind("it can't be looked up here: " + str(error.strerror) + unknown * bool(proxy)) from None
        addresses = [str(entry[4][0]) for entry in found]
        outer = [address for address in addresses if not is_inner_address(address.partition("%")[0])]
        if not named and (not outer or (proxy and outer != addresses)):
            raise ValueError("it is no public address, and may not be asked for what the bundle names" + self.REMEDY)
        if proxy:
            return self.through(proxy, target)
        return socket.create_connection(((addresses if named else outer)[0], int(port)), 60)

    def through(self, proxy: str, target: str) -> "Any":
        """A connection that the caller's proxy makes."""
        import base64
        import http.client
        from urllib.parse import unquote, urlsplit

        place = urlsplit(proxy if "://" in proxy else "http://" + proxy)
        if place.scheme != "http":
            raise ValueError("what a bundle names goes through no " + place.scheme + " proxy, and HTTPS_PROXY is one")
        login = ":".join(unquote(part or "") for part in (place.username, place.password))
        headers = {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login != ":" else {}
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=60)
        host, _, port = target.rpartition(":")
        connection.set_tunnel(host, int(port), headers)
        try:
            connection.connect()
        except OSError as error:
            raise ConnectionError("the proxy of HTTPS_PROXY does not reach it: " + str(error)) from None
        return connection.sock


def relay(one: "Any", other: "Any") -> None:
    """Pass bytes both ways until one side ends."""
    import select

    while True:
        ready, _, _ = select.select([one, other], [], [], 300)
        for side in ready:
            data = side.recv(1 << 16)
            if not data:
                return
            (other if side is one else one).sendall(data)
        if not ready:
            return


def kept_name(file: "dict[str, Any]") -> str:
    """What the host keeps a file under; both parts, or bytes that are known under one name would hide another."""
    from urllib.parse import unquote, urlsplit

    return str(file["sha256"]) + "/" + unquote(urlsplit(file["url"]).path.rsplit("/", 1)[-1])


TOOLS_RUN: "list[Any]" = []  # the one that runs, or ran last


def run_tool(command: "list[Any]", environment: "dict[str, Any]", cwd: str = "/tmp") -> "tuple[str, str]":
    """What a tool wrote, and its log."""
    import re
    import subprocess

    to: Any = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, **to) as tool:
        TOOLS_RUN[:] = [tool]
        written, said = tool.communicate()
    if tool.returncode != 0:
        text = re.sub(r"(?m)^(DEBUG|INFO|WARN) .*\n?(  Caused by: .*\n?)*", "", said).strip()
        start = text.find("error: ") if text.startswith("warning: ") else 0  # warnings are of what always happens
        raise ChildError("dependency_unavailable", clip(text[max(start, 0) :] or "exit status " + str(tool.returncode)))
    return written, said


def resolve(request: "dict[str, Any]") -> "tuple[list[Any], list[Any]]":
    """What uv comes to, which builds nothing. Where packages must be built from source, or have no wheel, also where uv
    went around them by older versions of others, the answer is their sdists alone: the host builds those offline and
    asks again. Where it does not, they are named."""
    sources, barred = set(request["no_binary"]), set(request["only_binary"])
    while True:
        try:
            files, searched = uv_compile(request, request["requirements"], sources)
            break
        except ChildError as error:
            missing = wheels_required_for(str(error)) - sources
            if not missing or not request["sdists"] or missing & barred:
                raise
            sources |= missing
    built = [file for file in files if file["name"] in sources]
    around = went_around(request, files, searched) if searched and not built else []
    names = {file["name"] for file in around}
    if request["sdists"] and not names & barred:
        return built or around or files, []
    return files, sorted(names)


def went_around(request: "dict[str, Any]", files: "list[Any]", searched: "set[Any]") -> "list[Any]":
    """The sdists of packages without a wheel in the versions that uv would have, if it could build."""
    had = {file["name"]: file["version"] for file in files}
    try:
        newest, _ = uv_compile(request, sorted(searched), searched, "--no-deps")
        searched = {file["name"] for file in newest if file["version"] != had.get(file["name"])} & searched
        found = uv_compile(request, request["requirements"], searched)[0] if searched else []
    except ChildError:
        return []
    others = []
    for file in (file for file in found if file["name"] in searched and file["version"] != had.get(file["name"])):
        try:
            uv_compile(request, [file["name"] + "==" + file["version"]], set(), "--no-deps")
        except ChildError:
            others.append(file)
    return others


def wheels_required_for(message: str) -> "set[Any]":
    """The names in uv's hint about packages that exist only as sdists."""
    import re

    return {canonical_name(name) for name in re.findall(r"Wheels are required for `([A-Za-z0-9._-]+)`", message)}


def canonical_name(line: str) -> str:
    """The normalised name (PEP 503) at the start of a requirement."""
    import re

    name = re.sub(r"[^A-Za-z0-9._-].*", "", line, flags=re.DOTALL)
    return re.sub(r"[-_.]+", "-", name).lower()


def uv_compile(request: "Any", requirements: "list[Any]", sources: "set[Any]", *options: str) -> "tuple[Any, Any]":
    """The files that uv comes to, and the names that it searched for in vain. Of `sources` it takes sdists: with their
    metadata given, it has nothing to build. `assigned` is a pyproject.toml of ours: names with indexes of their own."""
    import re
    from itertools import pairwise

    only = ["--only-binary", ":all:", *("--no-binary=" + name for name in sorted(sources))]
    command = [request["uv"], "pip", "compile", "--verbose", "--python", request["python"], *only, *request["options"]]
    command += ["--keyring-provider", "disabled", "--index-strategy", "first-index", "--generate-hashes", "--no-header"]
    command += ["--format", "pylock.toml", "-o", "/tmp/pylock.toml", "--config-file", "/tmp/uv.toml", *options]
    metadata = ['[[dependency-metadata]]\nname = "' + name + '"\nrequires-dist = []' for name in sorted(sources)]
    write_lines("/tmp/uv.toml", metadata)
    for option in ("constraints", "overrides"):
        if request[option]:
            write_lines("/tmp/" + option + ".in", request[option])
            command += ["--" + option, "/tmp/" + option + ".in"]
    write_lines("/tmp/requirements.in", requirements)
    command += ["/tmp/requirements.in"] if requirements or not request["assigned"] else []
    if request["assigned"]:
        os.makedirs("/tmp/assigned", exist_ok=True)
        write_lines("/tmp/assigned/pyproject.toml", [request["assigned"]])
        command += ["/tmp/assigned/pyproject.toml"]
    if os.path.exists("/tmp/pylock.toml"):
        os.unlink("/tmp/pylock.toml")
    log = run_tool(command, dict(os.environ, **request["credentials"]))[1]
    steps = re.findall(r"(?m)^DEBUG (Searching for a compatible version of|Selecting:) ([\w.-]+)(?:==| \()", log)
    searched = {name for (step, name), (after, _) in pairwise(steps) if step == after != "Selecting:"}
    return read_compiled("/tmp/pylock.toml", request["hashes"]), searched


def write_lines(path: str, lines: "list[Any]") -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def read_compiled(path: str, hashes: "dict[str, Any]") -> "list[Any]":
    """The files that uv's answer (PEP 751) chooses: one each package, of the hashes that the bundle allows."""
    import tomllib

    with open(path, "rb") as lock:
        packages = tomllib.load(lock).get("packages", [])
    chosen = []
    for package in packages:
        allowed = hashes.get(canonical_name(package["name"]), ())
        wheels = package.get("wheels", [])
        wheels = [wheel for wheel in wheels if wheel.get("hashes", {}).get("sha256") in allowed] or wheels
        file = package.get("archive") or package.get("sdist") or {}
        if wheels:
            file = max(wheels, key=lambda wheel: wheel_preference(wheel.get("url") or wheel.get("path", "")))
        named = {"name": package["name"], "version": package.get("version", "")}
        hashed = {"sha256": file.get("hashes", {}).get("sha256", "")}
        chosen.append({**named, **hashed, "url": file.get("url") or file.get("path") or ""})
    return chosen


def export_lock(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """A uv.lock as a pylock.toml: uv reads hostile files here, without network."""
    alone = {"HOME": "/tmp", "UV_CACHE_DIR": "/tmp/uv", "UV_PYTHON_DOWNLOADS": "never", "PATH": "/nonexistent"}
    environment = {**os.environ, **alone}
    command = [request["uv"], "export", "--no-config", "--frozen", "--offline", "--no-emit-project", "--no-header"]
    command += ["--no-default-groups", "--python", request["python"], "--format", "pylock.toml", *request["options"]]
    pipe.send(NOTE, "misfit", check_lock(request, environment).encode())
    with open("/tmp/pylock.toml", "w", encoding="utf-8") as file:
        file.write(run_tool(command, environment, SOURCE)[0])
    pipe.send_file("pylock.toml", "/tmp/pylock.toml")
    pipe.send(DONE)


def check_lock(request: "dict[str, Any]", environment: "dict[str, Any]") -> str:
    """Why uv would make the lock anew, as its log tells; "" where it would not, "?" where only a build could tell."""
    import re
    import subprocess

    command = [request["uv"], "lock", "--verbose", "--locked", "--offline", "--no-build", "--python", request["python"]]
    done = subprocess.run(command, env=environment, cwd=SOURCE, stdin=subprocess.DEVNULL, capture_output=True)
    said = done.stderr.decode("utf-8", "replace")
    found = re.search(r"existing lockfile due to (.*)(?:\n  Requested: (.*)\n  Existing: (.*))?", said)
    if done.returncode == 0:
        return ""
    if found is None:  # it would have to build, as it does before it compares what is out of date once more
        stale = re.search(r"Static `requires-dist` for `(\S+).*` is out-of-date", said)
        return "mismatched requirements for " + stale[1] if stale else "?"
    reason = found[1].rstrip(":")
    wanted, locked = (set(re.findall(r"Requirement \{.*?origin: None \}", text or "")) for text in found.groups()[1:])
    by_hand = re.match(r"removal of|change in .* vs\. `(highest|if-necessary-or-explicit|requires-python)`$", reason)
    looser = re.match(r"mismatched (constraints|overrides|build constraints|excludes)", reason) and wanted < locked
    if by_hand or looser:
        return ""  # the lock was made by more than the project says, and obeys all that it says
    names = sorted(set(re.findall(r'Requirement \{ name: PackageName\("([^"]*)', " ".join(wanted ^ locked))))
    return clip(reason + (" (" + ", ".join(names) + ")" if names else ""))


def wheel_preference(url: str) -> "tuple[Any, ...]":
    """uv lists only wheels that fit; of those prefer the specific one over the portable one."""
    stem = url.rsplit("/", 1)[-1][: -len(".whl")]
    _, python, abi, platform = stem.rsplit("-", 3) if stem.count("-") >= 3 else ("", "", "", "")
    return (platform != "any", abi not in ("none", "abi3"), abi == "abi3", platform, python, stem)


def download(file: "dict[str, Any]", name: str, request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Fetch one https file into the tmpfs and send it on; the host checks its hash."""
    import urllib.error

    url, path = file["url"], "/tmp/download." + name
    for attempt in (1, 2, 3):
        try:
            if request["callers"] and login_for(url, request) and not is_listed(file, path, request):
                text = " is on a host for which the caller has credentials, and no index of the caller's lists it"
                raise ChildError("dependency_unavailable", url.split("#")[0].split("?")[0] + text)
            copy_url(url, path, request)
            break
        except (urllib.error.URLError, OSError) as error:
            if attempt == 3 or getattr(error, "code", 500) < 500:
                text = "the download of " + url.split("#")[0].split("?")[0] + " failed: " + str(error)
                raise ChildError("dependency_unavailable", text) from None
    pipe.send_file(name, path)
    os.unlink(path)


def login_for(url: str, request: "dict[str, Any]") -> "Any":
    from urllib.parse import urlsplit

    return request["authorization"].get(urlsplit(url).netloc)


def is_listed(file: "dict[str, Any]", path: str, request: "dict[str, Any]") -> bool:
    """Whether an index of the caller's lists a file. One of the bundle's can name any on a host of the caller's, for
    which a login goes along."""
    import html
    import re
    from urllib.error import HTTPError
    from urllib.parse import unquote, urljoin

    wanted = unquote(file["url"].partition("#")[0])
    for index in request["callers"]:
        page = index.rstrip("/") + "/" + canonical_name(file["name"]) + "/"
        try:
            page = copy_url(page, path, request)
        except HTTPError:
            continue
        with open(path, encoding="utf-8", errors="replace") as answer:
            links = re.findall(r"""(?:href\s*=|"url"\s*:)\s*["']?([^"'#>\s]+)""", answer.read())
        if any(unquote(urljoin(page, html.unescape(link))) == wanted for link in links):
            return True
    return False


def copy_url(url: str, path: str, request: "dict[str, Any]") -> str:
    """Write what a URL has, and return where it was found in the end."""
    import shutil
    import urllib.request
    from urllib.parse import urlsplit

    class HttpsOnly(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: "Any", fp: "Any", code: int, msg: str, headers: "Any", newurl: str) -> "Any":
            if not newurl.startswith("https://") or "@" in urlsplit(newurl).netloc:
                raise ChildError("dependency_unavailable", "a download was redirected away from https, or with a login")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    if not url.startswith("https://") or "@" in urlsplit(url).netloc:
        problem = "the index names a file that is not on https, or one with a login: "
        raise ChildError("dependency_unavailable", problem + url.rpartition("@")[2][:200])
    get = urllib.request.Request(url, headers={"User-Agent": "ultra-cold-runner"})
    secret = login_for(url, request)
    if secret:
        get.add_unredirected_header("Authorization", secret)
    with urllib.request.build_opener(HttpsOnly).open(get, timeout=60) as answer, open(path, "wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
        return str(answer.url)


def is_inner_address(text: str) -> bool:
    """Whether an IP address is of this machine, its link or a private network (RFC 6890); ValueError if it is none."""
    import ipaddress

    address = ipaddress.ip_address(text)
    address = getattr(address, "ipv4_mapped", None) or address
    inner = ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"]
    inner += ["192.168.0.0/16", "224.0.0.0/3", "::/127", "64:ff9b::/32", "fc00::/7", "fe80::/10", "ff00::/8"]
    return any(address in ipaddress.ip_network(network) for network in inner)


def clone(source: "dict[str, Any]", number: int) -> str:
    """Fetch one commit as data: no hooks, no submodules, no filters, no configuration but ours."""
    folder, archive = "/tmp/git." + str(number), "/tmp/git.tar." + str(number)
    environment = dict(os.environ, GIT_ALLOW_PROTOCOL="https", GIT_TERMINAL_PROMPT="0", **source["credentials"])
    environment.update(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", GIT_SSL_CAINFO=CA_FILE)
    git = ["git", "-c", "core.hooksPath=/dev/null", "-c", "http.followRedirects=false", "-C", folder]
    os.mkdir(folder)
    run_tool([*git, "init", "--quiet", "--bare", "--template="], environment)
    ref, fetch = source["ref"] or "HEAD", [*git, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules"]
    try:
        run_tool([*fetch, "--depth", "1", "--", source["url"], ref], environment)
        ref = "FETCH_HEAD"
    except ChildError:  # the beginning of a commit's name, or one that a server gives with its branches alone
        if set(ref) - set("0123456789abcdef") or not 7 <= len(ref) <= 40:
            raise
        run_tool([*fetch, "--", source["url"], "+refs/*:refs/*"], environment)
    commit = run_tool([*git, "rev-parse", ref + "^{commit}"], environment)[0].strip()
    run_tool([*git, "archive", "--format=tar", "-o", archive, commit], environment)
    return archive


def probe(request: "dict[str, Any]", pipe: ResultPipe) -> None:
    """Nothing but a sign of life: a host is judged by whether this phase comes back."""
    pipe.send(DONE)


PHASES = {
    "execute": execute,
    "build": build,
    "compile": compile_tree,
    "fetch": fetch,
    "lock": export_lock,
    "instrument": instrument,
    "probe": probe,
    "serve": serve,
}


def describe_interpreter() -> "dict[str, Any]":
    """What the host needs to know of an interpreter; asked of this one or of another."""
    from importlib.machinery import EXTENSION_SUFFIXES

    return {
        "executable": os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable),
        "prefix": os.path.realpath(sys.base_prefix),
        "exec_prefix": os.path.realpath(sys.base_exec_prefix),
        "stdlib": os.path.dirname(os.path.realpath(os.__file__)),
        "version": ".".join(map(str, sys.version_info[:3])),
        "library": "python" + ".".join(map(str, sys.version_info[:2])) + getattr(sys, "abiflags", "").replace("m", ""),
        "cache_tag": str(sys.implementation.cache_tag),
        "abi": EXTENSION_SUFFIXES[0],
        "platform": sys.platform + "-" + os.uname().machine,
    }


if __name__ == "__main__" and sys.argv[1:2] == ["--sandboxed-child"]:
    child_main()
if __name__ == "__main__" and sys.argv[1:2] == ["--describe-interpreter"]:
    import json

    print(json.dumps(describe_interpreter()))
    sys.exit(0)

END_OF_CHILD = "------------------------------------------------------------------------------------------------"
# ----------------------------------------------------------------------------------------------------
# Part two: the host side.
# ----------------------------------------------------------------------------------------------------

if __name__ == "__main__" and (sys.platform != "linux" or sys.version_info < (3, 11)):
    # Nothing below would work, and this line must parse on any Python 3.
    found = sys.platform + " with Python " + sys.version.split()[0]
    hint = (
        "the sandbox needs Linux and Python 3.11 or newer, this is "
        + found
        + "; start the runner with such an interpreter"
    )
    line = '{"_fatal_error": {"code": 3, "phase": "host", "type": "unsupported_host", "retryable": false, "error": "'
    print(line + hint + '"}}')
    sys.exit(3)

import signal

if __name__ == "__main__":  # from here on a signal waits until it can be answered; see Killed.arm
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import errno
import fcntl
import json
import re
import select
import selectors
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedReader, FileIO
from types import SimpleNamespace as Options
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar, get_args, get_origin

try:  # hashlib's, without OpenSSL, which takes longer to load than all that a run has to hash
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

FORMAT = 5  # part of every key under which something is kept: raise it when what is kept changes
MIB = 1 << 20
BLOCK = 4096  # bytes that a file takes at least on a disk
MAX_DEPTH = 64  # folders in folders, in anything that is unpacked or copied
LOG_CAP = 256 * 1024  # bytes of log that one run may write to stderr
TAIL_CAP = 64 * 1024  # bytes of the child's stderr that an error carries
EXIT_CODES = {"input": 2, "host": 3, "bundle": 4, "fetch": 5, "build": 6, "install": 7, "execute": 8, "result": 9}


class Failure(Exception):
    """The one exception of the host side; becomes the `_fatal_error` of the contract.

    `phase` is a key of EXIT_CODES, `type` a stable machine-readable name, `error` a sentence that says what to
    do. `details` holds the optional fields: exception, traceback, stderr, signal, limit.
    """

    def __init__(self, phase: str, type: str, error: str, retryable: bool = False, **details: Any) -> None:
        super().__init__(error)
        self.phase, self.type, self.error, self.retryable, self.details = phase, type, error, retryable, details
        self.code = EXIT_CODES[phase]

    def as_json(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        body = {"code": self.code, "phase": self.phase, "type": self.type, "error": self.error}
        told = {name: value for name, value in self.details.items() if value not in (None, "")}
        return {"_fatal_error": {**body, "retryable": self.retryable, **told, "metrics": dict(metrics)}}


# Those that come from several places, to be given their sentence.
unsafe_file = partial(Failure, "bundle", "unsafe_file")
no_interpreter = partial(Failure, "host", "no_interpreter")
no_seccomp = partial(Failure, "host", "seccomp_unavailable")
bad_result = partial(Failure, "result", "bad_result")
usage_error = partial(Failure, "input", "usage")
no_store = partial(Failure, "host", "store_unavailable")

# What the machine lacks, by the errno of the call that failed: the caller's affair, and not the bundle's.
SHORTAGES = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the runner may not write files of that size (ulimit -f)",
    errno.EIO: "the device fails",
    errno.EMFILE: "the runner may not open more files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files (fs.file-max)",
    errno.ENOMEM: "the machine has no memory left, or the runner may not have more (ulimit -v)",
    errno.EAGAIN: "no more processes may be started (ulimit -u, or a cgroup's pids.max)",
}


def is_own(error: Exception) -> bool:
    """Whether it tells of the runner or of the machine, where an attacker's data was being read."""
    shortage = isinstance(error, OSError) and error.errno in SHORTAGES
    return isinstance(error, (Failure, MemoryError)) or shortage


def host_failure(error: BaseException) -> Failure | None:
    """What the machine lacks, where that is why the runner failed; or that it lost the folder of the run."""
    gone = lost_folder(error) if isinstance(error, FileNotFoundError) else ""
    if gone:
        text = f"{gone} was removed while the run used it; let only the runner change its store, and run again"
        return no_store(text, True)
    unmapped = isinstance(error, ImportError) and re.search("failed to map|allocate memory", str(error))
    number = errno.ENOMEM if unmapped or isinstance(error, MemoryError) else getattr(error, "errno", None)
    number = errno.EMFILE if isinstance(error, ImportError) and "Too many open files" in str(error) else number
    if not isinstance(error, (OSError, MemoryError, ImportError)) or number not in SHORTAGES:
        return None
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    elsewhere = ", or name another directory with --store-dir," if number in (errno.ENOSPC, errno.EDQUOT) else ""
    return Failure("host", "host_exhausted", f"{SHORTAGES[number]}{place}; make room{elsewhere} and run again", True)


KEPT_FOLDERS = ("wheels", "trees", "imported", "built", "resolved", "system", "locks", "venvs", "run")


def lost_folder(error: OSError) -> str:
    """The folder of the store, or of the run, or what was kept in one, whose absence is why a file was not found; "" if
    there is none."""
    for path in (error.filename, error.filename2):
        folder = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        while folder not in ("", "/"):
            above, name = os.path.split(folder)
            kept = name in KEPT_FOLDERS or os.path.basename(above) in KEPT_FOLDERS[:-1]
            if (kept or name.startswith(".run-")) and not os.path.exists(folder):
                return folder
            folder = above
    return ""


class Log:
    """Bounded lines on stderr. Control characters of a bundle's text never reach the terminal."""

    left = LOG_CAP
    begun = shown_at = time.monotonic()
    shown = False

    @classmethod
    def progress(cls, phase: str, done: int, total: int, size: int) -> None:
        """Where a run is that takes long, on a terminal: one line that changes. Bytes are in `size`."""
        now = time.monotonic()
        if now - cls.begun < 1 or now - cls.shown_at < 0.1 or not os.isatty(2):
            return
        cls.shown, cls.shown_at = True, now
        text = f"\r\x1b[K{phase}: {done} of {total} packages, {size >> 20} MiB, {now - cls.begun:.0f} s"
        with suppress(OSError):
            os.write(2, text.encode())

    @classmethod
    def line(cls, text: str) -> None:
        if cls.shown:
            cls.shown = False
            with suppress(OSError):
                os.write(2, b"\r\x1b[K")
        data = (printable(text) + "\n").encode("utf-8", "backslashreplace")
        if cls.left <= 0:
            return
        cls.left -= len(data)
        with suppress(OSError):
            os.write(2, data if cls.left > 0 else b"[log limit reached]\n")


def printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)


# --- profiles: what a sandbox may do


class Limits(NamedTuple):
    """Limits of one phase. Seconds and bytes; `processes` counts threads too; output is the result pipe."""

    wall_seconds: float  # of all sandboxes of the phase in one run; the other limits are of each
    cpu_seconds: float
    memory_bytes: int
    processes: int
    file_bytes: int
    open_files: int
    output_bytes: int
    stderr_bytes: int


class PhasePolicy(NamedTuple):
    network: bool
    read_only: list[str]  # host paths, bound read-only where they are, `*` for part of a name; left out if not there
    programs: list[str]  # of the host's /usr/bin and /usr/sbin, as copies without privileges; left out if not there
    tmp_bytes: int
    shm_bytes: int
    shell: bool
    pass_environment: list[str]
    environment: dict[str, str]
    limits: Limits
    privileged_files: bool = True  # whether files with set-uid, set-gid or capabilities can be seen
    working_directory: Literal["bundle", "shadow"] = "bundle"  # of a task: read-only, or a copy that can be written
    shadow_max_entries: int = 0  # over so many files and folders only the top level has a shadow


class BundlePolicy(NamedTuple):
    entry_point_group: str
    exclude: list[str]
    max_bytes: int
    max_files: int
    inspect_seconds: float
    request_bytes: int


class DependencyPolicy(NamedTuple):
    direct_urls: bool
    git: bool
    sdists: bool
    private_addresses: bool
    max_packages: int
    max_wheel_bytes: int
    max_environment_bytes: int  # all wheels of one environment, unpacked; each file counts a block more
    unpack_seconds: float  # for one wheel or source archive
    indexes: Literal["caller", "bundle"]  # the caller's alone, or those that the bundle names as well


class HostPolicy(NamedTuple):
    uids: list[int]  # first and last host uid that root may start a sandbox under
    reserve_bytes: int  # of the memory that a control group allows this process, what no sandbox gets


class SandboxPolicy(NamedTuple):
    hostname: str
    uid: int
    gid: int
    proc: bool
    nested_userns: Literal["sysctl", "seccomp"]
    tmpfs_size: Literal["mount", "polling"]
    masked: list[str]


class Condition(NamedTuple):
    arg: int
    op: str
    values: list[int]
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


class DenyRule(NamedTuple):
    calls: list[str]
    when: list[Condition]


class SeccompPolicy(NamedTuple):
    default: str
    foreign_architecture: str
    also_allow: list[str]
    allow: list[str]
    deny: list[str]
    enosys: list[str]
    deny_if: list[DenyRule]


class CachePolicy(NamedTuple):
    folders: list[str]  # of the home, where libraries keep what they can make again
    max_files: int
    max_bytes: int


class ColdPolicy(NamedTuple):
    keep_caches: bool  # with REUSE=1, give tasks the caches that a --prime task of the caller left


class TracePolicy(NamedTuple):
    allowed: bool  # whether --trace may put strace in front of the sandboxes
    max_bytes: int  # of the trace of one sandbox; what comes after is counted and left out
    read_only: list[str]  # host paths that strace and bwrap need


class ServePolicy(NamedTuple):
    preload: bool  # import the wire function before the fork of each task, or after it
    preload_bytes: int  # memory of what tasks were seen to import, over which it is imported in each task
    max_modules: int
    harmless_threads: list[str]  # names of threads that an import may leave: a fork does not miss them
    tasks_per_sandbox: int
    also_deny: list[str]  # calls that leave something in a namespace that outlives the task


class Profile(NamedTuple):
    description: str
    bundle: BundlePolicy
    dependencies: DependencyPolicy
    host: HostPolicy
    sandbox: SandboxPolicy
    seccomp: SeccompPolicy
    fetch: PhasePolicy
    build: PhasePolicy
    compile: PhasePolicy
    execute: PhasePolicy
    caches: CachePolicy
    cold: ColdPolicy
    serve: ServePolicy
    trace: TracePolicy


# A profile may bind from these trees and no others: system software, which holds no secrets.
BINDABLE = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/nix/store", "/etc/alternatives")
SIZE = r"([0-9]{1,19})\s*(B|KiB|MiB|GiB|TiB)"
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def load_profile(name: str, folders: Iterable[str]) -> Profile:
    """Read a profile, by name from the folders or by path, with the one that it extends. Host error if not valid."""
    path = find_profile(name, folders)
    table = read_toml(path)
    base = table.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise profile_error(path, "extends", "must be a string")
        base_path = find_profile(base, [os.path.dirname(path), *folders])
        base_table = read_toml(base_path)
        if "extends" in base_table:
            raise profile_error(base_path, "extends", "a profile that is extended may not extend another")
        table = merge_tables(base_table, table)
    profile: Profile = read_table(Profile, table, path, "")
    check_profile(profile, path)
    return profile


def find_profile(name: str, folders: Iterable[str]) -> str:
    candidates = [name] if "/" in name or name.endswith(".toml") else [os.path.join(f, name + ".toml") for f in folders]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    problem = f"there is no profile {name!r}; looked for {', '.join(candidates)}"
    raise Failure("host", "profile_not_found", f"{problem}; name one with --profile or its folder with --profiles-dir")


def read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            return Toml.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        if is_own(error):
            raise
        raise Failure("host", "profile_invalid", f"the profile {path} can't be read: {error}") from None


class Toml:
    """TOML, of which a run keeps what it came to: the parser takes 4 ms to load, and 100 for a lock of 300 kB."""

    keep: "Callable[[str, Callable[[], bytes], str], bytes] | None" = None

    @classmethod
    def loads(cls, text: str) -> dict[str, Any]:
        """ValueError or RecursionError where it is none. A date is a table, which no reader takes for text."""

        def parse() -> bytes:
            import tomllib

            # Its time is the square of a key's parts: some 100 kB of dots would be hours.
            if sum(dots**2 for dots in (line.count(".") for line in text.splitlines()) if dots > 200) > 1_000_000:
                raise ValueError("its keys have too many parts")
            return json.dumps(tomllib.loads(text), default=lambda date: {"date": str(date)}).encode()

        return dict(json.loads(cls.keep("dated-toml", parse, text) if cls.keep else parse()))


def merge_tables(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; any other value, a list too, replaces the one below."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge_tables(base[key], value) if both else value
    return merged


def profile_error(path: str, key: str, problem: str) -> Failure:
    return Failure("host", "profile_invalid", f"{path}: {key}: {problem}")


def read_table(cls: Any, table: Any, path: str, where: str) -> Any:
    """Turn a TOML table into the record `cls`, whose fields and their types are the schema."""
    if not isinstance(table, dict):
        raise profile_error(path, where.rstrip("."), "must be a table")
    hints: dict[str, Any] = cls.__annotations__
    for key in table:
        if key not in hints:
            raise profile_error(path, f"{where}{key}", "unknown key")
    values = {}
    for name, hint in hints.items():
        if name in table:
            values[name] = read_value(hint, table[name], path, f"{where}{name}")
        elif name not in cls._field_defaults:
            raise profile_error(path, f"{where}{name}", "missing")
    return cls(**values)


def read_value(hint: Any, value: Any, path: str, where: str) -> Any:
    if hint is type(value) is str:  # most of a profile: the names of calls
        return value
    if hasattr(hint, "_fields"):
        return read_table(hint, value, path, where + ".")
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise profile_error(path, where, f"must be {' or '.join(map(repr, arguments))}")
        return value
    if origin is list and isinstance(value, list):
        return [read_value(arguments[0], item, path, f"{where}[{n}]") for n, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: read_value(arguments[1], item, path, f"{where}.{key}") for key, item in value.items()}
    if hint is int and where.endswith("_bytes") and isinstance(value, str):
        size = re.fullmatch(SIZE, value)
        if size is None:
            raise profile_error(path, where, f"{value!r} is not a size such as '512MiB'")
        value = int(size[1]) * UNITS[size[2]]
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not origin:
        expected = getattr(hint, "__name__", hint)
        raise profile_error(path, where, f"must be of type {expected}, not {type(value).__name__}")
    if origin in (int, float) and not 0 <= value < 1 << 64:
        raise profile_error(path, where, "must be finite and not negative")
    return value


def check_profile(profile: Profile, path: str) -> None:
    """The rules that no type can say. The first is the design's: no code of a bundle has network."""
    for phase in ("build", "compile", "execute"):
        if getattr(profile, phase).network:
            raise profile_error(path, f"{phase}.network", "only fetch, which runs no code of a bundle, may have it")
    check_binds(profile.trace.read_only, path, "trace")
    for phase in ("fetch", "build", "compile", "execute"):
        policy: PhasePolicy = getattr(profile, phase)
        check_binds(policy.read_only, path, phase)
        if any(name.startswith("PYTHON") for name in policy.pass_environment):
            raise profile_error(path, f"{phase}.pass_environment", "no PYTHON* of the caller may reach a sandbox")
        shadow = policy.working_directory == "shadow"
        if shadow and phase != "execute":
            raise profile_error(path, f"{phase}.working_directory", "must be 'bundle', or of execute 'shadow'")
        if shadow and not policy.shadow_max_entries:
            raise profile_error(path, f"{phase}.shadow_max_entries", "must be more than zero where there is a shadow")
        for program in policy.programs:
            if not re.fullmatch(r"[A-Za-z0-9._+\[-]+", program):
                raise profile_error(path, f"{phase}.programs", f"{program!r} is not the name of a program")
        sizes = {"tmp_bytes": policy.tmp_bytes, "shm_bytes": policy.shm_bytes}
        for name, limit in {**policy.limits._asdict(), **sizes}.items():
            if limit <= 0:
                raise profile_error(path, f"{phase}.{name}", "must be more than zero")
    if len(profile.host.uids) != 2 or not 0 < profile.host.uids[0] <= profile.host.uids[1] < 1 << 32:
        raise profile_error(path, "host.uids", "must be the first and the last of a range of uids above 0")
    for masked in profile.sandbox.masked:
        if not masked.startswith("/proc/") or os.path.normpath(masked) != masked:
            raise profile_error(path, "sandbox.masked", f"{masked!r} is not below /proc")
    for folder in profile.caches.folders:
        if not re.fullmatch(r"\.?[\w-]+(/[\w-]+)*", folder):
            raise profile_error(path, "caches.folders", f"{folder!r} is not a folder of the home")
    check_seccomp(profile.seccomp, path)


def room_in(quota: int, policy: HostPolicy) -> int:
    """What of the memory that a control group allows a sandbox gets: all but the reserve, which is at most half."""
    return max(quota - policy.reserve_bytes, quota // 2)


def within(profile: Profile, quota: int) -> Profile:
    """The profile with no limit on memory over what a control group has for a sandbox. Pure."""
    room = room_in(quota, profile.host)
    fitted: dict[str, Any] = {}
    for phase in ("fetch", "build", "compile", "execute"):
        policy: PhasePolicy = getattr(profile, phase)
        memory = min(policy.limits.memory_bytes, room)
        fitted[phase] = policy._replace(limits=policy.limits._replace(memory_bytes=memory))
    return profile._replace(**fitted)


def check_binds(paths: Iterable[str], path: str, phase: str) -> None:
    for bind in paths:
        allowed = any(bind == top or bind.startswith(top + "/") for top in BINDABLE)
        if not allowed or os.path.normpath(bind) != bind:
            raise profile_error(path, f"{phase}.read_only", f"{bind!r} is not below one of {', '.join(BINDABLE)}")


def check_seccomp(policy: SeccompPolicy, path: str) -> None:
    for key in ("default", "foreign_architecture"):
        if getattr(policy, key) not in errno.errorcode.values():
            raise profile_error(path, f"seccomp.{key}", "must be the name of an errno")
    for rule in policy.deny_if:
        for condition in rule.when:
            if condition.op not in (*SCMP_OPS, "bits_set") or condition.arg > 5:
                raise profile_error(path, "seccomp.deny_if", f"{condition} has an unknown op or argument")
    loose = {"unshare", "setns", "clone3", "mount", "pivot_root"} & {*policy.allow, *policy.also_allow}
    if loose:
        problem = f"{', '.join(sorted(loose))} would open new namespaces, which no profile may"
        raise profile_error(path, "seccomp.allow", problem)


# --- request: what the caller asks on standard input


def read_request(stream: int, aggregation: bool, limit: int) -> dict[str, Any]:
    """One JSON object from `stream`, checked; inputs of an aggregation come out decoded and verified."""
    task = read_json(stream, limit)
    return check_aggregation(task) if aggregation else check_simulation(task)


def read_json(stream: int, limit: int) -> Any:
    data = bytearray()
    try:
        for chunk in read_chunks(stream):
            data += chunk
            if len(data) > limit:
                raise input_too_large("standard input", limit)
    except OSError as error:
        raise Failure("input", "input_invalid", f"standard input can't be read: {error.strerror}") from None
    return parse_json(bytes(data))


def input_too_large(what: str, limit: int) -> Failure:
    return Failure("input", "input_too_large", f"{what} is over {limit} bytes, the profile's bundle.request_bytes")


def parse_json(data: bytes) -> Any:
    """JSON as the standard has it: UTF-8 throughout, finite numbers. Anything else is an input error."""
    try:
        return strict_json(data)
    except (ValueError, RecursionError) as error:
        raise Failure("input", "input_invalid", f"standard input is not one JSON object in UTF-8: {error}") from None


def strict_json(data: bytes) -> Any:
    value = json.loads(data.decode())
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError("it has NaN, or a number that is out of range") from None
    text.encode()  # lone surrogates end here
    return value


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise Failure("input", "input_invalid", f"the task on standard input is not valid: {problem}")


def check_keys(task: Any, required: set[str], optional: set[str]) -> None:
    require(isinstance(task, dict), f"it must be a JSON object, not {type(task).__name__}")
    require(required <= task.keys(), f"missing {', '.join(sorted(required - task.keys()))}")
    extra = task.keys() - required - optional
    require(not extra, f"unknown {', '.join(sorted(map(repr, extra)))}")


def check_simulation(task: Any) -> dict[str, Any]:
    check_keys(task, {"entrypoint", "params", "seed"}, set())
    check_entry_point(task["entrypoint"], "entrypoint")
    require(isinstance(task["params"], dict), "params must be an object")
    seed = task["seed"]
    require(type(seed) is int and 0 <= seed < 1 << 64, "seed must be an integer from 0 to 2**64-1")
    return dict(task)


def check_entry_point(value: Any, key: str) -> None:
    good = isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()
    require(good, f"{key} must be a printable string")


def check_aggregation(task: Any) -> dict[str, Any]:
    check_keys(task, {"target_entrypoint", "sim_returns"}, {"target_data"})
    check_entry_point(task["target_entrypoint"], "target_entrypoint")
    module, colon, name = task["target_entrypoint"].partition(":")
    dotted = all(part.isidentifier() for part in [*module.split("."), *name.split(".")])
    require(bool(colon) and dotted, "target_entrypoint must be of the form module:object")
    require(isinstance(task["sim_returns"], list), "sim_returns must be a list")
    returns = [check_sim_return(item, f"sim_returns[{n}]") for n, item in enumerate(task["sim_returns"])]
    return {"target_data": None, **task, "sim_returns": returns}


def check_sim_return(item: Any, where: str) -> dict[str, Any]:
    import base64

    require(isinstance(item, dict) and isinstance(item.get("task_id"), str), f"{where} needs a task_id")
    require(isinstance(item.get("outputs"), dict), f"{where} needs outputs")
    outputs = {}
    for name, artifact in item["outputs"].items():
        here = f"{where}.outputs[{name!r}]"
        require(isinstance(artifact, dict) and isinstance(artifact.get("inline"), str), f"{here} has no inline data")
        try:
            data = base64.b64decode(artifact["inline"], validate=True)
        except ValueError:
            raise Failure("input", "input_invalid", f"{here}: inline is not base64") from None
        checksum = blake2b(data, digest_size=32).hexdigest()
        require(artifact.get("size", len(data)) == len(data), f"{here}: size is not that of the data")
        require(artifact.get("checksum", checksum) == checksum, f"{here}: checksum is not that of the data")
        outputs[name] = {"size": len(data), "checksum": checksum, "inline": data}
    return {"task_id": item["task_id"], "outputs": outputs}


def task_id(task: Mapping[str, Any], output_names: Iterable[str]) -> str:
    """BLAKE2b-256 over parameters, seed and the names of the outputs, as existing callers compute it."""
    canonical = json.dumps(task["params"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    param_id = blake2b(f"contracts:param:v1|{canonical}".encode(), digest_size=32).hexdigest()
    text = f"{param_id[:16]}-{task['seed']}-{','.join(sorted(output_names))}"
    return blake2b(text.encode(), digest_size=32).hexdigest()


# --- requirements: dependencies as data


class Requirement(NamedTuple):
    """One dependency (PEP 508), parsed, so that what a tool reads is written by us.

    `name` is empty where only the source itself knows it (`.`). A `url` that begins with `file:` is a path from the
    top of the tree that asks for it. `hashes` are `algorithm:hex`.
    """

    name: str
    extras: str
    versions: str
    url: str
    marker: str
    hashes: frozenset[str] = frozenset()

    def line(self) -> str:
        target = f" @ {self.url}" if self.url else self.versions
        return f"{self.name}{self.extras}{target}" + (f" ; {self.marker}" if self.marker else "")

    @property
    def key(self) -> str:
        return canonical_name(self.name)

    @property
    def path(self) -> str | None:
        return self.url.removeprefix("file:") if self.url.startswith("file:") else None

    @property
    def extra_names(self) -> frozenset[str]:
        return frozenset(canonical_name(name) for name in self.extras.strip("[]").split(",") if name)


NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
VERSION = r"\s*(?:~=|===?|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9.*+!_-]*\s*"
REQUIREMENT = re.compile(  # here, and not in each fork of who has imported this
    rf"(?P<name>{NAME})\s*(?P<extras>\[[A-Za-z0-9._,\s-]*\])?\s*"
    rf"(?:@\s*(?P<url>\S+)(?:\s+;\s*(?P<url_marker>.+))?"
    rf"|\(?(?P<versions>{VERSION}(?:,{VERSION})*)?\)?\s*(?:;\s*(?P<marker>.+))?)"
)
MARKER = r"[A-Za-z0-9_ .'\"()<>=!~,*+-]+"
URL = (
    r"(?P<scheme>https|git\+https)://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
    r"/[A-Za-z0-9._~:/?#\[\]@!&'()*+,;=%-]*"
)


def invalid(problem: str) -> Failure:
    return Failure("bundle", "pyproject_invalid", problem[:2000])


def refused(where: str, text: str) -> Failure:
    return Failure("bundle", "dependency_refused", f"{where}: {text}"[:2000])


def parse_requirement(text: str, policy: DependencyPolicy, source: str, base: str | None = None) -> Requirement:
    """Parse one dependency, refusing what a resolver would expand, read from disk or run (see URL, MARKER).

    `base` is the folder, in its tree, that a relative path counts from; without one no path is taken.
    """
    text = " ".join(text[:5000].split())  # no run of blanks for a pattern to try every split of
    where = f"{source}: the dependency {text[:200]!r} is refused"
    match = re.fullmatch(REQUIREMENT, text) if len(text) < 4096 else None
    if match is None:
        raise refused(where, "it is not a name with versions or a URL (PEP 508)")
    extras, versions = (re.sub(r"\s", "", match[group] or "") for group in ("extras", "versions"))
    marker, url = (match["marker"] or match["url_marker"] or "").strip(), match["url"] or ""
    if marker:
        check_marker(marker, where)
    if base is not None and url and not re.match(r"(https|git\+)", url):
        url = "file:" + local_path(url, base, where)
    elif url:
        check_dependency_url(url, policy, where)
    return Requirement(match["name"], extras, versions, url, marker)


def check_dependency_url(url: str, policy: DependencyPolicy, where: str) -> None:
    if url.startswith("https:") and not policy.direct_urls:
        raise refused(where, "the profile takes wheels from the index only (dependencies.direct_urls)")
    if url.startswith("git+") and not policy.git:
        raise refused(where, "the profile takes no git dependencies (dependencies.git)")
    check_url(url, policy, where)


def check_url(url: str, policy: DependencyPolicy, where: str) -> str:
    """What any URL of a bundle must be. Returns its scheme."""
    match = re.fullmatch(URL, url)
    if match is None:
        raise refused(where, "only https:// and git+https:// URLs without user, password or variables are taken")
    if not policy.private_addresses and is_private(match["host"]):
        problem = "its host is an address of this machine or of a private network (dependencies.private_addresses)"
        raise refused(where, problem)
    return match["scheme"]


def host_and_port(url: str) -> str:
    """What credentials belong to: one spelling for all that a resolver takes for the same host (RFC 3986, 6.2)."""
    import contextlib
    import ipaddress
    from urllib.parse import urlsplit

    netloc = urlsplit(url).netloc.rpartition("@")[2]
    match = re.fullmatch(r"(.*?)\.?(?::0*([0-9]*))?", netloc.lower())
    host, port = (match[1], match[2]) if match else (netloc, "")
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host.strip("[]")))
    return f"{host} {port or 443}"


def is_private(host: str) -> bool:
    try:
        return is_inner_address(host.strip("[]"))
    except ValueError:
        numeric = all(re.fullmatch(r"\d+|0[xX][0-9a-fA-F]*", part) for part in host.rstrip(".").split("."))
        return numeric or host.rstrip(".").lower().split(".")[-1] in ("localhost", "local", "internal")


def local_path(text: str, base: str, where: str) -> str:
    """A path or file: URL that stays in its tree, as a path from the top of it. Backends write absolute ones, of the
    place where they were run."""
    from urllib.parse import unquote

    path = text
    if path.startswith("file:"):
        path = unquote(path[len("file:") :].partition("#")[0]).removeprefix("//localhost")
        path = path[2:] if path.startswith("//") else path
    if "${" in path or "\0" in path or "://" in path or path.startswith("~"):
        problem = "it is no path in the bundle; of URLs, https:// and git+https:// without variables are taken"
        raise refused(where, f"{text[:200]!r}: {problem} for a package")
    if path == BUILD_TREE or path.startswith(BUILD_TREE + "/"):
        base, path = "", path[len(BUILD_TREE) + 1 :]
    joined = os.path.normpath(os.path.join(base, path))
    if path.startswith("/") or joined == ".." or joined.startswith("../"):
        problem = "leads out of the bundle; put what it names into the bundle and name it from there, or ask an index"
        problem += " for it by name and version"
        raise refused(where, f"{text[:200]!r} {problem}")
    return joined


def require_place(tree: str, path: str, where: str) -> str:
    """The absolute path of what a dependency names in its tree, with no link on the way."""
    place = os.path.normpath(os.path.join(tree, path))
    if not os.path.lexists(place):
        raise refused(where, f"there is no {path!r} in the bundle")
    if os.path.realpath(place) != os.path.join(os.path.realpath(tree), path).removesuffix("/."):
        raise refused(where, f"{path!r} is, or is behind, a symbolic link; name the folder itself")
    return place


# --- markers


MARKER_OPERATORS = {
    "Eq": "==", "NotEq": "!=", "Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">=", "In": "in", "NotIn": "not in",
}  # fmt: skip
VERSION_VARIABLES = ("python_version", "python_full_version", "implementation_version", "platform_release")
MARKER_VARIABLES = (
    *VERSION_VARIABLES, "os_name", "sys_platform", "platform_machine", "platform_python_implementation",
    "platform_system", "platform_version", "implementation_name", "extra", "extras", "dependency_groups",
    "os.name", "sys.platform", "platform.version", "platform.machine", "platform.python_implementation",
)  # fmt: skip


def check_marker(marker: str, where: str) -> None:
    try:
        marker_holds(marker, {})
    except ValueError as error:
        raise refused(where, f"its marker is not one (PEP 508): {error}") from None


def marker_holds(marker: str, environment: Mapping[str, str], extras: Collection[str] = ()) -> bool:
    """Whether a marker (PEP 508, PEP 751) holds. ValueError where it is none. Its grammar is a part of Python's, but
    for `~=`, in whose place stands an operator that no marker has."""
    import ast

    def holds(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            values = [holds(value) for value in node.values]
            return all(values) if isinstance(node.op, ast.And) else any(values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return compare_marker(side(node.left), "~=", side(node.right), environment, extras)
        operators = [type(operator).__name__ for operator in node.ops] if isinstance(node, ast.Compare) else []
        if not isinstance(node, ast.Compare) or len(operators) != 1 or operators[0] not in MARKER_OPERATORS:
            raise ValueError("it is not made of comparisons")
        operator = MARKER_OPERATORS[operators[0]]
        return compare_marker(side(node.left), operator, side(node.comparators[0]), environment, extras)

    def side(node: ast.expr) -> tuple[str, str]:
        """The name of a variable, or else a text."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return "", node.value
        name = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
        if name not in MARKER_VARIABLES:
            raise ValueError(f"{name[:100]!r} is no variable of a marker")
        return name, environment.get(name.replace(".", "_"), "")

    if len(marker) > 20_000 or not re.fullmatch(MARKER, marker):
        raise ValueError("it is too long, or has characters that no marker needs")
    try:
        return holds(ast.parse(marker.strip().replace("~=", "@"), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("it can't be parsed") from None


def compare_marker(
    left: tuple[str, str], operator: str, right: tuple[str, str], environment: Any, extras: Collection[str]
) -> bool:
    (name, a), (other, b) = left, right
    if "extra" in (name, other):
        among = canonical_name(b if name == "extra" else a) in extras
        return among if operator == "==" else not among
    if other in ("extras", "dependency_groups"):
        among = other == "extras" and canonical_name(a) in extras
        return among if operator == "in" else not among
    if operator in ("in", "not in"):
        return (a in b) == (operator == "in")
    if environment and {name, other} & {*VERSION_VARIABLES}:
        mirrored = MIRRORED.get(operator, operator)
        version, specifier = (a, f"{operator}{b}") if name else (b, f"{mirrored}{a}")
        with suppress(Failure):
            return version_matches(version, specifier)
    return {"==": a == b, "!=": a != b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}.get(operator, False)


MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def marker_environment(interpreter: "Interpreter") -> dict[str, str]:
    """What an interpreter of this host answers to markers."""
    machine = interpreter.platform.partition("-")[2]
    pypy = interpreter.cache_tag.startswith("pypy")
    system = os.uname()
    return {
        "python_version": ".".join(interpreter.version.split(".")[:2]),
        "python_full_version": interpreter.version,
        "implementation_name": "pypy" if pypy else "cpython",
        "implementation_version": interpreter.version,
        "platform_python_implementation": "PyPy" if pypy else "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_release": system.release,
        "platform_version": system.version,
    }


def version_matches(version: str, specifier: str) -> bool:
    """Whether a release version such as 3.11.7 satisfies a version specifier (PEP 440, without pre-releases)."""
    if len(specifier) > 1000:
        raise invalid("requires-python is too long")
    have = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    for clause in filter(None, (part.strip() for part in specifier.split(","))):
        match = re.fullmatch(
            r"(~=|==|!=|<=|>=|<|>)\s*([0-9]{1,9}(?:\.[0-9]{1,9})*)(\.\*)?(?:[a-z+-][A-Za-z0-9.+-]*)?", clause
        )
        if match is None:
            raise invalid(f"requires-python: {clause[:80]!r} is not a version specifier")
        operator, want, wild = match[1], tuple(int(part) for part in match[2].split(".")), bool(match[3])
        padded = want + (0,) * (3 - len(want))
        same = have[: len(want)] == want if wild else have == padded
        holds = {
            "==": same,
            "!=": not same,
            ">=": have >= padded,
            "<=": have <= padded,
            "<": have < padded,
            ">": have > padded,
            "~=": have >= padded and have[: len(want) - 1] == want[:-1],
        }
        if not holds[operator]:
            return False
    return True


# --- bundle: the attacker's directory, opened as data


class Bundle(NamedTuple):
    """A private snapshot of the bundle. `digest` is BLAKE2b-256 of every path, kind, mode and content."""

    path: str
    digest: str
    plan: "Plan"


@contextmanager
def deadline(seconds: float, phase: str, name: str) -> Iterator[None]:
    """A wall limit for what the host itself does with the attacker's data, such as parsing a slow TOML file.

    `name` is the limit's key in the profile. It asks again each second: see Killed.check.
    """

    def stop(_: int, __: Any) -> NoReturn:
        limit = {"name": name.partition(".")[2], "value": seconds, "seen": seconds}
        text = f"unpacking and reading what the bundle brings took over {seconds:g} s ({name} of the profile)"
        raise Failure(phase, "timeout", text, limit=limit)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def snapshot(source: str, target: str, policy: BundlePolicy) -> tuple[str, int]:
    """Copy a bundle file by file, digesting what is copied. Returns the digest and the size in bytes.

    What is checked is what runs: a bundle that changes meanwhile changes nothing here. Descriptors are
    opened without following links, so no component of a path can lead out.
    """
    try:
        top = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        problem = f"the bundle directory {source!r} can't be opened: {error.strerror}"
        raise Failure("input", "bundle_not_found", problem) from None
    digest, used = blake2b(digest_size=32), 0
    os.mkdir(target, 0o755)
    try:
        for count, (path, kind, mode, folder, name) in enumerate(walk(top, "", set(policy.exclude)), 1):
            if count > policy.max_files:
                problem = f"the bundle has more than {policy.max_files} entries (bundle.max_files)"
                raise Failure("bundle", "bundle_too_large", problem)
            copy = os.path.join(target, path)
            digest.update(f"{kind}{mode:o} {len(os.fsencode(path))} ".encode() + os.fsencode(path))
            if kind == "d":
                os.mkdir(copy, 0o755)
            elif kind == "l":
                with reading(path):
                    link = os.readlink(name, dir_fd=folder)
                link = safe_link(path, link)
                digest.update(os.fsencode(link) + b"\0")
                os.symlink(link, copy)
            else:
                used += copy_file(path, name, folder, copy, mode, policy.max_bytes - used, digest)
    finally:
        os.close(top)
    return digest.hexdigest(), used


def walk(folder: int, prefix: str, exclude: set[str]) -> Iterator[tuple[str, str, int, int, str]]:
    """Entries below an open directory in a fixed order: path, kind (d, l, f), mode, the folder's fd, name."""
    if len(os.fsencode(prefix)) > 1024 or prefix.count("/") > MAX_DEPTH:
        raise Failure("bundle", "bundle_too_deep", f"the bundle's folders are nested too deep at {prefix[:100]!r}...")
    with reading(prefix):
        names = sorted(os.listdir(folder))
    for name in names:
        path = prefix + name
        with reading(path):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            yield path, "l", 0o777, folder, name
        elif stat.S_ISREG(status.st_mode):
            yield path, "f", 0o755 if status.st_mode & 0o100 else 0o644, folder, name
        elif not stat.S_ISDIR(status.st_mode):
            raise unsafe_file(f"{path!r} is neither a file nor a directory nor a link; take it out of the bundle")
        elif name not in exclude:
            yield path, "d", 0o755, folder, name
            inner = open_inside(name, os.O_DIRECTORY, folder, path)
            try:
                yield from walk(inner, path + "/", exclude)
            finally:
                os.close(inner)


def open_inside(name: str, flags: int, folder: int, path: str) -> int:
    with reading(path):
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=folder)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What can't be read was changed since it was listed, or is out of reach."""
    try:
        yield
    except OSError as error:
        if is_own(error):
            raise
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            problem = f"{path!r} changed while the bundle was read; run again"
            raise Failure("bundle", "bundle_changed", problem, True) from None
        raise unsafe_file(f"{path!r} can't be opened: {error.strerror}") from None


def safe_link(path: str, link: str) -> str:
    """A symbolic link is kept as it is if it stays in the bundle, and is an error otherwise."""
    resolved = os.path.normpath(os.path.join(os.path.dirname(path), link))
    if link.startswith("/") or resolved == ".." or resolved.startswith("../"):
        raise unsafe_file(f"the link {path!r} leads out of the bundle; take it out or make it relative")
    return link


def copy_file(path: str, name: str, folder: int, copy: str, mode: int, room: int, digest: Any) -> int:
    source = regular_file(open_inside(name, 0, folder, path))
    if source is None:
        raise Failure("bundle", "bundle_changed", f"{path!r} is not a regular file any more", True)
    too_large = Failure("bundle", "bundle_too_large", f"the bundle is too large at {path!r} (bundle.max_bytes)")
    if os.fstat(source.fileno()).st_size > room:  # known before a byte of it is written
        source.close()
        raise too_large
    with source, new_file(copy, mode) as target:
        size = 0
        for chunk in read_chunks(source.fileno()):
            size += len(chunk)
            if size > room:
                raise too_large
            digest.update(chunk)
            write_all(target.fileno(), chunk)
        os.utime(target.fileno(), (CONSTANT_TIME, CONSTANT_TIME))  # numba's caches know a source by it
    digest.update(f" {size} ".encode())
    return size


def regular_file(fd: int) -> FileIO | None:
    """The file of a descriptor; None, and the descriptor closed, where it is none."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return FileIO(fd)
    os.close(fd)
    return None


def new_file(path: str, mode: int) -> FileIO:
    """A file that was not there before, nor a link in its place."""
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(mode)), "w")


def write_file(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def text_of(path: str) -> str:
    """What a file of the host's says; "" where it can't be read."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:  # a text file takes half as long again
        return file.read().decode()
    return ""


def read_small_file(path: str, limit: int = MIB // 2) -> bytes | None:
    """The bytes of a file that must be a regular one, of a sane size; None where there is none."""
    name = os.path.basename(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unsafe_file(f"{name} must be a regular file: {error.strerror}") from None
    file = regular_file(fd)
    if file is None:
        raise unsafe_file(f"{name} must be a regular file")
    with file:
        if os.fstat(fd).st_size > limit:
            raise invalid(f"{name} can't be read: it is over {limit} bytes")
        return file.readall()


# --- plan: what the bundle asks for, read as data before anything runs


class Index(NamedTuple):
    """An index that the bundle names. An explicit one serves what names it, and nothing else."""

    url: str
    name: str = ""
    explicit: bool = False
    default: bool = False
    flat: bool = False  # a page of links, not a simple index


# How pdm writes an editable source of the project's own.
PDM_EDITABLE = r"-e\s+file:///\$\{PROJECT_ROOT\}/(?P<path>[^#]+?)/?#egg=(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[.*\])?\s*"


class Origin(NamedTuple):
    """Where a name comes from: `target` is a `file:` path of the bundle, a URL, `index:NAME`, or `links:`, the
    plan's links."""

    target: str
    marker: str = ""

    @property
    def path(self) -> str | None:
        return self.target[len("file:") :] if self.target.startswith("file:") else None


class Rules(NamedTuple):
    """How the index is asked, for what the bundle needs and for what builds need."""

    constraints: tuple[Requirement, ...] = ()
    build_constraints: tuple[Requirement, ...] = ()
    overrides: tuple[Requirement, ...] = ()
    placed: frozenset[str] = frozenset()  # names whose override is a place, whatever version is asked for
    excluded: frozenset[str] = frozenset()
    no_binary: frozenset[str] = frozenset()  # names to build from source
    only_binary: frozenset[str] = frozenset()  # names never to build from source; `:all:`
    prerelease: str = ""
    resolution: str = ""
    exclude_newer: str = ""
    exclude_newer_package: tuple[tuple[str, str], ...] = ()
    no_index: bool = False
    require_hashes: bool = False


PLAIN_VERSION = r"[0-9][A-Za-z0-9.+!]{0,100}"


class Project(NamedTuple):
    """What a folder of a source tree says about itself. `kind` is "built", "virtual", or empty: nothing to install."""

    kind: str = ""
    folder: str = "."
    name: str = ""
    version: str = ""
    backend: str = ""
    backend_path: list[str] = []  # noqa: RUF012 (never changed)
    build_requires: list[Requirement] = []  # noqa: RUF012
    requires: list[Requirement] = []  # noqa: RUF012
    extras: dict[str, list[Requirement]] = {}  # noqa: RUF012
    points: dict[str, dict[str, str]] = {}  # noqa: RUF012
    requires_python: str = ""
    dynamic: list[str] = []  # noqa: RUF012
    asks_scm: str = ""  # what would ask a version-control system for the version, which is not there

    def is_static(self) -> bool:
        """Whether its pyproject.toml says all that its wheel will say of itself (PEP 621)."""
        said = bool(self.name and re.fullmatch(PLAIN_VERSION, self.version))
        return self.kind == "built" and said and not {"dependencies", "optional-dependencies"} & {*self.dynamic}


class Plan(NamedTuple):
    """All that a bundle says of what to install: obeyed, or refused while it was read."""

    project: Project
    requires_python: str
    requirements: list[Requirement]
    origins: dict[str, list[Origin]]
    elsewhere: dict[str, str]  # names that the bundle brings, but not for the task, and for what
    links: dict[str, list[str]]  # files of --find-links folders, by name
    indexes: list[Index]
    rules: Rules
    build_extra: dict[str, list[Requirement]]
    lock: str  # the file whose versions and hashes rule, if one does
    notes: list[str]  # what is not read, and what was decided

    @property
    def kind(self) -> str:
        return self.project.kind or "requirements"

    def as_json(self) -> dict[str, Any]:
        """What is asked for, for a reviewer."""
        return {"kind": self.kind, **shown(self)}

    def lines(self) -> list[str]:
        """The same in a few lines, for the log."""
        local = sorted({o.path for found in self.origins.values() for o in found if o.path})
        found = []
        if self.kind == "virtual":
            found.append("the project is virtual: its code is used where it lies, nothing of it is built")
        if local and local != ["."]:
            found.append(f"from the bundle itself: {', '.join(name for name in local if name != '.')}"[:500])
        if self.indexes:
            found.append(f"indexes of the bundle: {', '.join(index.url for index in self.indexes)}"[:500])
        return [*found, *self.notes]


def shown(value: Any) -> Any:
    """A part of a plan as JSON; of what has names, what is empty is left out."""
    if isinstance(value, Requirement):
        return value.line()
    if isinstance(value, (Plan, Project, Rules, Index)):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in sorted(value.items()) if inner}
    if isinstance(value, (list, tuple, frozenset)):
        return [shown(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]
    return value


LOCK_BYTES = 16 * MIB


def read_bundle_file(tree: str, path: str, limit: int = MIB // 2) -> str | None:
    """The text of a file of the bundle; None where there is none."""
    data = read_small_file(os.path.join(tree, path), limit)
    if data is None:
        return None
    try:
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise invalid(f"{path} can't be read: {error}") from None


def read_bundle_toml(tree: str, path: str, limit: int = MIB // 2) -> dict[str, Any]:
    text = read_bundle_file(tree, path, limit)
    try:
        return Toml.loads(text) if text else {}
    except (RecursionError, ValueError) as error:
        raise invalid(f"{path} is not valid TOML: {error}") from None


def take(table: Mapping[str, Any], path: str, kind: type, default: Any, where: str, of: type = str) -> Any:
    """The value at a dotted path of a TOML table, of the type that it must have; lists are of strings, or tables."""
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else ...
        if value is None:
            return default
    items = value if isinstance(value, list) else []
    right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if not right or not all(isinstance(item, of) for item in items):
        names = {dict: "a table", str: "a string", bool: "true or false"}
        names[list] = "a list of tables" if of is dict else "a list of strings"
        raise invalid(f"{where}: {path} must be {names[kind]}")
    return value


# --- a project: pyproject.toml, setup.py, setup.cfg


PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
LEGACY = "setuptools.build_meta:__legacy__"
SCM_TOOLS = (
    "setuptools-scm", "hatch-vcs", "flit-scm", "versioningit", "poetry-dynamic-versioning", "uv-dynamic-versioning",
    "pbr", "dunamai", "setuptools-git-versioning", "vcs-versioning",
)  # fmt: skip


def read_project(tree: str, folder: str, policy: DependencyPolicy, legacy: bool = False) -> Project:
    """Read the pyproject.toml, setup.py or setup.cfg of a folder. Sizes and types are the attacker's.

    `legacy` says that there has to be a project: what a dependency names is built by setuptools, as pip has it, where
    it does not say how.
    """
    where = os.path.normpath(os.path.join(folder, "pyproject.toml"))
    table = read_bundle_toml(tree, where)
    config = read_setup_cfg(tree, folder)
    setup = os.path.lexists(os.path.join(tree, folder, "setup.py")) or bool(config)
    for path in ("project", "build-system", "tool", "tool.uv", "tool.setuptools"):
        take(table, path, dict, {}, where)
    if not setup and not {"project", "build-system"} & table.keys() and "poetry" in table.get("tool", {}):
        table = {**table, "build-system": POETRY}
    packaged = setup or "build-system" in table or "setuptools" in table.get("tool", {})
    if not packaged and not legacy and "project" not in table:
        return Project(folder=folder)
    virtual = not packaged and not legacy
    virtual = not take(table, "tool.uv.package", bool, not virtual, where) or not_packaged(table, where)
    if virtual and "project" not in table:
        return Project(folder=folder)

    root = f"file://{os.path.normpath(os.path.join(BUILD_TREE, folder))}"

    def parse(table: dict[str, Any], path: str, key: str, default: Collection[str] = ()) -> list[Requirement]:
        lines = take(table, path, list, list(default), where)
        placed = [re.sub(OWN_ROOT, lambda m: root + (m[1] or "").count("parent") * "/..", line) for line in lines]
        return [parse_requirement(line, policy, f"{where}, {key}"[:200], folder) for line in placed]

    backend_path = take(table, "build-system.backend-path", list, [], where)
    if any(entry.startswith("/") or ".." in entry.split("/") for entry in backend_path):
        raise invalid(f"{where}: build-system.backend-path leads out of the bundle")
    build_requires = parse(table, "build-system.requires", "build-system.requires", ["setuptools>=77"])
    extras = take(table, "project.optional-dependencies", dict, {}, where)
    named = [name for name in extras if "." not in name and re.fullmatch(NAME, name)]
    said = take(table, "tool.poetry.name", str, "", where)
    common: dict[str, Any] = {
        "folder": folder,
        "name": checked_name(take(table, "project.name", str, said or config.get("name", ""), where), where),
        "version": take(table, "project.version", str, "", where),
        "requires": parse(table, "project.dependencies", "project.dependencies"),
        "extras": {canonical_name(n): parse(extras, n, f"project.optional-dependencies.{n}") for n in named},
        "requires_python": take(table, "project.requires-python", str, config.get("python_requires", ""), where),
        "dynamic": take(table, "project.dynamic", list, [], where),
    }
    if virtual:
        return Project("virtual", points=read_points(table, where), **common)
    common["backend"] = take(table, "build-system.build-backend", str, LEGACY, where)
    common["asks_scm"] = asks_scm(tree, folder, table, build_requires)
    return Project("built", backend_path=backend_path, build_requires=build_requires, **common)


# What poetry builds with where a project of its own form does not say.
POETRY = {"requires": ["poetry-core>=1"], "build-backend": "poetry.core.masonry.api"}
OWN_ROOT = r"\{root((?::parent)*):uri\}|file:///\$\{PROJECT_ROOT\}"  # hatch's and pdm's words for a project's folder


def not_packaged(table: dict[str, Any], where: str) -> bool:
    """Poetry's word for a virtual project."""
    if take(table, "tool.poetry.package-mode", bool, True, where):
        return False
    if "project" not in table:
        problem = "tool.poetry.package-mode is false, and without [project] its dependencies are not read"
        raise refused(where, f"{problem}; list them there")
    return True


def checked_name(name: str, where: str) -> str:
    if name and not re.fullmatch(NAME, name[:200]):
        raise invalid(f"{where}: {name[:100]!r} is not the name of a project")
    return name


def read_setup_cfg(tree: str, folder: str) -> dict[str, str]:
    """`name` and `python_requires` of a setup.cfg that describes a project; other tools have their settings there."""
    path = os.path.normpath(os.path.join(folder, "setup.cfg"))
    if not os.path.lexists(os.path.join(tree, path)):
        return {}
    import configparser

    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(read_bundle_file(tree, path) or "")
    except configparser.Error:
        return {}  # setuptools will say so, if it is asked
    if not any(name == "metadata" or name.partition(".")[0] == "options" for name in parser.sections()):
        return {}
    name = parser.get("metadata", "name", fallback="").strip()
    python = parser.get("options", "python_requires", fallback="").strip()
    return {"name": name if re.fullmatch(NAME, name[:200]) else "", "python_requires": python[:1000]}


def read_points(table: dict[str, Any], where: str) -> dict[str, dict[str, str]]:
    """The entry points of a virtual project, as data."""
    groups = {**take(table, "project.entry-points", dict, {}, where)}
    groups["console_scripts"] = take(table, "project.scripts", dict, {}, where)
    for group, points in groups.items():
        inner = next((key for key, found in points.items() if isinstance(found, dict)), "") if points else ""
        if inner:
            shown = f'[project.entry-points."{group}.{inner}"]'[:200]
            raise invalid(f"{where}: a group whose name has a dot is written in quotation marks: {shown}")
        entries: list[tuple[str, Any]] = [("", "")]
        entries += points.items() if isinstance(points, dict) else [("", None)]
        for name, value in entries:
            good = isinstance(value, str) and re.fullmatch(r"[\w.]*(\s*:\s*[\w.]+)?(\s*\[[\w, .-]*\])?", value[:500])
            if not good or not re.fullmatch(r"[\w. -]*", name[:200]) or not re.fullmatch(r"[\w.-]+", group[:200]):
                shown = f"project.entry-points.{group}.{name}"[:200]
                raise invalid(f"{where}: {shown} is not an entry point, such as 'module:object'")
    return {group: points for group, points in groups.items() if points}


def asks_scm(tree: str, folder: str, table: dict[str, Any], build_requires: list[Requirement]) -> str:
    """The tool that gets the version from a version-control system, where there is none and no other word of it."""
    tools = [item.key for item in build_requires if item.key in SCM_TOOLS]
    if take(table, "tool.pdm.version.source", str, "", "pyproject.toml") == "scm":
        tools.append("pdm-backend")

    def words_of(name: str) -> str:
        return read_bundle_file(tree, os.path.normpath(os.path.join(folder, name))) or ""

    text = "\n".join(map(words_of, PROJECT_FILES))
    if not tools and "use_scm_version" in text:
        tools.append("setuptools-scm")
    if not tools or re.search(r"fallback[-_]version|default-version", text):
        return ""
    here = os.path.join(tree, folder)
    if os.path.isfile(f"{here}/PKG-INFO") or os.path.isdir(f"{here}/.git") or os.path.isdir(f"{tree}/.git"):
        return ""
    archived = words_of(".git_archival.txt")
    return "" if archived and "$Format" not in archived else tools[0]


class Draft:
    """A plan while the files of the bundle are read."""

    MAX_FILES, MAX_MEMBERS, MAX_LINES = 100, 200, 20_000

    def __init__(self, tree: str, policy: DependencyPolicy, callers: "IndexSettings") -> None:
        self.tree, self.policy, self.callers = tree, policy, callers
        self.requirements: list[Requirement] = []
        self.constraints: list[Requirement] = []
        self.origins: dict[str, list[Origin]] = {}
        self.links: dict[str, list[str]] = {}
        self.folders: dict[str, dict[str, list[str]]] = {}  # the links of indexes that are folders and have a name
        self.indexes: dict[str, Index] = {}  # by name, or by URL where it has none
        self.rules: dict[str, Any] = {}
        self.build_extra: dict[str, list[Requirement]] = {}
        self.elsewhere: dict[str, str] = {}  # names that the bundle brings where the task does not need them, and why
        self.unusable: dict[str, str] = {}  # names whose source can't be had, and why
        self.members: dict[str, str] = {}
        self.projects: dict[str, Project] = {}  # of what lies in the bundle below its top, by path
        self.notes: list[str] = []
        self.lines = 0
        self.root = ""  # the name of the project at the top, a member of its own workspace

    def note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 100:
            self.notes.append(text)

    def add_origin(self, name: str, origin: Origin, where: str) -> None:
        """A name has one place for each marker; two of the bundle's are no choice of ours."""
        name = canonical_name(name)
        if origin.path is not None:
            require_place(self.tree, origin.path, where)
        known = self.origins.setdefault(name, [])
        for other in known:
            if other.marker == origin.marker and other.target != origin.target:
                places = f"{other.target} and {origin.target}"
                raise Failure("bundle", "dependency_conflict", f"{where}: {name} is wanted from two places: {places}")
        if origin not in known:
            known.append(origin)

    def add_index(self, url: str, where: str, name: str = "", base: str = "", **kind: bool) -> None:
        """An index or page of links. What is the caller's own, or PyPI, is asked as the caller has it."""
        plain = url.rstrip("/")
        if not kind.get("flat") and plain in (*PYPI, *(known.rstrip("/") for known in self.callers.public)):
            self.indexes[name or plain] = Index("", name)
            return
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) or url.startswith("file:"):
            if not kind.get("flat"):
                raise refused(where, f"the index {url[:200]!r} is no https URL; a folder of wheels is for --find-links")
            found = self.find_links(url, where, base)
            self.folders.update({name: found} if name else {})
            if not kind.get("explicit"):
                for project, files in found.items():  # their names are the bundle's to give
                    self.links.setdefault(project, []).extend(files)
            return
        place, problem = f"{where}: the index {url[:200]!r} is refused", ""
        if self.policy.indexes == "caller":
            problem = 'the profile asks the caller\'s indexes alone (dependencies.indexes = "caller")'
        elif check_url(url, self.policy, place) != "https":
            raise refused(place, "an index is asked on https:// alone")
        elif host_and_port(url) in {host_and_port(f"https://{host}") for host in self.callers.authorization}:
            problem = "it is on a host for which the caller has credentials, which are not for it"
        if problem:
            raise refused(place, f"{problem}; let the caller name it (UV_INDEX)")
        index = Index(url, name, **kind)
        if self.indexes.setdefault(name or url, index).url != url:
            raise refused(where, f"two indexes have the name {name!r}")
        if len(self.indexes) > 20:
            raise refused(where, "more than 20 indexes")

    def find_links(self, path: str, where: str, base: str) -> dict[str, list[str]]:
        """The wheels and sdists of a folder, by project."""
        folder = local_path(path, base, where)
        place = require_place(self.tree, folder, where)
        if not os.path.isdir(place):
            raise refused(where, f"{folder!r} is not a folder of wheels; another page of links must be an https URL")
        found: dict[str, list[str]] = {}
        for file in sorted(os.listdir(place))[: self.MAX_LINES]:
            name = file_project(file)
            if name:
                found.setdefault(name, []).append(os.path.normpath(os.path.join(folder, file)))
        return found

    # requirements files

    def read_requirements(self, path: str, where: str, constraint: bool = False, chain: tuple[str, ...] = ()) -> None:
        """A requirements file as pip documents it, with all that it includes. `where` names it first."""
        if path in chain or len(chain) > self.MAX_FILES:
            raise refused(where, f"{path!r} includes itself")
        if chain:
            require_place(self.tree, path, where)
        text = decode_requirements(read_small_file(os.path.join(self.tree, path)) or b"", path)
        joined = re.sub(r"\\\r?\n", " ", text)
        for number, line in enumerate(joined.splitlines(), 1):
            line = re.sub(r"(^|\s)#.*", "", " ".join(line.split()))
            place = f"{path}, line {number}"
            self.lines += 1
            if len(line) > 16_384 or self.lines > self.MAX_LINES:
                raise refused(place, "it is too long for a dependency, or there are too many of them")
            if line:
                self.read_line(line, place, path, constraint, chain)

    def read_line(self, line: str, where: str, path: str, constraint: bool, chain: tuple[str, ...]) -> None:
        variable = re.search(r"\$\{[^}]*\}", line)
        if variable:
            raise refused(where, f"the variable {variable[0][:100]} is not expanded; write what it stands for")
        body, options = split_options(line, where)
        hashes = set()
        for name, value in options:
            if name == "--hash" and body:
                hashes.add(read_hash(value, where))
            elif body:
                problem = f"the option {name} of a single requirement is not obeyed"
                raise refused(where, f"{problem}; build settings belong in the project")
            elif name in ("--requirement", "--constraint"):
                inner = local_path(value, os.path.dirname(path), where)
                self.read_requirements(inner, where, constraint or name == "--constraint", (*chain, path))
            elif name == "--editable":
                place = "./" if re.fullmatch(r"[^/:@]+", value) else ""  # never a name alone
                self.requirements.append(self.read_body(place + value, where))
            else:
                self.read_option(name, value, where, path)
        if body:
            found = self.read_body(body, where)._replace(hashes=frozenset(hashes))
            (self.constraints if constraint else self.requirements).append(found)

    def read_body(self, body: str, where: str) -> Requirement:
        """A requirement as pip takes it: PEP 508, a path, or a bare URL."""
        target, _, marker = body.partition(" ;") if " ;" in body else body.partition("; ")
        target = target.strip()
        match = re.fullmatch(r"(?P<target>[^\[\]]*)(?P<extras>\[[A-Za-z0-9._, -]*\])?", target)
        is_path = "/" in target or target.startswith(".") or file_project(target)
        written = re.fullmatch(REQUIREMENT, body[:4096])
        if not is_path or (written and (written["url"] or not file_project(target))):
            return parse_requirement(body, self.policy, where, "")
        if match is None:
            raise refused(where, f"{body[:200]!r} is neither a requirement nor a path")
        if "://" not in target or target.startswith("file:"):
            found = named_later(f"file:{match['target']}", match["extras"], marker, self.policy, where)
            require_place(self.tree, str(found.path), where)
            return found
        return self.read_url(target, marker, where)

    def read_url(self, url: str, marker: str, where: str) -> Requirement:
        """A URL alone: its name is that of the file, or its `#egg=`, or for a repository known when it is built."""
        from urllib.parse import parse_qsl, unquote, urlencode

        address, _, fragment = url.partition("#")
        said = dict(parse_qsl(fragment)) if len(fragment) < 1000 else {}
        name, _, extras = said.pop("egg", "").partition("[")
        name = name or file_project(unquote(address.partition("?")[0].rpartition("/")[2])) or ""
        said = {key: value for key, value in said.items() if key in ("subdirectory", "sha256")}
        full = address + ("#" + urlencode(said, safe="/") if said else "")
        found = named_later(full, f"[{extras}" if extras else "", marker, self.policy, where)
        return found._replace(name=checked_name(name, where))

    def read_option(self, name: str, value: str, where: str, path: str) -> None:
        folder = os.path.dirname(path) if os.path.exists(os.path.join(self.tree, os.path.dirname(path), value)) else ""
        if name == "--index-url":
            self.add_index(value, where, default=True)
        elif name == "--extra-index-url":
            self.add_index(value, where)
        elif name == "--find-links":
            self.add_index(value, where, base=folder, flat=True)
        elif name == "--no-index":
            self.rules["no_index"] = True
        elif name == "--pre":
            self.rules["prerelease"] = "allow"
        elif name == "--require-hashes":
            self.rules["require_hashes"] = True
        elif name in ("--no-binary", "--only-binary"):
            self.add_formats(name[2:].replace("-", "_"), value.split(","), where)
        elif name == "--trusted-host":
            self.note(f"{where}: {name} has no effect, certificates are always checked")
        elif name not in ("--prefer-binary", "--use-pep517", "--use-feature", "--no-cache-dir"):
            raise refused(where, f"{name} is not obeyed; take it out, or list the dependencies themselves")

    def add_formats(self, rule: str, names: list[str], where: str) -> None:
        """--no-binary and --only-binary."""
        known = set(self.rules.get(rule, ()))
        for name in (name.strip() for name in names):
            if name == ":none:":
                known.clear()
            elif rule == "no_binary" and not self.policy.sdists:
                raise refused(where, f"--no-binary {name[:100]}: sources are not built (dependencies.sdists = false)")
            elif rule == "no_binary" and name == ":all:":
                problem = "everything from source is not built: name the packages"
                raise refused(where, f"--no-binary :all:: {problem} (dependencies.sdists = true)")
            else:
                known.add(name if name == ":all:" else canonical_name(checked_name(name, where)))
        self.rules[rule] = frozenset(known)

    # pyproject.toml and uv.toml: where names come from

    def read_sources(self, folder: str, own_extras: Collection[str] = ()) -> None:
        """[tool.uv.sources] of one pyproject.toml, and what poetry and pdm have instead."""
        where = os.path.normpath(os.path.join(folder, "pyproject.toml"))
        table = read_bundle_toml(self.tree, where)
        for entry in take_tables(table, "tool.uv.index", where):
            self.read_index(entry, f"{where}, tool.uv.index", folder)
        for tool in ("poetry", "pdm"):
            for entry in take_tables(table, f"tool.{tool}.source", where):
                explicit = entry.get("priority") == "explicit"
                name = entry.get("name")
                url = entry.get("url", PYPI[0] if name in ("PyPI", "pypi") else None)
                said = {"name": name, "url": url, "explicit": explicit}
                self.read_index(said, f"{where}, tool.{tool}.source", folder)
        if take(table, "tool.pdm.resolution.overrides", dict, {}, where):
            raise refused(where, "tool.pdm.resolution.overrides is not read; write tool.uv.override-dependencies")
        for name, value in take(table, "tool.uv.sources", dict, {}, where).items():
            for entry in value if isinstance(value, list) else [value]:
                place = f"{where}, tool.uv.sources.{name}"[:200]
                if not isinstance(entry, dict) or not re.fullmatch(NAME, name[:200]):
                    raise invalid(f"{place} is not a table")
                if "group" not in entry and entry.get("extra", None) in (None, *own_extras):
                    self.add_source(name, entry, place, folder)
                elif entry.keys() & {"path", "workspace"}:
                    with suppress(Failure):  # what lies beside the bundle is not its own
                        local_path(str(entry.get("path", ".")), folder, place)
                        text = f"{where} brings {name} for a group or an extra alone; say where it comes from otherwise"
                        self.elsewhere[canonical_name(name)] = f"tool.uv.sources: {text}"
        self.read_foreign_sources(table, where, folder)

    def add_source(self, name: str, entry: Mapping[str, Any], where: str, folder: str) -> None:
        """One that can't be had is no error before something needs it: it may be for development alone."""
        try:
            self.add_origin(name, self.read_source(name, entry, where, folder), where)
        except Failure as failure:
            if failure.type != "dependency_refused":
                raise
            self.unusable.setdefault(canonical_name(name), failure.error)

    def unusable_unless_needed(self, project: Project) -> dict[str, str]:
        """Why the sources that can't be had are refused, where none of the bundle's projects names them."""
        needed = {item.key for item in self.requirements}
        for one in (project, *self.projects.values()):
            needed |= {item.key for item in (*one.requires, *one.build_requires)}
        for name, problem in self.unusable.items():
            if name in needed:
                raise Failure("bundle", "dependency_refused", problem)
            if name not in self.origins:
                self.note(f"{problem} (it is an error once something needs {name})")
        return {name: problem for name, problem in self.unusable.items() if name not in self.origins}

    def read_foreign_sources(self, table: dict[str, Any], where: str, folder: str) -> None:
        """Where poetry and pdm say that a name comes from, in any group: a name of the bundle's is nobody else's."""
        names = ("tool.poetry.dependencies", "tool.poetry.dev-dependencies")
        tables = [take(table, key, dict, {}, where) for key in names]
        groups = take(table, "tool.poetry.group", dict, {}, where).values()
        tables += [take(group, "dependencies", dict, {}, where) for group in groups if isinstance(group, dict)]
        for name, value in (item for dependencies in tables for item in dependencies.items()):
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict) and re.fullmatch(NAME, name[:200]):
                    self.read_poetry_source(name, entry, f"{where}, tool.poetry, {name}"[:200], folder)
        for group, lines in take(table, "tool.pdm.dev-dependencies", dict, {}, where).items():
            for line in lines if isinstance(lines, list) else []:
                found = re.fullmatch(PDM_EDITABLE, line[:2000]) if isinstance(line, str) else None
                if found:
                    place = f"{where}, tool.pdm.dev-dependencies.{group}"[:200]
                    self.add_source(found["name"], {"path": found["path"]}, place, folder)

    def read_poetry_source(self, name: str, entry: Mapping[str, Any], where: str, folder: str) -> None:
        kept = ("path", "git", "url", "rev", "tag", "branch", "subdirectory")
        source = {key: entry[key] for key in kept if key in entry}
        if isinstance(entry.get("source"), str):
            self.add_origin(name, self.index_origin(entry["source"], "", where), where)
        elif source.keys() & {"path", "git", "url"}:
            self.add_source(name, source, where, folder)

    def read_index(self, entry: Mapping[str, Any], where: str, folder: str) -> None:
        name, url = (take(entry, key, str, "", where) for key in ("name", "url"))
        kind = {key: take(entry, key, bool, False, where) for key in ("explicit", "default")}
        if not url or not re.fullmatch(r"[\w.-]{0,100}", name):
            raise invalid(f"{where}: {name[:100]!r} is not the name of an index, or it has no url")
        self.add_index(url, where, name, folder, flat=take(entry, "format", str, "", where) == "flat", **kind)

    def read_source(self, name: str, entry: Mapping[str, Any], where: str, folder: str) -> Origin:
        places = ("path", "git", "url", "index", "workspace")
        more = ("marker", "extra", "subdirectory", "rev", "tag", "branch", "editable", "package", "lfs")
        strings = {key: value for key, value in entry.items() if isinstance(value, str)}
        unknown = sorted(set(entry) - {*places, *more})
        if unknown or any(not isinstance(value, (str, bool)) for value in entry.values()):
            raise refused(where, f"{(unknown or ['it'])[0]!r} is not something that a source says here")
        marker = strings.get("marker", "")
        if marker:
            check_marker(marker, where)
        kinds = [key for key in places if key in entry]
        if entry.get("lfs"):
            raise refused(where, "lfs is not fetched")
        if len(kinds) != 1 or (kinds[0] == "workspace") == (kinds[0] in strings):
            raise refused(where, "it must have one of path, git, url, index and workspace = true")
        text = strings.get(kinds[0], "")
        if kinds[0] == "workspace":
            place = {**self.members, self.root: "."}.get(canonical_name(name))
            if place is None:
                problem = "the bundle must be the folder that has tool.uv.workspace"
                raise refused(where, f"no member of the bundle's workspace has the name {name}; {problem}")
            return Origin(f"file:{place}", marker)
        if kinds[0] == "path":
            return Origin("file:" + local_path(text, folder, where), marker)
        if kinds[0] == "index" and text in self.folders:
            files = self.folders[text].get(canonical_name(name), [])
            if not files:
                raise refused(where, f"the folder of the index {text[:100]!r} has no {name}")
            self.links[canonical_name(name)] = files
            return Origin("links:", marker)
        if kinds[0] == "index":
            return self.index_origin(text, marker, where)
        refs = [strings[key] for key in ("rev", "tag", "branch") if key in strings]
        if len(refs) > 1:
            raise refused(where, "it must have one of rev, tag and branch")
        ref = "".join(refs)
        part = f"#subdirectory={strings['subdirectory']}" if "subdirectory" in strings else ""
        target = f"git+{text}{'@' if ref else ''}{ref}{part}" if kinds[0] == "git" else text + part
        check_dependency_url(target, self.policy, f"{where}: {text[:200]!r} is refused")
        return Origin(target, marker)

    def index_origin(self, name: str, marker: str, where: str) -> Origin:
        if name in self.indexes:
            return Origin(f"index:{name}" if self.indexes[name].url else "index:", marker)
        if name not in self.callers.names and name.lower() != "pypi":
            raise refused(where, f"there is no index with the name {name[:100]!r}")
        return Origin("index:", marker)

    def read_settings(self, table: dict[str, Any]) -> None:
        """[tool.uv], or uv.toml, which takes its place key by key: what says what to install is obeyed or refused."""
        settings, where = take(table, "tool.uv", dict, {}, "pyproject.toml"), "pyproject.toml, tool.uv"
        own = read_bundle_toml(self.tree, "uv.toml")
        if own:
            settings, where = {**settings, **own}, "uv.toml"
        for key in sorted(settings):
            if key in UV_REFUSED or key not in (*UV_WITHOUT_EFFECT, *UV_OBEYED):
                reason = UV_REFUSED.get(key, "it is not known here")
                raise refused(where, f"{key[:100]} is refused: {reason}; take it out")
        for entry in take_tables(own, "index", where):
            self.read_index(entry, where, "")
        for key in ("index-url", "extra-index-url", "find-links"):
            value = settings.get(key, [])
            for url in [value] if isinstance(value, str) else take(settings, key, list, [], where):
                self.add_index(url, f"{where}.{key}", default=key == "index-url", flat=key == "find-links")
        for rule in ("constraint", "build_constraint", "override"):
            key = f"{rule.replace('_', '-')}-dependencies"
            lines = take(settings, key, list, [], where)
            parsed = [parse_requirement(line, self.policy, f"{where}.{key}", "") for line in lines]
            self.rules[f"{rule}s"] = tuple(parsed)
        excluded = take(settings, "exclude-dependencies", list, [], where)
        self.rules["excluded"] = frozenset(canonical_name(checked_name(name, where)) for name in excluded)
        self.read_choices(settings, where)
        for name, lines in take(settings, "extra-build-dependencies", dict, {}, where).items():
            taken = take({"lines": lines}, "lines", list, [], f"{where}.extra-build-dependencies.{name}"[:200])
            self.build_extra[canonical_name(name)] = [parse_requirement(line, self.policy, where, "") for line in taken]

    def read_choices(self, settings: dict[str, Any], where: str) -> None:
        """The settings of [tool.uv] that choose among versions and files."""
        allowed = {
            "prerelease": "allow|disallow|explicit|if-necessary|if-necessary-or-explicit",
            "resolution": "highest|lowest|lowest-direct",
            "exclude-newer": r"[0-9A-Za-z:+. -]{1,64}",
            "index-strategy": "first-index",
        }
        for key, pattern in allowed.items():
            value = settings.get(key)
            if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
                raise refused(where, f"{key} = {str(value)[:100]!r} is refused: it must be {pattern}")
            if value is not None and key != "index-strategy":
                self.rules[key.replace("-", "_")] = value
        dates = {}
        for name, value in take(settings, "exclude-newer-package", dict, {}, where).items():
            if not isinstance(value, str) or not re.fullmatch(allowed["exclude-newer"], value):
                raise refused(where, f"exclude-newer-package.{name[:100]} must be a date")
            dates[canonical_name(checked_name(name, where))] = value
        self.rules["exclude_newer_package"] = tuple(sorted(dates.items()))
        self.rules["no_index"] = take(settings, "no-index", bool, False, where)
        for key, rule in {"no-binary": "no_binary", "no-build": "only_binary"}.items():
            everything = [":all:"] * take(settings, key, bool, False, where)
            self.add_formats(rule, everything + take(settings, f"{key}-package", list, [], where), where)

    def find_members(self, table: dict[str, Any]) -> None:
        """The members of a uv workspace, by name."""
        where = "pyproject.toml, tool.uv.workspace"
        left_out = take(table, "tool.uv.workspace.exclude", list, [], where)
        for pattern in take(table, "tool.uv.workspace.members", list, [], where):
            import fnmatch
            import glob

            outside = ".." in pattern.split("/") or pattern.startswith("/") or not pattern.isprintable()
            if outside or len(pattern) > 200 or pattern.count("**") > 2:
                raise refused(where, f"the member {pattern[:100]!r} leads out of the bundle, or is too wide")
            found = sorted(glob.glob(pattern, root_dir=self.tree, recursive=True))
            if not found and "*" not in pattern:
                raise refused(where, f"there is no member {pattern!r} in the bundle")
            for path in (os.path.normpath(path) for path in found):
                excluded = any(fnmatch.fnmatch(path, os.path.normpath(other)) for other in left_out)
                if not excluded and path != "." and os.path.isfile(os.path.join(self.tree, path, "pyproject.toml")):
                    self.add_member(path, where)

    def add_member(self, path: str, where: str) -> None:
        require_place(self.tree, path, where)
        member = read_project(self.tree, path, self.policy, legacy=True)
        if not member.name:
            raise refused(where, f"the member {path!r} has no [project] with a name")
        other = self.members.setdefault(canonical_name(member.name), path)
        if other != path or len(self.members) > self.MAX_MEMBERS:
            problem = f"{other!r} and {path!r} have the same name, or there are over {self.MAX_MEMBERS} members"
            raise refused(where, problem)
        self.add_origin(member.name, Origin(f"file:{path}"), where)

    def follow_sources(self) -> None:
        """The sources of what lies in the bundle, and of what that names in turn: read before anything is built."""
        seen = {"."}
        while True:
            targets = {item.path for item in self.requirements if item.path is not None}
            targets |= {o.path for found in self.origins.values() for o in found if o.path is not None}
            new = sorted(path for path in targets - seen if os.path.isdir(os.path.join(self.tree, path)))
            if not new:
                return
            if len(seen) + len(new) > self.MAX_MEMBERS:
                raise refused("the bundle", f"more than {self.MAX_MEMBERS} projects of its own")
            for path in new:
                seen.add(path)
                require_place(self.tree, path, "the bundle")
                project = self.projects[path] = read_project(self.tree, path, self.policy, legacy=True)
                self.read_sources(path)
                if project.name and canonical_name(project.name) not in self.origins:
                    self.add_origin(project.name, Origin(f"file:{path}"), path)

    def requires_python(self, project: Project) -> str:
        """What the project and all of the bundle that it needs everywhere require, as one specifier."""
        needed, paths = {".": project}, [item.path for item in self.requirements if not item.marker]
        queue = [project]
        for one in queue:
            for item in one.requires:
                paths += [origin.path for origin in self.origins.get(item.key, ()) if not item.marker + origin.marker]
            new = {path: self.projects[path] for path in paths if path in self.projects and path not in needed}
            needed |= new
            queue += new.values()
        return ",".join(dict.fromkeys(one.requires_python for one in queue if one.requires_python))


PYPI = ("https://pypi.org/simple", "https://pypi.python.org/simple")


# What [tool.uv] may say: obeyed, refused with a reason, or without effect on what is installed.
UV_OBEYED = (
    "build-constraint-dependencies", "constraint-dependencies", "exclude-dependencies", "exclude-newer",
    "exclude-newer-package", "extra-build-dependencies", "extra-index-url", "find-links", "index", "index-strategy",
    "index-url", "no-binary", "no-binary-package", "no-build", "no-build-package", "no-index",
    "override-dependencies", "package", "prerelease", "resolution", "sources", "workspace",
)  # fmt: skip
UV_REFUSED = {
    "allow-insecure-host": "certificates are always checked",
    "config-settings": "settings of the build are not passed on; write them where the backend reads them",
    "config-settings-package": "settings of the build are not passed on; write them where the backend reads them",
    "dependency-metadata": "what a package needs is read from the package",
    "extra-build-variables": "variables of the build are not passed on",
    "no-build-isolation": "every build has an environment of its own",
    "no-build-isolation-package": "every build has an environment of its own",
    "no-sources": "tool.uv.sources rules wherever it is there",
    "no-sources-package": "tool.uv.sources rules wherever it is there",
    "torch-backend": "name torch's index in tool.uv.index and tool.uv.sources",
}
UV_WITHOUT_EFFECT = (
    "add-bounds", "audit", "build-backend", "cache-dir", "cache-keys", "check-url", "compile-bytecode",
    "concurrent-builds", "concurrent-downloads", "concurrent-installs", "conflicts", "default-groups",
    "dependency-groups", "dev-dependencies", "environments", "fork-strategy", "http-proxy", "https-proxy",
    "keyring-provider", "link-mode", "managed", "native-tls", "no-cache", "no-proxy", "no-verify-hashes", "offline",
    "pip", "preview", "preview-features", "publish-url", "pypy-install-mirror", "python-downloads",
    "python-downloads-json-url", "python-install-mirror", "python-preference", "reinstall", "reinstall-package",
    "required-environments", "required-version", "system-certs", "trusted-publishing", "upgrade",
    "upgrade-package",
)  # fmt: skip

# Options of a requirements file that take a value, and the short names of options.
SHORT = {
    "-r": "--requirement", "-c": "--constraint", "-e": "--editable", "-i": "--index-url", "-f": "--find-links",
    "-C": "--config-settings",
}  # fmt: skip
VALUED = {
    *SHORT.values(), "--pypi-url", "--extra-index-url", "--no-binary", "--only-binary", "--trusted-host",
    "--use-feature", "--hash", "--global-option", "--build-option", "--install-option", "--config-setting",
}  # fmt: skip
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
ENCODINGS = {
    "utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1250", "cp1251", "cp1252", "koi8-r", "shift_jis", "gb18030",
    "euc_jp",
}  # fmt: skip


def split_options(line: str, where: str) -> tuple[str, list[tuple[str, str]]]:
    """A line's requirement, and its options as names and values; short names are written out."""
    import shlex

    marker = ""
    if re.match(r"-e|--editable", line):  # it may have one, as uv writes it
        line, semicolon, rest = line.partition(" ;")
        marker = semicolon + rest
    match = re.search(r"(^|\s)-", line)
    start = match.start() if match else len(line)
    try:
        words = shlex.split(line[start:])[::-1]
    except ValueError as error:
        raise refused(where, f"its quotes do not match: {error}") from None
    options = []
    while words:
        word = words.pop()
        name, joined, value = word.partition("=")
        if not word.startswith("--"):
            name, value = SHORT.get(word[:2], word), word[2:]
            joined = value
            value = value.removeprefix("=")
        if not name.startswith("-"):
            raise refused(where, f"{word[:100]!r} is not an option")
        if name in VALUED and not joined:
            if not words:
                raise refused(where, f"{name} needs a value")
            value = words.pop()
        value += marker * (name == "--editable")
        options.append(("--index-url" if name == "--pypi-url" else name[:100], value))
    return line[:start].strip(), options


def read_hash(text: str, where: str) -> str:
    algorithm, _, digest = text.partition(":")
    sizes = {"sha256": 64, "sha384": 96, "sha512": 128}
    if not re.fullmatch(rf"[0-9a-f]{{{sizes.get(algorithm, 0) or 1}}}", digest) or algorithm not in sizes:
        raise refused(where, "only --hash=sha256:..., sha384 and sha512 are taken as hashes")
    return f"{algorithm}:{digest}"


def decode_requirements(data: bytes, path: str) -> str:
    """The text of a requirements file: by its byte order mark, its `# -*- coding` line, or else UTF-8."""
    import codecs

    marks = {"utf-8-sig": (codecs.BOM_UTF8,), "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)}
    marks["utf-16"] = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # after utf-32, whose marks begin with them
    encoding = next((name for name, known in marks.items() if data.startswith(known)), "")
    if not encoding:
        said = re.search(rb"\A(?:[^\n]*\n)?\s*#[^\n]{0,200}coding[:=]\s*([-\w.]{1,40})", data[:1000])
        encoding = said[1].decode() if said else "utf-8"
        with suppress(LookupError):
            encoding = codecs.lookup(encoding).name
        if encoding not in ENCODINGS:
            raise refused(path, f"its encoding {encoding!r} is not read; save it as UTF-8")
    try:
        return data.decode(encoding)
    except ValueError:
        raise refused(path, f"it is not {encoding}; save it as UTF-8") from None


def file_project(name: str) -> str:
    """The project that a wheel's or sdist's file name tells of; empty where it is neither."""
    base = name.rpartition("/")[2]
    wheel = re.fullmatch(WHEEL_NAME, base) if len(base) < 240 else None
    if wheel:
        return canonical_name(wheel["name"])
    stem = next((base[: -len(end)] for end in ARCHIVES if base.endswith(end)), "")
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]{0,200})-v?[0-9][A-Za-z0-9._+!]*", stem)
    return canonical_name(match[1]) if match else ""


def named_later(url: str, extras: str | None, marker: str, policy: DependencyPolicy, where: str) -> Requirement:
    """A requirement of which only the place is known."""
    line = f"x{extras or ''} @ {url}" + (f" ; {marker}" if marker.strip() else "")
    return parse_requirement(line, policy, where, "")._replace(name="")


def take_tables(table: Mapping[str, Any], path: str, where: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = take(table, path, list, [], where, dict)
    return found


# --- locks


# Files of other tools: those of the first row are no way to say what a bundle needs, where it has no other.
CONDA = r"(?:[\w.-]*[_.-])?(?:environment|env|conda)(?:[_.-][\w.-]*)?\.ya?ml|pixi\.toml|Pipfile"
READ = r"requirements\.txt|pylock\.toml|uv\.lock"
UNREAD = rf"{CONDA}|(?:poetry|pdm|Pipfile|pixi|requirements)\.lock|pylock\.[\w-]+\.toml"
OTHER_FILES = re.compile(rf"{UNREAD}|{READ}")


def read_pylock(table: Any, where: str, draft: Draft, environment: Mapping[str, str]) -> list[Requirement]:
    """The packages that a pylock.toml (PEP 751) has for this interpreter, by version and hash or by place."""
    if not str(table.get("lock-version", "")).startswith("1."):
        raise refused(where, f"its lock-version {str(table.get('lock-version'))[:20]!r} is not 1.0")
    found = []
    for package in take_tables(table, "packages", where):
        name = checked_name(take(package, "name", str, "", where), where)
        if not name:
            raise refused(where, "a package has no name")
        marker = take(package, "marker", str, "", where)
        try:
            applies = not marker or marker_holds(marker, environment)
        except ValueError as error:
            raise refused(where, f"the marker of {name} is not one: {error}") from None
        if applies:
            found.append(read_locked(package, name, f"{where}, {name}", draft))
    return found


def pylock_misfit(project: Project, locked: Iterable[Requirement], environment: Mapping[str, str]) -> str:
    """What a project depends on and its pylock.toml has not, or has in another version; empty where it fits."""
    versions = {item.key: item.versions.removeprefix("==") for item in locked}
    for item in project.requires:
        if item.key == canonical_name(project.name) or (item.marker and not marker_holds(item.marker, environment)):
            continue
        if item.key not in versions:
            return f"{item.key} is not in the lock, and among the dependencies"
        version = versions[item.key]
        plain = re.fullmatch(r"[0-9]+(\.[0-9]+){0,2}", version) and re.fullmatch(r"[0-9.,*<>=!~ ]*", item.versions)
        if plain and "===" not in item.versions and not version_matches(version, item.versions):
            return f"the lock has {item.key} {version}, and the dependency is {item.key}{item.versions}"
    return ""


def read_locked(package: dict[str, Any], name: str, where: str, draft: Draft) -> Requirement:
    """One package of a lock."""

    def text(*paths: str) -> str:
        return next(filter(None, (take(package, path, str, "", where) for path in paths)), "")

    part = text("vcs.subdirectory", "archive.subdirectory")
    part = f"#subdirectory={part}" if part else ""
    path = text("directory.path", "archive.path", "vcs.path")
    if path:
        target = "file:" + local_path(path, "", where)
        draft.add_origin(name, Origin(target), where)
        return Requirement(name, "", "", target, "", read_hashes(package.get("archive"), where))
    url = f"git+{text('vcs.url')}@{text('vcs.commit-id')}" if text("vcs.url") else text("archive.url")
    if url:
        check_dependency_url(url + part, draft.policy, where)
        return Requirement(name, "", "", url + part, "", read_hashes(package.get("archive"), where))
    files = [*take_tables(package, "wheels", where), *([package["sdist"]] if "sdist" in package else [])]
    hashes = frozenset().union(*(read_hashes(file, where) for file in files))
    version, index = text("version"), text("index").rstrip("/")
    if not files or not re.fullmatch(r"[A-Za-z0-9.+!_-]{1,200}", version):
        raise refused(where, "it has no version, or no files, for this package")
    named = [known for known in draft.indexes.values() if index and known.url.rstrip("/") == index]
    if index and index not in PYPI and not named and not hashes:
        raise refused(where, f"it comes from {index[:200]!r}, which nothing else names, and has no hashes")
    for known in named:
        if known.name:
            draft.origins.setdefault(canonical_name(name), [Origin(f"index:{known.name}")])
    return Requirement(name, "", f"=={version}", "", "", hashes)


def read_hashes(file: Any, where: str) -> frozenset[str]:
    hashes = file.get("hashes", {}) if isinstance(file, dict) else {}
    if not isinstance(hashes, dict):
        raise refused(where, "its hashes are not a table")
    known = {name: value for name, value in hashes.items() if name in ("sha256", "sha384", "sha512")}
    return frozenset(read_hash(f"{name}:{value}", where) for name, value in known.items())


# --- the plan of a bundle


def read_plan(tree: str, policy: DependencyPolicy, callers: "IndexSettings") -> Plan:
    """Read all that a snapshot says of what to install. Nothing of it runs, and nothing is asked of anybody."""
    draft = Draft(tree, policy, callers)
    table = read_bundle_toml(tree, "pyproject.toml")
    project = read_project(tree, ".", policy)
    draft.root = canonical_name(project.name)
    draft.read_settings(table)
    draft.find_members(table)
    draft.read_sources("", own_extras(project))
    if project.name:
        draft.add_origin(project.name, Origin("file:."), "pyproject.toml")
    if project.kind:
        draft.requirements.append(Requirement(project.name, "", "", "file:.", ""))
    else:
        members = sorted(draft.members.items())
        draft.requirements += [Requirement(name, "", "", f"file:{path}", "") for name, path in members]
    lock = choose_lock(draft, project)
    read_other_files(draft, project, table, lock)
    draft.follow_sources()
    for name, versions in (("constraints", draft.constraints), ("overrides", [])):
        placed = [item for item in (*versions, *draft.rules.get(name, ())) if item.url]
        for item in placed:
            draft.add_origin(item.name, Origin(item.url), name)
        if name == "overrides":
            draft.rules["placed"] = frozenset(item.key for item in placed)
        draft.rules[name] = tuple(item for item in (*versions, *draft.rules.get(name, ())) if not item.url)
    if project.asks_scm:
        draft.note(f"{project.asks_scm} finds no version-control system here: the version names the bundle's digest")
    kept, rules = [index for index in draft.indexes.values() if index.url], Rules(**draft.rules)
    elsewhere = {name: text for name, text in draft.elsewhere.items() if name not in draft.origins}
    elsewhere |= draft.unusable_unless_needed(project)
    read = (draft.requirements, draft.origins, elsewhere, draft.links, kept, rules, draft.build_extra)
    return Plan(project, draft.requires_python(project), *read, lock, draft.notes)


def own_extras(project: Project) -> set[str]:
    """The extras of itself that a project depends on, and those that they name in turn."""
    found: set[str] = set()
    pending = list(project.requires)
    while pending:
        item = pending.pop()
        if item.key == canonical_name(project.name):
            for extra in item.extra_names - found:
                found.add(extra)
                pending += project.extras.get(extra, [])
    return found


def read_other_files(draft: Draft, project: Project, table: dict[str, Any], lock: str) -> None:
    """requirements.txt, where it says what to install; what is there besides is named."""
    listed = take(table, "project.dependencies", list, None, "pyproject.toml") is not None
    listed = listed or ("dependencies" in project.dynamic and project.kind == "built")
    there = {name for name in os.listdir(draft.tree) if OTHER_FILES.fullmatch(name)}
    if "requirements.txt" in there and lock:
        draft.note(f"requirements.txt is not read: {lock} rules")
    elif "requirements.txt" in there and (not listed or installs_itself(draft)):
        draft.read_requirements("requirements.txt", "requirements.txt")
    elif "requirements.txt" in there:
        draft.note("requirements.txt is not read: pyproject.toml lists the dependencies")
    for name in sorted(name for name in there if not re.fullmatch(READ, name)):
        draft.note(f"{name} is not read")
    if take(table, "tool.pixi", dict, {}, "pyproject.toml"):
        draft.note("tool.pixi is not read: the dependencies are those of [project]")
    conda = sorted(name for name in there if re.fullmatch(CONDA, name))
    if conda and not project.kind and not draft.members and not lock and "requirements.txt" not in there:
        problem = "the environments of conda, pixi and pipenv are not read; write the packages into the dependencies of"
        remedy = "a pyproject.toml, or into a requirements.txt, by the names that they have on PyPI"
        raise refused(conda[0], f"{problem} {remedy}")
    below = "" if there or project.kind or draft.members else find_in_bundle(draft.tree, "pyproject.toml")
    if below:
        draft.note(f"{below} is not read: its folder is not the bundle's")
    if os.path.lexists(os.path.join(draft.tree, ".python-version")):
        draft.note(".python-version is not read; requires-python says which Python")


def installs_itself(draft: Draft) -> bool:
    """Whether requirements.txt has a line `.` or `-e .[extra]`: it says how to install the project."""
    alone = Draft(draft.tree, draft.policy, draft.callers)
    with suppress(Failure):
        alone.read_requirements("requirements.txt", "requirements.txt")
    return any(item.path == "." for item in alone.requirements)


def choose_lock(draft: Draft, project: Project) -> str:
    """The lock that rules. Whether a uv.lock fits is for uv to say, see `check_lock`."""
    there = [name for name in ("uv.lock", "pylock.toml") if os.path.lexists(os.path.join(draft.tree, name))]
    if "uv.lock" in there and not project.name and not draft.members:
        there.remove("uv.lock")
        draft.note("uv.lock is not read: there is no [project] that it locks")
    for name in there[1:]:
        draft.note(f"{name} is not read: {there[0]} rules")
    return there[0] if there else ""


# --- host: interpreters, tools, the uid that sandboxes run under


class Interpreter(NamedTuple):
    """A base interpreter (never a venv's), as `describe_interpreter` reports it."""

    executable: str
    prefix: str
    exec_prefix: str
    stdlib: str
    version: str
    library: str
    cache_tag: str
    abi: str
    platform: str

    def key(self) -> str:
        return f"{self.executable} {self.version} {self.abi} {self.platform}"

    def mounts(self) -> list[str]:
        """What it needs to start. A prefix of its own is bound whole; of /usr only its standard library."""
        if self.prefix in ("/usr", "/usr/local"):
            return [self.executable, self.stdlib, *matching(f"{self.prefix}/lib/libpython{self.version[:1]}*")]
        return sorted({self.prefix, self.exec_prefix, self.executable, self.stdlib})


def choose_interpreter(wanted: str | None, requires_python: str, uv: str | None) -> Interpreter:
    """`--python`, else the running interpreter, else one that uv finds, whichever first fits the bundle."""
    required = f"the bundle requires Python {requires_python}"
    if wanted:
        chosen = ask_interpreter(wanted)
        if not version_matches(chosen.version, requires_python):
            raise no_interpreter(f"{required}, and --python is {chosen.version}")
        return chosen
    running = Interpreter(**describe_interpreter())
    if version_matches(running.version, requires_python):
        return check_prefix(running)
    found = find_with_uv(uv, requires_python)
    if found is None:
        none = "uv finds no other" if uv else "there is no uv to find another"
        remedy = f"`uv python install {fitting_python(requires_python)}`, or name another with --python"
        raise no_interpreter(f"{required}, this is {running.version}, and {none}; {remedy}")
    return ask_interpreter(found)


def fitting_python(requires_python: str) -> str:
    """The oldest minor version that fits, the newest where nothing bounds it below, or the specifier itself."""
    minors = [f"3.{minor}" for minor in range(7, 30)]
    fits = [minor for minor in minors if any(version_matches(f"{minor}.{n}", requires_python) for n in range(30))]
    if not fits:
        return f"'{requires_python[:100]}'"
    return fits[0] if re.search("[>=]", requires_python.replace("<=", "<")) else fits[-1]


def ask_interpreter(path: str) -> Interpreter:
    """Run a trusted interpreter to learn what it is."""
    command, child = [path, "-I", "-S", "-", "--describe-interpreter"], child_program().encode()
    try:
        done = subprocess.run(command, input=child, capture_output=True, env={}, timeout=30)
        return check_prefix(Interpreter(**json.loads(done.stdout)))
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
        raise no_interpreter(f"{path!r} is not a Python that can be used: {error}") from None


def check_prefix(interpreter: Interpreter) -> Interpreter:
    """A prefix is bound into the sandbox whole, so it must be an installation and no more."""
    homes = ("/", "/home", "/root", "/opt", "/var", "/etc", "/tmp", os.path.expanduser("~"))
    for prefix in (interpreter.prefix, interpreter.exec_prefix):
        if prefix in homes or not os.path.isdir(os.path.join(prefix, "lib")):
            problem = f"the interpreter's prefix {prefix!r} holds more than Python; name another with --python"
            raise no_interpreter(problem)
    return interpreter


def find_with_uv(uv: str | None, requires_python: str) -> str | None:
    if uv is None:
        return None
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment["PATH"] = without_shims(environment.get("PATH", os.defpath))
    options = ["--no-config", "--no-python-downloads", "--no-project", "--system"]
    done = ask_tool([uv, "python", "find", *options, requires_python], environment)
    return done.stdout.strip() or None if done.returncode == 0 else None


def ask_tool(command: list[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run uv or bwrap on the host, for a word of itself."""
    try:
        return subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        name = os.path.basename(command[0])
        problem = f"{name} can't be used: {error}; install it anew (for uv: `pip install uv`)"
        kind = "no_resolver" if name == "uv" else f"{name}_unavailable"
        raise host_failure(error) or Failure("host", kind, problem) from None


def without_shims(path: str) -> str:
    """PATH with the installations of pyenv, asdf and mise in place of their shims: one whose version is not the chosen
    one fails, and uv gives up at the first that does."""
    from glob import escape, glob

    folders = []
    for folder in path.split(":"):
        top, name = os.path.split(folder.rstrip("/"))
        kinds = ("versions", "installs/python") if name == "shims" else ()
        folders += [found for kind in kinds for found in sorted(glob(f"{escape(top)}/{kind}/*/bin"), reverse=True)]
        folders += [] if kinds else [folder]
    return ":".join(folders)


def child_program() -> str:
    """The part of this file that runs in a sandbox."""
    with open(os.path.realpath(__file__), "rb") as file:
        return file.read().partition(b"\nEND_OF_CHILD")[0].decode() + "\n"


def find_tool(name: str) -> str | None:
    """An executable beside the running interpreter (as in a venv), else on PATH; absolute."""
    folders = [os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(":")]
    for candidate in [os.path.join(folder, name) for folder in folders if folder.startswith("/")]:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.realpath(candidate)
    return None


def find_bwrap() -> str:
    path = find_tool("bwrap")
    if path is None:
        remedy = "`apt-get install bubblewrap` (Debian, Ubuntu) or `dnf install bubblewrap`"
        raise Failure("host", "bwrap_unavailable", f"bwrap is not installed; {remedy}")
    if os.stat(path).st_mode & stat.S_ISUID:
        problem = f"{path} is setuid root, a mode that the sandbox does not use"
        raise Failure("host", "bwrap_setuid", f"{problem}; `chmod u-s {path}` and allow user namespaces")
    return path


def take_uid(policy: HostPolicy, folder: str, cleanup: ExitStack) -> int | None:
    """As root, take a host uid, and the gid of that number, that nobody uses, for this run alone: root's uid would keep
    root's files open.

    Measured with bwrap 0.8: as host uid 0 a sandbox can write /proc/sys, whatever `--uid` says.
    """
    if os.geteuid() != 0:
        return None
    first, last = policy.uids
    for offset in range(last - first + 1):
        uid = first + (os.getpid() + offset) % (last - first + 1)
        path = os.path.join(folder, f"uid-{uid}")
        with Killed.held():
            lock = open_lock(path, wait=False)
            if lock is not None:
                cleanup.callback(close_lock, path, lock)
                return uid
    problem = f"all host uids of the profile ({first} to {last}) are in use by other runs"
    raise Failure("host", "no_free_uid", problem, True)


def open_lock(path: str, wait: bool) -> int | None:
    """Take an exclusive lock that ends with this process; None where another holds it and `wait` is false."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder removed it when it let go; there may be a new one


def close_lock(path: str, fd: int) -> None:
    """Remove a lock and let go of it at once, also where a fork for other work still has it open."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


@contextmanager
def locked(path: str, waiting: str) -> Iterator[None]:
    """Hold a lock, which others may have first; then the log says so."""
    lock = open_lock(path, wait=False)
    if lock is None:
        Log.line(waiting)
        lock = open_lock(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        close_lock(path, lock)


class Libc:
    """System calls that Python 3.11 has no name for."""

    CLONE_NEWNS, MS_BIND, MS_REC, MS_SLAVE = 0x20000, 0x1000, 0x4000, 0x80000
    PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

    @staticmethod
    def call(name: str, *arguments: Any) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if getattr(libc, name)(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")


class Stage:
    """Makes paths below a root-only directory (an interpreter in root's home) reachable for the sandbox's uid.

    bwrap runs as that uid and looks sources up as that uid, so such a source is first bound below a tmpfs in a
    mount namespace that only this process has: whatever ends the process ends the mounts.
    """

    def __init__(self, folder: str, scratch: str, uid: int | None) -> None:
        self.folder, self.scratch, self.uid = folder, scratch, uid
        self.staged: dict[str, str] = {}
        self.mounted = False

    def source(self, path: str) -> str:
        """Where bwrap can find `path`."""
        path = os.path.realpath(path)
        if self.uid is None or reachable(path, self.uid):
            return path
        if path not in self.staged:
            place = self._copy if os.path.isfile(path) else self._bind
            self.staged[path] = place(path, str(len(self.staged)))
        return self.staged[path]

    def _copy(self, path: str, name: str) -> str:
        """A single file needs no mount, which a container may refuse."""
        target = os.path.join(self.scratch, f"staged-{name}")
        link_or_copy(path, target, os.stat(path).st_mode)
        return target

    def _bind(self, path: str, name: str) -> str:
        try:
            if not self.mounted:
                Libc.call("unshare", Libc.CLONE_NEWNS)
                Libc.call("mount", None, b"/", None, Libc.MS_REC | Libc.MS_SLAVE, None)
                Libc.call("mount", b"tmpfs", self.folder.encode(), b"tmpfs", 0, b"mode=0711,size=1m")
                self.mounted = True
            target = os.path.join(self.folder, name)
            os.mkdir(target, 0o711)
            Libc.call("mount", os.fsencode(path), os.fsencode(target), None, Libc.MS_BIND | Libc.MS_REC, None)
        except OSError as error:
            problem = f"uid {self.uid} can't reach {path}, and this container may not mount ({error})"
            remedy = "move it out of the root-only directory: --python names another interpreter, --store-dir another "
            raise Failure("host", "source_unreachable", f"{problem}; {remedy}store") from None
        return target


def reachable(path: str, uid: int) -> bool:
    """Whether the sandbox's uid may enter every directory on the way and read what is there."""
    current = path
    while True:
        status = os.stat(current)
        bits = stat.S_IMODE(status.st_mode)
        granted = bits >> 3 if status.st_gid == uid else bits
        wanted = 0o1 if current != path else (0o5 if stat.S_ISDIR(status.st_mode) else 0o4)
        if granted & wanted != wanted:
            return False
        if current == "/":
            return True
        current = os.path.dirname(current)


# --- store: what is kept between runs, addressed by hash, and the scratch of this one


Kept = TypeVar("Kept")


class Store:
    """Folders below one base. Only the trusted side writes here; entries appear whole, by rename.

    run/<id>     scratch of one run, locked while the run lives; whoever comes later removes the dead
    wheels/<sha256>/<file name>          wheel files
    trees/<key>                          wheels unpacked, with the bytecode made so far, and their manifest
    imported/<key>                       modules of a tree that runs were seen to import
    built/<key>, resolved/<key>          which wheel a source gave; which wheels dependencies gave
    system/<key>                         copies of the host's everyday programs
    venvs/<key>                          whole environments, with REUSE=1
    """

    def __init__(
        self, base: str, venvs: str | None, cleanup: ExitStack, keep: bool = True, refresh: bool = False
    ) -> None:
        self.base, self.refresh, self.cleanup = base, refresh, cleanup
        self.written: set[str] = set()
        try:
            os.makedirs(base, mode=0o711, exist_ok=True)
            for folder in ("run", "stage"):
                os.makedirs(os.path.join(base, folder), mode=0o711, exist_ok=True)
        except OSError as error:
            problem = f"{base} can't be written ({error.strerror}); name another directory with --store-dir"
            raise no_store(problem) from None
        check_owner(base)
        for folder in ("run", "venvs", "locks"):
            sweep(os.path.join(base, folder))
        self.run = transient(os.path.join(base, "run"), cleanup)
        self.kept = base if keep else self.run
        self.venvs = os.path.abspath(venvs) if venvs else os.path.join(self.kept, "venvs")
        for folder in KEPT_FOLDERS[:-2]:
            os.makedirs(os.path.join(self.kept, folder), mode=0o700, exist_ok=True)
        for folder in ("system", "trees"):
            os.chmod(self.path(folder), 0o711)  # sandboxes mount what is in there, and a container may not stage it

    def path(self, *parts: str) -> str:
        return os.path.join(self.kept, *parts)

    def scratch(self, name: str) -> str:
        return os.path.join(self.run, name)

    def fresh(self, name: str) -> str:
        """A path in scratch that nothing has yet."""
        return self.scratch(f"{name}-{os.urandom(6).hex()}")

    def locked(self, key: str) -> AbstractContextManager[None]:
        """One builder at a time for a key; the others wait, and then find what it kept."""
        return locked(self.path("locks", key), "another run prepares the same environment; waiting for it")

    def hold(self, folder: str) -> None:
        """Keep others from pruning a folder as long as this run lives, which mounts something of it.
        FileNotFoundError or Failure where it is just being pruned."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.cleanup.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise no_store(f"{folder} is just removed by another run; run again", True) from None

    def once(self, key: str, load: Callable[[], Kept | None], make: Callable[[], object]) -> Kept:
        """What is kept under a key; made first, by one run at a time, where it is not."""
        found = load()
        if found is None:
            with self.locked(key):
                found = load()
                if found is None:
                    make()
                    found = load()
        if found is None:
            problem = f"what was just made in {self.base} is not there; let only the runner change its store"
            raise no_store(f"{problem}, and run again", True)
        return found

    def derived(self, name: str, make: Callable[[], bytes], *parts: object) -> bytes:
        """Bytes that follow from `parts` alone: kept with a digest of their own, made where they are not there."""
        path = self.path("built", f"{name}-{digest_of(name, *parts)}")
        data = read_digested(path)
        if data is None:
            data = make()
            self.put(path, data + blake2b(data).digest())
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write a file of the store that appears whole, in place of another if there is one."""
        aside = self.scratch("put")
        write_file(aside, data)
        os.rename(aside, path)

    def read(self, kind: str, key: str) -> Any:
        """What was written under a key; with --refresh only what this run wrote."""
        if self.refresh and key not in self.written:
            return None
        return load_json(self.path(kind, key))

    def write(self, kind: str, key: str, value: Any) -> None:
        self.put(self.path(kind, key), json.dumps(value).encode())
        self.written.add(key)

    def recall(self, key: str) -> Any:
        return self.read("imported", key)

    def remember(self, key: str, value: Any) -> None:
        """Note what spares later runs time: no run fails for want of it."""
        with suppress(OSError):
            self.write("imported", key, value)


def load_json(path: str) -> Any:
    """What a file of the store says; None where there is none, or it is damaged."""
    with suppress(FileNotFoundError, ValueError), open(path, encoding="utf-8") as file:
        return json.load(file)
    return None


def write_json(path: str, value: Any) -> None:
    write_file(path, json.dumps(value).encode())


def write_record(aside: str, inner: str, record: Mapping[str, Any]) -> None:
    """A record of a folder that is to be kept, which knows itself and every file in its `inner`."""
    write_json(f"{aside}/record.json", {**record, "digest": digest_of(record, list_files(f"{aside}/{inner}"))})


def kept_record(folder: str, inner: str) -> dict[str, Any] | None:
    """The record of a kept folder, if every file of its `inner` is as it was when it was kept. What is not is left to
    who makes it again: another run may just have."""
    if not os.path.lexists(folder):
        return None
    record = load_json(f"{folder}/record.json")
    digest = record.pop("digest", "") if isinstance(record, dict) else None
    with suppress(FileNotFoundError):  # of a file that another run has just removed
        if digest == digest_of(record, list_files(f"{folder}/{inner}")):
            return dict(record)
    Log.line(f"what is kept in {folder} is damaged or was altered; it is made again")
    return None


def check_owner(path: str) -> None:
    """A store that another user may write would hand that user every later task."""
    status = os.stat(path)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        problem = f"{path} must belong to uid {os.geteuid()} and be writable by nobody else"
        raise Failure("host", "store_unsafe", f"{problem}; name another directory with --store-dir")


def transient(parent: str, cleanup: ExitStack) -> str:
    """Make a directory that goes with this run. Its `lock` tells others that the run is alive."""
    path = os.path.join(parent, f".run-{os.getpid()}-{os.urandom(6).hex()}")
    with Killed.held():
        lock = open_lock(path + ".lock", wait=True)
        assert lock is not None

        def remove() -> None:
            with Killed.held():
                remove_dead(path, lock)

        cleanup.callback(remove)
        os.mkdir(path, 0o711)
    return path


def sweep(parent: str) -> None:
    """Remove what dead runs left: a lock that can be taken belongs to nobody alive."""
    for name in os.listdir(parent) if os.path.isdir(parent) else []:
        of_a_run = name.startswith(".run-") and name.endswith(".lock")
        alone = name.startswith("uid-") or os.path.basename(parent) == "locks"  # it stops nobody, but would add up
        if not of_a_run and not alone:
            continue
        path, lock = os.path.join(parent, name), None
        with suppress(OSError):  # what one run left must not stop another
            lock = open_lock(path, wait=False)
        if lock is None:
            continue
        dead = path[: -len(".lock")]
        if alone:
            close_lock(path, lock)
        elif os.path.exists(os.path.join(dead, "preserved")):
            os.close(lock)
        else:
            Cgroup.sweep(os.path.basename(dead))
            end_stranded(os.path.basename(dead))
            remove_dead(dead, lock)


def request_name(run: str) -> str:
    """Of the memory file that a sandbox of a run has as standard input until its command has read it."""
    return "request " + run.rpartition("-")[2]  # the random part: no process id of the host is seen inside


def end_stranded(run: str) -> None:
    """End first processes of namespaces that a dead run left: where bwrap was killed between its clone and the uid
    map, that process waits for the map for good, follows nobody's death yet, and has the run's request open."""
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                if os.readlink(f"/proc/{pid}/fd/0") == f"/memfd:{request_name(run)} (deleted)":
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def remove_dead(path: str, lock: int) -> None:
    """Remove the directory of a run that is over, then its lock. The lock stays with what can't be removed now: a
    later sweep looks for locks. What one run left must not stop another."""
    try:
        remove_tree(path)
    except (OSError, RecursionError) as error:
        Log.line(f"{path} could not be removed: {error}")
    if os.path.lexists(path):
        os.close(lock)
    else:
        close_lock(path + ".lock", lock)


def remove_tree(path: str) -> None:
    """Remove what can be removed, as nobody else writes there. Modes are changed for that, but not that of the
    parent, which is others' too."""
    with suppress(OSError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
            return
        os.chmod(path, 0o700)
        for name in os.listdir(path):
            remove_tree(os.path.join(path, name))
        os.rmdir(path)


def digest_of(*parts: object) -> str:
    """A key: BLAKE2b-256 over the JSON of everything that determines what is kept."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=lambda value: sorted(value))
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=32).hexdigest()


# --- wheels: unpacked by the trusted side, never by an installer that could run them


class Tree(NamedTuple):
    """A wheel unpacked below `path`, laid out as a venv is. `files` has path, size, mtime in ns, mode."""

    path: str
    files: list[list[Any]]
    groups: dict[str, dict[str, str]]


def read_tree(path: str) -> Tree | None:
    manifest = load_json(os.path.join(path, "manifest.json"))
    with suppress(TypeError):
        return Tree(os.path.join(path, "files"), **manifest)
    return None


def wheel_error(name: str, problem: str) -> Failure:
    return Failure("install", "wheel_invalid", f"the wheel {name!r} is refused: {problem}")


def unpack_wheel(wheel: str, target: str, library: str, max_bytes: int) -> dict[str, dict[str, str]]:
    """Unpack a wheel into `target`, laid out as a venv, every file checked against RECORD. Returns its entry points.

    Format: the binary distribution specification (packaging.python.org). Names, sizes and links are the
    attacker's: only regular files are made, each once, below `target`, and the sizes are summed first.
    """
    name = os.path.basename(wheel)
    site = f"lib/{library}/site-packages"
    with unpacking(lambda why: wheel_error(name, f"it can't be unpacked: {why}")):
        with open_zip(wheel) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            check_members(members, name, max_bytes)
            info_folder = find_dist_info(members, name)
            record = read_record(archive.read(f"{info_folder}/RECORD").decode(), name)
            archive.getinfo(f"{info_folder}/METADATA")
            listed = f"{info_folder}/entry_points.txt"
            points = archive.read(listed).decode() if listed in archive.namelist() else ""
            for info in members:
                if "/__pycache__/" in "/" + info.filename:
                    continue  # bytecode comes from the compiler alone
                place = place_of(info.filename, info_folder[: -len(".dist-info")] + ".data/", site, name)
                with archive.open(info) as source:
                    write_member(source, info, os.path.join(target, place), record, name)
        groups = parse_entry_points(points, name)
        write_scripts(groups.get("console_scripts", {}), os.path.join(target, "bin"))
    return groups


@contextmanager
def unpacking(refuse: Callable[[str], Failure]) -> Iterator[None]:
    """Hostile archives make zipfile and tarfile raise whatever comes up, IndexError and zlib.error among it."""
    try:
        yield
    except Exception as error:
        if is_own(error):
            raise
        raise refuse(clip(str(error))) from None


class ZipBytes(BufferedReader):
    """A zip file of which nobody gets much at once: zipfile reads the directory of names whole, wherever a file says
    that it is, and all that a member says it has."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > 16 * MIB:
            raise ValueError("its directory of names, or what it says of itself, is too large")
        return super().read(size)


@contextmanager
def open_zip(path: str) -> Iterator[Any]:
    """Of other compressions than a wheel's, zipfile decompresses a megabyte at once, to however many gigabytes."""
    import zipfile

    with ZipBytes(FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        if {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("it has a file that is neither stored nor deflated")
        yield archive


def check_members(members: list[Any], name: str, max_bytes: int) -> None:
    seen = set()
    if sum(info.file_size for info in members) > max_bytes:
        raise wheel_error(name, f"unpacked it is over {max_bytes} bytes (dependencies.max_wheel_bytes)")
    for info in members:
        metadata = ".dist-info/" in info.filename and info.filename.count("/") == 1
        if metadata and info.file_size > 32 * MIB:
            raise wheel_error(name, f"its {info.filename[:100]!r} is too large")
        parts = info.filename.split("/")
        unsafe = {"", ".", ".."} & {*parts} or "\\" in info.filename or not info.filename.isprintable()
        cache = parts[-1] == "__pycache__" or any(part.endswith(".pyc") for part in parts[:-1])
        if unsafe or cache or len(parts) > MAX_DEPTH or len(info.filename.encode()) > 1024:
            raise wheel_error(name, f"it has an unsafe file name {info.filename[:100]!r}")
        if info.filename in seen:
            raise wheel_error(name, f"it has two files named {info.filename[:100]!r}")
        seen.add(info.filename)


def find_dist_info(members: list[Any], name: str) -> str:
    folders = {info.filename.split("/")[0] for info in members if info.filename.split("/")[0].endswith(".dist-info")}
    if len(folders) != 1:
        raise wheel_error(name, "it must have one .dist-info directory")
    return str(folders.pop())


def read_record(text: str, name: str) -> dict[str, str]:
    """RECORD: the digest of each file, by name; RECORD itself and its signatures have none."""
    import csv

    try:
        return {row[0]: row[1] for row in csv.reader(text.splitlines()) if row}
    except (csv.Error, IndexError):
        raise wheel_error(name, "its RECORD is not valid") from None


def place_of(member: str, data: str, site: str, name: str) -> str:
    """Where a file of a wheel goes in a venv; never over the interpreter or its configuration."""
    place = f"{site}/{member}"
    if member.startswith(data):
        scheme, _, rest = member[len(data) :].partition("/")
        folders = {"purelib": f"{site}/", "platlib": f"{site}/", "scripts": "bin/", "data": ""}
        folders["headers"] = f"include/{name.split('-')[0]}/"
        if scheme not in folders or not rest:
            raise wheel_error(name, f"it has an unknown data scheme {scheme[:40]!r}")
        place = folders[scheme] + rest
    if re.match(r"pyvenv.cfg(/|$)|bin/(python|activate)", place):
        raise wheel_error(name, f"it would replace {place!r} of the environment")
    return place


def write_member(source: Any, info: Any, path: str, record: Mapping[str, str], name: str) -> None:
    import base64
    import hashlib

    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    executable = info.external_attr >> 16 & 0o111 or "/bin/" in path
    digest, left = hashlib.sha256(), info.file_size
    script = ".data/scripts/" in info.filename
    with new_file(path, 0o755 if executable else 0o644) as target:
        for chunk in iter(lambda: source.read(MIB), b""):
            left -= len(chunk)
            if left < 0:
                raise wheel_error(name, f"{info.filename!r} is longer than the archive says")
            digest.update(chunk)
            if script and chunk.startswith(b"#!python"):  # the specification has it rewritten
                chunk = re.sub(rb"#!python[^ \n]*", f"#!{VENV}/bin/python".encode(), chunk, count=1)
            script = False
            write_all(target.fileno(), chunk)
    if info.filename.endswith((".dist-info/RECORD", ".dist-info/RECORD.jws", ".dist-info/RECORD.p7s")):
        return
    expected = "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    if record.get(info.filename, "").rstrip("=") != expected:
        raise wheel_error(name, f"{info.filename!r} is not what its RECORD says")


def parse_entry_points(text: str, name: str) -> dict[str, dict[str, str]]:
    """entry_points.txt as data: group, then name, then reference."""
    import configparser

    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise wheel_error(name, f"its entry_points.txt is not valid: {error.message[:200]}") from None
    return {group: dict(parser.items(group)) for group in parser.sections()}


def write_scripts(scripts: Mapping[str, str], folder: str) -> None:
    """Console scripts, as installers make them; a name that is a path is left out."""
    for name, reference in scripts.items():
        module, _, attribute = reference.partition("[")[0].strip().partition(":")
        dotted = [*module.strip().split("."), *attribute.strip().split(".")]
        good = re.fullmatch(r"[\w.-]{1,100}", name) and not name.startswith(("python", "."))
        if not good or not all(part.isidentifier() for part in dotted):
            continue
        os.makedirs(folder, mode=0o755, exist_ok=True)
        text = f"#!{VENV}/bin/python\nimport sys\nfrom {module} import {attribute.split('.')[0]}\n"
        text += f"sys.exit({attribute}())\n"
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            write_file(path, text.encode())
            os.chmod(path, 0o755)


def files_below(top: str) -> Iterator[str]:
    return (f"{folder}/{name}" for folder, names in folders_below(top) for name in names)


def list_files(top: str) -> list[list[Any]]:
    """Path, size, mtime in ns and mode of every file below, in order; links count by their own inode."""
    return [[path[len(top) + 1 :], *stamp(path)] for path in sorted(files_below(top))]


def stamp(path: str) -> tuple[int, int, int]:
    """What changes with a file: size, mtime in ns, mode."""
    status = os.lstat(path)
    return status.st_size, status.st_mtime_ns, status.st_mode


def link_tree(tree: Tree, venv: str, mounted: Collection[str] = ()) -> None:
    """Hard-link a kept tree into a venv, but for the folders that are `mounted`; each file is checked against the
    manifest on the way (see `intact`).

    Where two wheels have the same file the first one wins. A sandbox sees the links read-only.
    """
    made, apart = set(), tuple(folder + "/" for folder in mounted)
    for folder in mounted:
        os.makedirs(os.path.join(venv, folder), mode=0o755)
    for name, size, mtime, mode in tree.files:
        source, target = f"{tree.path}/{name}", f"{venv}/{name}"
        if stamp(source) != (size, mtime, mode):
            raise KeptDamage(f"{name} in {tree.path} was altered")
        if name.startswith(apart):
            continue
        folder = os.path.dirname(target)
        try:
            if folder not in made:
                os.makedirs(folder, mode=0o755, exist_ok=True)
                made.add(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise wheel_error(name, f"two wheels of the environment disagree about it: {error.strerror}") from None
        with suppress(FileExistsError):
            link_or_copy(source, target, mode)


MANY_FILES = 50  # of a folder: a mount takes bwrap as long as some twenty links take


def folders_to_mount(trees: Iterable[Tree], site: str, but: Container[str]) -> dict[str, list[str]]:
    """Folders of site-packages that one tree alone has, and many files in it; by the path of the tree."""
    counts: dict[str, list[tuple[str, int]]] = {}
    for tree in trees:
        tops = Counter(name[len(site) :].partition("/")[0] for name, *_ in tree.files if name.startswith(site))
        for top, count in tops.items():
            counts.setdefault(top, []).append((tree.path, count))
    found: dict[str, list[str]] = {}
    for top, owners in counts.items():
        (path, count), *others = owners
        if top not in but and not others and count >= MANY_FILES:
            found.setdefault(path, []).append(site + top)
    return found


def link_or_copy(source: str, target: str, mode: int) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:  # of two file systems, or of one that has no links or refuses them
        if is_own(error):
            raise
        copy_plain(source, target, mode)


def copy_plain(source: str, target: str, mode: int) -> None:
    with new_file(target, mode) as copy, FileIO(source) as reader:
        for chunk in read_chunks(reader.fileno()):
            write_all(copy.fileno(), chunk)


class KeptDamage(Exception):
    """Something kept is not what it was when it was kept."""


@contextmanager
def intact(tree: Tree) -> Iterator[None]:
    """A kept tree that was altered, or is gone, is not used, but removed."""
    try:
        yield
    except (KeptDamage, FileNotFoundError) as error:
        remove_tree(os.path.dirname(tree.path))
        raise Failure("install", "store_damaged", f"{error}; what was kept has been removed, run again", True) from None


# --- seccomp: two programs made by libseccomp from the profile's lists

SCMP_OPS = {"ne": 1, "eq": 4, "gt": 6, "masked_eq": 7}
SCMP_ALLOW, SCMP_ERRNO, SCMP_ATTR_BADARCH = 0x7FFF0000, 0x00050000, 2
SCMP_UNKNOWN = -1

ScmpRule = tuple[int, str, list[tuple[int, int, int, int]]]  # action, call, [(argument, op, datum a, datum b)]


def seccomp_programs(policy: SeccompPolicy) -> list[bytes]:
    """Classic BPF, in the order to install: the lists with a refusing default, then the conditions.

    The kernel takes the strictest answer of all installed filters, and the later one's errno.
    """
    default, foreign = (SCMP_ERRNO | getattr(errno, name) for name in (policy.default, policy.foreign_architecture))
    refuse = SCMP_ERRNO | errno.EPERM
    also = set(policy.also_allow)
    lists: list[ScmpRule] = [(SCMP_ALLOW, name, []) for name in [*policy.allow, *policy.also_allow]]
    lists += [(refuse, name, []) for name in policy.deny if name not in also]
    lists += [(SCMP_ERRNO | errno.ENOSYS, name, []) for name in policy.enosys]
    ruled = [(call, when) for rule in policy.deny_if for call in rule.calls for when in combinations(rule.when)]
    conditions = [(refuse, call, when) for call, when in ruled]
    return [seccomp_program(default, foreign, lists, False), seccomp_program(SCMP_ALLOW, foreign, conditions, True)]


def deny_program(calls: Iterable[str]) -> bytes:
    """One more program, which denies some calls and leaves the rest to the others."""
    refuse = SCMP_ERRNO | errno.EPERM
    return seccomp_program(SCMP_ALLOW, refuse, [(refuse, call, []) for call in calls], True)


def combinations(conditions: list[Condition]) -> list[list[tuple[int, int, int, int]]]:
    """Every choice of one value from each condition, in libseccomp's terms."""
    from itertools import product

    def terms(condition: Condition, value: int) -> tuple[int, int, int, int]:
        if condition.op == "bits_set":
            return condition.arg, SCMP_OPS["masked_eq"], value, value
        if condition.op == "masked_eq":
            return condition.arg, SCMP_OPS["masked_eq"], condition.mask, value
        return condition.arg, SCMP_OPS[condition.op], value, 0

    return [list(choice) for choice in product(*([terms(c, value) for value in c.values] for c in conditions))]


def seccomp_program(default: int, foreign: int, rules: Iterable[ScmpRule], must_know: bool) -> bytes:
    """Let libseccomp make one program. `must_know`: a call it does not know is an error, not left out."""
    import ctypes

    class Comparison(ctypes.Structure):  # struct scmp_arg_cmp
        _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

    library = load_libseccomp()
    context = library.seccomp_init(default)

    def check(result: int, what: str) -> None:
        if result < 0:
            raise no_seccomp(f"libseccomp refused {what}: {os.strerror(-result)}")

    try:
        check(library.seccomp_attr_set(context, SCMP_ATTR_BADARCH, foreign), "the answer to foreign architectures")
        for action, name, conditions in rules:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if action == default or (number == SCMP_UNKNOWN and not must_know):
                continue
            if number == SCMP_UNKNOWN:
                raise no_seccomp(f"this libseccomp does not know the call {name}; install a newer one")
            array = (Comparison * len(conditions))(*(Comparison(*condition) for condition in conditions))
            added = library.seccomp_rule_add_array(context, action, number, len(conditions), array)
            check(added, f"the rule for {name}")
        fd = os.memfd_create("seccomp")
        try:
            check(library.seccomp_export_bpf(context, fd), "to export the program")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)


def load_libseccomp() -> Any:
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        remedy = "`apt-get install libseccomp2` or `dnf install libseccomp`"
        raise no_seccomp(f"libseccomp.so.2 is not installed; {remedy}") from None
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)  # major, minor, micro
    library.seccomp_init.restype, library.seccomp_init.argtypes = pointer, [number]
    library.seccomp_release.argtypes = [pointer]
    library.seccomp_attr_set.argtypes = [pointer, ctypes.c_int, number]
    library.seccomp_syscall_resolve_name.argtypes = [text]
    library.seccomp_rule_add_array.argtypes = [pointer, number, ctypes.c_int, ctypes.c_uint, pointer]
    library.seccomp_export_bpf.argtypes = [pointer, ctypes.c_int]
    return library


# --- sandbox: pure functions from profile and paths to what bwrap is told


class Mount(NamedTuple):
    """A read-only bind. `source` is where bwrap finds it, `target` where the sandbox does."""

    source: str
    target: str


class Sandbox(NamedTuple):
    """Everything that one bwrap command line depends on."""

    phase: str
    policy: PhasePolicy
    common: SandboxPolicy
    mounts: list[Mount]
    links: list[tuple[str, str]]  # symbolic links of the root file system: text, path
    environment: dict[str, str]
    cwd: str
    command: list[str]
    covers: tuple[Mount, ...] = ()  # files over files of a mount, or over those of /proc
    subject: str = ""  # the project that is built


class Descriptors(NamedTuple):
    """Numbers of the descriptors that bwrap itself reads or writes."""

    seccomp: list[int]
    status: int
    gate: int = -1  # where it waits, the sandbox being made and nothing started in it


ISOLATED = (
    "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup", "--cap-drop", "ALL",
    "--new-session", "--die-with-parent",
)  # fmt: skip


def read_only(mounts: Iterable[Mount], links: Iterable[tuple[str, str]] = ()) -> list[str]:
    binds = [word for mount in mounts for word in ("--ro-bind", *mount)]
    return binds + [word for link in links for word in ("--symlink", *link)]


def bwrap_arguments(box: Sandbox, fds: Descriptors) -> list[str]:
    """The whole of what bwrap is told, command included. Pure: a test reads what a reviewer reads."""
    common, policy = box.common, box.policy
    options = [*ISOLATED] if policy.network else [*ISOLATED, "--unshare-net"]
    options += ["--disable-userns", "--assert-userns-disabled"] if common.nested_userns == "sysctl" else []
    options += ["--uid", str(common.uid), "--gid", str(common.gid)]
    options += ["--hostname", common.hostname] if common.hostname else []
    options += [*read_only(box.mounts, box.links), *file_systems(common, policy), *read_only(box.covers)]
    for fd in fds.seccomp:
        options += ["--add-seccomp-fd", str(fd)]
    options += ["--block-fd", str(fds.gate)] if fds.gate >= 0 else []
    return [*options, "--json-status-fd", str(fds.status), "--chdir", box.cwd, "--", *box.command]


def file_systems(common: SandboxPolicy, policy: PhasePolicy) -> list[str]:
    """/dev, /proc and the private tmpfs; in the end only /tmp and /dev/shm can be written."""

    def size(limit: int) -> list[str]:
        return ["--size", str(limit)] if common.tmpfs_size == "mount" else []

    options = ["--dev", "/dev", *size(policy.shm_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"]
    if common.proc:
        options += ["--proc", "/proc"]
        for path in common.masked:
            if os.path.isdir(path):
                options += [*size(4096), "--perms", "0555", "--tmpfs", path, "--remount-ro", path]
            elif os.path.exists(path):
                options += ["--ro-bind", "/dev/null", path]
    options += [*size(policy.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp", "--dir", "/tmp/home"]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def system_mounts(
    policy: "PhasePolicy | TracePolicy", interpreters: Iterable[Interpreter]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The host paths that a phase reads, none below another, and the links (/lib to usr/lib) among them."""
    links, paths = [], set()
    named = [path for pattern in policy.read_only for path in matching(pattern)]
    for path in [*named, *(mount for interpreter in interpreters for mount in interpreter.mounts())]:
        top = "/" + path.split("/")[1]
        if os.path.islink(top) and (os.readlink(top), top) not in links:
            links.append((os.readlink(top), top))
        if os.path.islink(path):
            target = os.readlink(path)
            if (target, path) not in links and path != top:
                links.append((target, path))
            path = os.path.realpath(path)
            if path in ("/usr/bin", "/usr/sbin"):
                continue
        if os.path.exists(path):
            paths.add(os.path.realpath(path))
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept, [link for link in links if not any(link[1].startswith(path + "/") for path in kept)]


def matching(pattern: str) -> list[str]:
    """The path, or those that a `*` in its last part stands for."""
    folder, name = os.path.split(pattern)
    if "*" not in name:
        return [pattern]
    expression = re.compile(re.escape(name).replace(r"\*", ".*"))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in sorted(names) if expression.fullmatch(name)]


PROGRAM_FOLDERS = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")
# What changes with the host's software: a package that is installed or upgraded touches one of them.
SOFTWARE = (*PROGRAM_FOLDERS, "/etc/alternatives", "/var/lib/dpkg/status", "/var/lib/rpm", "/usr/lib/sysimage/rpm")


OTHER_CA_FILES = ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")  # of Fedora and openSUSE


def survey_system(host: "Host", policy: PhasePolicy, paths: list[str]) -> tuple[str, Callable[[str], None]]:
    """Where the store has what the sandboxes of a phase get of the host's software, until that changes, and how it is
    made: the profile's programs in one folder, which is one mount and holds no privileged file, and has an empty file
    for each mount below /usr/bin; and which files of the mounts would give who runs them more rights."""
    below = [path[len("/usr/bin/") :] for path in paths if path.startswith("/usr/bin/")] if policy.programs else []
    stamps = [os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in [*SOFTWARE, *paths]]
    key = digest_of("system", policy.programs, policy.privileged_files, paths, below, stamps)

    def make(aside: str) -> None:
        os.mkdir(f"{aside}/bin")
        for name in [*policy.programs, *below]:
            found = (os.path.join(place, name) for place in PROGRAM_FOLDERS)
            source = "/dev/null" if name in below else next(filter(os.path.isfile, found), None)
            if source is not None:
                copy_plain(source, f"{aside}/bin/{name}", 0o555)
        searched = [] if policy.privileged_files else paths
        write_record(aside, "bin", {"covered": [file for path in searched for file in privileged_files(path)]})

    return host.store.path("system", key), make


def privileged_files(top: str) -> Iterator[str]:
    """The regular files at or below a path that have set-uid, set-gid or capabilities (execve(2))."""
    for path in [top, *files_below(top)]:
        with suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                rights = status.st_mode & (stat.S_ISUID | stat.S_ISGID)
                if rights or "security.capability" in os.listxattr(path):
                    yield path


def write_meminfo(path: str, policy: PhasePolicy) -> str:
    """/proc/meminfo as a task meets it (proc_meminfo(5)): its limit, of which it can use all, not the host's memory."""
    total = min(policy.limits.memory_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 1024
    names = "Buffers Cached SwapCached Active Inactive SwapTotal SwapFree Dirty Shmem Slab SReclaimable SUnreclaim"
    amounts = dict.fromkeys(("MemTotal", "MemFree", "MemAvailable"), total) | dict.fromkeys(names.split(), 0)
    write_file(path, "".join(f"{name + ':':<15} {amount:>8} kB\n" for name, amount in amounts.items()).encode())
    return path


def write_etc(folder: str, common: SandboxPolicy, network: bool) -> None:
    """A synthetic /etc: names for the sandbox's own user, the linker's cache, the time zone; with network
    also what a resolver needs."""
    files = {
        "passwd": f"root:x:0:0::/nonexistent:/bin/false\nsandbox:x:{common.uid}:{common.gid}::/tmp/home:/bin/sh\n",
        "group": f"root:x:0:\nsandbox:x:{common.gid}:\n",
        "hosts": f"127.0.0.1 localhost {common.hostname}\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    os.makedirs(os.path.join(folder, "ssl", "certs"))
    copies = [("ld.so.cache", "/etc/ld.so.cache"), ("localtime", "/etc/localtime")]
    if network:
        copies += [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts")]
        places = (os.environ.get("SSL_CERT_FILE", ""), CA_FILE, *OTHER_CA_FILES)
        copies += [(CA_FILE[len("/etc/") :], path) for path in places if os.path.isfile(path)][:1]
    for name, source in copies:
        if os.path.isfile(source):
            copy_plain(source, os.path.join(folder, name), 0o644)
            files.pop(name, None)
    for name, text in files.items():
        write_file(os.path.join(folder, name), text.encode())


# --- cgroup: hard limits and exact figures, where the host lets us


class Cgroup:
    """A control group for one sandbox: version 2 where it is delegated, else version 1 as root."""

    ROOT = "/sys/fs/cgroup"
    OVERHEAD = 2  # processes of bwrap itself, outside and inside
    OLD: ClassVar = {  # names of version 1, which has a folder for each controller
        "memory.max": "memory.limit_in_bytes",
        "memory.current": "memory.usage_in_bytes",
        "memory.peak": "memory.max_usage_in_bytes",
        "memory.events": "memory.oom_control",
        "cgroup.procs": "pids/cgroup.procs",
    }

    def __init__(self, paths: dict[str, str]) -> None:
        self.paths = paths  # controller to directory; version 2 has the one key ""
        self.doors: list[int] = []
        self.files: dict[str, int] = {}  # descriptors of those that were read or written once
        self.before: dict[str, float] = {}

    @classmethod
    def create(cls, name: str, limits: Limits) -> "Cgroup | None":
        """Make the group and set its limits; None where the host does not allow it, and polling has to do."""
        made: dict[str, str] = {}
        try:
            for controller, parent in cls.parents().items():
                path = os.path.join(parent, name)
                os.mkdir(path)
                made[controller] = path
            group = cls(made)
            if made:
                group.limit(limits)
                group.open_doors()
                return group
        except OSError:
            cls(made).remove()
        return None

    @classmethod
    def parents(cls) -> dict[str, str]:
        own = {}
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file.read().splitlines():
                _, controllers, path = line.split(":", 2)
                own.update(dict.fromkeys(controllers.split(","), path))
        unified = cls.ROOT if os.path.exists(os.path.join(cls.ROOT, "cgroup.controllers")) else ""
        if unified:
            place = cls.delegated(unified, own.get("", "/"))
            return {"": place} if place else {}
        found: dict[str, str] = {}
        for controller in {"memory", "pids", "cpuacct"} & own.keys():
            base = os.path.join(cls.ROOT, controller)
            inner = base + own[controller]
            place = inner if os.path.isdir(inner) else base
            if os.access(place, os.W_OK):
                found[controller] = place
        return found if len(found) == 3 else {}

    @staticmethod
    def delegated(root: str, own: str) -> str:
        """The nearest group upwards from our own whose children get memory and pids, and where we may write.

        No group with a limit on memory or processors is left for it: what ran outside would not count there.
        """
        path = os.path.normpath(root + own)
        while path.startswith(root):
            given = {"memory", "pids"} <= set(text_of(os.path.join(path, "cgroup.subtree_control")).split())
            if given and os.access(os.path.join(path, "cgroup.procs"), os.W_OK):
                return path
            limits = (text_of(os.path.join(path, name)) for name in ("memory.max", "memory.high", "cpu.max"))
            if any(limit and not limit.startswith("max") for limit in limits):
                return ""
            path = os.path.dirname(path)
        return ""

    def limit(self, limits: Limits) -> None:
        self.write("memory.max", limits.memory_bytes)
        self.write("pids.max", limits.processes + self.OVERHEAD)
        both = limits.memory_bytes  # with swap, as version 1 counts it; absent where swap is not accounted
        for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1), ("memory.memsw.limit_in_bytes", both)):
            with suppress(OSError):
                self.write(name, value)

    def place(self, name: str) -> str:
        """Where a file is that version 2 has under this name, or version 1 alone."""
        if "" in self.paths:
            return os.path.join(self.paths[""], name)
        old = self.OLD.get(name, name)
        controller = re.split("[./]", old)[0]
        return os.path.join(self.paths[controller], old.rpartition("/")[2])

    def file(self, name: str) -> int:
        """The descriptor of a file with numbers. It stays, as they are read for each task and to open it takes five
        times as long; and version 2 starts a peak again for one descriptor alone."""
        if name not in self.files:
            path = self.place(name)
            try:
                self.files[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:  # most can't be written
                self.files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self.files[name]

    def write(self, name: str, value: object) -> None:
        write_file(self.place(name), str(value).encode())

    def read(self, name: str) -> str:
        """What a file of the group says; "" where it can't be read."""
        parts = [b""]
        with suppress(OSError):
            parts.append(os.pread(self.file(name), 1 << 16, 0))
            while parts[-1]:
                parts.append(os.pread(self.file(name), 1 << 16, sum(map(len, parts))))
        return b"".join(parts).decode()

    def open_doors(self) -> None:
        for controller, path in self.paths.items():
            name = "tasks" if controller else "cgroup.procs"
            self.doors.append(os.open(os.path.join(path, name), os.O_WRONLY | os.O_CLOEXEC))
        with suppress(OSError):
            self.file("memory.peak")  # here: whoever looks later may do so as the sandbox's uid, which can't write it

    def enter(self) -> None:
        """Move the calling process in; for a fork that has dropped root, between fork and exec.

        A thread that moves itself costs 0.02 ms; moving another process took 5 ms for each controller.
        """
        for door in self.doors:
            os.write(door, b"0")

    def pids(self) -> list[int]:
        told = text_of(self.place("cgroup.procs"))  # opened anew: an open file of version 1 tells for a second the same
        return [int(pid) for pid in told.split() if pid != "0"]  # 0 is one of a pid namespace not ours

    def number(self, name: str) -> int:
        return int(self.read(name) or 0)

    def mark(self) -> None:
        """Start a new task: what was counted until now is not of it."""
        self.before = self.counters()
        with suppress(OSError):  # version 2 can do it from Linux 6.12 on
            os.pwrite(self.file("memory.peak"), b"0", 0)

    def counters(self) -> dict[str, float]:
        """User and system time of every process that was ever in the group, in seconds; processes killed for want of
        memory, times that memory was short, and refusals of pids."""
        if "" in self.paths:
            user, system = (self.keyed("cpu.stat", f"{kind}_usec") / 1e6 for kind in ("user", "system"))
            short = self.keyed("memory.events", "max")
        else:
            user, system = (self.number(f"cpuacct.usage_{kind}") / 1e9 for kind in ("user", "sys"))
            short = sum(self.number(f"memory.{kind}failcnt") for kind in ("", "memsw."))
        memory, pids = self.keyed("memory.events", "oom_kill"), self.keyed("pids.events", "max")
        return {"user": user, "system": system, "memory": memory, "short": short, "pids": pids}

    def is_full(self, limit: int) -> bool:
        """Whether the group is at its memory limit with what can't be given back, as the cached pages of files can."""
        files = sum(self.keyed("memory.stat", f"{state}_file") for state in ("active", "inactive"))
        return self.number("memory.current") - files > 0.9 * limit

    def since(self) -> dict[str, float]:
        return {name: value - self.before.get(name, 0) for name, value in self.counters().items()}

    def keyed(self, name: str, key: str) -> int:
        for line in self.read(name).splitlines():
            if line.split()[0] == key:
                return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """Kill every member, also those that are forked meanwhile."""
        if "" in self.paths:
            with suppress(OSError):
                self.write("cgroup.kill", 1)
                return
        for attempt in range(450):  # a second in all; most are gone at once
            members = self.pids()
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not members:
                return
            time.sleep(attempt / 100_000)

    def remove(self) -> None:
        for fd in (*self.doors, *self.files.values()):
            os.close(fd)
        self.files.clear()
        with Killed.held():
            for path in self.paths.values():
                for _ in range(1000):  # a member that is being reaped keeps the directory for a moment
                    try:
                        os.rmdir(path)
                        break
                    except FileNotFoundError:
                        break
                    except OSError:
                        time.sleep(0.005)

    @classmethod
    def sweep(cls, name: str) -> None:
        """Remove the groups that a dead run left, whatever phase it was in."""
        with suppress(OSError):
            for parent in cls.parents().values():
                for entry in os.listdir(parent):
                    if entry.startswith(name):
                        left = cls({"pids": os.path.join(parent, entry)})
                        left.kill()
                        left.remove()

    @classmethod
    def sweep_lost(cls) -> None:
        """Remove the groups of dead runs whose store is gone: the name has the pid, and one in use is not empty.

        A pid may be of another namespace than ours; its run needs far less than a minute to enter a new group.
        """
        with suppress(OSError):
            for parent in cls.parents().values():
                for entry in os.listdir(parent):
                    path, match = os.path.join(parent, entry), re.fullmatch(r"\.run-(\d+)-[0-9a-f]{12}-\w+", entry)
                    if match and not os.path.exists(f"/proc/{match[1]}") and time.time() - os.stat(path).st_mtime > 60:
                        with suppress(OSError):
                            os.rmdir(path)


def own_groups(controller: str) -> Iterator[str]:
    """Folders of this process's control group and of those above it, of either version, that may say of a controller.

    In a container they may lie where only the topmost is there: its own.
    """
    for line in text_of("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        while controller in controllers.split(",") or not controllers:
            yield f"{Cgroup.ROOT}/{controllers}{path}"
            if path == "/":
                break
            path = os.path.dirname(path)


def processor_quota() -> int:
    """Processors, rounded up, that the control groups of this process let it use: `cpu.max` in version 2, two files in
    version 1."""
    quotas = [1 << 16]
    for folder in own_groups("cpu"):
        old = (text_of(f"{folder}/cpu.cfs_{kind}_us") for kind in ("quota", "period"))
        with suppress(ValueError):  # a group without the controller, or without a limit, has no such numbers
            quota, period = map(int, (text_of(f"{folder}/cpu.max") or " ".join(old)).split())
            quotas += [max(1, -(-quota // period))] if quota > 0 else []
    return min(quotas)


def memory_quota() -> int:
    """Bytes of memory that the control groups of this process let all that is in them use."""
    names = ("memory.max", "memory.limit_in_bytes")
    told = [text_of(f"{folder}/{name}").strip() for folder in own_groups("memory") for name in names]
    return min([1 << 62, *(int(text) for text in told if text.isdigit())])


def killed_for_memory() -> int:
    """How many processes of this process's own control group the kernel has killed for want of memory."""
    for folder in own_groups("memory"):
        told = text_of(f"{folder}/memory.events.local") or text_of(f"{folder}/memory.oom_control")
        if told:
            return sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("oom_kill "))
    return 0


# --- watching: strace in front of a sandbox, in a sandbox of its own


class Watching(NamedTuple):
    """Where the traces of a run go (--trace), and what makes them."""

    folder: str
    strace: str


def open_watching(folder: str | None, policy: TracePolicy, profile: str) -> Watching | None:
    """What --trace needs; Failure where the profile or the host does not give it."""
    if folder is None:
        return None
    if not policy.allowed:
        raise usage_error(f"the profile {profile!r} allows no --trace (trace.allowed); use --profile debug")
    strace = find_tool("strace")
    if strace is None:
        raise Failure("host", "trace_unavailable", "strace is not installed; `apt-get install strace`")
    try:
        os.mkdir(folder, 0o700)
    except OSError as error:
        raise usage_error(f"--trace needs a new directory, and {folder!r} can't be made: {error.strerror}") from None
    return Watching(os.path.realpath(folder), strace)


def tracer_arguments(mounts: Iterable[Mount], links: Iterable[tuple[str, str]], fifo: str) -> list[str]:
    """The outer bwrap, up to the tracer's command: no network, and one thing to write to."""
    options = [*ISOLATED, "--unshare-net", *read_only(mounts, links)]
    options += ["--dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--bind", fifo, "/trace"]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]


class Watch:
    """The trace of one sandbox, in a file that no sandbox reaches.

    strace reads the memory of hostile processes, so it stands between two bwraps: the outer gives it no network, its
    programs, and what the inner one mounts, all read-only. What it writes comes through a FIFO to the runner, which
    bounds it. It sees what seccomp refuses, since the tracer's stop comes first; the inner sandbox is as without it.
    """

    STRACE = ("-f", "-q", "-ttt", "-T", "-y", "--decode-pids=pidns", "-s", "512", "-o", "/trace", "-e")
    # Calls that say nothing of what a program does to others, and are most of all calls.
    UNTOLD = (
        "trace=!brk,clock_getres,clock_gettime,close,epoll_ctl,epoll_pwait,epoll_wait,fadvise64,fcntl,fstat,futex,"
        "getcwd,getdents64,getegid,geteuid,getgid,getpid,getrandom,gettid,getuid,ioctl,lseek,lstat,madvise,munmap,"
        "newfstatat,poll,ppoll,pread64,pselect6,read,readv,rt_sigaction,rt_sigprocmask,rt_sigreturn,sched_yield,"
        "select,stat,statx,wait4,waitid,write,writev"
    )
    PHASES = ("build", "execute")  # where a bundle's code runs; none of them has network
    PROCESSES, MEMORY = 3, 64 * MIB  # what the tracer and its sandbox may take besides the task

    def __init__(self, host: "Host", box: Sandbox, cleanup: ExitStack) -> None:
        assert host.watching is not None
        self.box, self.limit, self.bytes, self.cut = box, host.profile.trace.max_bytes, 0, 0
        self.samples: list[tuple[float, float, float, int]] = []
        self.user, self.system = 0.0, 0.0  # seconds of the tracer's own
        number = len(os.listdir(host.watching.folder))
        self.path = os.path.join(host.watching.folder, f"{number:04}-{box.phase}")
        self.file = cleanup.enter_context(FileIO(self.path + ".strace", "x"))
        cleanup.callback(self.finish)
        self.fifo = host.store.scratch(f"trace-{number:04}")
        os.mkfifo(self.fifo, 0o600)
        if host.uid is not None:
            os.chown(self.fifo, host.uid, -1)
        self.fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        cleanup.callback(os.close, self.fd)

    def command(self, host: "Host", inner: list[str]) -> list[str]:
        """The command that runs `inner` under strace."""
        assert host.watching is not None
        paths, links = system_mounts(host.profile.trace, [])
        mounts = [Mount(path, path) for path in paths]
        mounts += [Mount(host.stage.source(path), path) for path in (host.watching.strace, host.bwrap)]
        mounts += [Mount(mount.source, mount.source) for mount in (*self.box.mounts, *self.box.covers)]
        needed = [mount for mount in mounts if not any(mount.source.startswith(path + "/") for path in paths)]
        tracer = [host.watching.strace, *self.STRACE, self.UNTOLD, "--"]
        return [host.bwrap, *tracer_arguments(needed, links, self.fifo), *tracer, *inner]

    def take(self, data: bytes) -> None:
        kept = data[: self.limit - self.bytes]
        self.file.write(kept)
        self.bytes += len(kept)
        self.cut += len(data) - len(kept)

    def sample(self, seconds: float, init: int) -> None:
        """Note what the sandbox uses now, and what the tracer has used."""
        import psutil

        with suppress(psutil.Error, IndexError):  # the last where it ends meanwhile: its parents are no longer above
            parent = psutil.Process(init)
            members = parent.children(recursive=True)
            tracer = parent.parents()[1].cpu_times()
            self.user, self.system = tracer.user, tracer.system
            used = [(member.memory_info().rss, sum(member.cpu_times()[:2])) for member in members]
            self.samples.append((seconds, sum(rss for rss, _ in used), sum(cpu for _, cpu in used), len(members)))
            if len(self.samples) > 2000:
                del self.samples[1::2]

    def finish(self) -> None:
        fields = ("seconds", "memory_bytes", "cpu_seconds", "processes")
        samples = [dict(zip(fields, sample, strict=True)) for sample in self.samples]
        note = {"phase": self.box.phase, "bytes": self.bytes, "cut_bytes": self.cut, "samples": samples}
        note["subject"] = self.box.subject
        write_json(self.path + ".json", note)


def host_pid(ancestor: int, inner: int) -> int:
    """The process below `ancestor` that is `inner` one pid namespace further in (NSpid in proc(5)).

    ProcessLookupError where it is gone.
    """
    import psutil

    below: list[Any] = []
    with suppress(psutil.Error):
        below = psutil.Process(ancestor).children(recursive=True)
    for process in below:
        with suppress(OSError), open(f"/proc/{process.pid}/status", encoding="utf-8") as file:  # others may be there
            numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
            if numbers[1:2] == [str(inner)]:
                return int(process.pid)
    raise ProcessLookupError


# --- supervision: one sandbox from start to end


class Usage(NamedTuple):
    """What the whole process tree of one sandbox used. Seconds and bytes.

    Memory is the cgroup's peak where there is one (page cache and tmpfs count), else the highest sampled sum of
    resident set sizes (proportional ones near the limit), tmpfs and memfd, or the largest process that wait4 saw.
    """

    wall: float = 0.0
    start: float = 0.0
    user: float = 0.0
    system: float = 0.0
    memory: float = 0.0
    processes: float = 0.0
    read: float = 0.0
    written: float = 0.0


class Violation(NamedTuple):
    """A limit that was reached: error type, the limit's name in the profile, its value, what was seen."""

    type: str
    name: str
    value: float
    seen: float


class Outcome(NamedTuple):
    """How a sandbox ended. `done` is the body of the DONE frame, None where none came."""

    done: bytes | None
    error: dict[str, Any] | None
    exit_code: int | None
    violation: Violation | None
    stderr: str
    usage: Usage
    stacks: str = ""  # what the sandbox told of where it stood, at its end


class Receiver:
    """What a phase does with the frames of its sandbox: a note comes whole, an output in pieces. Both may be refused
    by raising Failure."""

    def note(self, name: str, body: bytes) -> None:
        raise bad_result(f"the sandbox sent a note {name[:100]!r}, which this phase does not have")

    def opened(self, name: str, size: int) -> None:
        raise bad_result(f"the sandbox sent an output {name[:100]!r}, which this phase does not have")

    def data(self, chunk: bytes) -> None:
        pass

    def closed(self) -> None:
        pass


class Frames:
    """Reads frames from a hostile stream. Sizes are announced, so that a receiver can refuse before it stores."""

    CAPS: ClassVar = {ERROR: MIB, NOTE: 16 * MIB, STARTED: 0, DONE: 64 * MIB}  # bytes; these bodies are held in memory

    def __init__(self, receiver: Receiver, limit: int) -> None:
        self.receiver, self.limit = receiver, limit
        self.total, self.noted = 0, 0
        self.kind, self.name, self.head, self.buffer = b"", "", b"", bytearray()
        self.left = HEADER_BYTES  # bytes until `take` has the whole of what it takes
        self.take: Callable[[bytes], None] = self._head
        self.error: dict[str, Any] | None = None
        self.done: bytes | None = None
        self.started = 0.0

    def feed(self, data: bytes) -> None:
        """Take what the pipe gave. Raises Failure (phase result) on a stream that is not frames."""
        self.total += len(data)
        view = memoryview(data)
        while view and self.done is None and self.error is None:
            part, view = view[: self.left], view[self.left :]
            self.left -= len(part)
            if self.kind == OUTPUT:
                self.receiver.data(bytes(part))
            else:
                self.buffer += part
            while self.left == 0 and self.done is None and self.error is None:  # a name or body may be empty
                whole, self.buffer = bytes(self.buffer), bytearray()
                self.take(whole)

    def _head(self, head: bytes) -> None:
        self.head, self.left, self.take = head, int.from_bytes(head[1:5], "big"), self._name
        if self.left > 4096:
            raise bad_result("an output's name is over 4096 bytes")

    def _name(self, name: bytes) -> None:
        self.kind, self.left = self.head[:1], int.from_bytes(self.head[5:], "big")
        self.take = self._body
        try:
            self.name = name.decode()
        except UnicodeDecodeError:
            raise bad_result("an output's name is not UTF-8") from None
        if self.kind not in (OUTPUT, ERROR, NOTE, STARTED, DONE):
            raise bad_result("the sandbox wrote something that is not a frame to the result pipe")
        if self.kind == OUTPUT:
            if self.left > self.limit:
                raise OutputLimit(self.left)
            self.receiver.opened(self.name, self.left)
        elif self.left > self.CAPS[self.kind]:
            raise bad_result(f"the sandbox sent a message of {self.left} bytes")
        elif self.kind == NOTE:
            self.noted += self.left  # bounded by the receiver: notes take no room from the outputs

    def _body(self, body: bytes) -> None:
        kind, self.kind = self.kind, b""
        self.left, self.take = HEADER_BYTES, self._head
        if kind == OUTPUT:
            self.receiver.closed()
        elif kind == STARTED:
            self.started = self.started or time.monotonic()
        elif kind == DONE:
            self.done = body
        elif kind == ERROR:
            self.error = parse_child_error(body)
        else:
            self.receiver.note(self.name, body)


class OutputLimit(Exception):
    def __init__(self, seen: int) -> None:
        super().__init__(seen)
        self.seen = seen


# What a child may report of itself; only fetch, where none of its code runs, may name what is worth another try.
CHILD_ERRORS = (
    "task_exception", "memory_limit", "entrypoint_not_found", "bad_result", "dependency_unavailable",
    "seccomp_unavailable",
)  # fmt: skip


def parse_child_error(body: bytes) -> dict[str, Any]:
    """An ERROR frame, with only the fields, types and lengths that the contract has."""
    try:
        report = json.loads(body.decode("utf-8", "replace"))
        exception = report["exception"]
        kind = report["type"]
        fields = [exception["type"], exception["message"], report["traceback"], kind]
        if kind not in CHILD_ERRORS or not all(isinstance(field, str) for field in fields):
            raise ValueError("wrong fields")
        causes = [parse_cause(cause) for cause in report.get("causes", [])[:10]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise bad_result("the sandbox sent an error report that is not one") from None
    clean = [clip(field).encode("utf-8", "replace").decode() for field in fields]
    exception = {"type": clean[0][:256], "message": clean[1]}
    told = {"type": kind, "exception": exception, "traceback": clean[2]}
    return {**told, "causes": causes} if causes else told


class Cause(NamedTuple):
    """What a child says of an exception, or of one that it came from. Its names may be anybody's, its lengths ours."""

    types: list[str]  # the class and its bases, with their modules
    message: str
    errno: int
    filename: str
    module: str  # of an ImportError
    status: int  # of a CalledProcessError
    raised_in: str  # file:function
    no_folder: bool  # of subprocess: it is the working directory of the program that is not there


def parse_cause(cause: dict[str, Any]) -> Cause:
    """ValueError, KeyError or TypeError where it is not one."""
    given = Cause(**cause)
    texts = [given.message, given.filename, given.module, given.raised_in, *given.types]
    if not all(isinstance(text, str) for text in texts) or {type(given.errno), type(given.status)} != {int}:
        raise ValueError("wrong fields")
    cut = [text[:4096].encode("utf-8", "replace").decode() for text in texts]
    return Cause(cut[4:16], cut[0], given.errno, cut[1], cut[2], given.status, cut[3], given.no_folder is True)


class Supervisor:
    """Starts one sandbox and stays with it until every process of it is gone.

    One thread, one loop: the death signal of --die-with-parent belongs to the thread that started bwrap.
    """

    DEPTH = 1  # the task's process is a child of the sandbox's init

    def __init__(
        self,
        host: "Host",
        box: Sandbox,
        request: dict[str, Any],
        receiver: Receiver,
        descriptors: Mapping[str, int] | None = None,
    ) -> None:
        self.host, self.box, self.limits, self.name = host, box, box.policy.limits, box.phase
        self.descriptors = dict(descriptors or {})  # what else the child is given, by name
        self.process: subprocess.Popen[bytes]
        self.selector: selectors.BaseSelector
        self.request = {**request, "phase": request.get("phase", box.phase)}
        self.rlimits, self.gate = rlimits(self.limits), -1
        self.request["shadow"] = box.policy.shadow_max_entries if box.policy.working_directory == "shadow" else 0
        self.status = bytearray()
        self.child_pid, self.child_fd, self.stacks_fd = 0, -1, -1
        self.cgroup: Cgroup | None = None
        self.spent = host.spent.get(box.phase, 0.0)
        self.watch: Watch | None = None
        self.inside = False  # whether the sandbox's root is in place; before that /proc/<pid>/root is the host's
        self.expect(receiver)

    def expect(self, receiver: Receiver) -> None:
        """What is seen from now on is of what begins now."""
        self.begun, self.finished_at, self.monitor = time.monotonic(), 0.0, Monitor()
        self.frames = Frames(receiver, self.limits.output_bytes)
        self.stderr, self.stderr_bytes, self.stacks = bytearray(), 0, bytearray()
        self.exit_code: int | None = None
        self.violation: Violation | None = None
        self.failure: Failure | None = None
        self.killed_before = killed_for_memory()

    def run(self) -> Outcome:
        with ExitStack() as cleanup:
            self.open(cleanup)
            while self.step():
                pass
            ended = time.monotonic()
        return self.outcome(ended)

    def open(self, cleanup: ExitStack) -> None:
        """Start the sandbox; leaving `cleanup` ends it."""
        self.selector = cleanup.enter_context(selectors.PollSelector())
        Log.line(f"phase: {self.box.phase}")
        with Killed.held():
            limits = self.limits
            if self.host.watching and self.box.phase in Watch.PHASES:
                self.watch = Watch(self.host, self.box, cleanup)
                tracer = (limits.memory_bytes + Watch.MEMORY, limits.processes + Watch.PROCESSES)
                limits = limits._replace(memory_bytes=tracer[0], processes=tracer[1])
            self.cgroup = Cgroup.create(f"{self.host.run_name}-{self.name}", limits)
            if self.cgroup:
                self.monitor.next_sample += Monitor.LATER
                cleanup.callback(self.cgroup.remove)
            with killed_first():
                self.process = self.start(cleanup)
            cleanup.callback(self.end)

    def start(self, cleanup: ExitStack) -> "subprocess.Popen[bytes]":
        """Start bwrap with the descriptors it needs and no others, as the sandbox's own host uid."""
        import resource  # noqa: F401  (the fork may not be able to read it)

        result, stderr, status, gate, stacks = (pipe(cleanup) for _ in range(5))
        uid = self.host.uid
        if uid is None:
            self.gate = gate[1].fileno()
        filters = list(self.host.seccomp)
        if self.cgroup is None:  # polling is late, and does not see a System V segment that nobody has attached
            filters.append(deny_program(["shmget"]))
            self.rlimits["RLIMIT_DATA"] = self.limits.memory_bytes
        programs = [memory_file(cleanup, "seccomp", program) for program in filters]
        own = [status[1].fileno(), *([gate[0].fileno()] if self.gate >= 0 else [])]
        arguments = bwrap_arguments(self.box, Descriptors(programs, *own))
        options, command = arguments[: arguments.index("--")], arguments[arguments.index("--") :]
        packed = memory_file(cleanup, "arguments", b"".join(os.fsencode(option) + b"\0" for option in options))
        for end in stacks:  # whoever writes more than the pipe holds loses it
            os.set_blocking(end.fileno(), False)
        self.stacks_fd = stacks[0].fileno()
        request = {**self.request, "result_fd": result[1].fileno(), "stacks_fd": stacks[1].fileno()}
        request["descriptors"] = self.descriptors
        inherited = [result[1].fileno(), stacks[1].fileno(), *own, packed, *programs, *self.descriptors.values()]
        dropped: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
        whole = [self.host.bwrap, "--args", str(packed), *command]
        try:
            process = subprocess.Popen(
                self.watch.command(self.host, whole) if self.watch else whole,
                stdin=memory_file(cleanup, request_name(self.host.run_name), pack(request)),
                stdout=stderr[1],
                stderr=stderr[1],
                cwd="/",
                env=self.box.environment,
                pass_fds=inherited,
                preexec_fn=self.confine,
                **dropped,
            )
        except OSError as error:
            raise start_failure(f"{error.filename or self.host.bwrap}: {error.strerror}") from None
        for given in (result[1], stderr[1], status[1], gate[0], stacks[1]):
            given.close()
        for end, take in ((result[0], self.on_result), (stderr[0], self.on_stderr), (status[0], self.on_status)):
            os.set_blocking(end.fileno(), False)
            self.selector.register(end.fileno(), selectors.EVENT_READ, take)
        RUNNING.add(process.pid)
        if self.watch:
            self.selector.register(self.watch.fd, selectors.EVENT_READ, self.watch.take)
        exit_fd = os.pidfd_open(process.pid)
        cleanup.callback(os.close, exit_fd)
        self.selector.register(exit_fd, selectors.EVENT_READ, None)
        return process

    def confine(self) -> None:
        """Hold bwrap, and with it all that it starts, to the limits; between fork and exec, root being dropped.

        A user's processes outside count for RLIMIT_NPROC until there is a user namespace, so that comes later.
        """
        Killed.forget()  # the task's processes can be asked to end
        if self.cgroup:
            self.cgroup.enter()
        set_rlimits({name: value for name, value in self.rlimits.items() if self.gate < 0 or name != "RLIMIT_NPROC"})

    def open_gate(self) -> None:
        """Set the last limit on the sandbox's first process, then let it start the command."""
        set_rlimits({"RLIMIT_NPROC": self.rlimits["RLIMIT_NPROC"]}, self.child_pid)
        os.write(self.gate, b"1")

    def step(self, longest: float = float("inf")) -> bool:
        """Wait for the next thing to happen and handle it; false when the sandbox is to end."""
        Killed.check()
        self.host.background.go_on()
        now = time.monotonic()
        deadline = self.begun + self.limits.wall_seconds - self.spent
        if self.watch:
            deadline += self.watch.user + self.watch.system  # the task stands still while the tracer looks
        if self.finished_at:
            deadline = min(deadline, self.finished_at + 1)  # a child that reported has a second to leave
        wait = max(0.0, min(deadline, self.monitor.next_sample) - now)
        ready = self.selector.select(min(wait, longest))
        if any(key.data is None for key, _ in ready):  # bwrap has exited
            self.drain()
            return False
        self.take_ready(key for key, _ in ready)
        now = time.monotonic()
        if now >= deadline and not self.finished_at:
            seen = now - self.begun + self.spent
            self.violation = self.violation or Violation("timeout", "wall_seconds", self.limits.wall_seconds, seen)
        if now >= self.monitor.next_sample:
            self.sample()
        return not (self.violation or self.failure or (self.finished_at and now >= deadline))

    def guarded(self, take: Callable[[bytes], None], data: bytes) -> None:
        try:
            take(data)
        except Failure as failure:
            self.failure = self.failure or failure
        except OutputLimit as limit:
            seen = Violation("output_limit", "output_bytes", self.limits.output_bytes, limit.seen)
            self.violation = self.violation or seen

    def drain(self) -> None:
        """Take what is still in the pipes; a daemon that holds one open, or fills it, can't make this wait."""
        ready = True
        while ready and not (self.violation or self.failure):
            ready = self.take_ready([key for key, _ in self.selector.select(0) if key.data])

    def take_ready(self, keys: "Iterable[selectors.SelectorKey]") -> bool:
        """Hand on what the pipes hold; false where they hold nothing."""
        taken = False
        for key in keys:
            data = read_some(key.fd)
            if data:
                self.guarded(key.data, data)
                taken = True
            elif data is not None:
                self.selector.unregister(key.fd)
        return taken

    def on_result(self, data: bytes) -> None:
        self.frames.feed(data)
        if self.frames.total - self.frames.noted > self.limits.output_bytes + MIB:
            raise OutputLimit(self.frames.total)
        if (self.frames.done is not None or self.frames.error) and not self.finished_at:
            self.finished_at = time.monotonic()

    def on_stderr(self, data: bytes) -> None:
        self.stderr_bytes += len(data)
        self.stderr = (self.stderr + data)[-TAIL_CAP:]
        if self.stderr_bytes > self.limits.stderr_bytes:
            self.violation = Violation("output_limit", "stderr_bytes", self.limits.stderr_bytes, self.stderr_bytes)

    def on_status(self, data: bytes) -> None:
        """bwrap's own reports: the pid of the sandbox's first process, then how the command ended."""
        self.status += data
        *lines, rest = bytes(self.status).split(b"\n")
        self.status = bytearray(rest)
        for line in lines:
            report = json.loads(line)
            if "child-pid" in report and not self.child_pid:
                pid = int(report["child-pid"])
                with suppress(ProcessLookupError, BrokenPipeError):  # it has ended, and bwrap says why
                    self.child_pid = host_pid(self.process.pid, pid) if self.watch else pid
                    self.child_fd = os.pidfd_open(self.child_pid)
                    if self.gate >= 0:
                        self.open_gate()
            self.exit_code = report.get("exit-code", self.exit_code)

    def sample(self) -> None:
        import psutil  # noqa: F401  (the sandbox's uid may not be able to read it)

        with looking_as(self.host.uid):
            self.look()

    def look(self) -> None:
        try:
            self.inside = self.inside or bool(os.stat(f"/proc/{self.child_pid}/root{CHILD}"))
        except PermissionError as error:  # until the command starts nobody may
            if self.frames.started:
                problem = f"the runner may not look into the sandbox, whose limits it has to watch ({error})"
                remedy = "see that no security module of this host forbids ptrace between processes of one user"
                self.failure = Failure("host", "sandbox_unseen", f"{problem}; {remedy}")
        except OSError:
            pass
        if not self.inside:
            self.monitor.next_sample = time.monotonic() + Monitor.INTERVAL
            return
        if self.watch:
            self.watch.sample(time.monotonic() - self.begun, self.child_pid)
            self.monitor.tracer = (self.watch.user, self.watch.system)
        self.monitor.sample(self.child_pid, self.cgroup, self.box.policy)
        self.violation = self.violation or self.monitor.violation(self.limits, self.box.policy, self.cgroup)

    def end(self) -> None:
        """Kill whatever is left, members before the namespace's init, and reap it; then nothing can be alive."""
        with Killed.held():
            self.judge()
            self.ask_for_stacks()
            self.hear_stacks()
            if self.cgroup:
                self.cgroup.kill()
            if self.child_fd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.child_fd, signal.SIGKILL)
                os.close(self.child_fd)
            RUNNING.discard(self.process.pid)
            self.monitor.reap(self.process)

    def judge(self) -> None:
        """Look for the last time, before all is killed, at what limit was reached."""
        if self.cgroup:
            self.monitor.read_cgroup(self.cgroup)
        elif self.frames.done is None:
            self.sample()  # a bomb may have reported its end before the first sample was due
        if self.frames.done is not None:
            return
        seen = self.monitor.violation(self.limits, self.box.policy, self.cgroup) if self.cgroup else None
        if self.violation and self.violation.type in ("timeout", "cpu_limit"):
            stalled = self.monitor.stalled(self.cgroup, self.limits.memory_bytes)
            if stalled or (seen and seen.type == "memory_limit"):
                limit = self.limits.memory_bytes
                self.violation = Violation("memory_limit", "memory_bytes", limit, self.monitor.memory)
        self.violation = self.violation or seen

    def ask_for_stacks(self) -> None:
        """Have a task that a limit of time ends say where it stands, before it is killed. Nobody waits for long."""
        if not self.violation or self.violation.type not in ("timeout", "cpu_limit"):
            return
        if not signal_task(self.child_pid, self.child_fd, self.DEPTH, STACKS_SIGNAL):
            return
        end = time.monotonic() + 0.5
        while time.monotonic() < end and wait_for([self.stacks_fd], 0.05 if self.stacks else 0.5):
            self.hear_stacks()

    def hear_stacks(self) -> None:
        self.stacks = (self.stacks + (read_some(self.stacks_fd) or b""))[:TEXT_CAP]

    def outcome(self, ended: float) -> Outcome:
        """What came of it. Raises the Failure that a frame was refused with."""
        if self.failure:
            raise self.failure
        start = self.frames.started - self.begun if self.frames.started else 0.0
        stderr = bytes(self.stderr).decode("utf-8", "replace")
        usage = self.monitor.usage(ended - self.begun, start)
        if self.cgroup is None and usage.memory > self.limits.memory_bytes:
            seen = Violation("memory_limit", "memory_bytes", self.limits.memory_bytes, usage.memory)
            timeout = self.violation is not None and self.violation.type == "timeout"
            self.violation = seen if timeout else self.violation or seen
        silent = self.frames.done is None and not self.frames.error and self.exit_code in (None, 128 + signal.SIGKILL)
        if silent and not self.violation and killed_for_memory() > self.killed_before:
            self.violation = Violation("memory_limit", GROUP_MEMORY, memory_quota(), usage.memory)
        ended_by, stacks = (self.exit_code, self.violation), bytes(self.stacks).decode("utf-8", "replace")
        return Outcome(self.frames.done, self.frames.error, *ended_by, stderr, usage, stacks)


class Ready(NamedTuple):
    """What a server's template says of itself, see `preload` of the child. `modules` are those of the tasks' own."""

    modules: int
    problem: str
    doubt: str


def parse_ready(body: bytes) -> Ready:
    """The template's word, which its imports may have shaped."""
    try:
        ready = Ready(**json.loads(body))
        if type(ready.modules) is not int or not isinstance(ready.problem, str) or not isinstance(ready.doubt, str):
            raise ValueError("wrong fields")
    except (ValueError, TypeError, RecursionError):
        raise bad_result("the sandbox's word that it is ready is not one") from None
    return Ready(ready.modules, ready.problem[:1000], ready.doubt[:1000])


class Session(Supervisor):
    """A sandbox that stays open for many tasks (--serve): each is a fork inside, watched as a run of its own."""

    GRACE = 2.0  # seconds that the sandbox has to end a task and to clean up; then it is given up
    count = 0
    DEPTH = 2  # the task is a fork of the process that is the init's child

    def __init__(self, host: "Host", box: Sandbox, request: dict[str, Any]) -> None:
        super().__init__(host, box, {**request, "phase": "serve"}, Receiver())
        # A fork's CPU time starts at zero.
        self.request["task_rlimits"] = {"RLIMIT_CPU": self.rlimits.pop("RLIMIT_CPU")}
        Session.count += 1
        self.name = f"serve{Session.count}"  # two are there at once while one takes over from the other
        self.alive, self.ended, self.served = True, True, 0
        self.ready: Ready | None = None
        self.control = bytearray()
        self.cleanup = ExitStack()

    def begin(self) -> None:
        """Start the sandbox; `ready` is set when it takes tasks. `close` ends it."""
        tasks, control = pipe(self.cleanup), pipe(self.cleanup)
        self.tasks = tasks[1]
        self.descriptors = {"tasks": tasks[0].fileno(), "control": control[1].fileno()}
        self.open(self.cleanup)
        tasks[0].close()
        control[1].close()
        os.set_blocking(self.tasks.fileno(), False)
        os.set_blocking(control[0].fileno(), False)
        self.selector.register(control[0].fileno(), selectors.EVENT_READ, self.on_control)

    def wait_until_ready(self) -> Ready:
        """Raises the Failure that keeps the sandbox from taking tasks."""
        while self.ready is None and self.step():
            pass
        if self.ready is None:
            failure = failure_of(self.outcome(time.monotonic()), self.box.phase)
            raise failure or Failure(self.box.phase, "no_result", "the sandbox ended before it took a task")
        return self.ready

    def close(self) -> None:
        self.alive, self.ended = False, True  # nothing more is heard of it
        self.cleanup.close()

    def on_control(self, data: bytes) -> None:
        """READY and ENDED, each with the length of its body. Only code of the bundle's import could forge them, and
        for itself."""
        self.control += data
        while len(self.control) >= 5:
            size = int.from_bytes(self.control[1:5], "big")
            if size > MIB:
                raise bad_result(f"the sandbox sent a word of {size} bytes")
            if len(self.control) < 5 + size:
                return
            kind, body = bytes(self.control[:1]), bytes(self.control[5 : 5 + size])
            del self.control[: 5 + size]
            if kind == READY:
                self.ready = parse_ready(body)
            else:
                self.ended, self.exit_code = True, int.from_bytes(body, "big")

    def run_task(self, task: dict[str, Any], receiver: Receiver, coming: "Session | None" = None) -> Outcome:
        """Run one task in a fork, and see to a sandbox that comes meanwhile. Returns when it has reported; `settle`
        waits until the sandbox is clean again."""
        self.settle()
        if self.cgroup:
            self.cgroup.mark()
        self.hear_stacks()
        self.expect(receiver)
        self.ended, self.served = False, self.served + 1
        body = pack(task)
        running = self.write(TASK + len(body).to_bytes(8, "big") + body)
        while running and not self.ended and not self.finished_at:
            running = self.step(max(0.0, coming.monitor.next_sample - time.monotonic()) if coming else float("inf"))
            coming = coming if coming and coming.comes() else None
        if not self.ended and self.process.returncode is None:
            if not self.finished_at:
                self.judge()
                self.ask_for_stacks()
            self.write(KILL)  # whatever it may still do, it has said its last word
            if not self.finished_at:
                self.wait_for_end()
        self.alive = (self.ended or bool(self.finished_at)) and self.served < self.host.profile.serve.tasks_per_sandbox
        self.drain()
        self.hear_stacks()
        if self.cgroup:
            self.judge()
        if self.exit_code is None:
            self.exit_code = 137  # the sandbox's own end took the task with it
        return self.outcome(time.monotonic())

    def comes(self) -> bool:
        """Look after it while another's task runs; false where it is ready, or failed: then nothing of it goes on."""
        if self.ready is None and self.step(0):
            return self.ready is None
        if self.ready is None and self.child_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.child_fd, signal.SIGKILL)
        return False

    def settle(self) -> None:
        """Wait until the sandbox has cleaned up after its last task."""
        if not self.ended:
            self.wait_for_end()
            self.alive = self.alive and self.ended
        self.drop_late()

    def drop_late(self) -> None:
        """Forget what is still in the pipes of a task that has said its last word; none holds more than a MiB."""
        for key in list(self.selector.get_map().values()):
            if key.data in (self.on_result, self.on_stderr) and read_some(key.fd) == b"":
                self.selector.unregister(key.fd)

    def write(self, data: bytes) -> bool:
        """Send to the sandbox, for as long as a task may take; false where it does not listen."""
        view, end = memoryview(data), time.monotonic() + self.limits.wall_seconds
        while view and time.monotonic() < end:
            try:
                view = view[os.write(self.tasks.fileno(), view) :]
            except BlockingIOError:
                wait_for([self.tasks.fileno()], 0.1, select.POLLOUT)
            except BrokenPipeError:
                return False
        return not view

    def wait_for_end(self) -> None:
        end = time.monotonic() + self.GRACE
        while not self.ended and time.monotonic() < end:
            ready = [key for key, _ in self.selector.select(max(0.0, end - time.monotonic()))]
            if any(key.data is None for key in ready):
                return
            self.drop_late()
            self.take_ready(key for key in ready if key.data not in (self.on_result, self.on_stderr))


@contextmanager
def looking_as(uid: int | None) -> Iterator[None]:
    """Look at a sandbox's processes as their own host uid, where they have one: it owns their user namespace, and has
    every right in it (user_namespaces(7)). Root lacks it without CAP_SYS_PTRACE, as in an ordinary container."""
    if uid is None:
        yield
        return
    own = os.getegid()
    with Killed.held():  # who is stopped here would take down as the sandbox's uid, and leave what is root's
        os.setegid(uid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(own)
            Killed.follow_parent()


class Monitor:
    """Samples the process tree with psutil while it runs and adds up what wait4 says of it in the end.

    Short tasks end before the first sample; their figures are those of wait4 and of the cgroup.
    """

    FIRST, INTERVAL = 0.05, 0.05  # seconds
    LATER = 0.2  # seconds more to the first sample where a cgroup holds the limits, and counts: psutil is slow to load
    STALL = 1.0  # seconds
    SHARE = 20  # a sample takes at most 1/SHARE of the time, or half of it where memory may be over its limit

    def __init__(self) -> None:
        self.next_sample = time.monotonic() + self.FIRST
        self.memory, self.processes, self.tasks = 0.0, 1, 1
        self.user, self.system = 0.0, 0.0
        self.tracer = (0.0, 0.0)  # user and system time that are not the task's
        self.io: dict[tuple[int, float], tuple[int, int]] = {}
        self.full = ""  # the limit of a tmpfs that is full
        self.counted: dict[str, float] = {"memory": 0.0, "pids": 0.0}  # by the cgroup, since the task began
        self.short, self.short_at = 0.0, 0.0  # how often memory was short until now, and when that last grew
        self.waited_user, self.waited_system, self.waited_memory = 0.0, 0.0, 0.0
        self.blocks_read, self.blocks_written = 0, 0

    def sample(self, init: int, cgroup: Cgroup | None, policy: PhasePolicy) -> None:
        import psutil

        begun = time.monotonic()
        members = []
        with suppress(psutil.Error):
            parent = psutil.Process(init)
            members = parent.children(recursive=True)
        self._add_up(psutil, members)
        self.full = self.full or full_tmpfs(init, policy)
        share = self.SHARE
        if cgroup is None:
            memory, exact = sum_memory(psutil, members, policy.limits.memory_bytes)
            self.memory = max(self.memory, memory + tmpfs_used(init) + memfd_used(members))
            share = 1 if exact else share  # dear, and no reason to look away from what may be a bomb
        else:
            self.read_cgroup(cgroup)
        now = time.monotonic()
        self.next_sample = now + max(self.INTERVAL, share * (now - begun))

    def _add_up(self, psutil: Any, members: list[Any]) -> None:
        user = system = 0.0
        tasks = 0
        for member in members:
            with suppress(psutil.Error):
                times, counters = member.cpu_times(), member.io_counters()
                user += times.user + times.children_user
                system += times.system + times.children_system
                tasks += member.num_threads()
                self.io[member.pid, member.create_time()] = (counters.read_bytes, counters.write_bytes)
        self.user, self.system = max(self.user, user), max(self.system, system)
        self.processes, self.tasks = max(self.processes, len(members)), max(self.tasks, tasks)

    def read_cgroup(self, cgroup: Cgroup) -> None:
        self.counted = cgroup.since()
        self.user, self.system = self.counted["user"] - self.tracer[0], self.counted["system"] - self.tracer[1]
        self.memory = max(self.memory, cgroup.number("memory.peak"))
        self.tasks = max(self.tasks, cgroup.number("pids.peak") - Cgroup.OVERHEAD)
        if self.counted["short"] > self.short:
            self.short, self.short_at = self.counted["short"], time.monotonic()

    def stalled(self, cgroup: Cgroup | None, limit: int) -> bool:
        """Whether the task was waiting for memory up to now: the kernel takes pages back for long before it kills."""
        if cgroup is None or not cgroup.is_full(limit):
            return False
        waiting = cgroup.keyed("memory.events", "under_oom") > 0  # version 1 alone has it
        return waiting or time.monotonic() - self.short_at < self.STALL

    def violation(self, limits: Limits, policy: PhasePolicy, cgroup: Cgroup | None) -> Violation | None:
        """The first limit that the samples show to be reached."""
        if self.full:
            return Violation("tmpfs_limit", self.full, getattr(policy, self.full), getattr(policy, self.full))
        if self.counted["memory"] > 0 if cgroup else self.memory > limits.memory_bytes:
            return Violation("memory_limit", "memory_bytes", limits.memory_bytes, self.memory)
        if self.counted["pids"] > 0 if cgroup else self.tasks >= limits.processes:
            return Violation("pids_limit", "processes", limits.processes, max(self.tasks, limits.processes))
        if self.user + self.system > limits.cpu_seconds:
            return Violation("cpu_limit", "cpu_seconds", limits.cpu_seconds, self.user + self.system)
        return None

    def reap(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for bwrap and for all that its end leaves to this process, the subreaper."""
        if process.returncode is None:  # else its pid may be another's by now
            os.kill(process.pid, signal.SIGKILL)  # not yet waited for, so still its own
        while True:
            orphans = {*children_of(os.getpid())} - RUNNING
            for orphan in orphans:
                with suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            if not orphans:
                return
            pid, status, used = os.wait4(min(orphans), 0)
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
            self.waited_user += used.ru_utime
            self.waited_system += used.ru_stime
            self.waited_memory = max(self.waited_memory, used.ru_maxrss * 1024)
            self.blocks_read += used.ru_inblock
            self.blocks_written += used.ru_oublock

    def usage(self, wall: float, start: float) -> Usage:
        read, written = (sum(counts[n] for counts in self.io.values()) for n in (0, 1))
        memory, processes = float(max(self.memory, self.waited_memory)), float(max(self.processes, 1))
        moved = float(max(read, self.blocks_read * 512)), float(max(written, self.blocks_written * 512))
        user, system = max(self.user, self.waited_user), max(self.system, self.waited_system)
        return Usage(wall, start, user, system, memory, processes, *moved)


RUNNING: set[int] = set()  # children of this process that no sandbox's end concerns: other sandboxes, and workers


def children_of(pid: int) -> list[int]:
    """Those that were not waited for, and those that it inherited as a subreaper; oldest first."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        return [int(child) for child in file.read().split()]


def signal_task(init: int, init_fd: int, depth: int, number: int) -> bool:
    """Send a signal to the oldest descendant of the sandbox's init in that generation; false where there is none, or
    where the init, of which there is a descriptor, has ended: its number may be another's."""
    with suppress(OSError, IndexError), ExitStack() as cleanup:
        parent = init
        for _ in range(depth - 1):
            parent = children_of(parent)[0]
        task = children_of(parent)[0]
        process = os.pidfd_open(task)
        cleanup.callback(os.close, process)
        same = children_of(parent)[0] == task  # else the descriptor may be another's, with the same pid
        if same and not wait_for([init_fd], 0):
            signal.pidfd_send_signal(process, number)
            return True
    return False


def sum_memory(psutil: Any, members: list[Any], limit: float) -> tuple[float, bool]:
    """Bytes of a process tree, and whether they are exact: RSS, which counts shared pages each time, where that
    acquits it, else PSS."""
    total = 0.0
    for member in members:
        with suppress(psutil.Error):
            total += member.memory_info().rss
    if total <= limit:
        return total, False
    total = 0.0
    for member in members:
        with suppress(psutil.Error):
            total += member.memory_full_info().pss
    return total, True


def tmpfs_room(pid: int, path: str) -> tuple[int, int, int]:
    """Bytes free, bytes used and files of a tmpfs of the sandbox, whose root is read-only, so that it can't swap the
    path; -1 free where the sandbox is gone."""
    try:
        status = os.statvfs(f"/proc/{pid}/root{path}")
    except OSError:
        return -1, 0, 0
    size = status.f_frsize
    return status.f_bavail * size, (status.f_blocks - status.f_bfree) * size, status.f_files - status.f_ffree


def full_tmpfs(pid: int, policy: PhasePolicy) -> str:
    """The name of the limit that a tmpfs of the sandbox has reached: /tmp that has no room left, or either with more in
    it than its limit, which the mount of an older bwrap does not know."""
    for path, name in (("/tmp", "tmp_bytes"), ("/dev/shm", "shm_bytes")):
        free, used, _ = tmpfs_room(pid, path)
        if (free == 0 and path == "/tmp") or used > getattr(policy, name) + MIB // 16:
            return name
    return ""


def tmpfs_used(pid: int) -> float:
    rooms = [tmpfs_room(pid, path) for path in ("/tmp", "/dev/shm")]
    return float(sum(used + files * 1024 for _, used, files in rooms))


def memfd_used(members: Iterable[Any]) -> float:
    """Bytes in anonymous files, which are nobody's resident set until they are mapped."""
    files = {}
    for member in members:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{member.pid}/fd"):
                with suppress(FileNotFoundError):  # one that is closed meanwhile hides no other
                    if os.readlink(entry.path).startswith("/memfd:"):
                        status = os.stat(entry.path)
                        files[status.st_dev, status.st_ino] = status.st_blocks * 512
    return float(sum(files.values()))


def read_some(fd: int) -> bytes | None:
    """What a pipe holds now; empty at its end, None where nothing is there yet."""
    try:
        return os.read(fd, MIB)
    except BlockingIOError:
        return None


def wait_for(fds: Iterable[int], seconds: float | None, event: int = select.POLLIN) -> list[int]:
    """Those that are ready. select(2) takes no number above 1023, and callers leave that many open."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, event)
    return [fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)]


def rlimits(limits: Limits) -> dict[str, int]:
    """What bwrap is started under (setrlimit(2)), so that it holds before anything of the bundle runs."""
    return {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(limits.cpu_seconds) + 1,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_RSS": limits.memory_bytes,  # no kernel enforces it; libraries (dask) read it
        "RLIMIT_NPROC": limits.processes + 16,  # a second line: the cgroup, or polling, says who reached the limit
    }


def pipe(cleanup: ExitStack) -> tuple[FileIO, FileIO]:
    """The reading and the writing end; file objects, because they can be closed twice."""
    reading, writing = os.pipe()
    return cleanup.enter_context(FileIO(reading, "r")), cleanup.enter_context(FileIO(writing, "w"))


def pack(request: dict[str, Any]) -> bytes:
    """A request as the child reads it; marshal bounds the depth of the task's data."""
    try:
        return marshal.dumps(request, 2)
    except ValueError as error:
        raise Failure("input", "input_invalid", f"the task on standard input is not valid: {error}") from None


def memory_file(cleanup: ExitStack, name: str, content: bytes) -> int:
    """A descriptor to read `content` from, backed by no file system."""
    fd = os.memfd_create(name)
    cleanup.callback(os.close, fd)
    write_all(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# --- what an outcome means: every end of a sandbox has one name

# A container's profile of system calls in which bwrap starts: Docker's own and six rules.
WITH_SECCOMP = "--security-opt seccomp=seccomp.json (copy the file from the folder deploy beside this runner; "
WITH_SECCOMP += "in kubernetes seccompProfile.localhostProfile with the one of deploy/kubernetes)"
# What bwrap says when it can't start, what it means, and what to do (bubblewrap issues and measurements).
START_FAILURES = [
    (
        r"ptrace\(|PTRACE_|strace: ",
        "trace_unavailable",
        "this host lets nobody trace: {sysctl}in a container add --cap-add SYS_PTRACE or a seccomp profile that allows "
        "ptrace; or run without --trace",
    ),
    (
        r"Unknown option",
        "bwrap_too_old",
        "this bwrap is too old: the sandbox needs 0.8.0; for 0.6.0 and newer, as Ubuntu 22.04 has it, use --profile "
        "bwrap-0.6, or --profile container-bwrap-0.6 where you would use container",
    ),
    (
        r"RTM_NEWADDR|setting up uid map: Permission denied",
        "userns_denied",
        "AppArmor restricts user namespaces (kernel.apparmor_restrict_unprivileged_userns=1): enable the "
        "distribution's bwrap-userns-restrict profile, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
    (
        r"setting up uid map: Operation not|No permissions to create|new namespace failed: (Operation|Perm|Function)|"
        r"unshare user ns: Operation not",
        "userns_denied",
        f"this host forbids user namespaces: {{sysctl}}start a container with {WITH_SECCOMP}, "
        "and do not drop CAP_SETUID; in a chroot the kernel makes none",
    ),
    (
        r"cannot open /proc/sys|assert-userns|user namespaces are disabled|disable-userns",
        "userns_sysctl_denied",
        "the sysctl that ends user namespaces can't be written here: use --profile container, where seccomp holds "
        "that promise",
    ),
    (
        r"nesting depth|max_\w+_namespaces|No space left on device",
        "userns_denied",
        "the limit on namespaces is reached: {sysctl}raise user.max_user_namespaces, and do not start the runner "
        "inside another sandbox that disables them",
    ),
    (
        r"Resource temporarily unavailable",
        "userns_denied",
        "a process limit (RLIMIT_NPROC or pids.max) keeps the sandbox from starting; raise it",
    ),
    (
        r"Can't mount proc",
        "proc_masked",
        "this container masks /proc: use --profile container, which needs none, or start the container with docker "
        "--security-opt systempaths=unconfined, podman --security-opt unmask=ALL, or kubernetes "
        "hostUsers: false and procMount: Unmasked",
    ),
    (
        r"Can't set hostname",
        "hostname_denied",
        "this container may not name the sandbox: use --profile container, which leaves the name as it is, or another "
        f'profile with sandbox.hostname = "", or start the container with {WITH_SECCOMP}',
    ),
    (
        r"(Failed to make / slave|Failed to mount tmpfs|pivot_root|unmount old root): Operation not permitted",
        "mount_denied",
        f"the container's seccomp profile forbids mounts: start it with {WITH_SECCOMP}",
    ),
    (
        r"Failed to make / slave|Failed to mount tmpfs",
        "mount_denied",
        "AppArmor or SELinux forbids mounts: --security-opt apparmor=unconfined, or label=disable",
    ),
    (r"pivot_root", "mount_denied", "the root file system is an initramfs or a chroot, where pivot_root does not work"),
    (r"Unexpected capabilities but not setuid", "capabilities", "the runner has ambient capabilities; drop them"),
    (
        r"setresuid|setgroups|setresgid|Operation not permitted: ",
        "setuid_denied",
        "root may not change to another uid here: start the runner as an ordinary user (docker run --user 1000), or "
        "the container with --cap-add SETUID --cap-add SETGID --cap-add CHOWN",
    ),
]


def start_failure(message: str) -> Failure:
    """The host error for a sandbox that never ran its command, with the remedy for this host."""
    text = message.strip()[-2000:] or "bwrap gave no reason"
    for pattern, kind, remedy in START_FAILURES:
        if re.search(pattern, text):
            return Failure("host", kind, f"the sandbox can't start ({text}): {remedy.format(sysctl=sysctl_findings())}")
    return Failure("host", "bwrap_failed", f"the sandbox can't start: {text}", stderr=text)


def sysctl_findings() -> str:
    """The settings that forbid user namespaces or strace on this host, in words."""
    found = [(name.replace("/", "."), bad, good) for name, (bad, good) in SYSCTLS.items() if read_sysctl(name) == bad]
    return "".join(f"{name} is {bad}, change it: `sysctl -w {name}={good}`; " for name, bad, good in found)


def read_sysctl(name: str) -> str | None:
    return text_of(f"/proc/sys/{name}").strip() or None


# What forbids user namespaces, and strace: the value that does, and one that does not.
SYSCTLS = {
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "user/max_user_namespaces": ("0", "15000"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    "kernel/yama/ptrace_scope": ("3", "1"),
}


GROUP_MEMORY = "group_memory_bytes"  # no limit of the profile: what a control group around the runner allows
LIMIT_WORDS = {
    "timeout": "it ran for {}",
    "cpu_limit": "it used {} of CPU time",
    "memory_limit": "it used {} of memory",
    "pids_limit": "it had {} processes and threads",
    "output_limit": "it wrote {}",
    "tmpfs_limit": "it wrote {} to a temporary folder",
}


def quantity(name: str, value: float) -> str:
    """The value of a limit of that name, in words: 4.0 GiB, 10 minutes, 256."""
    if name.endswith("_bytes"):
        unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if value >= UNITS[unit]), "")
        return f"{value / UNITS[unit]:.1f} {unit}" if unit else f"{value:.0f} bytes"
    if not name.endswith("_seconds"):
        return f"{value:,.0f}"
    unit, seconds = ("hour", 3600) if value >= 7200 else ("minute", 60) if value >= 120 else ("second", 1)
    amount = f"{value / seconds:.1f}".removesuffix(".0")
    return f"{amount} {unit}" + ("" if amount == "1" else "s")


def stalling() -> str:
    """What of the caller's can make a program wait for ever: uv waits for a thread that it had no room to start."""
    import resource

    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space == resource.RLIM_INFINITY:
        return ""
    return f"; it may have stalled for want of address space: the caller allows {quantity('_bytes', space)} (ulimit -v)"


TOLD = "(the stacks of its threads, as the sandbox itself told them)\n"


def failure_of(outcome: Outcome, phase: str) -> Failure | None:
    """None where the sandbox reported that it is done; else the one error that says why not."""
    stderr = outcome.stderr[-TAIL_CAP:]
    section, phase = phase, "install" if phase == "compile" else phase  # the contract knows compiling as part of it
    if outcome.violation:
        kind, name, value, seen = outcome.violation
        words, limit = LIMIT_WORDS[kind].format(quantity(name, seen)), quantity(name, value)
        whose = f"the limit {section}.{name} of the profile is"
        if name == GROUP_MEMORY:
            whose = "the control group of the runner (its container or pod) allows all that runs in it"
        text = f"the {phase} phase was ended: {words}, and {whose} {limit}"
        text += stalling() if kind == "timeout" else ""
        retryable, traceback = kind == "timeout" and phase == "fetch", TOLD + outcome.stacks if outcome.stacks else ""
        limits = {"name": name, "value": value, "seen": seen}
        return Failure(phase, kind, text, retryable, stderr=stderr, limit=limits, traceback=traceback)
    if outcome.error:
        return reported_failure(outcome.error, phase, stderr)
    if outcome.done is not None:
        return None
    if outcome.exit_code is None:
        return start_failure(stderr)
    if outcome.exit_code > 128:
        return signal_failure(outcome.exit_code - 128, phase, stderr, outcome.stacks)
    text = f"the {phase} phase ended with exit status {outcome.exit_code} and without a result"
    return Failure(phase, "no_result", text, stderr=stderr)


def reported_failure(error: Mapping[str, Any], phase: str, stderr: str) -> Failure:
    """An error that the child reported of itself."""
    kind, exception = error["type"], error["exception"]
    text = exception["message"][:2000]
    if phase != "fetch" and kind in ("dependency_unavailable", "seccomp_unavailable"):
        kind = "bad_result"
    if kind == "task_exception":
        kind = "task_exception" if phase == "execute" else f"{phase}_failed"
        text = f"the {'task' if phase == 'execute' else phase + ' phase'} raised {exception['type']}: {text}"
    elif kind == "memory_limit":
        text = f"the {phase} phase ran out of memory ({exception['type']}: {text}); {phase}.memory_bytes is the limit"
    elif kind == "dependency_unavailable":
        text = f"the dependencies can't be had as wheels: {text}"
    passing = re.search(r"error sending request|timed out|timeout|Connection|HTTP Error 5", text)
    retryable = kind == "dependency_unavailable" and passing is not None
    return Failure(phase, kind, text, retryable, exception=exception, traceback=error["traceback"], stderr=stderr)


def signal_failure(number: int, phase: str, stderr: str, stacks: str) -> Failure:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    kinds = {"SIGXCPU": "cpu_limit", "SIGXFSZ": "file_size_limit"}
    text, told = f"the {phase} phase was ended by {name}", TOLD + stacks if stacks else ""
    return Failure(phase, kinds.get(name, "crashed"), text, traceback=told, stderr=stderr, signal=name)


# --- hints: one sentence for a person, where the sandbox is why a task failed


Hint = Callable[[Cause, Profile, str], str]


def hint_of(rules: Iterable[Hint], causes: Iterable[Cause], profile: Profile, bundle: str) -> str:
    """What to do about an exception or what it came from, "" where the cause could be another than the sandbox.

    `bundle` is the snapshot that the task saw.
    """
    return next(filter(None, (rule(cause, profile, bundle) for cause in causes for rule in rules)), "")


def with_hint(error: str, hint: str) -> str:
    words = error.rstrip()
    return f"{words}{'' if words.endswith('.') else '.'} {hint}" if hint else error


def cause_in_words(message: str, traceback: str) -> Cause:
    """An exception that was written down instead of raised, as far as Python's own words for it tell."""
    number = re.search(r"\[Errno (-?\d{1,4})\]", message)
    code = int(number[1]) if number else 0
    path = re.search(r": '([^'\n]+)'", message) if number else None
    module = re.search(r"No module named '([\w.]+)'", message)
    kinds = {0: "", errno.ENOENT: "builtins.FileNotFoundError", errno.EACCES: "builtins.PermissionError"}
    types = ["builtins.ModuleNotFoundError"] if module else [kinds.get(code, ""), "builtins.OSError" * bool(number)]
    started = "subprocess.py:_execute_child" * ("in _execute_child" in traceback)
    return Cause(types, message[:4096], code, path[1] if path else "", module[1] if module else "", 0, started, False)


def has_no_network(cause: Cause) -> bool:
    unresolved = "socket.gaierror" in cause.types and cause.errno in (-2, -3, -4, -5)  # EAI_NONAME, AGAIN, FAIL, NODATA
    unreachable = "builtins.OSError" in cause.types and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    remote = "://" in cause.filename and cause.errno not in (0, errno.ENOENT)  # netCDF's, whose words are of the disk
    told = re.search(NO_NETWORK, cause.message, re.DOTALL)
    return unresolved or unreachable or remote or told is not None


# Words of libc, of curl, of Rust's TLS (which finds no certificates in a sandbox), of duckdb, and of boto, twice.
NO_NETWORK = (
    "Temporary failure in name resolution|Network is unreachable|Could not resolve host"
    "|No CA certificates were loaded from the system|Failed to download extension .*Could not establish connection"
    "|Could not connect to the endpoint URL|Unable to locate credentials"
)


# Where no package of a bundle serves itself: the usual ports of MySQL, PostgreSQL, Redis, Ollama and MongoDB.
SERVICES = r"(?:localhost|127\.0\.0\.1|::1)\W.{0,40}?\b(?:3306|5432|6379|11434|27017)\b.*[Cc]onnection refused"


def hint_network(cause: Cause, profile: Profile, bundle: str) -> str:
    if re.search(SERVICES, cause.message, re.DOTALL):
        return "A task reaches no service of the host: its sandbox has a network of its own, in which none listens"
    text = "The sandbox has no network: put what the task needs into the bundle, or hand it over in its params"
    return text if has_no_network(cause) else ""


def hint_build_network(cause: Cause, profile: Profile, bundle: str) -> str:
    text = "A build has no network: have the source bring what it downloads, or ask for a version that has a wheel"
    return text if has_no_network(cause) else ""


def hint_build_module(cause: Cause, profile: Profile, bundle: str) -> str:
    name = cause.module.partition(".")[0][:100]
    if "builtins.ModuleNotFoundError" not in cause.types or not name or name in sys.stdlib_module_names:
        return ""
    return f"A build has what build-system.requires lists (pyproject.toml) alone: add what brings {name!r} there"


def hint_build_program(log: str) -> str:
    """What a build said that it lacks, in its own last words."""
    found = re.search(NO_BUILD_PROGRAM, log[-TAIL_CAP:])
    if not found:
        return ""
    program, language = (next(filter(None, found.groups()[part]), "") for part in (slice(2), slice(2, 5)))
    lacks = repr(program[:100]) if program else f"a compiler of {language[:1].upper()}{language[1:100]}"
    return f"The build needs {lacks}: install it on the host, or ask for a version that has a wheel"


# The words of distutils, meson, CMake, setuptools-rust and maturin.
NO_BUILD_PROGRAM = (
    r"command '([\w./+-]+)' failed: No such file|Unknown compiler\(s\): \[\['([\w.+-]+)'"
    r"|No CMAKE_(\w+)_COMPILER could be found|can't find (Rust) compiler|(?:Cargo|rustc), the ([Rr]ust) [a-z ]+, is not"
)


def hint_program(cause: Cause, profile: Profile, bundle: str) -> str:
    programs = "this profile has no programs" if not profile.execute.programs else "it has those of this profile alone"
    path = os.path.normpath(cause.filename)
    refused = cause.errno == errno.EACCES and cause.raised_in in (*EXECUTED_IN, "posix_spawn", "execv", "execve")
    if refused and not path.startswith(("/", "..")) and os.path.isfile(os.path.join(bundle, path)):
        remedy = f"call what reads it, as `bash {path[:100]}`, or chmod +x it (a registry keeps no modes)"
        return f"{path[:100]!r} is a file of the bundle that may not be executed: {remedy}"
    unnamed = not re.search(NO_PROGRAM, cause.message)
    if unnamed and "subprocess.CalledProcessError" in cause.types and cause.status == 127:
        said = "Status 127 is what a shell says of a program that is not there"
        return f"{said}: in the sandbox {programs} (execute.programs)"
    folder, name = os.path.split(cause.filename)
    anywhere = cause.raised_in in EXECUTED_IN
    places = (*PROGRAM_FOLDERS, "/usr/local/bin")
    gone = cause.errno == errno.ENOENT or cause.raised_in == "spawn"
    missing = gone and not cause.no_folder and (folder in places or (anywhere and not folder))
    shell = None if missing else re.search(NO_PROGRAM, cause.message)
    name = shell[1] if shell else name if missing else ""
    if not name or name in profile.execute.programs:
        return ""
    remedy = "use a Python package for it, or a profile that names it"
    return f"The program {name[:100]!r} is not in the sandbox: {programs} (execute.programs); {remedy}"


# What looks a program up along PATH.
EXECUTED_IN = ("subprocess.py:_execute_child", "os.py:_execvpe", "<frozen os>:_execvpe", "posix_spawnp", "spawn")
# What shells and env say, the latter in quotation marks of either kind.
NO_PROGRAM = (
    r"(?:sh: (?:line )?\d+: |env: )[\u2018']?([\w.+-]+)[\u2019']?: (?:command not found|not found|No such file)"
)


def with_what_a_shell_said(cause: Cause, stderr: str) -> Cause:
    """os.system and its like leave but a status: where a shell's word on a program was the last on standard error, and
    the exception speaks of that program or status, it goes with the exception's own."""
    last = stderr.rstrip().rpartition("\n")[2]
    said = re.search(NO_PROGRAM, last)
    statuses = rf"(?<!\w)(?:127|{127 << 8}|{re.escape(said[1])})(?!\w)" if said else ""
    return cause._replace(message=f"{cause.message}\n{last}") if said and re.search(statuses, cause.message) else cause


def hint_module(cause: Cause, profile: Profile, bundle: str) -> str:
    top, _, inner = cause.module.partition(".")
    if "builtins.ModuleNotFoundError" not in cause.types or not top or top in sys.stdlib_module_names:
        return ""
    path = cause.module.replace(".", "/")
    held = find_in_bundle(bundle, f"{path}.py") or find_in_bundle(bundle, f"{path}/__init__.py")
    if held:
        remedy = (
            "have its build include it (packages in pyproject.toml), or import it by its path from the bundle's top"
        )
        return f"The bundle holds {held}, where no import looks: {remedy}"
    if inner:
        return ""
    declared, wanted = declared_names(bundle), canonical_name(IMPORTED_FROM.get(top, top))
    aside = next((where for where, name in declared if where and name == wanted), "")
    if aside:
        return f"The bundle declares it in {aside} alone, which is not installed: add it to the dependencies"
    what = "distribution" if "importlib.metadata.PackageNotFoundError" in cause.types else "module"
    near = nearest_name(canonical_name(top), (name for _, name in declared))
    said = f"; the nearest name that it declares is {near!r}" if near else ""
    brings = repr(IMPORTED_FROM[top]) if top in IMPORTED_FROM else "the package that brings it"
    return f"The environment has no {what} {top[:100]!r}: declare {brings} in the bundle{said}"


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The one most like a name, of as many of an attacker's names as can be compared in a moment; "" where none is."""
    import difflib
    from itertools import islice

    compared = islice((other for other in known if len(other) <= 100), 1000)
    return next(iter(difflib.get_close_matches(name[:100], compared, 1, 0.7)), "")


# Modules whose distribution has another name.
IMPORTED_FROM = {
    "Bio": "biopython", "PIL": "pillow", "attr": "attrs", "bs4": "beautifulsoup4", "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil", "pkg_resources": "setuptools<82", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml",
}  # fmt: skip


# Tables of groups that are not installed.
GROUPS = (
    "project.optional-dependencies", "dependency-groups", "tool.pdm.dev-dependencies", "tool.poetry.group",
    "tool.hatch.envs",
)  # fmt: skip


def declared_names(bundle: str) -> list[tuple[str, str]]:
    """Names of packages that a bundle's own files declare, after where: "" for its dependencies."""
    table: dict[str, Any] = {}
    listed: dict[str, Any] = {}
    with suppress(Failure):
        table = read_bundle_toml(bundle, "pyproject.toml")
        listed[""] = take(table, "project.dependencies", list, [], "")
        listed["tool.uv.dev-dependencies"] = take(table, "tool.uv.dev-dependencies", list, [], "")
    for key in GROUPS:
        with suppress(Failure):
            kind = "extra" if key.startswith("project") else "group"
            listed |= {f"its {kind} {which[:100]!r}": found for which, found in take(table, key, dict, {}, "").items()}
    for key in ("tool.pixi.dependencies", "tool.pixi.pypi-dependencies"):
        with suppress(Failure):
            listed[key] = [*take(table, key, dict, {}, "")]
    for file in sorted(
        name for name in os.listdir(bundle) if re.fullmatch(rf"{UNREAD}|requirements[\w.-]*\.txt", name)
    ):
        with suppress(Failure):
            listed[file] = re.sub(r"(?m)^\s*- ", "", read_bundle_file(bundle, file) or "").splitlines()
    names: list[tuple[str, str]] = []
    for where, found in listed.items():
        lines = found.get("dependencies", ()) if isinstance(found, dict) else found
        matches = (re.match(NAME, line.strip()) for line in lines if isinstance(line, str))
        names += [(where, canonical_name(match[0])) for match in matches if match]
    return names


def find_in_bundle(bundle: str, ending: str) -> str:
    """The file of the bundle whose path ends so, the one nearest to its top; "" where there is none."""
    wanted = os.path.normpath(ending)
    paths = (path[len(bundle) + 1 :] for path in files_below(bundle))
    held = [path for path in paths if f"/{path}".endswith(f"/{wanted}")]
    return min(held, key=lambda path: (path.count("/"), path), default="")


def hint_package_data(cause: Cause, profile: Profile, bundle: str) -> str:
    if "builtins.FileNotFoundError" not in cause.types:
        return ""
    place = rf"{VENV}/(?:lib/)?(?:python[0-9.]+t?/)?(site-packages/)?([^'\"\n]+)"
    installed = re.search(place, cause.filename or cause.message)
    held = find_in_bundle(bundle, installed[2]) if installed else ""
    if not installed or not held:
        return ""
    if not installed[1]:  # the module counts its folders up from where it lies in the author's checkout
        remedy = f"open {held!r}, as the working directory is the bundle's, or declare it as data of the package"
        return f"The bundle holds {held}, and the package is installed elsewhere: {remedy}"
    package, _, inner = installed[2].partition("/")
    remedy = f'declare it as package data (setuptools: [tool.setuptools.package-data] {package} = ["{inner}"])'
    return f"The bundle holds {held}, which its build left out of the package: {remedy}"


def hint_host_path(cause: Cause, profile: Profile, bundle: str) -> str:
    absent = f"No such file or directory|non-existent directory|No files found that match|{NO_DATABASE}"
    refused = {"builtins.FileNotFoundError", "builtins.PermissionError"} & {*cause.types}
    if not refused and not re.search(absent, cause.message):
        return ""
    path = re.search(
        r"(?:^|[\s'\"(])((?:/|[A-Za-z]:[\\/]+)([\w.-]+)(?:[\\/][^'\"\s]*)?)", cause.filename or cause.message
    )
    if not path or path[2] in OWN_TOPS or "/lib/python" in path[1]:
        return ""
    remedy = "put it into the bundle, and read and write by paths relative to its top"
    return f"{path[1][:200]!r} would lie on the host, of whose files a task sees none: {remedy}"


# What a sandbox has at its root, or what no bundle can bring.
OWN_TOPS = {"bin", "bundle", "dev", "etc", "lib", "lib64", "proc", "run", "runner", "sbin", "sys", "tmp", "usr", "venv"}


def hint_proc(cause: Cause, profile: Profile, bundle: str) -> str:
    missing = cause.errno == errno.ENOENT and f"{cause.filename}/".startswith("/proc/")
    if profile.sandbox.proc or not (missing or any(name.startswith("psutil.") for name in cause.types)):
        return ""
    return "This profile has no /proc (sandbox.proc = false), which psutil and its like need; use one that has it"


def hint_read_only(cause: Cause, profile: Profile, bundle: str) -> str:
    if cause.message == "attempt to write a readonly database" and has_database(bundle):
        return "A database that is a file of the bundle can't be written to: open a copy of it (shutil.copy)"
    if not {"builtins.OSError", "duckdb.IOException", "_duckdb.IOException", "sqlite3.OperationalError"} & {
        *cause.types
    }:
        return ""
    place = os.path.join(BUNDLE * (profile.execute.working_directory == "bundle"), cause.filename)
    denied = cause.errno == errno.EACCES or cause.message == NO_DATABASE  # EACCES is netCDF's word for it
    denied = denied and bool(cause.filename) and place.startswith(f"{BUNDLE}/")
    refused = denied or cause.errno == errno.EROFS or "Read-only file system" in cause.message
    path = re.sub(rf"^({SHADOW}|{BUNDLE})/", "", cause.filename)
    own = bool(path) and not path.startswith(("/", "..")) and os.path.isfile(os.path.join(bundle, path))
    if own and (refused or cause.errno == errno.EACCES):
        return f"{path[:200]!r} is a file of the bundle, which no task can change: write to another name, or to a copy"
    if not refused:
        return ""
    if profile.execute.working_directory == "shadow":
        places = "its working directory (by relative path), its home and /tmp, all of which go with it"
        rest = "everything else, the bundle's own folder and the environment too, is read-only"
        return f"A task can write to {places}; {rest}"
    where = 'its home and /tmp alone under this profile (execute.working_directory = "bundle")'
    return f"A task can write to {where}: use tempfile.mkdtemp(), or return the bytes"


NO_DATABASE = "unable to open database file"  # SQLite's word for a folder that is not there, or is read-only


def has_database(bundle: str) -> bool:
    """Whether a file of the bundle is an SQLite database: else the task itself opened one to be read only."""
    for path in files_below(bundle):
        if os.path.isfile(path) and not os.path.islink(path):
            with suppress(OSError), open(path, "rb") as file:
                if file.read(15) == b"SQLite format 3":
                    return True
    return False


def hint_surroundings(cause: Cause, profile: Profile, bundle: str) -> str:
    if cause.raised_in not in ("os.py:__getitem__", "<frozen os>:__getitem__") and "builtins.KeyError" in cause.types:
        return ""
    policy, limits = profile.execute, profile.execute.limits
    sizes = {"tmp": policy.tmp_bytes, "shm": policy.shm_bytes, "file": limits.file_bytes}
    values = {name: quantity("_bytes", size) for name, size in sizes.items()} | {"open": limits.open_files}
    fitting = (
        row[3] for row in ABSENT if row[0] in cause.types and row[1] in (0, cause.errno) and row[2] in cause.message
    )
    return next(fitting, "").format(**values)


# What no task has, by the exception of who wants it, its errno (0: any) and a word of it.
ABSENT = (
    ("builtins.OSError", errno.ENOSPC, "", "/tmp and the working directory hold {tmp} (execute.tmp_bytes), /dev/shm "
     "{shm} (execute.shm_bytes)"),
    ("builtins.OSError", errno.EFBIG, "", "A file may have {file} (execute.limits.file_bytes)"),
    ("builtins.OSError", errno.EMFILE, "", "A process may have {open} files open (execute.limits.open_files)"),
    ("builtins.KeyError", 0, "", "A task has none of the host's environment variables: hand it over in its params (or "
     "execute.environment)"),
    ("locale.Error", 0, "unsupported locale", "The sandbox has the locales C and C.UTF-8 alone"),
    ("_tkinter.TclError", 0, "", "A task has no display: draw into files, as matplotlib does with use('Agg')"),
    ("builtins.EOFError", 0, "when reading a line", "A task has no standard input: what it needs is in its params"),
    ("bdb.BdbQuit", 0, "", "A task has no terminal, which a debugger needs: take the breakpoint out, or run --shell"),
)  # fmt: skip


HINTS: tuple[Hint, ...] = (
    hint_network,
    hint_program,
    hint_module,
    hint_package_data,
    hint_proc,
    hint_read_only,
    hint_host_path,
    hint_surroundings,
)


# --- phases: each makes a sandbox, runs it, and turns what comes out into the next one's input


class Host(NamedTuple):
    """All that the phases of one run share."""

    profile: Profile
    store: Store
    uid: int | None  # on the host, and the gid, of sandboxed processes; None where the runner is an ordinary user
    stage: Stage
    bwrap: str
    uv: str | None
    background: "Background"
    seccomp: list[bytes]
    times: dict[str, float]
    spent: dict[str, float]  # seconds that the sandboxes of each phase before the task have taken
    secrets: list[str]
    watching: Watching | None = None

    @property
    def run_name(self) -> str:
        return os.path.basename(self.store.run)


def run_phase(host: Host, box: Sandbox, request: dict[str, Any], receiver: Receiver) -> Outcome:
    """Run one sandbox to its end and raise the Failure it ended in, if it did."""
    outcome = Supervisor(host, box, request, receiver).run()
    host.spent[box.phase] = host.spent.get(box.phase, 0.0) + outcome.usage.wall
    raise_failure(host, outcome, box.phase, box.subject)
    return outcome


def raise_failure(host: Host, outcome: Outcome, phase: str, subject: str = "") -> None:
    """Raise what the outcome means, if it means an error, without the secrets that the fetch phase knew."""
    failure = failure_of(outcome, phase)
    if failure is None:
        return
    if subject:
        failure.error = f"{subject}: {failure.error}"
    if phase in ("build", "execute") and outcome.error:
        rules = HINTS if phase == "execute" else (hint_build_network, hint_build_module)
        causes = [with_what_a_shell_said(cause, outcome.stderr) for cause in outcome.error.get("causes", [])]
        hint = hint_of(rules, causes, host.profile, host.store.scratch("bundle"))
        hint = hint or (hint_build_program(outcome.stderr) if phase == "build" else "")
        failure.error = with_hint(failure.error, hint)
    if failure.type == "memory_limit":
        killed_by_group = outcome.violation is not None and outcome.violation.name == GROUP_MEMORY
        room = room_in(memory_quota(), host.profile.host)
        if killed_by_group or getattr(host.profile, phase).limits.memory_bytes >= room:
            failure.error += "; the control group of the runner has no more: give its container more memory"
    failure.error = redact(failure.error, host.secrets)
    failure.details = redact(failure.details, host.secrets)
    failure.details["usage"] = outcome.usage
    raise failure


def redact(value: Any, secrets: Iterable[str]) -> Any:
    """The same value with the secrets blotted out of every string in it."""
    if isinstance(value, dict):
        return {key: redact(item, secrets) for key, item in value.items()}
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "****")
    return value


def make_sandbox(host: Host, phase: str, interpreters: list[Interpreter], mounts: list[Mount]) -> Sandbox:
    """The sandbox of a phase: system, synthetic /etc, the child program, and what the phase itself needs. Its
    interpreter is that of a venv that is mounted, else the first."""
    common, policy = host.profile.sandbox, getattr(host.profile, phase)
    places = {mount.target for mount in mounts}
    paths, links = system_mounts(policy, interpreters)
    etc = host.store.scratch(f"etc-{phase}")
    survey, make = survey_system(host, policy, paths)
    covered = host.background.kept(survey, lambda: kept_record(survey, "bin"), make)["covered"]
    if not os.path.exists(etc):
        host.store.hold(survey)
        write_etc(etc, common, policy.network)
        for path in paths:
            if path.startswith("/etc/"):
                os.makedirs(os.path.join(etc, path[len("/etc/") :]), exist_ok=True)
    covers = [Mount("/dev/null", path) for path in covered if os.path.exists(path)]
    covers += [Mount(write_meminfo(host.store.scratch("meminfo"), policy), "/proc/meminfo")] if common.proc else []
    system = [Mount(f"{survey}/bin", "/usr/bin")] if policy.programs else []
    links += [("usr/bin", "/bin"), ("usr/bin", "/sbin"), ("bin", "/usr/sbin")] if policy.programs else []
    child = child_file(host.store, interpreters[0])
    system += [Mount(path, path) for path in paths if not path.startswith("/etc/")]
    system += [Mount(etc, "/etc"), *(Mount(path, path) for path in paths if path.startswith("/etc/"))]
    environment = {name: value for name, value in os.environ.items() if name in policy.pass_environment}
    environment.update(told_environment(policy.environment, policy.limits))
    # A venv's interpreter as in any venv: what it starts with its own flags must see the venv and the bundle. Not -I,
    # which would hide them, and ignore PYTHONHASHSEED: the environment is the profile's alone, a venv has no user
    # site, and nothing else lies in the child's own folder. Where no code of a bundle runs, no site is needed.
    python = f"{VENV}/bin/python" if VENV in places else interpreters[0].executable
    flags = ["-u", "-B"] if VENV in places else ["-I", "-S", "-u", "-B"]
    wanted = [*system, Mount(child, CHILD), *mounts]

    def staged(group: list[Mount]) -> list[Mount]:
        return [mount._replace(source=host.stage.source(mount.source)) for mount in group]

    command = [python, *flags, CHILD, "--sandboxed-child"]
    placed = list(dict.fromkeys(links))
    over, cwd = tuple(staged(covers)), BUNDLE if BUNDLE in places else "/tmp"
    return Sandbox(phase, policy, common, staged(wanted), placed, environment, cwd, command, over)


def told_environment(variables: Mapping[str, str], limits: Limits) -> dict[str, str]:
    """The profile's variables. `{memory_mib}` stands for the memory limit, `{processors}` for their number; a variable
    with that is set only where the kernel does not say the same: a library that finds it no longer divides the
    processors among its own workers."""
    seen = len(os.sched_getaffinity(0))
    may_use = min(seen, processor_quota(), max(1, limits.processes // 8))  # else threads of pools use up the limit
    told = {name: value for name, value in variables.items() if may_use < seen or "{processors}" not in value}
    known = (("{processors}", str(may_use)), ("{memory_mib}", str(limits.memory_bytes // MIB)))
    for word, number in known:
        told = {name: value.replace(word, number) for name, value in told.items()}
    return told


@contextmanager
def killed_first() -> Iterator[None]:
    """What is started meanwhile is what the kernel ends where memory is short, and not the runner or its caller.

    It is inherited: a child that has dropped root may not set its own.
    """
    path = "/proc/self/oom_score_adj"
    own = text_of(path).encode()
    with suppress(OSError):
        write_file(path, b"1000")
    try:
        yield
    finally:
        with suppress(OSError):
            write_file(path, own)


def child_file(store: Store, interpreter: Interpreter) -> str:
    """The child program as a file of this run; as bytecode, kept with a digest, for an interpreter of our own kind."""
    source, compiled = store.scratch("child.py"), store.scratch("child.pyc")
    if interpreter.cache_tag != sys.implementation.cache_tag:
        write_file(source, child_program().encode())
        return source
    if not os.path.exists(compiled):
        write_file(compiled, store.derived("child", compile_child, child_program(), sys.version))
    return compiled


def compile_child() -> bytes:
    from importlib.util import MAGIC_NUMBER

    return MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(child_program(), "child.py", "exec", dont_inherit=True))


def read_digested(path: str) -> bytes | None:
    """The content of a file that ends with its own digest; None where it is not there or was altered."""
    with suppress(OSError), open(path, "rb") as file:
        content = file.read()
        data, digest = content[:-64], content[-64:]
        if blake2b(data).digest() == digest:
            return data
    return None


@contextmanager
def timed(host: Host, name: str) -> Iterator[None]:
    """Add the time of a block to a phase's metric."""
    begun = time.monotonic()
    try:
        yield
    finally:
        host.times[name] = host.times.get(name, 0.0) + time.monotonic() - begun


class FileReceiver(Receiver):
    """Stores what a sandbox sends as files in a scratch directory, under our names, hashed as they come."""

    def __init__(self, folder: str, limit: int, notes: tuple[str, ...] = ()) -> None:
        os.mkdir(folder)
        self.folder, self.limit, self.expected = folder, limit, notes
        self.files: dict[str, tuple[str, str]] = {}  # name to path and sha256
        self.notes: dict[str, bytes] = {}
        self.done: bytes | None = None

    def note(self, name: str, body: bytes) -> None:
        if name in self.notes or name not in self.expected:
            raise bad_result(f"the sandbox sent the note {name[:100]!r} twice, or unasked")
        self.notes[name] = body

    def opened(self, name: str, size: int) -> None:
        if name in self.files or len(self.files) >= self.limit:
            raise bad_result(f"the sandbox sent {name[:100]!r} twice, or after {self.limit} files")
        import hashlib

        self.name, self.digest = name, hashlib.sha256()
        self.path = os.path.join(self.folder, str(len(self.files)))
        self.file = open(self.path, "xb")  # noqa: SIM115 (closed() closes it)

    def data(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.file.write(chunk)

    def closed(self) -> None:
        self.file.close()
        self.files[self.name] = (self.path, self.digest.hexdigest())
        self.kept(self.name)

    def kept(self, name: str) -> None:
        """A file has come as a whole."""

    def sent(self, name: str) -> tuple[str, str]:
        """The path and sha256 of a file that had to come."""
        if name not in self.files:
            raise bad_result(f"the sandbox ended well and did not send {name!r}")
        return self.files[name]


def collect(
    host: Host, box: Sandbox, request: dict[str, Any], limit: int = 1, notes: tuple[str, ...] = ()
) -> FileReceiver:
    """Run one sandbox to its end; what it sends is in scratch."""
    receiver = FileReceiver(host.store.fresh("sent"), limit, notes)
    receiver.done = run_phase(host, box, request, receiver).done
    return receiver


class WheelFile(NamedTuple):
    """A wheel in the store. `path` ends with its own file name."""

    name: str
    sha256: str
    path: str


WHEEL_NAME = (
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-[A-Za-z0-9._+!]+(-\d[A-Za-z0-9_.]*)?"
    r"-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl"
)
SDIST_NAME = r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.(tar\.gz|tar\.bz2|tar\.xz|tgz|zip)"


def is_wheel_name(file_name: str) -> bool:
    return re.fullmatch(WHEEL_NAME, file_name) is not None and len(file_name) <= 240


def keep_wheel(store: Store, file_name: str, sha256: str, path: str | None = None) -> WheelFile:
    """Name a wheel of the store, moving it there first where `path` says that it is still in scratch."""
    match = re.fullmatch(WHEEL_NAME, file_name)
    if match is None or not is_wheel_name(file_name):
        raise wheel_error(file_name[:200], "its file name is not that of a wheel")
    target = store.path("wheels", sha256, file_name)
    if path is not None:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.rename(path, target)
    return WheelFile(canonical_name(match["name"]), sha256, target)


def kept_wheels(store: Store, kind: str, key: str, make: Callable[[], list[WheelFile]]) -> list[WheelFile]:
    """The wheels noted under a key, if the note is one and the files are there; else those that are made."""

    def load() -> list[WheelFile] | None:
        try:
            wheels = [keep_wheel(store, name, sha256) for name, sha256 in store.read(kind, key)["wheels"]]
        except (Failure, KeyError, TypeError, ValueError):
            return None
        there = all(re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and os.path.isfile(wheel.path) for wheel in wheels)
        return wheels if there and (wheels or kind == "resolved") else None

    def note() -> None:
        store.write(kind, key, {"wheels": [[os.path.basename(wheel.path), wheel.sha256] for wheel in make()]})

    return store.once(key, load, note)


# fetch


class IndexSettings(NamedTuple):
    """Where packages come from, as the caller's environment says; for the fetch phase alone."""

    credentials: dict[str, str]  # environment of uv, credentials included
    authorization: dict[str, str]  # host (and port) to the header's value
    public: list[str]  # what may go into a key: no credentials
    secrets: list[str]
    names: list[str]  # of indexes that have one
    hosts: list[str]  # host and port of each index


def index_settings(environment: Mapping[str, str]) -> IndexSettings:
    """Read UV_* and PIP_* index settings and the netrc entries of those indexes."""

    def first(*names: str) -> str:
        return next((environment[name] for name in names if environment.get(name)), "")

    default = first("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    extra = first("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL").split()
    if not default and not extra:
        return IndexSettings({}, {}, [], [], [], [])
    import base64
    from urllib.parse import quote, unquote, urlsplit

    authorization: dict[str, str] = {}
    public: list[str] = []
    secrets: list[str] = []
    urls: list[str] = []
    names: list[str] = []
    for entry in filter(None, [default, *extra]):
        name, url = entry.split("=", 1) if re.match(r"[\w.-]+=", entry) else ("", entry)
        names += [name] * bool(name)
        parts = split_index(url)
        host = parts.netloc.rpartition("@")[2]
        written = unquote(parts.username or ""), unquote(parts.password or "")
        user, password = index_login(environment, name, *written, parts.hostname or "")
        if user or password:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            authorization[host] = f"Basic {token}"
            spellings = (password or user, quote(password or user, safe=""), token)
            secrets += [secret for secret in spellings if len(secret) > 3]
        public.append(parts._replace(netloc=host).geturl())
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        urls.append(parts._replace(netloc=login + host).geturl())
    main, others = (urls[:1], urls[1:]) if default else ([], urls)
    variables = {"UV_DEFAULT_INDEX": "".join(main), "UV_INDEX": " ".join(others)}
    credentials = {name: value for name, value in variables.items() if value}
    hosts = [f"{parts.hostname}:{parts.port or 443}" for parts in map(urlsplit, public)]
    return IndexSettings(credentials, authorization, public, secrets, names, hosts)


def split_index(url: str) -> Any:
    """Of what is no URL nothing is told: there may be a password in it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problem = "an index that the environment names (UV_INDEX, PIP_INDEX_URL, ..) is no URL, by its host or port"
        raise usage_error(f"{problem}; in a password / and @ are written as %2F and %40") from None
    return parts


def index_login(environment: Mapping[str, str], name: str, user: str, password: str, host: str) -> tuple[str, str]:
    """The credentials of one index: in its URL, in uv's variables for its name, or in the netrc."""
    variable = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
    if name and not user:
        user, password = environment.get(f"{variable}_USERNAME", ""), environment.get(f"{variable}_PASSWORD", "")
    if not user and not password:
        user, password = netrc_entry(environment, host) or ("", "")
    return user, password


def netrc_entry(environment: Mapping[str, str], host: str) -> tuple[str, str] | None:
    import netrc

    path = environment.get("NETRC") or os.path.join(environment.get("HOME", "/nonexistent"), ".netrc")
    try:
        entry = netrc.netrc(path).hosts.get(host)
    except (OSError, ValueError, netrc.NetrcParseError):
        return None
    return (entry[0], entry[2]) if entry else None


def git_credentials(environment: Mapping[str, str], url: str) -> dict[str, str]:
    """GITHUB_TOKEN for github.com, or the netrc entry of the host, as a header that git alone is told."""
    import base64
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    token = environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN")
    pair = ("x-access-token", token) if host == "github.com" and token else netrc_entry(environment, host)
    if pair is None:
        return {}
    value = base64.b64encode(f"{pair[0]}:{pair[1]}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.https://{urlsplit(url).netloc}/.extraheader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {value}",
    }


# A request of the fetch phase that asks for nothing; see `fetch`.
NOTHING_TO_FETCH: dict[str, Any] = {
    **dict.fromkeys(("requirements", "constraints", "overrides", "options", "no_binary", "only_binary"), ()),
    **dict.fromkeys(("git", "locked", "have", "callers"), ()),
    **{"assigned": "", "hashes": {}, "gate": None},
}


class Downloads(FileReceiver):
    """What a fetch sends. A wheel that came as the lock has it is unpacked while others are still on their way."""

    def __init__(self, host: Host, interpreter: Interpreter) -> None:
        policy = host.profile.dependencies
        notes = ("lock", "without wheels")
        super().__init__(host.store.fresh("fetched"), policy.max_packages + 1, notes)
        self.host, self.interpreter, self.policy = host, interpreter, policy
        self.entries: list[dict[str, str]] = []
        self.bytes = 0

    def data(self, chunk: bytes) -> None:
        super().data(chunk)
        self.bytes += len(chunk)
        self.tell()

    def closed(self) -> None:
        super().closed()
        if "lock" in self.notes and not self.entries:
            self.entries = read_lock(self.notes["lock"], self.policy)
        self.tell()

    def tell(self) -> None:
        if self.entries:
            Log.progress("fetch", len(self.files), len(self.entries), self.bytes)

    def kept(self, name: str) -> None:
        if not name.isdecimal() or int(name) >= len(self.entries):
            return
        file_name = kept_name(self.entries[int(name)]).partition("/")[2]
        path, sha256 = self.files[name]
        if sha256 == self.entries[int(name)]["sha256"] and is_wheel_name(file_name):
            named = os.path.join(self.folder, f"wheel-{name}", file_name)
            os.mkdir(os.path.dirname(named))
            link_or_copy(path, named, 0o600)
            self.host.background.ahead(*wheel_tree(self.host, WheelFile("", sha256, named), self.interpreter))


class Place(NamedTuple):
    """Where a source is: a path in a tree of sources that lies on this host, or a URL."""

    tree: str
    path: str


class Pin(NamedTuple):
    """The wheel that a name is held to. `forced` where metadata ask for it by a URL of their own."""

    wheel: WheelFile
    place: Place
    extras: frozenset[str] = frozenset()
    forced: bool = False

    def line(self) -> str:
        """What the resolver is told: the file, and where it overrides what metadata say, their extras."""
        extras = f"[{','.join(sorted(self.extras))}]" if self.forced and self.extras else ""
        return f"{self.wheel.name}{extras} @ file:///links/{os.path.basename(self.wheel.path)}"


class Gathered(NamedTuple):
    """What requirements come to before an index is asked: pins by name, lines for the resolver, and those that have an
    index of their own. `done` says that there is nothing left to ask."""

    pins: dict[str, Pin]
    lines: list[str]
    assigned: dict[str, str]
    done: bool


def commit_of(archive: str) -> str:
    """The commit that `git archive` wrote into the head of a tar (git-archive(1)); "" where there is none."""
    with open(archive, "rb") as file:
        found = re.search(rb"comment=([0-9a-f]{40,64})\n", file.read(2048))
    return found[1].decode() if found else ""


class Resolver:
    """Turns requirements into wheels of the store; builds what has none, offline.

    A name that the plan gives a place is held to the wheel from there and never asked of an index: the resolver has
    it as a URL. For one that nothing has asked for yet a stub stands in; where the answer holds a stub, the source is
    built and the question asked again.
    """

    ROUNDS, DEPTH, MAX_SOURCES = 8, 8, 100

    def __init__(self, host: Host, interpreter: Interpreter, environment: Mapping[str, str], bundle: "Bundle") -> None:
        self.host, self.interpreter, self.environment, self.bundle = host, interpreter, environment, bundle
        self.plan, self.policy = bundle.plan, host.profile.dependencies
        self.index = index_settings(environment)
        self.markers = marker_environment(interpreter)
        self.places = dict(self.own_places())
        self.obtained: dict[Place, tuple[WheelFile, str]] = {}  # and the tree that paths in its metadata are of
        self.drafting = False
        self.drafts: dict[Place, tuple[WheelFile, str]] = {}  # wheels of the bundle's that are still to be built
        self.commits: dict[str, str] = {}  # of git URLs
        self.from_sdists: set[str] = set()  # sha256 of wheels that were built of an index's sdists
        self.unbuilt: dict[str, Failure] = {}  # sdists of an index that can't be built or used, and why
        self.building: tuple[str, ...] = ()
        host.secrets.extend(self.index.secrets)

    def own_places(self) -> Iterator[tuple[str, Place | Failure]]:
        """The names that the plan gives a place, here and under this interpreter."""
        for name, origins in self.plan.origins.items():
            fits = [origin for origin in origins if not origin.marker or marker_holds(origin.marker, self.markers)]
            own = [origin for origin in origins if origin.target.startswith("file:")]
            if fits and not fits[0].target.startswith(("index:", "links:")):
                yield name, self.place(fits[0].target, self.bundle.path)
            elif own and not fits:
                text = f"the bundle has {name} ({own[0].target[5:]}) only where {own[0].marker}"
                yield name, refused("tool.uv.sources", f"{text}; say where it comes from otherwise")
        for name, text in self.plan.elsewhere.items():
            yield name, Failure("bundle", "dependency_refused", text)
        for name, files in self.plan.links.items():
            if all(origin.target == "links:" for origin in self.plan.origins.get(name, [])):
                yield name, Place(self.bundle.path, choose_link(files, self.interpreter))

    @staticmethod
    def place(target: str, tree: str) -> Place:
        return Place(tree, target[len("file:") :]) if target.startswith("file:") else Place("", target)

    def for_building(self, name: str) -> "Resolver":
        """The same for what a build needs, as uv has it: its own constraints, no overrides, the newest releases.
        The bundle's places and folders, `--no-index` and the day rule here too."""
        if name in self.building or len(self.building) >= self.DEPTH:
            chain = " needs ".join([*self.building, name])
            problem = "they need one another to be built" if name in self.building else "that is too deep"
            raise Failure("build", "build_failed", f"{chain}: {problem}")
        import copy

        inner = copy.copy(self)
        inner.building, inner.drafting, inner.drafts = (*self.building, name), False, {}
        rules = self.plan.rules._replace(constraints=self.plan.rules.build_constraints, overrides=(), resolution="")
        rules = rules._replace(excluded=frozenset(), placed=frozenset(), require_hashes=False, prerelease="")
        inner.plan = self.plan._replace(lock="", rules=rules)
        return inner

    def wheels(self, requirements: list[Requirement]) -> list[WheelFile]:
        """All wheels that the requirements need, from what is kept or from the network. Sorted by name."""
        if not requirements:
            return []
        lines = sorted((requirement.line(), sorted(requirement.hashes)) for requirement in requirements)
        rules = shown(self.plan.rules)
        local = any(isinstance(place, Place) and place.tree for place in self.places.values())
        own = self.bundle.digest if local or any(item.path is not None for item in requirements) else ""
        places = (sorted(self.plan.origins.items()), sorted(self.plan.elsewhere))  # what is kept may be an index's
        asked = (lines, rules, self.plan.lock, self.plan.indexes, places, own)
        key = digest_of("resolved", asked, self.interpreter.key(), self.index.public, self.policy)

        def make() -> list[WheelFile]:
            files, local = self.resolve(requirements)
            check_hashes(requirements, files, local, self.plan)
            return files

        return kept_wheels(self.host.store, "resolved", key, make)

    def resolve(self, requirements: list[Requirement]) -> tuple[list[WheelFile], set[str]]:
        """The wheels that requirements need, and the names of those that were not taken from an index as they are.

        The bundle's own projects are built last, while what was downloaded is unpacked; where one asks for something
        else than its pyproject.toml said, all is asked again.
        """
        self.drafting = not self.building
        files, local = self.ask(requirements)
        self.drafting, drafts, self.drafts = False, self.drafts, {}
        built = {draft: self.obtain(place, draft.name)[0] for place, (draft, _) in drafts.items()}
        for place, (draft, tree) in drafts.items():
            extras = self.project_at(place).extras
            if self.needs(draft, tree, extras) != self.needs(built[draft], tree, extras):
                return self.ask(requirements)
        return sorted(built.get(file, file) for file in files), local

    def needs(self, wheel: WheelFile, tree: str, extras: Collection[str]) -> list[Any]:
        """What a wheel is to others: its version, and what it asks for here with these extras."""
        asked = self.requires(wheel, tree, extras)
        told = {(item.key, item.extra_names, frozenset(item.versions.split(",")), item.url) for item in asked}
        return [os.path.basename(wheel.path).split("-")[1], told]

    def ask(self, requirements: list[Requirement]) -> tuple[list[WheelFile], set[str]]:
        """Ask until every dependency is a wheel: what has a place first, then sdists, which are built offline."""
        asked = list(requirements)
        sdists: dict[str, Pin] = {}
        for _ in range(self.ROUNDS):
            gathered = self.gather(asked)
            gathered.pins.update(sdists)
            if gathered.done:
                return sorted(pin.wheel for pin in gathered.pins.values()), set(gathered.pins)
            try:
                files, sources, stubs = self.fetch(gathered, requirements)
            except Failure as failure:
                if failure.retryable or not sdists:
                    raise next((why for name, why in self.unbuilt.items() if name in failure.error), failure) from None
                self.unbuilt |= dict.fromkeys(sdists, failure)  # what their metadata ask for can't be met
                sdists.clear()
                continue
            if not sources and not stubs:
                return sorted(files), set(gathered.pins)
            asked += [Requirement(name, "", "", "", NOT_ASKED) for name in stubs]
            for name, path in sources:
                if name in sdists:
                    problem = f"the sdist of {name} was built, and its wheel does not satisfy the dependencies"
                    raise Failure("fetch", "dependency_unavailable", problem)
                try:
                    sdists[name] = Pin(self.build_archive(path, "", name)[0], Place("", path))
                    self.from_sdists.add(sdists[name].wheel.sha256)
                except Failure as failure:
                    if failure.type not in ("build_failed", "dependency_unavailable") or failure.retryable:
                        raise
                    self.unbuilt[name] = failure
        problem = f"after {self.ROUNDS} rounds there are still dependencies without wheels"
        raise Failure("fetch", "dependency_unavailable", problem)

    # what has a place

    def gather(self, requirements: list[Requirement]) -> Gathered:
        """Obtain what has a place, and follow what its metadata ask for in turn."""
        pins: dict[str, Pin] = {}
        lines: list[str] = []
        assigned: dict[str, str] = {}
        done = True
        pending = [(item, self.bundle.path, False) for item in reversed(requirements)]
        while pending:
            item, tree, inner = pending.pop()
            applies = item.marker in ("", NOT_ASKED) or marker_holds(item.marker, self.markers)
            place = self.place_of(item, tree) if applies else None
            done = done and not (applies and (place is None or item.versions))
            if place is None:
                if not item.url and not inner and item.marker != NOT_ASKED:
                    lines.append(item.line())
                if applies and self.index_of(item.key):
                    assigned[item._replace(marker="").line()] = self.index_of(item.key)
                continue
            wheel, its_tree = self.obtain(place, item.name)
            known = pins.get(wheel.name, Pin(wheel, place))
            if known.place != place:
                places = f"{known.place.path} and {place.path}"
                raise Failure("fetch", "dependency_conflict", f"{wheel.name} is wanted from two places: {places}")
            new = item.extra_names - known.extras
            first = wheel.name not in pins
            forced = known.forced or bool(inner and item.url) or wheel.name in self.plan.rules.placed
            pin = known._replace(extras=known.extras | new, forced=forced)
            pins[wheel.name] = pin
            if len(pins) > self.MAX_SOURCES:
                problem = f"more than {self.MAX_SOURCES} dependencies with places of their own"
                raise Failure("fetch", "too_many_packages", problem)
            if not inner and item.marker != NOT_ASKED:
                lines.append(Requirement(wheel.name, item.extras, item.versions, "", "").line())
            if (first or new) and not self.plan.lock:
                pending += [(needed, its_tree, True) for needed in self.requires(wheel, its_tree, pin.extras)]
        return Gathered(pins, lines, assigned, done)

    def requires(self, wheel: WheelFile, tree: str, extras: Collection[str]) -> list[Requirement]:
        """What a wheel's metadata ask for under this interpreter, with these extras."""
        base, what = "" if tree else None, f"the metadata of {wheel.name}"
        with deadline(self.policy.unpack_seconds, "fetch", "dependencies.unpack_seconds"):
            parsed = [parse_requirement(line, self.policy, what, base) for line in wheel_requires(wheel.path)]
            fitting = [item for item in parsed if not item.marker or marker_holds(item.marker, self.markers, extras)]
        return [item._replace(marker="") for item in fitting]

    def place_of(self, item: Requirement, tree: str) -> Place | None:
        if item.url:
            return self.place(item.url, tree)
        place = self.places.get(item.key)
        if isinstance(place, Failure):
            raise place
        return place

    def index_of(self, name: str) -> str:
        for origin in self.plan.origins.get(name, ()):
            if origin.target.startswith("index:") and (not origin.marker or marker_holds(origin.marker, self.markers)):
                return origin.target[len("index:") :]
        return ""

    def obtain(self, place: Place, name: str) -> tuple[WheelFile, str]:
        """The wheel of a place, and the tree that paths in its metadata are of. Its name must be the one asked for."""
        found = self.obtained.get(place) or self.draft(place)
        if found is None:
            found = self.obtained[place] = (
                self.from_tree(place, name) if place.tree else self.from_url(place.path, name)
            )
        if name and canonical_name(name) != found[0].name:
            problem = f"{place.path} is the project {found[0].name}, and {name} was asked for"
            raise Failure("build", "build_failed", problem)
        return found

    def draft(self, place: Place) -> tuple[WheelFile, str] | None:
        """A wheel with what the pyproject.toml of a folder of the bundle says of it, and without files."""
        if not self.drafting or place.tree != self.bundle.path:
            return None
        if place not in self.drafts and os.path.isdir(require_place(place.tree, place.path, "the bundle")):
            project = self.project_at(place)
            if project.is_static():
                self.drafts[place] = write_project_wheel(self.host.store, project, project.version, {}), place.tree
        return self.drafts.get(place)

    def project_at(self, place: Place) -> Project:
        if place == Place(self.bundle.path, "."):
            return self.plan.project
        return read_project(place.tree, place.path, self.policy, True)

    def from_tree(self, place: Place, name: str) -> tuple[WheelFile, str]:
        """A wheel, an sdist or a folder of the bundle, or of the archive that asked for it."""
        source = require_place(place.tree, place.path, name or "the bundle")
        if os.path.isdir(source):
            return self.from_folder(place), place.tree
        if not file_project(place.path):
            raise refused(name or "the bundle", f"{place.path} is neither a wheel nor an sdist nor a folder")
        aside = self.host.store.fresh("file")
        copy_plain(source, aside, 0o644)
        if place.path.endswith(".whl"):
            name = os.path.basename(place.path)
            return keep_wheel(self.host.store, name, file_hash(aside, "sha256"), aside), ""
        return self.build_archive(aside, "", name)

    def from_folder(self, place: Place) -> WheelFile:
        """Build a folder; of the bundle's own what was built is kept."""
        own, project = place.tree == self.bundle.path, self.project_at(place)
        if not any(os.path.lexists(os.path.join(place.tree, place.path, name)) for name in PROJECT_FILES):
            raise refused(place.path, "it has no pyproject.toml, setup.py or setup.cfg that says what it is")
        if project.kind == "virtual":
            return virtual_wheel(self.host.store, project, place.tree, own)
        self.for_building(project.name or project.folder)  # a circle must not wait for its own lock
        version = f"0+bundle.d{self.bundle.digest[:12]}"
        if not own:
            return build_wheel(self, place.tree, project, version)
        asked = (self.index.public, self.policy, self.host.profile.build)
        key = digest_of("built", self.bundle.digest, place.path, self.interpreter.key(), *asked)
        return kept_wheels(self.host.store, "built", key, lambda: [build_wheel(self, place.tree, project, version)])[0]

    def from_url(self, url: str, name: str) -> tuple[WheelFile, str]:
        return self.clone_and_build(url, name) if url.startswith("git+") else self.get(url, name)

    def get(self, full: str, name: str) -> tuple[WheelFile, str]:
        """Download one direct URL, without credentials and, unless the profile says so, from public addresses alone."""
        from urllib.parse import parse_qs

        url, _, fragment = full.partition("#")
        said = parse_qs(fragment)
        digest = re.search(r"sha256=([0-9a-f]{64})", fragment)
        entry = {"name": name, "version": "", "url": url, "sha256": digest[1] if digest else ""}
        receiver = self.run({**NOTHING_TO_FETCH, "locked": [entry], "gate": self.gate([])}, [], {})
        path, sha256 = receiver.sent("0")
        if digest and digest[1] != sha256:
            raise Failure("fetch", "hash_mismatch", f"{url} has the sha256 {sha256}, and its URL says {digest[1]}")
        file_name = kept_name(entry).partition("/")[2]
        if not file_name.endswith(".whl") and self.policy.sdists:
            return self.build_archive(path, said.get("subdirectory", [""])[0], name)
        return keep_wheel(self.host.store, file_name, sha256, path), ""

    def clone_and_build(self, url: str, name: str) -> tuple[WheelFile, str]:
        from urllib.parse import parse_qs

        address, _, fragment = url[len("git+") :].partition("#")
        head, slash, tail = address.partition("://")[2].partition("/")
        path, _, ref = tail.partition("@")
        if ref.startswith("-"):
            raise Failure("fetch", "dependency_refused", f"the git dependency {url[:200]!r} has an unsafe revision")
        credentials = git_credentials(self.environment, f"https://{head}/")
        source = {"url": f"https://{head}{slash}{path}", "ref": ref, "credentials": credentials}
        receiver = self.run({**NOTHING_TO_FETCH, "git": [source], "gate": self.gate([])}, [], {})
        archive, sha256 = receiver.sent("git/0")
        self.commits[url] = commit_of(archive)
        version = re.fullmatch(r"v?([0-9]+(\.[0-9]+)*)", ref)
        subdirectory = parse_qs(fragment).get("subdirectory", [""])[0]
        return self.build_archive(archive, subdirectory, name, version[1] if version else f"0+git.d{sha256[:12]}")

    def build_archive(self, archive: str, subdirectory: str, name: str, version: str = "0") -> tuple[WheelFile, str]:
        """Unpack a source archive as data and build its wheel offline."""
        subdirectory = os.path.normpath(subdirectory)
        if ".." in subdirectory.split("/") or subdirectory.startswith("/"):
            raise Failure("fetch", "dependency_refused", f"the source of {name} leads out of its archive")
        tree = self.host.store.fresh("source")
        with deadline(self.policy.unpack_seconds, "fetch", "dependencies.unpack_seconds"):
            unpack_source(archive, tree, self.host.profile.bundle)
            top, wanted = os.listdir(tree), os.path.join(tree, subdirectory)
            if (
                (subdirectory == "." or not os.path.lexists(wanted))
                and len(top) == 1
                and os.path.isdir(f"{tree}/{top[0]}")
            ):
                tree = os.path.join(tree, top[0])  # an sdist has one folder (PEP 625), as archives of a forge do
            require_place(tree, subdirectory, name)
            project = read_project(tree, subdirectory, self.policy, True)
            draft = Draft(tree, self.policy, self.index)
            draft.find_members(read_bundle_toml(tree, "pyproject.toml"))
            draft.read_sources(subdirectory)
        for other, origins in draft.origins.items():
            if origins[0].target.startswith("file:") and other not in self.plan.origins:
                self.places.setdefault(other, self.place(origins[0].target, tree))
        for other, problem in draft.unusable.items():
            if other not in self.plan.origins:
                self.places.setdefault(other, Failure("fetch", "dependency_refused", f"{name}, {problem}"))
        if project.kind == "virtual":
            return virtual_wheel(self.host.store, project, tree, False), tree
        return build_wheel(self, tree, project, version, name), tree

    # what an index has

    def fetch(
        self, gathered: Gathered, requirements: list[Requirement]
    ) -> tuple[list[WheelFile], list[tuple[str, str]], list[str]]:
        """One sandbox with network: resolve and download. Returns wheels, names and paths of sdists, and the names of
        stubs that were chosen."""
        links = self.host.store.fresh("links")
        os.mkdir(links)
        unasked = sorted(set(self.places) - set(gathered.pins))
        stubs = {name: write_wheel(links, name, "0", "", {}) for name in unasked}
        for pin in gathered.pins.values():
            copy_plain(pin.wheel.path, os.path.join(links, os.path.basename(pin.wheel.path)), 0o644)
        request = self.question(gathered, stubs, requirements)
        try:
            receiver = self.run(request, [Mount(links, "/links")], self.index_variables())
        except Failure as failure:
            failure.error += self.nearest_names(failure.error)
            failure.error += f" (to build {self.building[-1]})" if self.building else ""
            raise
        without = receiver.notes.get("without wheels", b"").decode("utf-8", "replace")
        if without:
            why = "; ".join(failure.error for name, failure in self.unbuilt.items() if name in without)
            why = why or "sources are not built: dependencies.sdists, --only-binary"
            Log.line(f"fetch: older versions are taken, as newer ones have no wheel: {without[:500]} ({why[:500]})")
        known = {f"/links/{os.path.basename(pin.wheel.path)}": pin.wheel for pin in gathered.pins.values()}
        wheels, sdists, chosen = [], [], []
        for number, entry in enumerate(read_lock(receiver.notes.get("lock", b""), self.policy)):
            here = next((wheel for path, wheel in known.items() if entry["url"].endswith(path)), None)
            name = canonical_name(entry["name"])
            if here:
                wheels.append(here)
                continue
            if name in stubs or name in self.places:
                chosen.append(name)
                continue
            file_name = kept_name(entry).partition("/")[2]
            path, sha256 = receiver.files.get(str(number), (None, entry["sha256"]))
            if entry["sha256"] not in ("", sha256):
                problem = f"{file_name} has the sha256 {sha256}, and the lock says {entry['sha256']}"
                cause = "the index or something on the way to it altered the file"
                raise Failure("fetch", "hash_mismatch", f"{problem}; {cause}")
            if path and re.fullmatch(SDIST_NAME, file_name) and self.policy.sdists:
                sdists.append((name, path))
            else:
                wheels.append(keep_wheel(self.host.store, file_name, sha256, path))
                if not os.path.isfile(wheels[-1].path):
                    if f"{sha256}/{file_name}" in request["have"]:
                        raise no_store(f"{wheels[-1].path} is just removed by another run; run again", True)
                    raise Failure("fetch", "fetch_failed", f"the resolver chose {file_name} and did not download it")
        return wheels, sdists, chosen

    def nearest_names(self, error: str) -> str:
        """For names that the index does not have: the nearest that the bundle or the store knows."""
        asked = {item.key for item in (*self.plan.requirements, *self.plan.project.requires)}
        had = [file.rpartition("/")[2] for file in self.have()]
        found = []
        for name in sorted(set(re.findall(r"\b([a-z0-9-]+) was not found in the package registry", error)))[:5]:
            known = {*asked, *self.plan.origins, *map(file_project, had)} - {name, ""}
            near = nearest_name(name, sorted(known))
            found += [f"for {name} did you mean {near}?"] * bool(near)
        return f" ({'; '.join(found)})" if found else ""

    def question(self, gathered: Gathered, stubs: Mapping[str, str], requirements: list[Requirement]) -> dict[str, Any]:
        """What the resolver is asked, as lines of ours."""
        rules, pins = self.plan.rules, gathered.pins
        held, forced = ([pin.line() for pin in pins.values() if pin.forced is kind] for kind in (False, True))
        local = {*pins, *stubs}
        indexes = [index for index in self.plan.indexes if index.name]
        return {
            **NOTHING_TO_FETCH,
            "requirements": gathered.lines,
            "constraints": [*held, *(item.line() for item in rules.constraints if item.key not in local or pins)],
            "overrides": [
                *forced,
                *(f"{name} @ file:///links/{file}" for name, file in stubs.items()),
                *(item.line() for item in rules.overrides if item.key not in local),
                *(f"{name} ; sys_platform == 'none'" for name in sorted(rules.excluded - set(pins))),
            ],
            "assigned": assigned_project(gathered.assigned, indexes),
            "options": self.options(),
            "no_binary": sorted(rules.no_binary - local),
            "only_binary": sorted(rules.only_binary | self.unbuilt.keys()),
            "hashes": {
                item.key: [h[7:] for h in item.hashes if h[:7] == "sha256:"] for item in requirements if item.hashes
            },
            "locked": None,
            "have": self.have(),
            "sdists": self.policy.sdists and ":all:" not in rules.only_binary,
            "gate": self.gate(self.index.hosts) if self.plan.indexes else None,
            "callers": self.index.public if self.plan.indexes else [],
        }

    def options(self) -> list[str]:
        rules = self.plan.rules
        valued = [("prerelease", rules.prerelease), ("resolution", rules.resolution)]
        valued += [("exclude-newer", rules.exclude_newer)]
        valued += [("exclude-newer-package", f"{name}={date}") for name, date in rules.exclude_newer_package]
        valued += [("find-links", index.url) for index in self.plan.indexes if index.flat and not index.explicit]
        options = [f"--{name}={value}" for name, value in valued if value]
        return options + ["--no-index"] * rules.no_index + ["--no-deps"] * bool(self.plan.lock)

    def index_variables(self) -> dict[str, str]:
        """The indexes in their order: the caller's further ones, the bundle's, the default last. The first that has a
        name is the only one asked for it."""
        own = [index for index in self.plan.indexes if not index.explicit and not index.flat]
        callers = self.index.credentials.get("UV_DEFAULT_INDEX", "")
        default = next((index.url for index in own if index.default), callers)
        further = [self.index.credentials.get("UV_INDEX", ""), *(index.url for index in own if not index.default)]
        variables = {"UV_DEFAULT_INDEX": default, "UV_INDEX": " ".join(filter(None, further))}
        return {name: value for name, value in variables.items() if value}

    def gate(self, hosts: list[str]) -> list[str]:
        """The hosts that may have any address, where the others must be public; "*" is all of them."""
        return ["*"] if self.policy.private_addresses else hosts

    def run(self, request: dict[str, Any], mounts: list[Mount], indexes: Mapping[str, str]) -> FileReceiver:
        """Run a fetch sandbox. The resolver and its settings go in, files and notes come out."""
        own = Interpreter(**describe_interpreter())
        uv = uv_mount(self.host, "the bundle has dependencies, and uv, which resolves them")
        request = {
            **request,
            "uv": uv.target,
            "python": self.interpreter.executable,
            "credentials": {**indexes, "SSL_CERT_FILE": CA_FILE},
            "authorization": self.index.authorization if indexes or request["locked"] is None else {},
        }
        execute = self.host.profile.execute  # what the task's sandbox gets: on a new store it takes half a second
        paths, _ = system_mounts(execute, [self.interpreter])
        self.host.background.ahead(*survey_system(self.host, execute, paths))
        box = make_sandbox(self.host, "fetch", [own, self.interpreter], [uv, *mounts])
        box.environment["SSL_CERT_FILE"] = CA_FILE
        receiver = Downloads(self.host, self.interpreter)
        with timed(self.host, "fetch"):
            run_phase(self.host, box, request, receiver)
        if receiver.files:
            seconds = self.host.times["fetch"]
            Log.line(f"fetch: {len(receiver.files)} packages, {receiver.bytes >> 20} MiB, {seconds:.1f} s")
        return receiver

    def origin(self, wheel: WheelFile) -> str:
        """Where a wheel came from, for a reviewer: a path in the bundle, a URL (and its commit), or an index."""
        for place, (known, _) in self.obtained.items():
            if known == wheel:
                commit = self.commits.get(place.path, "")
                url = f"{place.path} at {commit}" if commit else place.path
                return f"bundle: {place.path}" if place.tree == self.bundle.path else url
        return "sdist of an index, built here" if wheel.sha256 in self.from_sdists else "index"

    def have(self) -> list[str]:
        top = self.host.store.path("wheels")
        return [path[len(top) + 1 :] for path in files_below(top)]


def uv_mount(host: Host, wanted: str) -> Mount:
    if host.uv is None:
        raise Failure("host", "no_resolver", f"{wanted}, is not there; `pip install uv`")
    return Mount(host.uv, f"{TOOLS}/uv")


NOT_ASKED = "an index package asks for it"  # in place of a marker


def assigned_project(assigned: Mapping[str, str], indexes: Iterable[Index]) -> str:
    """A pyproject.toml with the requirements that have an index of their own; uv takes such from no other file."""
    if not assigned:
        return ""
    quoted = json.dumps
    lines = ["[project]", 'name = "the-bundle"', 'version = "0"', f"dependencies = {quoted(sorted(assigned))}"]
    lines += ["[tool.uv.sources]"]
    named = sorted({(canonical_name(line), index) for line, index in assigned.items()})
    lines += [f"{quoted(name)} = {{index = {quoted(index)}}}" for name, index in named]
    for index in indexes:
        lines += ["[[tool.uv.index]]", f"name = {quoted(index.name)}", f"url = {quoted(index.url)}", "explicit = true"]
        lines += ['format = "flat"'] * index.flat
    return "\n".join([*lines, ""])


def choose_link(files: list[str], interpreter: Interpreter) -> str:
    """Of the files that a folder has for one name, the newest that this interpreter can use; wheels before sdists."""
    minor = "".join(interpreter.version.split(".")[:2])
    machine = interpreter.platform.partition("-")[2]

    def fits(file: str) -> bool:
        if not file.endswith(".whl"):
            return True
        python, abi, platform = file[: -len(".whl")].rsplit("-", 3)[-3:]
        of_python = re.search(rf"(^|\.)(py3|py{minor}|cp{minor})($|\.)", python)
        stable = "abi3" in abi and "cp3" in python
        return bool(of_python or stable) and (platform == "any" or platform.endswith(machine))

    def rank(file: str) -> tuple[Any, ...]:
        version = os.path.basename(file)[len(file_project(file)) + 1 :].partition("-")[0]
        numbers = [int(part[:9]) for part in re.findall(r"\d+", version)]
        return fits(file), numbers, file.endswith(".whl")

    return max(files, key=rank)


def read_lock(note: bytes, policy: DependencyPolicy) -> list[dict[str, str]]:
    """The resolved files, as the resolver in the sandbox gave them: data that an index may have shaped."""
    try:
        entries = [{key: entry[key] for key in ("name", "url", "sha256")} for entry in json.loads(note)]
        if not all(isinstance(value, str) for entry in entries for value in entry.values()):
            raise ValueError("wrong fields")
        _ = [kept_name(entry) for entry in entries]  # a URL may be none
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Failure("fetch", "fetch_failed", "the resolver's list of files is not one") from None
    if len(entries) > policy.max_packages:
        limit = f"dependencies.max_packages is {policy.max_packages}"
        raise Failure("fetch", "too_many_packages", f"the dependencies come to {len(entries)} packages ({limit})")
    for entry in entries:
        name, url = entry["name"][:200], entry["url"]
        if not url.startswith(("https://", "file:///links/", "/links/", "links/", "../links/")):
            raise Failure("fetch", "dependency_refused", f"the index gave a file for {name!r} that is not on https")
        if entry["sha256"] and not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
            raise Failure("fetch", "dependency_refused", f"the index gave a sha256 for {name!r} that is not one")
    return entries


def check_hashes(requirements: list[Requirement], files: list[WheelFile], local: Collection[str], plan: Plan) -> None:
    """The hashes that the bundle lists, against the files as they were fetched. What was built here has none."""
    by_name = {file.name: file for file in files}
    hashed = {item.key: item for item in (*requirements, *plan.rules.constraints) if item.hashes}
    for name, item in hashed.items():
        file = by_name.get(name)
        if file is None or (name in local and not file_project(item.url.partition("#")[0])):
            continue  # it was built here: a hash is of what was fetched
        found = {algorithm: file_hash(file.path, algorithm) for algorithm in {h.partition(":")[0] for h in item.hashes}}
        if not any(f"{algorithm}:{digest}" in item.hashes for algorithm, digest in found.items()):
            fetched = f"{item.name}: the file that was fetched ({os.path.basename(file.path)})"
            problem = f"{fetched} has a hash that is not listed in {plan.lock or 'requirements.txt'}: {found}"
            raise Failure("fetch", "hash_mismatch", problem)
    if plan.rules.require_hashes:
        for file in files:
            if file.name not in local and file.name not in hashed:
                raise Failure("fetch", "hash_mismatch", f"--require-hashes is given, and {file.name} has none")


def file_hash(path: str, algorithm: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_wheel(folder: str, name: str, version: str, metadata: str, more: Mapping[str, str]) -> str:
    """Write a wheel of our own, the same for the same content, and return its file name. INFO in the name of a member
    stands for its metadata folder."""
    import base64
    import hashlib
    import zipfile

    stem = f"{name.replace('-', '_')}-{version}"
    info, file = f"{stem}.dist-info", f"{stem}-py3-none-any.whl"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    members = {
        f"{info}/METADATA": head + metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: runner\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **{path.replace("INFO", info): text for path, text in more.items()},
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in members.items()}
    record = "".join(f"{path},sha256={digest.decode().rstrip('=')},\n" for path, digest in digests.items())
    with zipfile.ZipFile(os.path.join(folder, file), "x") as archive:
        for path, text in {**members, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), text)
    return file


def virtual_wheel(store: Store, project: Project, tree: str, own: bool) -> WheelFile:
    """A virtual project as a wheel: what it says of itself, and where its code lies; nothing of it is built."""
    if not project.name:
        raise invalid(f"{project.folder}/pyproject.toml: [project] has no name")
    version = project.version or "0"
    if not re.fullmatch(PLAIN_VERSION, version):
        raise invalid(f"project.version {version[:100]!r} is not a version (PEP 440)")
    listed = ""
    for group, points in project.points.items():
        listed += f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    more = {"INFO/entry_points.txt": listed}
    if own:
        folders = [os.path.normpath(os.path.join(project.folder, name)) for name in (".", "src")]
        there = [folder for folder in folders if os.path.isdir(os.path.join(tree, folder))]
        lines = [os.path.normpath(os.path.join(BUNDLE, folder)) for folder in there]
        more[f"_{canonical_name(project.name).replace('-', '_')}.pth"] = "".join(f"{line}\n" for line in lines)
    draft = write_project_wheel(store, project, version, more)
    return keep_wheel(store, os.path.basename(draft.path), draft.sha256, draft.path)


def write_project_wheel(store: Store, project: Project, version: str, more: Mapping[str, str]) -> WheelFile:
    """A wheel, in scratch, with the metadata that a project has in its pyproject.toml."""
    folder, name = store.fresh("written"), canonical_name(project.name)
    os.mkdir(folder)
    path = os.path.join(folder, write_wheel(folder, name, version, project_metadata(project), more))
    return WheelFile(name, file_hash(path, "sha256"), path)


def project_metadata(project: Project) -> str:
    """The dependencies of a project as core metadata has them."""

    def line(item: Requirement, extra: str) -> str:
        url = f"file://{os.path.join(BUILD_TREE, item.path)}" if item.path is not None else item.url
        marker = " and ".join(filter(None, [item.marker and f"({item.marker})", extra and f"extra == '{extra}'"]))
        return f"Requires-Dist: {item._replace(url=url, marker=marker).line()}\n"

    lines = [line(item, "") for item in project.requires]
    for extra, items in project.extras.items():
        lines += [f"Provides-Extra: {extra}\n", *(line(item, extra) for item in items)]
    return "".join(lines)


def wheel_requires(path: str) -> list[str]:
    """The Requires-Dist lines of a wheel's core metadata."""
    name = os.path.basename(path)
    with unpacking(lambda why: wheel_error(name, f"it has no readable METADATA: {why}")), open_zip(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        named = (name for name in sizes if name.endswith(".dist-info/METADATA") and sizes[name] < 4 * MIB)
        text = archive.read(next(named)).decode("utf-8", "replace")
    head = text.replace("\r", "").partition("\n\n")[0]
    return [line.partition(":")[2].strip() for line in head.splitlines() if line.lower().startswith("requires-dist:")]


def unpack_source(archive: str, target: str, policy: BundlePolicy) -> None:
    """Unpack a tar or zip of sources: regular files and folders below `target`; links are left out."""
    os.mkdir(target, 0o755)
    used, text = 0, "a source archive can't be unpacked"
    with unpacking(lambda why: Failure("fetch", "source_invalid", f"{text}: {why}")):
        for count, member in enumerate(members_of(archive, policy.max_bytes + policy.max_files * BLOCK)):
            if count > policy.max_files:
                raise ValueError(f"it has more than {policy.max_files} entries")
            if member:
                used = write_source(target, *member, used, policy)


def members_of(archive: str, limit: int) -> Iterator[tuple[str, int, int, Any] | None]:
    """Name, size, mode and reader of each regular file of a tar or zip, None for whatever else is in it."""
    import tarfile
    import zipfile

    if zipfile.is_zipfile(archive):
        with open_zip(archive) as packed:
            for info in packed.infolist():
                yield None if info.is_dir() else (info.filename, info.file_size, 0o644, packed.open(info))
        return
    reads: Any = BoundedReads(archive, limit)
    with tarfile.TarFile(fileobj=reads) as tar:
        for member in tar:
            yield (member.name, member.size, member.mode, tar.extractfile(member)) if member.isreg() else None


class BoundedReads:
    """A source archive, decompressed, that refuses to give much at once, or to be skipped through for ever: tarfile
    reads names and pax headers whole, and skips what it does not know."""

    def __init__(self, path: str, limit: int) -> None:
        import bz2
        import gzip
        import lzma

        with open(path, "rb") as file:
            magic = file.read(6)
        openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
        opener = next((opener for start, opener in openers.items() if magic.startswith(start)), open)
        self.stream, self.limit = opener(path, "rb"), limit
        self.tell = self.stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MIB:
            raise ValueError("a header is too large")
        return bytes(self.stream.read(size))

    def seek(self, position: int) -> int:
        if position > self.limit:
            raise ValueError(f"it is over {self.limit} bytes")
        return int(self.stream.seek(position))


def write_source(target: str, name: str, size: int, mode: int, reader: Any, used: int, policy: BundlePolicy) -> int:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/") or not parts or "\0" in name or len(parts) > MAX_DEPTH or len(name) > 1024:
        raise Failure("fetch", "source_invalid", f"a source archive has the unsafe name {name[:200]!r}")
    if used + size > policy.max_bytes:
        raise Failure("fetch", "source_invalid", f"a source archive is over {policy.max_bytes} bytes unpacked")
    path = os.path.join(target, *parts)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with new_file(path, 0o755 if mode & 0o100 else 0o644) as file:
        for start in range(0, size, MIB):
            write_all(file.fileno(), reader.read(min(size - start, MIB)))
    return used + os.stat(path).st_size


# build


def build_wheel(resolver: Resolver, tree: str, project: Project, version: str, name: str = "") -> WheelFile:
    """Build the wheel of a folder of a source tree with its own backend, in a sandbox without network.

    `name` is what whoever asked for it calls it, where it has no word of its own.

    `version` is what a backend is told that would ask a version-control system, which is not there.
    """
    host, met = resolver.host, False
    if not re.fullmatch(r"[\w.]+(:[\w.]+)?", project.backend):
        raise invalid(f"build-system.build-backend {project.backend[:100]!r} is not a module or a module:object")
    inner = resolver.for_building(project.name or project.folder)
    requires = [*project.build_requires, *resolver.plan.build_extra.get(canonical_name(project.name), [])]
    for _ in range(2):
        venv = host.store.fresh("build")
        trees = install_wheels(resolver, inner.wheels(requires))
        mounts = [Mount(tree, SOURCE), Mount(venv, VENV), *assemble(resolver, trees, venv)]
        box = make_sandbox(host, "build", [resolver.interpreter], mounts)
        box = box._replace(subject=project.name or name or os.path.normpath(f"the bundle/{project.folder}"))
        request = {"folder": project.folder, "requires_met": met, **told_version(project, version)}
        request |= {"backend": project.backend, "backend_path": project.backend_path}
        with timed(host, "build"):
            receiver = collect(host, box, request, notes=("learned",))
        remember_imported(host.store, [os.path.dirname(tree.path) for tree in trees], receiver.notes)
        if receiver.files:
            name, (path, sha256) = next(iter(receiver.files.items()))
            return keep_wheel(host.store, name, sha256, path)
        lines = [str(line) for line in parse_lines(receiver.done)]
        requires += [parse_requirement(line, resolver.policy, "the build backend", "") for line in lines]
        met = True
    raise Failure("build", "build_failed", "the build backend gave no wheel")


def told_version(project: Project, version: str) -> dict[str, Any]:
    """How the tools that ask a version-control system are told the version: each has a variable of its own."""
    if not project.asks_scm:
        return {"environment": {}, "pkg_info": ""}
    names = ["SETUPTOOLS_SCM_PRETEND_VERSION", "VCS_VERSIONING_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION", "PBR_VERSION"]
    names += ["POETRY_DYNAMIC_VERSIONING_BYPASS", "UV_DYNAMIC_VERSIONING_BYPASS"]
    said = f"Metadata-Version: 2.1\nName: {project.name or 'project'}\nVersion: {version}\n"
    return {"environment": dict.fromkeys(names, version), "pkg_info": said * (project.asks_scm == "versioningit")}


def parse_lines(body: bytes | None) -> list[Any]:
    try:
        lines = json.loads(body or b"")
    except (ValueError, RecursionError):
        lines = None
    if not isinstance(lines, list) or len(lines) > 1000:
        raise Failure("build", "build_failed", "the build backend's requirements are not a list")
    return lines


# install


class Background:
    """Folders of the store that are made in a few processes of their own, while a sandbox runs: wheels are unpacked
    while later ones are still downloaded.

    Each process is a fork of the trusted side that makes one folder in scratch, and ends with it. It holds no lock,
    so that it can be ended at any time; who waits for the folder puts it where it is kept.
    """

    WORKERS = 2

    def __init__(self, store: Store) -> None:
        self.store = store
        self.waiting: dict[str, Callable[[str], object]] = {}  # by key
        self.running: dict[int, str] = {}  # pid to key
        self.ended: dict[str, int] = {}  # key to exit status

    def ahead(self, place: str, make: Callable[[str], object]) -> None:
        """Have a folder made, if it is not kept: `kept` will ask for it."""
        if not os.path.exists(place):
            self.begin(os.path.basename(place), make)

    def kept(self, place: str, load: Callable[[], Kept | None], make: Callable[[str], object]) -> Kept:
        """What is loaded from a kept folder; it is made first where it is not there or was damaged."""
        key = os.path.basename(place)

        def keep() -> None:
            self.begin(key, make)
            made = self.result(key)
            remove_tree(place)
            os.rename(made, place)

        return self.store.once(key, load, keep)

    def begin(self, key: str, make: Callable[[str], object]) -> None:
        if key not in {*self.waiting, *self.running.values(), *self.ended}:
            self.waiting[key] = make
        self.go_on()

    def go_on(self, wait: bool = False) -> None:
        """Take note of who has ended, and start who waits."""
        for pid, key in list(self.running.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)):
                with Killed.held():  # reaped and forgotten at once: its number may be another's at any time
                    self.ended[key] = os.waitpid(pid, 0)[1]
                    RUNNING.discard(pid)
                    del self.running[pid]
                wait = False
        while self.waiting and len(self.running) < self.WORKERS:
            self.start(next(iter(self.waiting)))

    def start(self, key: str) -> None:
        with Killed.held():
            make = self.waiting.pop(key)
            pid = os.fork()
            if pid == 0:
                self.do(self.store.scratch(f"made-{key}"), make)
            RUNNING.add(pid)
            self.running[pid] = key

    @staticmethod
    def do(aside: str, make: Callable[[str], object]) -> NoReturn:
        status = 1
        try:
            Killed.disown()
            os.mkdir(aside, 0o711)
            make(aside)
            status = 0
        except BaseException as error:
            failure = error if isinstance(error, Failure) else host_failure(error) or internal_error(error)
            remove_tree(aside)  # where the disk is full, that makes room to say so
            told = failure.phase, failure.type, failure.error, failure.retryable, failure.details
            with suppress(OSError):
                write_json(aside + ".failed", told)
        finally:
            os._exit(status)

    def result(self, key: str) -> str:
        """Where a folder was made; raises the Failure that kept it from it. It waits for nothing else."""
        if key in self.waiting:
            self.start(key)
        while key in self.running.values():
            self.go_on(wait=True)
            Killed.check()
        aside = self.store.scratch(f"made-{key}")
        if self.ended.pop(key) == 0:
            return aside
        told = load_json(aside + ".failed")
        if told is None:
            problem = "a process that made what the store keeps was killed, or could not write why it failed"
            problem += "; see that the machine has memory and the store room, and run again"
            raise Failure("host", "host_exhausted", problem, True)
        *plain, details = told
        raise Failure(*plain, **details)

    def close(self) -> None:
        self.waiting.clear()
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)  # not yet waited for, so still its own
        while self.running:
            self.go_on(wait=True)


def wheel_tree(host: Host, wheel: WheelFile, interpreter: Interpreter) -> tuple[str, Callable[[str], None]]:
    """Where the store has a wheel's tree, and how it is made."""
    policy = host.profile.dependencies
    key = digest_of("tree", wheel.sha256, os.path.basename(wheel.path), interpreter.key())

    def make(aside: str) -> None:
        files = os.path.join(aside, "files")
        os.mkdir(files, 0o755)
        check_file_hash(wheel)
        with deadline(policy.unpack_seconds, "install", "dependencies.unpack_seconds"):
            groups = unpack_wheel(wheel.path, files, interpreter.library, policy.max_wheel_bytes)
        write_json(f"{aside}/manifest.json", {"files": list_files(files), "groups": groups})

    return host.store.path("trees", key), make


def install_wheels(resolver: Resolver, wheels: Iterable[WheelFile]) -> list[Tree]:
    """The trees of wheels, as long as they do not come to more than an environment may, with the bytecode that runs
    were seen to want."""
    limit, used, trees, host = resolver.policy.max_environment_bytes, 0, [], resolver.host
    wanted = [(wheel, *wheel_tree(host, wheel, resolver.interpreter)) for wheel in wheels]
    for _, place, make in wanted:
        host.background.ahead(place, make)
    for wheel, place, make in wanted:
        with timed(host, "install"):
            trees.append(host.background.kept(place, partial(read_tree, place), make))
        used += sum(size + BLOCK for _, size, *_ in trees[-1].files)
        Log.progress("install", len(trees), len(wanted), used)
        if used > limit:
            text = f"with {wheel.name} the environment is over {limit} bytes (dependencies.max_environment_bytes)"
            raise Failure("install", "environment_too_large", text)
    trees = add_bytecode(host, resolver.interpreter, trees)
    if host.times.get("install", 0) > 1:
        Log.line(f"install: {len(trees)} packages, {used >> 20} MiB, {host.times['install']:.1f} s")
    return trees


def check_file_hash(wheel: WheelFile) -> None:
    if file_hash(wheel.path, "sha256") != wheel.sha256:
        remove_tree(os.path.dirname(wheel.path))
        problem = f"the kept wheel {os.path.basename(wheel.path)} was altered; it has been removed, run again"
        raise Failure("install", "hash_mismatch", problem, True)


def tree_key(tree: Tree) -> str:
    return os.path.basename(os.path.dirname(tree.path))


def remember_imported(store: Store, trees: Iterable[str], notes: Mapping[str, bytes]) -> bool:
    """Note which modules of kept trees a sandbox said to have imported without bytecode. Its word decides no more
    than which of our own sources are worth compiling. Returns whether an environment made anew
    would have more of it."""
    told, more = {*told_in_notes(notes, "sources")}, False
    for path in trees if told else ():
        tree = read_tree(path)
        own = told & {name for name, *_ in tree.files} if tree else set()
        before = set(store.recall(os.path.basename(path)) or [])
        if own - before:
            store.remember(os.path.basename(path), sorted(own | before))
        more = more or bool(own)
    return more


def told_in_notes(notes: Mapping[str, bytes], key: str) -> list[str]:
    """The `modules` or `sources` that a sandbox named, see `tell_learned`; none where that is no note of ours."""
    try:
        names = json.loads(notes.get("learned") or b"{}").get(key, [])
        return [name for name in names if isinstance(name, str)]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []


def bytecode_name(module: str, interpreter: Interpreter) -> str:
    folder, base = os.path.split(module)
    return f"{folder}/__pycache__/{base[: -len('.py')]}.{interpreter.cache_tag}.pyc"


SMALL_WHEEL = 100  # modules to compile; more than that take a sandbox of their own


def add_bytecode(host: Host, interpreter: Interpreter, trees: list[Tree]) -> list[Tree]:
    """Compile what runs were seen to import and what has no bytecode yet, small wheels together. It only saves time:
    what can't be compiled is not tried again."""
    wanted: dict[int, list[str]] = {}
    for number, tree in enumerate(trees):
        names = {name for name, *_ in tree.files}
        imported = names & {*(host.store.recall(tree_key(tree)) or [])}
        modules = {name for name in imported if bytecode_name(name, interpreter) not in names}
        if modules:
            wanted[number] = sorted(modules)
    small = [number for number, modules in wanted.items() if len(modules) <= SMALL_WHEEL]
    batches = [[number] for number in wanted if number not in small] + ([small] if small else [])
    trees = list(trees)
    for batch in batches:
        with timed(host, "install"):
            made = compile_modules(host, interpreter, [(trees[number], wanted[number]) for number in batch])
            for place, number in enumerate(batch):
                own = {module: made.get((place, module), "") for module in wanted[number]}
                trees[number] = keep_bytecode(host.store, interpreter, trees[number], own)
    return trees


def compile_modules(
    host: Host, interpreter: Interpreter, wanted: list[tuple[Tree, list[str]]]
) -> dict[tuple[int, str], str]:
    """Compile modules of trees in one sandbox, which sees those modules alone. Returns files of scratch by number of
    the tree and module; a module that does not compile has none."""
    modules = [f"{number}/{module}" for number, (_, names) in enumerate(wanted) for module in names]
    sources = host.store.fresh("sources")
    for number, (tree, names) in enumerate(wanted):
        chosen = {*names}
        with intact(tree):
            link_tree(tree._replace(files=[file for file in tree.files if file[0] in chosen]), f"{sources}/{number}")
    box = make_sandbox(host, "compile", [interpreter], [Mount(sources, TREE)])
    workers = min(len(os.sched_getaffinity(0)), 8, 1 + len(modules) // 50)
    try:
        receiver = collect(host, box, {"modules": modules, "workers": workers}, len(modules))
    except Failure as failure:
        if failure.phase == "host":
            raise
        Log.line(f"{len(modules)} modules stay without bytecode: {failure.error}")
        return {}
    unasked = receiver.files.keys() - {*modules}
    if unasked:
        raise bad_result(f"the compiler sent {min(unasked)[:100]!r}, which nobody asked for")
    split = {name: name.partition("/") for name in receiver.files}
    return {(int(number), module): receiver.files[name][0] for name, (number, _, module) in split.items()}


def keep_bytecode(store: Store, interpreter: Interpreter, tree: Tree, made: Mapping[str, str]) -> Tree:
    """Add bytecode to a kept tree, for what has none an empty file, which Python passes over. Whoever has read the old
    manifest goes on with what that names."""
    folder = os.path.dirname(tree.path)
    with store.locked(tree_key(tree)):
        tree = read_tree(folder) or tree  # another run may have added some
        known, files = {name for name, *_ in tree.files}, list(tree.files)
        for module, path in made.items():
            name = bytecode_name(module, interpreter)
            target = os.path.join(tree.path, name)
            if name not in known:
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                if path:
                    os.rename(path, target)
                else:
                    write_file(target, b"")
                files.append([name, *stamp(target)])
        store.put(f"{folder}/manifest.json", json.dumps({"files": files, "groups": tree.groups}).encode())
    return tree._replace(files=files)


def make_venv(path: str, interpreter: Interpreter) -> None:
    """An empty virtual environment, by hand: what `python -m venv --without-pip` makes, without starting Python."""
    os.makedirs(os.path.join(path, "bin"), mode=0o755)
    os.makedirs(os.path.join(path, "lib", interpreter.library, "site-packages"), mode=0o755)
    for name in ("python", "python3"):
        os.symlink(interpreter.executable, os.path.join(path, "bin", name))
    with open(os.path.join(path, "pyvenv.cfg"), "w", encoding="utf-8") as file:
        file.write(f"home = {os.path.dirname(interpreter.executable)}\ninclude-system-site-packages = false\n")
        file.write(f"version = {interpreter.version}\n")


def assemble(
    resolver: Resolver, trees: list[Tree], venv: str, whole: bool = False, but: Container[str] = ()
) -> list[Mount]:
    """A fresh venv with the trees linked into it.

    Large folders of one tree are not linked, unless the venv is to be `whole` or they are named by `but`: returns
    where a sandbox is to mount them.
    """
    make_venv(venv, resolver.interpreter)
    mounted = {} if whole else folders_to_mount(trees, f"lib/{resolver.interpreter.library}/site-packages/", but)
    compiled = any(name.endswith(".so") for tree in trees for name, *_ in tree.files)
    if compiled and os.statvfs(venv).f_flag & os.ST_NOEXEC:
        problem = f"{os.path.dirname(venv)} is mounted noexec, and compiled modules can't be loaded from there"
        raise no_store(f"{problem}; name another directory with --store-dir")
    with timed(resolver.host, "install"):
        for tree in trees:
            with intact(tree):
                if tree.path in mounted:
                    resolver.host.store.hold(os.path.dirname(tree.path))
                link_tree(tree, venv, mounted.get(tree.path, []))
    return [Mount(f"{path}/{inner}", f"{VENV}/{inner}") for path, inners in mounted.items() for inner in inners]


class Environment(NamedTuple):
    """A finished venv: where it is, the wire entry points in it, files to add to the bundle's folders, and what is
    mounted in it."""

    venv: str
    wires: list[list[str]]
    in_place: list[str]
    trees: list[str]  # the kept trees that it is made of
    key: str
    mounts: Sequence[Mount] = ()


def prepare_environment(resolver: Resolver, bundle: Bundle, reuse: bool, preserve: bool) -> Environment:
    """The environment of a bundle, new for this task, or with `reuse` the one that was kept for exactly this. What
    outlives the run, also by `preserve`, has all its files in one place."""
    host, interpreter, profile = resolver.host, resolver.interpreter, resolver.host.profile
    plan = digest_of(json.dumps(bundle.plan.as_json(), sort_keys=True))
    asked = (plan, interpreter.key(), resolver.index.public, profile.dependencies, profile.build)
    key = digest_of("environment", bundle.digest, *asked)
    if not reuse:
        return build_environment(resolver, bundle, host.store.scratch("venv"), key, whole=preserve)
    venvs, age = host.store.venvs, environment_age(host.store, key)
    folder = os.path.join(venvs, digest_of(key, age))  # anew where there is more bytecode
    os.makedirs(venvs, mode=0o711, exist_ok=True)
    sweep(venvs)

    def make() -> None:
        with ExitStack() as cleanup:
            aside = os.path.join(transient(venvs, cleanup), "kept")
            os.mkdir(aside, 0o711)
            built = build_environment(resolver, bundle, f"{aside}/venv", key, whole=True)
            write_record(aside, "venv", built._asdict())
            remove_tree(folder)
            os.rename(aside, folder)

    record = host.store.once(os.path.basename(folder), lambda: kept_record(folder, "venv"), make)
    host.store.hold(folder)
    return Environment(**{**record, "venv": f"{folder}/venv"})


def build_environment(resolver: Resolver, bundle: Bundle, venv: str, key: str, whole: bool) -> Environment:
    wheels = resolver.wheels(bundle.plan.requirements)
    trees = install_wheels(resolver, wheels)
    group = resolver.host.profile.bundle.entry_point_group
    wires = [[name, value] for tree in trees for name, value in tree.groups.get(group, {}).items()]
    in_place = []
    if bundle.plan.project.kind == "built":
        own = install_wheels(resolver, [resolver.obtain(Place(bundle.path, "."), "")[0]])[0]
        in_place = built_in_place(own, bundle.path, resolver.interpreter)
    mounts = assemble(resolver, trees, venv, whole, but={inner.partition("/")[0] for inner in in_place})
    if resolver.host.watching:
        note_environment(resolver.host.watching.folder, resolver, zip(wheels, trees, strict=True), wires)
    return Environment(venv, wires, in_place, [os.path.dirname(tree.path) for tree in trees], key, mounts)


def note_environment(
    folder: str, resolver: Resolver, found: Iterable[tuple[WheelFile, Tree]], wires: list[list[str]]
) -> None:
    """What the environment is made of, beside the traces of what it did."""
    packages = [
        {
            "name": wheel.name,
            "version": os.path.basename(wheel.path).split("-")[1],
            "sha256": wheel.sha256,
            "bytes": os.stat(wheel.path).st_size,
            "source": resolver.origin(wheel),
            "tree": tree.path,
            "files": [name for name, *_ in tree.files if not name.endswith(".pyc")],
        }
        for wheel, tree in found
    ]
    group, python = resolver.host.profile.bundle.entry_point_group, resolver.interpreter
    points = [[group, *wire] for wire in wires]
    note = {"python": python.version, "prefix": python.prefix, "entry_points": points, "packages": packages}
    write_json(os.path.join(folder, "environment.json"), note)


def locked_plan(host: Host, bundle: Bundle, interpreter: Interpreter, index: IndexSettings) -> Plan:
    """The plan with the versions and hashes of the lock that rules it, if one does."""
    plan, lock = bundle.plan, os.path.join(bundle.path, bundle.plan.lock)
    if not plan.lock:
        return plan
    draft = Draft(bundle.path, host.profile.dependencies, index)
    draft.indexes = {known.name or known.url: known for known in plan.indexes}
    draft.origins = {name: list(origins) for name, origins in plan.origins.items()}
    if plan.lock == "uv.lock":
        made_of = (bundle.digest, interpreter.key(), host.uv and [host.uv, *stamp(host.uv)])
        exported = host.store.derived("lock", lambda: export_uv_lock(host, bundle, interpreter), *made_of)
        lock = host.store.scratch("pylock.toml")
        write_file(lock, exported)
    markers, misfit = marker_environment(interpreter), ""
    with deadline(host.profile.bundle.inspect_seconds, "bundle", "bundle.inspect_seconds"):
        table = read_bundle_toml(*os.path.split(lock), LOCK_BYTES)
        locked = read_pylock(table, plan.lock, draft, markers)
        if plan.lock == "pylock.toml":
            misfit = pylock_misfit(plan.project, locked, markers)
    if misfit:
        raise refused(plan.lock, f"it no longer fits pyproject.toml: {misfit}; make it anew")
    hashed = sum(1 for item in locked if item.hashes)
    note = f"{plan.lock}: {len(locked)} packages, the hashes of {hashed} checked"
    rules = plan.rules._replace(constraints=(), overrides=(), excluded=frozenset(), resolution="")
    requirements = [item for item in plan.requirements if item.path is not None] + locked
    return plan._replace(requirements=requirements, origins=draft.origins, rules=rules, notes=[note, *plan.notes])


def export_uv_lock(host: Host, bundle: Bundle, interpreter: Interpreter) -> bytes:
    """What uv makes of a uv.lock, in a sandbox without network."""
    tool = uv_mount(host, "the bundle has a uv.lock, and uv, which reads it")
    box = make_sandbox(host, "compile", [interpreter], [Mount(bundle.path, SOURCE), tool])
    options = [] if bundle.plan.project.kind else ["--all-packages"]
    request = {"phase": "lock", "uv": tool.target, "python": interpreter.executable, "options": options}
    try:
        with timed(host, "fetch"):
            receiver = collect(host, box, request, notes=("misfit",))
    except Failure as failure:
        said = failure.details.get("exception", {}).get("message", failure.error)
        raise refused("uv.lock", f"uv can't read it: {str(said)[:1000]}") from None
    misfit = printable(receiver.notes.get("misfit", b"?").decode("utf-8", "replace"))
    if misfit == "?":
        Log.line("uv.lock: whether it fits in all can't be told without building something; it is taken as it is")
    elif misfit:
        raise refused("uv.lock", f"it no longer fits the project: {misfit}; run `uv lock` and hand in the new one")
    return read_small_file(receiver.sent("pylock.toml")[0], LOCK_BYTES) or b""


def built_in_place(own: Tree, bundle: str, interpreter: Interpreter) -> list[str]:
    """Files that only the build puts there (extension modules, version files, data), for packages of a flat layout.

    The bundle's directory is first on sys.path, so its package hides the installed one: without these files
    the extension modules of a flat layout could not be imported.
    """
    site = f"lib/{interpreter.library}/site-packages/"
    found = []
    for name, *_ in own.files:
        inner = name[len(site) :]
        folder = os.path.join(bundle, os.path.dirname(inner))
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        outside = not name.startswith(site) or "/" not in inner or "__pycache__" in inner or ".dist-info/" in inner
        plain = folder != bundle and os.path.isdir(folder) and os.path.realpath(folder) == folder
        if not outside and plain and not os.path.lexists(os.path.join(bundle, inner)):
            found.append(inner)
    return found


def add_in_place(environment: Environment, bundle: str, interpreter: Interpreter) -> None:
    for inner in environment.in_place:
        source = os.path.join(environment.venv, "lib", interpreter.library, "site-packages", inner)
        target = os.path.join(bundle, inner)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        copy_plain(source, target, os.stat(source).st_mode)


MAX_AGE = 4  # how often a kept environment is made anew because there is more bytecode for it


def environment_age(store: Store, key: str) -> int:
    age = store.recall(f"environment-{key}")
    return age if type(age) is int else 0


def remember_run(host: Host, environment: Environment, notes: Mapping[str, bytes]) -> None:
    """Keep what a task said that it imported, for the environments of later runs."""
    if remember_imported(host.store, environment.trees, notes):
        age = environment_age(host.store, environment.key)
        if age < MAX_AGE:
            host.store.remember(f"environment-{environment.key}", age + 1)


def remember_modules(host: Host, workshop: "Workshop", notes: Mapping[str, bytes]) -> None:
    """Keep the names of what a cold task imported for the bundle's first server; where one was, it knows better."""
    if host.store.recall(workshop.key()) is None:
        learned = Learned(host.profile, workshop.key())
        learned.take(notes)
        host.store.remember(learned.key, [*learned.modules])


# execute


class Notes:
    """What a task tells besides its outputs (see `tell_learned`): bounded, and not looked into here."""

    def __init__(self, policy: CachePolicy) -> None:
        self.found: dict[str, bytes] = {}
        self.left, self.room = policy.max_files + 1, policy.max_bytes + Frames.CAPS[NOTE]

    def add(self, name: str, body: bytes) -> None:
        self.left, self.room = self.left - 1, self.room - len(body)
        if name in self.found or self.left < 0 or self.room < 0 or not name.startswith(("learned", "cache/")):
            raise bad_result(f"the task's child sent the note {name[:100]!r} twice, or too much")
        self.found[name] = body


OUTCOME_NAMES = ("error", "success", "ok", "status", "message", "traceback")  # outputs that may tell of a failure alone


class Outputs(Receiver):
    """The task's outputs: inline, or over `inline_max` streamed to files named by their checksum."""

    MAX_OUTPUTS = 10_000

    def __init__(self, out_dir: str | None, inline_max: int, policy: CachePolicy) -> None:
        self.out_dir, self.inline_max, self.notes = out_dir, inline_max, Notes(policy)
        self.found: dict[str, dict[str, Any]] = {}
        self.told = {name: bytearray() for name in (*OUTCOME_NAMES, "metadata")}  # their beginnings
        self.partial = ""

    def note(self, name: str, body: bytes) -> None:
        self.notes.add(name, body)

    def opened(self, name: str, size: int) -> None:
        if not 0 < len(name) <= 255 or not name.isprintable() or "/" in name or "\\" in name or name in (".", ".."):
            problem = f"{name[:100]!r} can't be an output's name: 1 to 255 printable characters, no slashes"
            raise Failure("result", "bad_output_name", problem)
        if name in self.found or len(self.found) >= self.MAX_OUTPUTS:
            raise bad_result(f"the output {name!r} came twice, or there are more than {self.MAX_OUTPUTS}")
        self.name, self.size, self.chunks = name, size, bytearray()
        self.digest, self.file = blake2b(digest_size=32), -1
        if self.out_dir is not None and size > self.inline_max:
            self.partial = os.path.join(self.out_dir, f".partial-{os.getpid()}-{os.urandom(6).hex()}")
            self.file = self.writing(lambda: os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def data(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        if self.name in self.told:
            self.told[self.name] += chunk[: 4 * MIB - len(self.told[self.name])]
        if self.file >= 0:
            self.writing(lambda: write_all(self.file, chunk))
        else:
            self.chunks += chunk

    def closed(self) -> None:
        import base64

        entry: dict[str, Any] = {"size": self.size, "checksum": self.digest.hexdigest()}
        if self.file >= 0:
            assert self.out_dir is not None
            entry["path"] = os.path.join(self.out_dir, entry["checksum"])
            self.writing(lambda: os.rename(self.partial, entry["path"]))
            self.partial = ""
            os.close(self.file)
        else:
            entry["inline"] = base64.b64encode(self.chunks).decode()
            self.chunks.clear()  # the line takes as much again
        self.found[self.name] = entry

    @staticmethod
    def writing(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            problem = f"an output can't be written to --out-dir: {error.strerror}"
            raise Failure("result", "output_unwritable", problem) from None

    def remove_partial(self) -> None:
        """Give up an output whose rest did not come. A server lives on, so its descriptor counts."""
        if self.partial:
            if self.file >= 0:  # else it could not be made
                os.close(self.file)
            with suppress(OSError):
                os.unlink(self.partial)
            self.partial = ""


def choose_wire(wires: list[list[str]], group: str) -> str:
    """The one entry point of the wire function's group."""
    found = ", ".join(f"{name} = {value}" for name, value in wires)
    if not wires:
        problem = f"neither the bundle nor its dependencies have an entry point in the group {group!r}"
        remedy = f'the bundle\'s pyproject.toml needs [project.entry-points."{group}"]'
        raise Failure("bundle", "no_wire_entry_point", f"{problem}; {remedy}")
    if len(wires) > 1:
        problem = f"the group {group!r} must have one entry point, and there are {len(wires)}: {found}"
        raise Failure("bundle", "many_wire_entry_points", problem)
    return wires[0][1]


def caches_for_task(host: Host, files: Mapping[str, bytes], told: bool) -> dict[str, Any]:
    """What the child's `Caches` are given: limits, whether it tells what they got, the files that are there before."""
    policy = host.profile.caches
    limits = {"folders": policy.folders, "files": policy.max_files, "bytes": policy.max_bytes, "told": told}
    return {"caches": limits, "cached": dict(files)}


def execute_box(host: Host, workshop: "Workshop", more: Iterable[Mount] = ()) -> Sandbox:
    environment = workshop.environment
    mounts = [Mount(workshop.bundle.path, BUNDLE), Mount(environment.venv, VENV), *environment.mounts, *more]
    return make_sandbox(host, "execute", [workshop.interpreter], mounts)


def task_result(host: Host, outcome: Outcome, task: dict[str, Any], outputs: Outputs) -> tuple[dict[str, Any], Usage]:
    """What a task's sandbox gave, as the contract has it; raises the Failure where it gave none."""
    raise_failure(host, outcome, "execute")
    for line in outcome.stderr.splitlines():
        Log.line(f"task: {line}")
    if "params" in task:
        refuse_masked_error(host, outputs, outcome)
        return {"task_id": task_id(task, outputs.found), "outputs": outputs.found}, outcome.usage
    return parse_aggregation(outcome.done or b""), outcome.usage


SAYS_NOTHING = {blake2b(text, digest_size=32).hexdigest() for text in (b"", b"null")}


def refuse_masked_error(host: Host, outputs: Outputs, outcome: Outcome) -> None:
    """Raise the failure of a wire function that caught its own exception and returned word of it.

    It did where no output but `error` and `metadata` has a byte, and there is an output beside `metadata`, or none at
    all; or where none of them is more than `null`, and `error` or `metadata` tells of an error. A table without rows
    has bytes: its schema. Outputs that deny success, as `{"success": False}`, are no results either, nor is what they
    come with.
    """
    said = {name: read_said(bytes(body)) for name, body in outputs.told.items() if name in outputs.found}
    aside = {"metadata", *OUTCOME_NAMES} if denies_success(said) else {"error", "metadata"}
    results = outputs.found.keys() - aside
    if any(outputs.found[name]["checksum"] not in SAYS_NOTHING for name in results):
        return
    exception, traceback = told_exception(said, "message" in aside)
    told_of = outputs.found.keys() - {"metadata", "success", "ok", "status"}
    empty = (told_of or not outputs.found) and not any(outputs.found[name]["size"] for name in results)
    if not exception and not empty:
        return
    if exception:
        text = f"the task raised {exception['type']}: {exception['message'][:2000]} (its wire function caught this "
        text += "itself, and returned it in place of a result)"
        causes = [cause_in_words(exception["message"], traceback)]
        text = with_hint(text, hint_of(HINTS, causes, host.profile, host.store.scratch("bundle")))
    else:
        names = ", ".join(sorted(results) or outputs.found.keys() & {"error"})[:500]
        text = (
            f"the wire function returned nothing but empty outputs: {names}"
            if names
            else "the wire function returned no outputs"
        )
    stderr = outcome.stderr[-TAIL_CAP:]
    failure = Failure("execute", "task_exception", text, exception=exception, traceback=traceback, stderr=stderr)
    failure.details["usage"] = outcome.usage
    raise failure


def denies_success(said: Mapping[str, Any]) -> bool:
    """Whether outputs, or the fields of one, say that the task failed."""
    status, traceback = said.get("status"), said.get("traceback")
    failed = isinstance(status, str) and status.lower() in ("error", "failed", "failure")
    raised = isinstance(traceback, str) and traceback.startswith("Traceback (most recent call last)")
    return failed or raised or said.get("success") is False or said.get("ok") is False


def told_exception(said: Mapping[str, Any], denied: bool) -> tuple[dict[str, str] | None, str]:
    """The exception and the traceback that outputs tell of: an `error`, the `error` of a `metadata`, else, where they
    deny success, a `message` or a `traceback`."""
    told = told_in(said.get("error"), True) or told_in(said.get("metadata"), False)
    if denied:
        beside = {name: said[name] for name in ("message", "traceback") if said.get(name)}
        last = str(beside.get("traceback", "")).strip().rpartition("\n")[2]
        told = {**beside, **told} if told else beside and {"message": last, **beside}
    if not told:
        return None, ""

    def first(*names: str) -> str:
        values = (told.get(name) for name in names)
        return next((in_words(value) for value in values if value), "")

    kind, message = first("type", "error_type", "exception_type"), first("message", "error") or in_words(told)
    split = re.match(r"([A-Za-z_][\w.]{0,200}(?:Error|Exception|Interrupt|Exit|Warning))(?:: |$)", message)
    if split and kind in ("", split[1]):
        kind, message = split[1], message[split.end() :]
    last = first("traceback").strip().rpartition("\n")[2]
    kind = kind or (last.removesuffix(f": {message}") if last.endswith(f": {message}") else "")
    return {"type": kind[:256] or "Exception", "message": clip(message)}, clip(first("traceback"))


def in_words(said: Any) -> str:
    """What an output says, as text; what was just read may be too deep to be written from here."""
    with suppress(RecursionError):
        return said if isinstance(said, str) else json.dumps(said)
    return "(too deep to be shown)"


def read_said(content: bytes) -> Any:
    """The JSON or else the text of an output."""
    text = content.decode("utf-8", "replace").strip()
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return text


def told_in(found: Any, alone: bool) -> dict[str, Any]:
    """What an output says of an error, {} where nothing; `alone`: it speaks of nothing else."""
    if not isinstance(found, dict):
        return {"error": found} if alone and found else {}
    inner = found.get("error")
    if isinstance(inner, dict):
        return {**found, "error": None, **inner}
    return found if inner or alone or (found.get("message") and denies_success(found)) else {}


def parse_aggregation(body: bytes) -> dict[str, Any]:
    """The target's dict, as the child wrote it: checked again, the child is not believed."""
    try:
        result = strict_json(body)
        loss = result["loss"]
        if type(loss) not in (int, float) or "_fatal_error" in result or "metrics" in result:
            raise ValueError("it has no finite loss, or a reserved key")
        return {**result, "loss": float(loss)}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise bad_result(f"the aggregation's result is not valid: {error}") from None


# --- the run: request, bundle, environment, sandbox, result


def open_host(options: Options, cleanup: ExitStack) -> Host:
    """Everything that must be in place before a bundle is touched; whatever is missing is a host error."""
    check_psutil()
    bwrap = find_bwrap()
    base = options.store_dir or default_store()
    store = Store(base, options.venvs_dir, cleanup, not options.no_cache, options.refresh)
    Toml.keep = store.derived
    named = load_profile(options.profile, profile_folders(options))
    profile = within(named, memory_quota())
    if profile != named:
        Log.line(f"limits: this process's control group allows {quantity('_bytes', memory_quota())} of memory in all")
    Cgroup.sweep_lost()
    uid = take_uid(profile.host, os.path.join(store.base, "run"), cleanup)
    if uid is not None:
        try:
            os.chown(store.run, -1, uid)
        except PermissionError as error:  # root in name only: a container without capabilities
            raise start_failure(str(error)) from None
        os.chmod(store.run, 0o710)
    stage = Stage(os.path.join(store.base, "stage"), store.run, uid)
    version = list(load_libseccomp().seccomp_version().contents)
    made_of = (profile.seccomp, version, os.uname().machine)
    packed = store.derived("seccomp", lambda: marshal.dumps(seccomp_programs(profile.seccomp)), *made_of)
    programs: list[bytes] = marshal.loads(packed)
    background = Background(store)
    cleanup.callback(background.close)
    watching = open_watching(options.trace, profile.trace, options.profile)
    return Host(profile, store, uid, stage, bwrap, find_tool("uv"), background, programs, {}, {}, [], watching)


def check_psutil() -> None:
    from importlib.util import find_spec

    if find_spec("psutil") is None:
        remedy = f"`{sys.executable} -m pip install psutil`, or `apt-get install python3-psutil`"
        raise Failure("host", "psutil_missing", f"psutil is not installed for {sys.executable}; {remedy}")


def profile_folders(options: Options) -> list[str]:
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "sandbox-profiles")
    return [folder for folder in (options.profiles_dir, os.environ.get("SANDBOX_PROFILES_DIR"), beside) if folder]


def default_store() -> str:
    """Root's store is where the sandbox's uid can pass through; a user's is in the user's cache folder."""
    if os.geteuid() == 0:
        return "/var/cache/ultra-cold-runner"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ultra-cold-runner")


class Workshop(NamedTuple):
    """Where the tasks of one bundle run."""

    bundle: Bundle
    interpreter: Interpreter
    environment: Environment

    def key(self) -> str:
        """Of what tasks of the bundle were seen to import."""
        return digest_of("learned", self.bundle.digest, self.interpreter.key())

    def wire(self, host: Host) -> str:
        return choose_wire(self.environment.wires, host.profile.bundle.entry_point_group)


def prepare_workshop(options: Options, host: Host) -> Workshop:
    begun = time.monotonic()
    bundle = open_bundle(options.bundle_path, host)
    interpreter = choose_interpreter(options.python, bundle.plan.requires_python, host.uv)
    plan = locked_plan(host, bundle, interpreter, index_settings(os.environ))
    for line in plan.lines():
        Log.line(f"plan: {line}")
    bundle = bundle._replace(plan=plan)
    environment = prepare_environment(
        Resolver(host, interpreter, os.environ, bundle), bundle, *map(truthy, ("REUSE", "PRESERVE_TMP"))
    )
    add_in_place(environment, bundle.path, interpreter)
    host.times["prepare"] = time.monotonic() - begun - sum(host.times.values())
    return Workshop(bundle, interpreter, environment)


def run_task(options: Options, host: Host, cleanup: ExitStack) -> dict[str, Any]:
    """Run one task from request to result. Returns the object to print."""
    begun = time.monotonic()
    task = read_request(0, options.aggregation, host.profile.bundle.request_bytes)
    workshop = prepare_workshop(options, host)
    outputs = Outputs(options.out_dir, options.inline_max, host.profile.caches)
    cleanup.callback(outputs.remove_partial)
    primed = primed_caches(options, host, workshop.environment)
    wire = workshop.wire(host) if "params" in task else ""
    request = {"task": task, "wire": wire, **caches_for_task(host, primed.files, options.prime)}
    outcome = Supervisor(host, execute_box(host, workshop), request, outputs).run()
    result, usage = task_result(host, outcome, task, outputs)
    if options.prime:
        primed.take(outputs.notes.found)
        primed.write()
    remember_run(host, workshop.environment, outputs.notes.found)
    remember_modules(host, workshop, outputs.notes.found)
    return {**result, "metrics": metrics(host.times, usage, time.monotonic() - begun)}


def open_bundle(path: str, host: Host) -> Bundle:
    target = host.store.scratch("bundle")
    with deadline(host.profile.bundle.inspect_seconds, "bundle", "bundle.inspect_seconds"):
        digest, _ = snapshot(path, target, host.profile.bundle)
        return Bundle(target, digest, read_plan(target, host.profile.dependencies, index_settings(os.environ)))


def metrics(times: Mapping[str, float], usage: Usage, total: float, preloaded: int = 0) -> dict[str, float]:
    """The contract's metrics: floats, in seconds and bytes, of the execute phase where nothing else is said."""
    phases = {f"{name}_seconds": times.get(name, 0.0) for name in ("prepare", "fetch", "build", "install")}
    return {
        "wall_seconds": total,
        "cpu_user_seconds": usage.user,
        "cpu_system_seconds": usage.system,
        "peak_memory_bytes": usage.memory,
        "peak_processes": usage.processes,
        "read_bytes": usage.read,
        "written_bytes": usage.written,
        **phases,
        "sandbox_start_seconds": usage.start,
        "execute_seconds": usage.wall - usage.start if usage.start else usage.wall,
        "preloaded_modules": float(preloaded),
    }


def truthy(name: str) -> bool:
    return os.environ.get(name, "") in ("1", "true", "TRUE")


# --- serve: one line of JSON for each line of JSON, in one sandbox


class Inbox:
    """Lines on standard input, read while tasks run, so that one can be cancelled."""

    def __init__(self, limit: int) -> None:
        self.limit, self.open = limit, True
        self.buffer, self.waiting = bytearray(), []  # type: bytearray, list[dict[str, Any] | Failure]
        self.cancelled: set[str] = set()

    def on_input(self, data: bytes) -> None:
        self.open = bool(data)
        *lines, rest = (bytes(self.buffer) + data).split(b"\n")
        self.buffer = bytearray(rest)
        if len(rest) > self.limit:
            raise input_too_large("a line on standard input", self.limit)
        for line in lines if self.open else [*lines, rest]:
            if line.strip():
                self.take(line)

    def take(self, line: bytes) -> None:
        try:
            message = parse_json(line)
        except Failure as failure:
            self.waiting.append(failure)
            return
        if isinstance(message, dict) and message.keys() == {"cancel"}:
            self.cancelled.add(str(message["cancel"]))
        else:
            self.waiting.append(message if isinstance(message, dict) else {"task": message})


def primed_caches(options: Options, host: Host, environment: Environment) -> "Learned":
    """What a task that the caller named with --prime left in its caches, for tasks of the same kept environment."""
    allowed, kept = host.profile.cold.keep_caches, truthy("REUSE")
    if options.prime and not allowed:
        raise usage_error("the profile keeps no caches for cold tasks (cold.keep_caches)")
    if options.prime and not kept:
        raise usage_error("--prime needs REUSE=1")
    learned = Learned(host.profile, digest_of("primed", environment.key))
    if allowed and kept:
        learned.share(host.store.path("imported", f"primed-{environment.key}"))
    return learned


def serve_tasks(options: Options, host: Host, cleanup: ExitStack, emit: Callable[[dict[str, Any]], None]) -> None:
    """Prepare the environment once, then answer every line on standard input with a line, in order."""
    host = host._replace(seccomp=[*host.seccomp, deny_program(host.profile.serve.also_deny)])
    workshop = prepare_workshop(options, host)
    inbox = Inbox(host.profile.bundle.request_bytes)
    learned = Learned(host.profile, workshop.key())
    learned.take_modules(host.store.recall(learned.key) or [])
    if options.learned:
        learned.share(options.learned)
    server = Server(host, workshop, inbox, learned)
    cleanup.callback(server.close)
    server.session()
    emit({"serving": {"bundle_digest": workshop.bundle.digest, "python": workshop.interpreter.version}})
    for message in iter(server.next, None):
        emit(server.answer(message, options))
        server.prepare_next()


class Learned:
    """What tasks of one bundle were seen to import, and what they left in the home's cache folders.

    Both come from hostile processes: names and bytes that go into sandboxes of that bundle, and nowhere else.
    """

    def __init__(self, profile: Profile, key: str) -> None:
        self.policy, self.max_modules, self.key = profile.caches, profile.serve.max_modules, key
        self.modules: dict[str, None] = {}  # in the order of import
        self.files: dict[str, bytes] = {}
        self.path = ""

    def take(self, notes: Mapping[str, bytes]) -> bool:
        """Add what the notes of a task say; whether any of it is new."""
        before = (len(self.modules), dict(self.files))
        self.take_modules(told_in_notes(notes, "modules"))
        for name, content in notes.items():
            if name.startswith("cache/"):
                self.take_file(name[len("cache/") :], content)
        return before != (len(self.modules), self.files)

    def take_modules(self, names: Iterable[Any]) -> None:
        for name in names:
            good = isinstance(name, str) and len(name) <= 255 and all(part.isidentifier() for part in name.split("."))
            if good and name != "__main__" and len(self.modules) < self.max_modules:
                self.modules.setdefault(name)

    def take_file(self, name: str, content: bytes) -> None:
        parts = name.split("/")
        inside = any(name.startswith(folder + "/") for folder in self.policy.folders)
        plain = name.isprintable() and not {"", ".", ".."} & {*parts} and len(name.encode()) <= 1024
        size = sum(map(len, self.files.values())) - len(self.files.get(name, b"")) + len(content)
        room = size <= self.policy.max_bytes and (name in self.files or len(self.files) < self.policy.max_files)
        if inside and plain and len(parts) <= 16 and room:
            self.files[name] = content

    def share(self, path: str) -> None:
        """Begin with what other servers of the bundle wrote to the file, and write what is learned there."""
        self.path = path
        self.read()

    def read(self) -> None:
        import base64

        try:
            text = read_small_file(self.path, 2 * self.policy.max_bytes + 300 * self.max_modules)
            kept = json.loads(text or "{}")
            if kept.get("key") == self.key:
                self.take_modules(kept["modules"])
                for name, content in kept["files"].items():
                    self.take_file(name, base64.b64decode(content))
        except (Failure, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            Log.line(f"{self.path} is not what a server of this bundle learned; it is not used")

    def write(self) -> None:
        """Add what is known to what others wrote meanwhile. It is a help, and no server fails for want of it."""
        import base64

        if not self.path:
            return
        own = dict(self.files)
        with suppress(OSError), locked(self.path + ".lock", "another server writes what it learned; waiting for it"):
            self.read()
            self.files.update(own)
            files = {name: base64.b64encode(content).decode() for name, content in self.files.items()}
            aside = f"{self.path}.{os.getpid()}"
            try:
                write_json(aside, {"key": self.key, "modules": [*self.modules], "files": files})
                os.rename(aside, self.path)
            finally:
                remove_tree(aside)  # of a full disk, or of a server that is stopped


class Server:
    """Answers tasks in a kept sandbox, and makes it anew: at once where it is not fit for another task; beside the
    old one where its template could have ready what tasks were seen to import and to cache."""

    TRIAL = 20.0  # seconds that a task may take to be run once more, see `trial`

    def __init__(self, host: Host, workshop: "Workshop", inbox: Inbox, learned: Learned) -> None:
        self.host, self.workshop, self.inbox, self.learned = host, workshop, inbox, learned
        self.preload = host.profile.serve.preload
        self.preload_learned = self.preload
        self.current: Session | None = None
        self.coming: Session | None = None
        self.grown, self.unused, self.patience = False, 0, 1  # tasks since the last new template; until the next
        self.longest = 0.0  # seconds that a task took in the present template
        self.last: tuple[dict[str, Any], dict[str, Any]] | None = None  # a task, and the gist of what it gave

    def close(self) -> None:
        for session in (self.current, self.coming):
            if session:
                session.close()

    # --- sandboxes

    def start(self) -> Session:
        """Begin a sandbox with the best template that this bundle can have."""
        wire = self.workshop.wire(self.host) if self.workshop.environment.wires else ""
        preload = bool(wire) and self.preload
        modules = [*self.learned.modules] if self.preload_learned else []
        request = {"wire": wire, "preload": preload, "modules": modules}
        box = execute_box(self.host, self.workshop)
        session = Session(self.host, box, {**request, **caches_for_task(self.host, self.learned.files, told=True)})
        self.grown, self.unused = False, 0
        try:
            session.begin()
        except BaseException:
            session.close()
            raise
        return session

    def session(self) -> Session:
        """The open sandbox, or a new one."""
        if self.current and self.current.alive:
            self.current.settle()
            if self.current.alive and self.current.process.poll() is None:
                return self.current
        if self.current:
            self.current.close()
        while True:
            self.current = self.start()
            try:
                fit = self.fit(self.current)
            except Failure:
                self.current.close()  # else the next task would find it, of which it is not known
                raise
            if fit:
                return self.current
            self.host.store.remember(self.learned.key, [])
            self.current.close()

    def fit(self, session: Session) -> bool:
        """Wait for a sandbox to be ready, and whether tasks can be forks of its template; else the next is simpler."""
        simple = not (self.preload_learned and session.request["modules"])
        try:
            ready = session.wait_until_ready()
            problem = self.problem(ready, session)
            if ready.doubt and not problem:
                if not self.proven(session.request["modules"]):
                    self.learned.modules.clear()  # until there is a task to try it with
                    return False
                problem = self.trial(ready.doubt, session)
        except Failure as failure:
            if simple:
                raise
            problem = failure.error
        if not problem or not self.preload:
            return True
        if simple:
            Log.line(f"the bundle is imported in each task: {problem}")
            self.preload = False
        else:
            Log.line(f"what tasks import is imported in each task: {problem}")
        self.preload_learned = False
        return False

    def proven(self, names: list[str]) -> bool:
        """Whether a doubt about a template with these modules can be settled, or another server of the bundle did."""
        return self.last is not None or self.host.store.recall(digest_of("same", self.learned.key, names))

    def trial(self, doubt: str, session: Session) -> str:
        """Run the last task twice more, there. Returns what it proves against the template, or nothing: an import that
        draws from a generator shifts what a task draws, if it seeded it before; most don't."""
        if self.last is None:
            return ""
        if self.longest > self.TRIAL:
            return f"{doubt}, and a task takes too long to see whether it matters"
        task, given = self.last
        first, second = (self.once_more(task, session) for _ in range(2))
        steady = {name for name, value in first.items() if second.get(name) == value}  # the rest tells of a clock
        same = steady and all(first[name] == given.get(name) for name in steady) and first.keys() == given.keys()
        session.settle()
        same = same and session.alive  # a task may give the same, and harm the sandbox
        if same:
            self.host.store.remember(digest_of("same", self.learned.key, session.request["modules"]), True)
        return "" if same else f"{doubt}, and a task gave something else after it"

    def once_more(self, task: dict[str, Any], session: Session) -> dict[str, Any]:
        """The gist of what a task gives there, if it succeeds. A fork that hangs is given up sooner than a task."""
        outputs, limits = Outputs(None, 0, self.host.profile.caches), session.limits
        session.limits = limits._replace(wall_seconds=min(limits.wall_seconds, 3 * self.TRIAL))
        try:
            return gist(task_result(self.host, session.run_task(task, outputs), task, outputs)[0])
        except Failure:
            return {}
        finally:
            session.limits = limits

    def problem(self, ready: Ready, session: Session) -> str:
        import psutil  # noqa: F401  (the sandbox's uid may not be able to read it)

        policy = self.host.profile.serve
        with looking_as(self.host.uid):
            unknown = sorted({*threads_of(session.child_pid)} - {*policy.harmless_threads})
            shared = shares_memory(session.child_pid)
            used = template_memory(session.child_pid) if ready.modules else 0
        if unknown:
            return f"the import leaves the thread {unknown[0]!r}, which is not in serve.harmless_threads of the profile"
        if shared:
            return "importing its modules makes memory that forks share, as mmap and multiprocessing.Lock do"
        if used > policy.preload_bytes:
            return f"the modules take {used} bytes, over serve.preload_bytes of the profile ({policy.preload_bytes})"
        return ready.problem

    def prepare_next(self) -> None:
        """After an answer: begin a new template where tasks showed what it could have ready. Ever later ones wait
        longer, as each costs the import of everything."""
        self.unused += 1
        if self.coming or not self.grown or self.unused < self.patience:
            return
        self.patience *= 2
        self.learned.write()
        try:
            self.coming = self.start()
        except (Failure, OSError) as error:  # a full disk among it: the present one goes on
            Log.line(f"no new template: {error}")

    def take_over(self) -> None:
        """Make the coming sandbox the current one, if it is ready by now."""
        coming = self.coming
        if coming is None:
            return
        if not (coming.ready or coming.process.poll() is not None or coming.failure or coming.violation):
            return
        try:
            fit = self.fit(coming)
        except Failure as failure:  # the present one goes on
            Log.line(f"no new template: {failure.error}")
            fit = False
        # what a later server of the bundle begins with
        self.host.store.remember(self.learned.key, coming.request["modules"] if fit else [])
        if not fit:
            coming.close()
            self.coming, self.grown = None, bool(self.learned.files)  # they still spare a task its time
            return
        if self.current:
            self.current.close()
        self.current, self.coming, self.longest = coming, None, 0.0

    # --- tasks

    def next(self) -> "dict[str, Any] | Failure | None":
        """The next line, parsed, or why it can't be; None at the end of the input."""
        if not self.inbox.waiting:
            self.inbox.cancelled.clear()  # they came too late
        while not self.inbox.waiting and self.inbox.open:
            self.attend(None)
        return self.inbox.waiting.pop(0) if self.inbox.waiting else None

    def attend(self, seconds: float | None) -> None:
        """Wait for a line, or for a sandbox that cleans up or comes, and handle what it says."""
        busy = [session for session in (self.coming, self.current) if session and not session.ended]
        if self.coming and self.coming not in busy:
            busy.append(self.coming)
        places = {key.fd: session for session in busy for key in session.selector.get_map().values()}
        wait = max(0.0, seconds) if seconds is not None else 1.0 if self.coming else None  # it may be over by now
        ready = wait_for([*([0] if self.inbox.open else []), *places], wait)
        for session in {id(places[fd]): places[fd] for fd in ready if fd != 0}.values():
            if not session.step(0) and session is self.current:
                session.alive, session.ended = False, True
        if self.coming:
            if not ready:
                self.coming.step(0)
            self.take_over()
        if 0 in ready:
            self.inbox.on_input(os.read(0, MIB))

    def answer(self, message: "dict[str, Any] | Failure", options: Options) -> dict[str, Any]:
        name = message.pop("id", None) if isinstance(message, dict) else None
        begun, usage = time.monotonic(), Usage()
        try:
            if isinstance(message, Failure):
                raise message
            task = check_aggregation(message) if "target_entrypoint" in message else check_simulation(message)
            if "params" in task:
                self.workshop.wire(self.host)
            outputs = Outputs(options.out_dir, options.inline_max, self.host.profile.caches)
            try:
                result, usage = self.run(task, outputs, name)
            finally:
                outputs.remove_partial()
            body = {**result, "metrics": self.metrics(usage, begun)}
        except Failure as failure:
            usage = failure.details.pop("usage", usage)
            body = failure.as_json(self.metrics(usage, begun))
        return body if name is None else {**body, "id": name}

    def metrics(self, usage: Usage, begun: float) -> dict[str, float]:
        ready = self.current.ready if self.current else None
        return metrics({}, usage, time.monotonic() - begun, ready.modules if ready and self.preload_learned else 0)

    def run(self, task: dict[str, Any], outputs: Outputs, name: Any) -> tuple[dict[str, Any], Usage]:
        self.check_cancelled(name)
        while self.coming and time.monotonic() < self.coming.begun + self.longest:
            self.attend(self.coming.begun + self.longest - time.monotonic())  # sooner there than this task elsewhere
            self.check_cancelled(name)
        self.take_over()
        session, begun = self.session(), time.monotonic()

        def on_input(data: bytes) -> None:
            self.inbox.on_input(data)
            self.check_cancelled(name)

        if self.inbox.open:
            session.selector.register(0, selectors.EVENT_READ, on_input)
        try:
            outcome = session.run_task(task, outputs, self.coming)
        finally:
            with suppress(KeyError):
                session.selector.unregister(0)
            self.longest = max(self.longest, time.monotonic() - begun)
        result = task_result(self.host, outcome, task, outputs)
        self.last = (task, gist(result[0]))
        remember_run(self.host, self.workshop.environment, outputs.notes.found)
        if outputs.notes.found:
            self.grown = self.learned.take(outputs.notes.found) or self.grown
        return result

    def check_cancelled(self, name: Any) -> None:
        if name is not None and str(name) in self.inbox.cancelled:
            self.inbox.cancelled.discard(str(name))
            raise Failure("execute", "cancelled", "the task was cancelled", True)


def gist(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without its bytes."""
    if "task_id" not in result:
        return dict(result)
    return {name: output["checksum"] for name, output in result["outputs"].items()}


def threads_of(init: int) -> list[str]:
    """The names of the threads that a fork of a sandbox's template would lose: all but its first."""
    names = []
    try:
        template = children_of(init)[0]
        for thread in os.listdir(f"/proc/{template}/task"):
            if int(thread) != template:
                path = f"/proc/{template}/task/{thread}/comm"
                with suppress(FileNotFoundError, ProcessLookupError), open(path, "rb") as file:  # it may just end
                    names.append(printable(file.read().decode("utf-8", "replace").strip()))
    except (OSError, IndexError):
        return ["(unknown: /proc does not tell)"]
    return names


def shares_memory(init: int) -> bool:
    """Whether a fork of a sandbox's template could write what another one reads: by its mappings (proc_pid_maps(5))."""
    try:
        with open(f"/proc/{children_of(init)[0]}/maps", "rb") as file:
            return any(line.split()[1][1::2] == b"ws" for line in file)
    except (OSError, IndexError):
        return True


def template_memory(init: int) -> int:
    """Bytes of the processes of a sandbox, where what they share counts once."""
    import psutil

    with suppress(psutil.Error):
        return sum(member.memory_full_info().pss for member in psutil.Process(init).children(recursive=True))
    return 0


# --- commands beside running a task


def doctor(options: Options, cleanup: ExitStack) -> dict[str, Any]:
    """What this host can do, found by doing it; each gap with its remedy, on stderr for people too."""
    report: dict[str, Any] = {"profile": options.profile, "python": sys.version.split()[0], "root": os.geteuid() == 0}
    report["store"] = options.store_dir or default_store()
    gaps: list[tuple[str, str]] = []
    try:
        host = open_host(options, cleanup)
        report.update({"bwrap": tool_version(host.bwrap), "uv": host.uv and tool_version(host.uv)})
        interpreter = Interpreter(**describe_interpreter())
        box = make_sandbox(host, "execute", [interpreter], [])
        run_phase(host, box, {"phase": "probe"}, Receiver())
        report["sandbox"] = True
        group = Cgroup.create(f"{host.run_name}-doctor", host.profile.execute.limits)
        report["cgroup"] = None if group is None else 2 if "" in group.paths else 1
        if group:
            group.remove()
        else:
            problem = "no cgroup can be written: memory and process limits are held by rlimits and polling"
            remedy = "run as root, or delegate a cgroup (systemd-run --user --scope -p Delegate=yes)"
            gaps.append(("no_cgroup", f"{problem}; {remedy}"))
        if host.uv is None:
            problem = "uv is not installed: a bundle with dependencies can't be prepared"
            gaps.append(("no_uv", f"{problem}; `pip install uv`"))
    except (Failure, OSError, MemoryError, ImportError) as error:
        failure = error if isinstance(error, Failure) else host_failure(error)
        if failure is None:
            raise
        report["sandbox"] = report.get("sandbox", False)
        gaps.append((failure.type, failure.error))
    report["sysctls"] = {name: read_sysctl(name) for name in SYSCTLS}
    for kind, remedy in gaps:
        Log.line(f"{kind}: {remedy}")
    Log.line("this host can run sandboxes" if report["sandbox"] else "this host can't run sandboxes yet")
    told = [{"type": kind, "remedy": remedy} for kind, remedy in gaps]
    return {"doctor": {**report, "ok": report["sandbox"], "gaps": told}}


def tool_version(path: str) -> str:
    return [*ask_tool([path, "--version"], {}).stdout.split(), "?", "?"][1]


def print_bwrap(options: Options, host: Host) -> dict[str, Any]:
    """The command line, limits and filter of every phase of a run, for a reviewer; nothing is run."""
    import shlex

    host = host._replace(stage=Stage("", "", None))  # name the sources, stage nothing
    plan = open_bundle(options.bundle_path, host).plan if options.bundle_path else None
    interpreter = choose_interpreter(options.python, plan.requires_python if plan else "", host.uv)
    own = {"fetch": [], "build": [SOURCE, VENV], "compile": [TREE], "execute": [BUNDLE, VENV]}
    commands = {}
    for phase, places in own.items():
        mounts = [Mount(host.store.scratch(place.strip("/")), place) for place in places]
        box = make_sandbox(host, phase, [interpreter], mounts)
        arguments = bwrap_arguments(box, Descriptors([11, 12], 10))
        commands[phase] = {"bwrap": arguments, "environment": box.environment, "limits": box.policy.limits._asdict()}
        Log.line(f"# {phase}")
        Log.line(shlex.join(["bwrap", *arguments]))
    seccomp = host.profile.seccomp
    filters = seccomp._asdict() | {"deny": [name for name in seccomp.deny if name not in seccomp.also_allow]}
    uid = host.uid if host.uid is not None else os.geteuid()
    shown = {"profile": options.profile, "host_uid": uid, "phases": commands, "seccomp": filters}
    return {**shown, "plan": plan.as_json()} if plan else shown


def cache_command(options: Options, cleanup: ExitStack) -> dict[str, Any]:
    """Show what is kept, or remove what was made before some days, or everything."""
    store = Store(options.store_dir or default_store(), options.venvs_dir, cleanup)
    kinds = {kind: store.path(kind) for kind in ("wheels", "trees", "imported", "built", "resolved", "system")}
    kinds["venvs"] = store.venvs
    oldest = time.time() - options.older_than * 86400
    report = {}
    for kind, folder in kinds.items():
        names = os.listdir(folder) if os.path.isdir(folder) else []
        entries = [os.path.join(folder, name) for name in names if not name.startswith(".run-")]
        if options.cache == "prune":
            for entry in entries:
                prune(entry, oldest, store.fresh("pruned"))
            entries = [entry for entry in entries if os.path.lexists(entry)]
        report[kind] = {"entries": len(entries), "bytes": sum(size_of(entry) for entry in entries)}
    return {"cache": {"path": store.base, **report}}


def prune(entry: str, oldest: float, aside: str) -> None:
    """Remove what is kept and no younger than `oldest`, but for what a run that lives mounts, see `Store.hold`.
    It is renamed first, so that nobody takes up half of it."""
    with ExitStack() as cleanup:
        try:
            if os.lstat(entry).st_mtime > oldest:
                return
            fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            cleanup.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Log.line(f"{entry} is in use, and stays")
            return
        except OSError:
            pass  # a link, or gone by now: nobody mounts it
        with suppress(OSError):
            os.rename(entry, aside)
            entry = aside
        remove_tree(entry)


def size_of(path: str) -> int:
    with suppress(FileNotFoundError):  # another run may just remove it
        return sum(entry[1] for entry in list_files(path)) if os.path.isdir(path) else os.lstat(path).st_size
    return 0


# --- main: one line out, whatever happens


class Option(NamedTuple):
    """A flag of the command line. Without a `metavar` it is a switch."""

    name: str
    help: str
    metavar: str = ""
    convert: Callable[[str], Any] = str
    default: Any = None


OPTIONS = [
    Option("--bundle-path", "the bundle: a directory with a pyproject.toml or a requirements.txt", "DIR"),
    Option("--aggregation", "standard input is an aggregation, not a simulation"),
    Option("--profile", "name or path of a sandbox profile (default: default)", "NAME", str, "default"),
    Option("--profiles-dir", "where profiles are looked for first", "DIR"),
    Option("--python", "the interpreter to run the bundle with", "PATH"),
    Option("--out-dir", "write outputs over --inline-max there instead of inline", "DIR"),
    Option("--inline-max", "with --out-dir: largest inline output (default: 524288)", "BYTES", int, 512 * 1024),
    Option("--refresh", "resolve dependencies and build again, though the answers are kept"),
    Option("--no-cache", "use and keep nothing"),
    Option("--store-dir", "where wheels and environments are kept", "DIR"),
    Option("--serve", "keep the sandbox and answer one task a line, each in a fork"),
    Option("--shell", "with --instrument: the program has the terminal, where the profile gives a shell"),
    Option("--instrument", "run this program of yours where the task would run; its input is stdin", "FILE"),
    Option("--prime", "with REUSE=1: keep the caches that this task leaves, for later ones"),
    Option("--learned", "with --serve: what servers of one bundle learn of its tasks, for each other", "FILE"),
    Option("--trace", "watch with strace what runs the bundle's code; traces go into this new directory", "DIR"),
    Option("--die-with-parent", "stop when the caller, whose pid is PID, is gone", "PID", int),
    Option("--print-bwrap", "show every command line and policy, and run nothing"),
    Option("--doctor", "say what this host can do, and what to do about the rest"),
    Option("--cache", "show what is kept, or remove it", "show|prune"),
    Option("--older-than", "with --cache prune: keep what was made in the last DAYS", "DAYS", float, 0.0),
]


def read_options(arguments: list[str]) -> Options:
    """The command line by the table: `--name value` or `--name=value`, in any order. argparse takes 10 ms to load."""
    known = {option.name: option for option in OPTIONS}
    values = {name[2:].replace("-", "_"): o.default if o.metavar else False for name, o in known.items()}
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        option = known.get(name)
        if option is None:
            raise usage_error(f"the command line has the unknown {name[:200]!r}; see --help")
        if bool(equals) > bool(option.metavar):
            raise usage_error(f"{name} takes no value; see --help")
        if option.metavar and not equals:
            if not words or words[0].startswith("--"):
                raise usage_error(f"{name} needs a value, {option.metavar}; see --help")
            value = words.pop(0)
        try:
            values[name[2:].replace("-", "_")] = option.convert(value) if option.metavar else True
        except ValueError as error:
            raise usage_error(f"{name} can't be {value[:200]!r}: {error}") from None
    return Options(**values)


def help_text() -> str:
    lines = [f"  {f'{option.name} {option.metavar}':26} {option.help}" for option in OPTIONS]
    head = "Run one task of one untrusted bundle in a sandbox; one line of JSON comes out.\n\noptions:\n"
    return head + "\n".join(lines) + "\n"


def parse_options(arguments: list[str]) -> Options:
    options = read_options(arguments)
    if not (options.bundle_path or options.doctor or options.cache or options.print_bwrap):
        raise usage_error("--bundle-path is missing; see --help")
    if options.out_dir is not None:
        options.out_dir = os.path.abspath(options.out_dir)
        if not os.path.isdir(options.out_dir):
            raise usage_error(f"--out-dir {options.out_dir!r} is not a directory")
    if options.cache not in (None, "show", "prune"):
        raise usage_error(f"--cache can't be {options.cache[:200]!r}: it is neither show nor prune")
    if options.instrument and not os.path.isfile(options.instrument):
        raise usage_error(f"--instrument {options.instrument!r} is not a file")
    if options.shell and not options.instrument:
        raise usage_error("--shell gives the terminal to a program, which --instrument names")
    options.venvs_dir = os.environ.get("VENVS_DIR")
    return options


class Unheard(Exception):
    """The answer can't be written: its reader is gone, the disk behind it is full, or a signal came in the middle."""


class Killed(BaseException):
    """A signal asked the runner to stop. Raised once; further signals are ignored while it cleans up."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    asked = 0
    parent = 0  # whose end stops the runner

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @classmethod
    def arm(cls) -> None:
        for number in cls.SIGNALS:
            signal.signal(number, cls.stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, cls.SIGNALS)  # one that came before is raised here

    @classmethod
    def follow_parent(cls) -> None:
        """Be stopped by SIGTERM when the thread that started this process ends (prctl(2)), or now, if it has ended.

        The kernel forgets it where a process changes its uid.
        """
        if cls.parent and not cls.asked:
            Libc.call("prctl", Libc.PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != cls.parent:
                cls.stop(signal.SIGTERM, None)

    @classmethod
    def forget(cls) -> None:
        """In a fork: be ended by signals."""
        for number in cls.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    @classmethod
    def disown(cls) -> None:
        """In a fork: be ended by signals, and with the parent."""
        cls.forget()
        Libc.call("prctl", Libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    @classmethod
    def disarm(cls) -> None:
        for number in cls.SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @classmethod
    def stop(cls, number: int, _: Any) -> None:
        cls.asked = number
        cls.disarm()
        raise cls(number)

    def as_failure(self) -> Failure:
        name = signal.Signals(self.number).name
        text = f"the runner was stopped by {name}, and the sandbox with it"
        failure = Failure("host", "killed", text, True, signal=name)
        failure.code = 128 + self.number
        return failure

    @classmethod
    def check(cls) -> None:
        """Raise it again, where it was lost: Python drops what is raised in a finalizer, and each import has one.

        Measured: one signal in 3,000 that came during an import. Who waits for a sandbox asks here.
        """
        if cls.asked:
            raise cls(cls.asked)

    @classmethod
    @contextmanager
    def held(cls) -> Iterator[None]:
        """Put a signal off until the block is through, where half of the work would leave something behind."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, cls.SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(arguments: list[str]) -> int:
    """Print one line of JSON on the real standard output and return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(help_text(), end="")
        return 0
    stdout = take_stdout()
    os.umask(0o022)
    begun = Log.begun = time.monotonic()  # a fork's import was long ago
    times: dict[str, float] = {}

    def emit(body: Mapping[str, Any]) -> None:
        line = json.dumps(body, allow_nan=False).encode() + b"\n"
        try:
            write_all(stdout, line)
        except OSError as error:
            raise Unheard(error.strerror) from None
        except Killed as killed:  # who may wait for a reader that is gone; no line begins within another
            raise Unheard("the runner was stopped in a line") from killed

    try:
        try:
            Killed.arm()
            body = dispatch(parse_options(arguments), times, emit)
        finally:
            Killed.disarm()
        if body is not None:
            emit(body)
        return 0 if body is None or body.get("doctor", {}).get("ok", True) else 1
    except Killed as killed:
        failure = killed.as_failure()
    except Failure as raised:
        failure = raised
    except Unheard:
        return 128 + Killed.asked if Killed.asked else 1
    except BaseException as error:
        failure = host_failure(error) or internal_error(error)
        if Killed.asked:  # where the signal came between two steps, taking down may meet the half of them
            Log.line(f"while the runner stopped: {type(error).__name__}: {error}")
            failure = Killed(Killed.asked).as_failure()
    usage = failure.details.pop("usage", Usage())
    if failure.phase not in ("execute", "result"):
        usage = Usage()  # it is that of another sandbox than the task's
    with suppress(Unheard):
        emit(failure.as_json(metrics(times, usage, time.monotonic() - begun)))
    return failure.code


def take_stdout() -> int:
    """Keep standard output for the answer alone: from here on descriptor 1 is standard error.

    A standard descriptor that the caller closed is made /dev/null, lest another file take its number.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)[fd])  # using 0 or 1 stays an error
    stdout = os.dup(1)
    os.dup2(2, 1)
    return stdout


def dispatch(
    options: Options, times: dict[str, float], emit: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Do what the command line asks, and take everything down again before the answer is returned."""
    with ExitStack() as cleanup:
        try:
            Libc.call("prctl", Libc.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            Killed.parent = options.die_with_parent or 0
            Killed.follow_parent()
            if options.doctor:
                return doctor(options, cleanup)
            if options.cache:
                return cache_command(options, cleanup)
            host = open_host(options, cleanup)._replace(times=times)
            if options.print_bwrap:
                return print_bwrap(options, host)
            if truthy("PRESERVE_TMP"):
                cleanup.pop_all()  # nothing is taken down; what the sandboxes were made of stays
                cleanup.callback(preserve, host)
            if options.serve:
                serve_tasks(options, host, cleanup, emit)
                return None
            if options.instrument:
                return run_instrument(options, host, cleanup)
            return run_task(options, host, cleanup)
        finally:
            Killed.disarm()


def run_instrument(options: Options, host: Host, cleanup: ExitStack) -> dict[str, Any]:
    """A program of the caller's in the sandbox where the bundle's tasks run; it has no more rights than they.

    What it sent before it failed comes with the failure. With --shell it has the terminal.
    """
    begun = time.monotonic()
    task = read_json(0, host.profile.bundle.request_bytes)
    terminal = {"terminal": open_terminal(options, host)} if options.shell else {}
    workshop = prepare_workshop(options, host)
    outputs = Outputs(options.out_dir, options.inline_max, host.profile.caches)
    cleanup.callback(outputs.remove_partial)
    wire = workshop.wire(host) if workshop.environment.wires else ""
    box = execute_box(host, workshop, [Mount(os.path.realpath(options.instrument), INSTRUMENT)])
    request = {"phase": "instrument", "task": task, "wire": wire}
    try:
        outcome = Supervisor(host, box, request, outputs, terminal).run()
        raise_failure(host, outcome, "execute")
    except Failure as failure:
        failure.details["outputs"] = outputs.found
        raise
    for line in outcome.stderr.splitlines():
        Log.line(f"task: {line}")
    return {"outputs": outputs.found, "metrics": metrics(host.times, outcome.usage, time.monotonic() - begun)}


def open_terminal(options: Options, host: Host) -> int:
    if not host.profile.execute.shell:
        raise usage_error(f"the profile {options.profile!r} gives no shell (execute.shell); use --profile debug")
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no session's; then the sandbox can have it as its own
        if os.isatty(2):
            return os.dup(2)
        raise usage_error("--shell needs a terminal") from None


def preserve(host: Host) -> None:
    with open(host.store.scratch("preserved"), "w", encoding="utf-8"):
        Log.line(f"PRESERVE_TMP: everything of this run stays in {host.store.run}")


def internal_error(error: BaseException) -> Failure:
    import traceback

    text, told = "".join(traceback.format_exception(error)), f"{type(error).__name__}: {error}"
    failure = Failure("host", "internal_error", f"the runner itself failed: {told}", traceback=clip(text))
    failure.code = 70
    return failure


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # all is taken down by now; the interpreter need not take itself down as well
