"""The places of what a process has once, and of what modules keep behind functions."""

import codecs
import decimal
import encodings
import functools
import gc
import locale
import os
import resource
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from itertools import count
from typing import Any

from .places import Logger, Place, Setting
from .restoring import fill
from .values import attribute_of, identity


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
    return [
        *found,
        *behind_functions(),
        *c_environment(),
        *c_generator(),
        *resource_limits(),
        *loggers(),
        *generators(),
    ]


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
        ("scipy.special", "scipy error state", "geterr", lambda old: sys.modules["scipy.special"].seterr(**old)),
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


def c_environment() -> "list[Place]":
    """Environment variables of the C library that are not as in os.environ, which sees only what Python sets."""
    ctypes: Any = sys.modules.get("ctypes")
    if ctypes is None:
        return []
    libc = ctypes.CDLL(None)

    def variables() -> "dict[bytes, bytes]":
        entries = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
        found: dict[bytes, bytes] = {}
        for index in count() if entries else ():
            if entries[index] is None:
                break
            name, _, value = entries[index].partition(b"=")
            found[name] = value
        return found

    def read() -> Any:
        now, known = variables(), os.environb
        return {name: now.get(name) for name in {*now, *known} if now.get(name) != known.get(name)}

    def write(old: Any) -> None:
        for name in {*read(), *old}:
            value = old[name] if name in old else os.environb.get(name)
            libc.unsetenv(name) if value is None else libc.setenv(name, value, 1)

    return [Setting("environ.c", "environment of the C library", "environ", read, write)]


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
    return [*found, *of_numba()]


def of_numba() -> "list[Place]":
    """What compiled code has of its own: how many threads it uses, and generators."""
    found: list[Place] = []
    threading: Any = sys.modules.get("numba.np.ufunc.parallel")
    if threading is not None:

        def threads() -> int:
            """Asked before there are any, it would start them."""
            most = int(sys.modules["numba"].config.NUMBA_NUM_THREADS)
            return int(threading.get_num_threads()) if threading._is_initialized else most

        found.append(Setting("numba.threads", "threads of numba", "numba.get_num_threads()", threads,
                             threading.set_num_threads))  # fmt: skip
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
