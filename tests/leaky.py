"""Bundles that leak, each in one way, and what a search for leaks has to say of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from conftest import GROUP, write_bundle


class Leaky(NamedTuple):
    """`kind` and `name` of the cause, and a text of the line that makes it. `needs` are dependencies,
    `file` has that line; what can not be put back is not `proven`, and a suspect."""

    wire: str
    kind: str
    name: str
    line: str
    needs: tuple[str, ...] = ()
    file: str = "probe.py"
    proven: bool = True

    def write(self, folder: Path) -> Path:
        """The bundle."""
        return write_bundle(folder, self.wire, needs=self.needs)


LEAKY: Mapping[str, Leaky] = {
    "a module global": Leaky(
        """
COUNT = 0
def wire(entrypoint, params, seed):
    global COUNT
    COUNT += seed
    return {"out": {"total": COUNT}}
""",
        "module attribute",
        "probe.COUNT",
        "COUNT += seed",
    ),
    "a class attribute": Leaky(
        """
class Model:
    seen = []
    def run(self, seed):
        self.seen.append(seed)
        return sum(self.seen)
def wire(entrypoint, params, seed):
    return {"out": {"total": Model().run(seed)}}
""",
        "class attribute",
        "probe.Model.seen",
        "self.seen.append(seed)",
    ),
    "a mutable default argument": Leaky(
        """
def simulate(seed, history=[]):
    history.append(seed)
    return sum(history)
def wire(entrypoint, params, seed):
    return {"out": {"total": simulate(seed)}}
""",
        "function state",
        "probe.simulate",
        "history.append(seed)",
    ),
    "a cache whose content is changed": Leaky(
        """
import functools
@functools.lru_cache
def load(size):
    return [1.0] * size
def wire(entrypoint, params, seed):
    table = load(4)
    table[0] += seed
    return {"out": {"total": sum(table)}}
""",
        "functools cache",
        "probe.load",
        "table",
    ),
    "os.environ": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    scale = os.environ.get("SCALE", "1")
    os.environ["SCALE"] = str(seed + 1)
    return {"out": scale}
""",
        "environment variable",
        "SCALE",
        'os.environ["SCALE"] = str(seed + 1)',
    ),
    "chdir": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    found = os.path.basename(os.getcwd())
    os.chdir("/tmp")
    return {"out": found}
""",
        "working directory",
        "the working directory",
        'os.chdir("/tmp")',
    ),
    "a monkey patch": Leaky(
        """
import json
def wire(entrypoint, params, seed):
    text = json.dumps({"seed": seed})
    json.dumps = lambda *args, **options: "patched"
    return {"out": text}
""",
        "module attribute",
        "json.dumps",
        "json.dumps = lambda",
    ),
    "a warning filter": Leaky(
        """
import warnings
def wire(entrypoint, params, seed):
    try:
        warnings.warn("hot", UserWarning)
        outcome = "warned"
    except UserWarning:
        outcome = "raised"
    warnings.simplefilter("error")
    return {"out": outcome}
""",
        "warning filters",
        "warnings.filters",
        'warnings.simplefilter("error")',
    ),
    "a file in the home": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    path = os.path.expanduser("~/last.txt")
    last = open(path).read() if os.path.exists(path) else "none"
    with open(path, "w") as file:
        file.write(str(seed))
    return {"out": last}
""",
        "file",
        "/tmp/home/last.txt",
        "file",
    ),
    "the random module": Leaky(
        """
import random
random.seed(1)
def wire(entrypoint, params, seed):
    return {"out": {"draw": random.random()}}
""",
        "random state",
        "random's generator",
        "random.random()",
    ),
    "numpy.random without a seed per task": Leaky(
        """
import numpy
numpy.random.seed(1)
def wire(entrypoint, params, seed):
    return {"out": {"draw": float(numpy.random.normal())}}
""",
        "random state",
        "numpy.random's global generator",
        "numpy.random.normal()",
        ("numpy",),
    ),
    "a cached data frame changed in place": Leaky(
        """
import pandas
TABLE = pandas.DataFrame({"age": [1, 2, 3], "people": [10.0, 20.0, 30.0]})
def wire(entrypoint, params, seed):
    TABLE["people"] *= seed + 1
    return {"out": {"people": float(TABLE["people"].sum())}}
""",
        "module attribute",
        "probe.TABLE",
        'TABLE["people"] *= seed + 1',
        ("pandas",),
    ),
    "a dependency's state": Leaky(
        """
import dateutil.parser
def wire(entrypoint, params, seed):
    found = dateutil.parser.parse("1 Foo 2020", default=None, fuzzy=True).month
    dateutil.parser.parser.__init__.__globals__["DEFAULTPARSER"].info._months["foo"] = seed
    return {"out": {"month": found}}
""",
        "module attribute",
        "dateutil.parser._parser.DEFAULTPARSER",
        "_months",
        ("python-dateutil",),
    ),
    # What the process has once, and what neither attributes nor pickling show.
    "an options object beside one that answers everything with an error": Leaky(
        """
class Units:
    def __getattr__(self, name):
        raise ValueError(f"{name} is no unit")
class Options(dict):
    def __getattr__(self, name):
        return self[name]
    def __setattr__(self, name, value):
        self[name] = value
per = Units()
OPTIONS = Options(verbose=1)
def wire(entrypoint, params, seed):
    verbose = OPTIONS.verbose
    OPTIONS.verbose = seed + 0.5
    return {"out": str(verbose)}
""",
        "module attribute",
        "probe.OPTIONS",
        "self[name] = value",
    ),
    "the umask": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    before = os.umask(0o077)
    return {"out": oct(before)}
""",
        "umask",
        "the umask",
        "os.umask(0o077)",
    ),
    "a signal handler": Leaky(
        """
import signal
def on_alarm(number, frame): pass
def wire(entrypoint, params, seed):
    before = str(signal.getsignal(signal.SIGUSR1) is on_alarm)
    signal.signal(signal.SIGUSR1, on_alarm)
    return {"out": before}
""",
        "signal handler",
        "SIGUSR1",
        "signal.signal(",
    ),
    "the locale": Leaky(
        """
import locale
def wire(entrypoint, params, seed):
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "C.UTF-8" if before == "C" else "C")
    return {"out": before}
""",
        "locale",
        "the locale",
        "locale.setlocale(locale.LC_NUMERIC, ",
    ),
    "the decimal context": Leaky(
        """
import decimal
def wire(entrypoint, params, seed):
    out = str(decimal.Decimal(1) / 3)
    decimal.getcontext().prec = 6
    return {"out": out}
""",
        "decimal context",
        "the decimal context",
        "prec = 6",
    ),
    "what decimal raises on": Leaky(
        """
import decimal
def wire(entrypoint, params, seed):
    try:
        out = str(decimal.Decimal(1) / 0)
    except decimal.DivisionByZero:
        out = "raised"
    decimal.getcontext().traps[decimal.DivisionByZero] = False
    return {"out": out}
""",
        "decimal context",
        "the decimal context",
        "traps[",
    ),
    "sys.path": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    out = str("/tmp/x" in sys.path)
    sys.path.insert(0, "/tmp/x")
    return {"out": out}
""",
        "sys.path",
        "sys.path",
        "sys.path.insert",
    ),
    "sys.argv": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    out = str(len(sys.argv))
    sys.argv.append("--seed")
    return {"out": out}
""",
        "sys.argv",
        "sys.argv",
        "sys.argv.append",
    ),
    "a class attribute of a dependency": Leaky(
        """
import dateutil.tz
def wire(entrypoint, params, seed):
    out = str(getattr(dateutil.tz.tzutc, "marker", "none"))
    dateutil.tz.tzutc.marker = seed
    return {"out": out}
""",
        "class attribute",
        "dateutil.tz.tz.tzutc.marker",
        "marker = seed",
        ("python-dateutil",),
    ),
    "a patched class of the standard library": Leaky(
        """
import json
class Thing: pass
def wire(entrypoint, params, seed):
    try:
        out = json.dumps(Thing())
    except TypeError:
        out = "raised"
    json.JSONEncoder.default = lambda self, o: "thing"
    return {"out": out}
""",
        "class attribute",
        "json.encoder.JSONEncoder.default",
        "default = lambda",
    ),
    "a setting of the standard library": Leaky(
        """
import tempfile
def wire(entrypoint, params, seed):
    out = tempfile.template
    tempfile.template = "mine"
    return {"out": out}
""",
        "module attribute",
        "tempfile.template",
        'tempfile.template = "mine"',
    ),
    "builtins": Leaky(
        """
import builtins
def wire(entrypoint, params, seed):
    out = str(getattr(builtins, "SETTINGS", None))
    builtins.SETTINGS = {"seed": 1}
    return {"out": out}
""",
        "module attribute",
        "builtins.SETTINGS",
        "builtins.SETTINGS =",
    ),
    "a Generator of numpy in a module": Leaky(
        """
import numpy
RNG = numpy.random.default_rng(7)
def wire(entrypoint, params, seed):
    return {"out": str(RNG.normal())}
""",
        "module attribute",
        "probe.RNG",
        "RNG.normal()",
        ("numpy",),
    ),
    "a random.Random in a module": Leaky(
        """
import random
RNG = random.Random(7)
def wire(entrypoint, params, seed):
    return {"out": str(RNG.random())}
""",
        "module attribute",
        "probe.RNG",
        "RNG.random()",
    ),
    "numpy's print options": Leaky(
        """
import numpy
def wire(entrypoint, params, seed):
    out = str(numpy.array([1/3]))
    numpy.set_printoptions(precision=3)
    return {"out": out}
""",
        "module attribute",
        "numpy._core.printoptions.format_options",
        "format_options.set(",
        ("numpy",),
        file="numpy/_core/arrayprint.py",
    ),
    "pandas' options": Leaky(
        """
import pandas
def wire(entrypoint, params, seed):
    out = str(pandas.DataFrame({"a": [1/3]}))
    pandas.set_option("display.precision", 2)
    return {"out": out}
""",
        "module attribute",
        "pandas._config.config._global_config",
        "root[k_root] = v",
        ("pandas",),
        file="pandas/_config/config.py",
    ),
    "matplotlib's rcParams": Leaky(
        """
import matplotlib
def wire(entrypoint, params, seed):
    out = str(matplotlib.rcParams["lines.linewidth"])
    matplotlib.rcParams["lines.linewidth"] = seed + 4
    return {"out": out}
""",
        "module attribute",
        "matplotlib.rcParams",
        "dict.__setitem__",
        ("matplotlib",),
        file="matplotlib/__init__.py",
    ),
    "a logger's level": Leaky(
        """
import logging
def wire(entrypoint, params, seed):
    out = str(logging.getLogger("model").isEnabledFor(logging.INFO))
    logging.getLogger("model").setLevel(logging.INFO)
    return {"out": out}
""",
        "logger",
        "model",
        "setLevel",
    ),
    "a handler of logging": Leaky(
        """
import logging
def wire(entrypoint, params, seed):
    root = logging.getLogger()
    out = str(len(root.handlers))
    root.addHandler(logging.StreamHandler())
    return {"out": out}
""",
        "logger",
        "the root logger",
        "addHandler",
    ),
    "logging that is disabled": Leaky(
        """
import logging
def wire(entrypoint, params, seed):
    out = str(logging.getLogger("model").isEnabledFor(logging.ERROR))
    logging.disable(logging.CRITICAL)
    return {"out": out}
""",
        "logging",
        "logging.disable",
        "logging.disable",
    ),
    "a singleton": Leaky(
        """
class Registry:
    _instance = None
    def __new__(cls):
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance.agents = {}
        return cls._instance
def wire(entrypoint, params, seed):
    agents = Registry().agents
    agents[seed] = seed
    return {"out": str(len(agents))}
""",
        "class attribute",
        "probe.Registry._instance",
        "cls._instance =",
    ),
    "itertools.count": Leaky(
        """
import itertools
IDS = itertools.count()
def wire(entrypoint, params, seed):
    return {"out": str(next(IDS))}
""",
        "module attribute",
        "probe.IDS",
        "next(IDS)",
    ),
    "a class's count": Leaky(
        """
import itertools
class Agent:
    ids = itertools.count(1)
    def __init__(self):
        self.id = next(Agent.ids)
def wire(entrypoint, params, seed):
    return {"out": str(Agent().id)}
""",
        "class attribute",
        "probe.Agent.ids",
        "next(Agent.ids)",
    ),
    "a class in a class": Leaky(
        """
class Model:
    class Options:
        scale = 1
def wire(entrypoint, params, seed):
    out = str(Model.Options.scale)
    Model.Options.scale = seed + 10
    return {"out": out}
""",
        "class attribute",
        "probe.Model.Options.scale",
        "scale = seed + 10",
    ),
    "a closure": Leaky(
        """
def counter():
    total = 0
    def step(by):
        nonlocal total
        total += by
        return total
    return step
step = counter()
def wire(entrypoint, params, seed):
    return {"out": str(step(seed))}
""",
        "function state",
        "probe.step",
        "total += by",
    ),
    "a context variable": Leaky(
        """
import contextvars
SCENARIO = contextvars.ContextVar("scenario", default="base")
def wire(entrypoint, params, seed):
    out = SCENARIO.get()
    SCENARIO.set("high")
    return {"out": out}
""",
        "module attribute",
        "probe.SCENARIO",
        'SCENARIO.set("high")',
    ),
    "threading.local": Leaky(
        """
import threading
LOCAL = threading.local()
def wire(entrypoint, params, seed):
    LOCAL.count = getattr(LOCAL, "count", 0) + 1
    return {"out": str(LOCAL.count)}
""",
        "module attribute",
        "probe.LOCAL",
        "LOCAL.count =",
    ),
    "a database in memory": Leaky(
        """
import sqlite3
DB = sqlite3.connect(":memory:")
DB.execute("create table agents (id)")
def wire(entrypoint, params, seed):
    DB.execute("insert into agents values (?)", (seed,))
    return {"out": str(DB.execute("select count(*) from agents").fetchone()[0])}
""",
        "module attribute",
        "probe.DB",
        "insert into agents",
    ),
    "the niceness": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    return {"out": str(os.nice(1))}
""",
        "niceness",
        "the niceness",
        "os.nice(1)",
        proven=False,
    ),
    "a resource limit": Leaky(
        """
import resource
def wire(entrypoint, params, seed):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    return {"out": str(soft)}
""",
        "resource limit",
        "RLIMIT_NOFILE",
        "setrlimit",
    ),
    "a generator that waits": Leaky(
        """
def numbers():
    number = 0
    while True:
        number += 1
        yield number
IDS = numbers()
def wire(entrypoint, params, seed):
    return {"out": str(next(IDS))}
""",
        "module attribute",
        "probe.IDS",
        "next(IDS)",
        proven=False,
    ),
    "an iterator": Leaky(
        """
IDS = iter([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,18, 19])
def wire(entrypoint, params, seed):
    return {"out": str(next(IDS))}
""",
        "module attribute",
        "probe.IDS",
        "next(IDS)",
    ),
    "the time zone": Leaky(
        """
import os, time
def wire(entrypoint, params, seed):
    out = time.strftime("%H", time.localtime(0))
    os.environ["TZ"] = "XYZ-5"
    time.tzset()
    return {"out": out}
""",
        "environment variable",
        "TZ",
        "TZ",
    ),
    "polars' configuration": Leaky(
        """
import polars
def wire(entrypoint, params, seed):
    out = str(polars.DataFrame({"a": [1.23456]}))
    polars.Config.set_tbl_hide_column_names(True)
    return {"out": out}
""",
        "environment variable",
        "POLARS_FMT_TABLE_HIDE_COLUMN_NAMES",
        "set_tbl_hide",
        ("polars",),
    ),
    "a data frame in a cache": Leaky(
        """
import functools
import pandas
@functools.lru_cache
def table(name):
    return pandas.DataFrame({"people": [1.0, 2.0]})
def wire(entrypoint, params, seed):
    frame = table("x")
    frame.loc[0, "people"] += seed
    return {"out": str(frame["people"].sum())}
""",
        "functools cache",
        "probe.table",
        "frame",
        ("pandas",),
    ),
    # What modules keep where only their functions reach it, and what the standard library's own modules hold.
    "csv's limit of a field": Leaky(
        """
import csv
def wire(entrypoint, params, seed):
    return {"out": str(csv.field_size_limit(seed + 100))}
""",
        "csv limit",
        "csv.field_size_limit()",
        "field_size_limit(",
    ),
    "a dialect of csv": Leaky(
        """
import csv
def wire(entrypoint, params, seed):
    out = str("mine" in csv.list_dialects())
    csv.register_dialect("mine", delimiter=";")
    return {"out": out}
""",
        "module attribute",
        "_csv._dialects",
        "register_dialect(",
    ),
    "a standard output that is replaced": Leaky(
        """
import io, sys
def wire(entrypoint, params, seed):
    out = type(sys.stdout).__name__
    sys.stdout = io.StringIO()
    return {"out": out}
""",
        "module attribute",
        "sys.stdout",
        "sys.stdout =",
    ),
    "the recursion limit": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    out = str(sys.getrecursionlimit())
    sys.setrecursionlimit(5000)
    return {"out": out}
""",
        "recursion limit",
        "sys.getrecursionlimit()",
        "setrecursionlimit(",
    ),
    "the collector's thresholds": Leaky(
        """
import gc
def wire(entrypoint, params, seed):
    out = str(gc.get_threshold()[0])
    gc.set_threshold(123)
    return {"out": out}
""",
        "thresholds",
        "gc.get_threshold()",
        "gc.set_threshold(",
    ),
    "the time-out of sockets": Leaky(
        """
import socket
def wire(entrypoint, params, seed):
    out = str(socket.socket().gettimeout())
    socket.setdefaulttimeout(seed)
    return {"out": out}
""",
        "socket time-out",
        "socket.getdefaulttimeout()",
        "setdefaulttimeout(",
    ),
    "the stack size of threads": Leaky(
        """
import threading
def wire(entrypoint, params, seed):
    return {"out": str(threading.stack_size(1 << 20))}
""",
        "stack size of threads",
        "threading.stack_size()",
        "stack_size(",
    ),
    "how many digits a number may have": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    try:
        out = str(len(str(10**5000)))
    except ValueError:
        out = "too long"
    sys.set_int_max_str_digits(0)
    return {"out": out}
""",
        "limit of digits",
        "sys.get_int_max_str_digits()",
        "set_int_max_str_digits(",
    ),
    "a trace function": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    out = str(sys.getprofile() is not None)
    sys.setprofile(lambda *event: None)
    return {"out": out}
""",
        "profile function",
        "sys.getprofile()",
        "sys.setprofile(",
    ),
    "an exception hook": Leaky(
        """
import sys
def wire(entrypoint, params, seed):
    out = str(sys.excepthook is sys.__excepthook__)
    sys.excepthook = lambda *error: None
    return {"out": out}
""",
        "module attribute",
        "sys.excepthook",
        "sys.excepthook =",
    ),
    "the fault handler": Leaky(
        """
import faulthandler
def wire(entrypoint, params, seed):
    out = str(faulthandler.is_enabled())
    faulthandler.disable() if faulthandler.is_enabled() else faulthandler.enable()
    return {"out": out if seed > 1 else "first"}
""",
        "fault handler",
        "faulthandler.is_enabled()",
        "faulthandler.disable()",
    ),
    "a built-in function that is replaced": Leaky(
        """
import builtins
def wire(entrypoint, params, seed):
    out = str(sum([seed, 1]) - seed)
    builtins.sum = lambda values: 0
    return {"out": out if seed == 1 else out[:1]}
""",
        "module attribute",
        "builtins.sum",
        "builtins.sum =",
    ),
    "a codec that is registered": Leaky(
        """
import codecs
def find(name):
    return codecs.lookup("utf-8") if name == "mine" else None
def wire(entrypoint, params, seed):
    try:
        out = codecs.lookup("mine").name
    except LookupError:
        out = "unknown"
    codecs.register(find)
    return {"out": out}
""",
        "codecs",
        "codecs.register()",
        "codecs.register(find)",
    ),
    "a handler of codecs' errors": Leaky(
        """
import codecs
def wire(entrypoint, params, seed):
    try:
        out = "\xe9".encode("ascii", "mine").decode()
    except LookupError:
        out = "unknown"
    codecs.register_error("mine", lambda error: ("?", error.end))
    return {"out": out}
""",
        "codec errors",
        "codecs.register_error()",
        "codecs.register_error(",
    ),
    "a function at exit": Leaky(
        """
import atexit
def wire(entrypoint, params, seed):
    out = str(atexit._ncallbacks())
    atexit.register(print)
    return {"out": out}
""",
        "functions at exit",
        "atexit._ncallbacks()",
        "atexit.register(",
        proven=False,
    ),
    "an import hook": Leaky(
        """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        return None
def wire(entrypoint, params, seed):
    out = str(len([one for one in sys.meta_path if isinstance(one, Finder)]))
    sys.meta_path.insert(0, Finder())
    return {"out": out}
""",
        "module attribute",
        "sys.meta_path",
        "sys.meta_path.insert(",
    ),
    "a module that another stands in for": Leaky(
        """
import sys, types
def wire(entrypoint, params, seed):
    import colorsys
    out = str(hasattr(colorsys, "hls_to_rgb"))
    sys.modules["colorsys"] = types.ModuleType("colorsys")
    return {"out": out}
""",
        "loaded module",
        "colorsys",
        'sys.modules["colorsys"] =',
    ),
    "a table of the standard library": Leaky(
        """
import xml.etree.ElementTree as tree
def wire(entrypoint, params, seed):
    out = tree.tostring(tree.Element("{urn:model}run")).decode()
    tree.register_namespace("model", "urn:model")
    return {"out": out}
""",
        "module attribute",
        "xml.etree.ElementTree._namespace_map",
        "register_namespace(",
    ),
    "an object of the standard library": Leaky(
        """
import calendar
def wire(entrypoint, params, seed):
    out = calendar.month(2020, 1).split()[2]
    calendar.setfirstweekday(3)
    return {"out": out}
""",
        "module attribute",
        "calendar.c",
        "setfirstweekday(",
    ),
    "a function by type": Leaky(
        """
import functools
@functools.singledispatch
def show(value):
    return "plain"
def wire(entrypoint, params, seed):
    out = show(seed)
    show.register(int)(lambda value: "whole")
    return {"out": out}
""",
        "function state",
        "probe.show<dispatch>",
        "show",
    ),
    "a mutable default argument of a decorated function": Leaky(
        """
import functools
def logged(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)
    return call
@logged
def simulate(seed, history=[]):
    history.append(seed)
    return sum(history)
def wire(entrypoint, params, seed):
    return {"out": str(simulate(seed))}
""",
        "function state",
        "probe.simulate<function>",
        "history.append(seed)",
    ),
    "blocked signals": Leaky(
        """
import signal
def wire(entrypoint, params, seed):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    return {"out": str(len(before))}
""",
        "blocked signals",
        "the blocked signals",
        "pthread_sigmask(",
    ),
    "a time zone of which no variable tells": Leaky(
        """
import os, time
def wire(entrypoint, params, seed):
    out = time.strftime("%H", time.localtime(0))
    os.environ["TZ"] = "XYZ-5"
    time.tzset()
    del os.environ["TZ"]
    return {"out": out}
""",
        "time zone",
        "the time zone",
        "time.tzset()",
    ),
    "an empty folder": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    try:
        os.mkdir("results")
        out = "made"
    except FileExistsError:
        out = "there"
    return {"out": out}
""",
        "folder",
        "/tmp/bundle/results",
        'os.mkdir("results")',
    ),
    "a file of the bundle that is replaced": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    out = open("pyproject.toml").read()[:8]
    with open("new.toml", "w") as file:
        file.write("something else")
    os.replace("new.toml", "pyproject.toml")
    return {"out": out}
""",
        "file",
        "/tmp/bundle/pyproject.toml",
        "os.replace(",
    ),
    "shared memory": Leaky(
        """
import os
def wire(entrypoint, params, seed):
    out = str(os.path.exists("/dev/shm/grid"))
    open("/dev/shm/grid", "w").close()
    return {"out": out}
""",
        "file",
        "/dev/shm/grid",
        "/dev/shm/grid",
    ),
    "how numpy counts errors": Leaky(
        """
import numpy
def wire(entrypoint, params, seed):
    try:
        out = str(numpy.float64(1) / numpy.float64(0))
    except FloatingPointError:
        out = "raised"
    numpy.seterr(all="raise")
    return {"out": out}
""",
        "numpy error state",
        "numpy.geterr()",
        "numpy.seterr(",
        ("numpy",),
    ),
    "an options object with a word of its own on how it is pickled, which others hold": Leaky(
        """
class Options:
    __slots__ = ("depth", "__dict__")
    def __reduce__(self):
        return Options, ()
OPTIONS = Options()
OPTIONS.depth = OPTIONS.scale = 1
def held(options=OPTIONS):
    return options
def wire(entrypoint, params, seed):
    out = f"{held().scale} {held().depth}"
    held().scale = held().depth = 7
    return {"out": out}
""",
        "module attribute",
        "probe.OPTIONS",
        "depth = 7",
    ),
    "how scipy's functions count errors": Leaky(
        """
from scipy import special
def wire(entrypoint, params, seed):
    try:
        out = str(special.gammaln(0))
    except special.SpecialFunctionError:
        out = "raised"
    special.seterr(all="raise")
    return {"out": out}
""",
        "scipy error state",
        "scipy.special.geterr()",
        "special.seterr(",
        ("scipy",),
    ),
    "numba's threads": Leaky(
        """
import numba
def wire(entrypoint, params, seed):
    out = numba.get_num_threads()
    numba.set_num_threads(1)
    return {"out": str(out)}
""",
        "threads of numba",
        "numba.get_num_threads()",
        "numba.set_num_threads(1)",
        ("numba",),
    ),
    "a text in memory": Leaky(
        """
import io
LOG = io.StringIO()
def wire(entrypoint, params, seed):
    LOG.write(f"{seed},")
    return {"out": LOG.getvalue()}
""",
        "module attribute",
        "probe.LOG",
        "LOG.write(",
    ),
    "how far a file was read": Leaky(
        """
TABLE = open("/bundle/pyproject.toml")
def wire(entrypoint, params, seed):
    return {"out": next(TABLE) + "."}
""",
        "module attribute",
        "probe.TABLE",
        "next(TABLE)",
    ),
    "a class registered with an abstract one": Leaky(
        """
import numbers
class Amount: pass
def wire(entrypoint, params, seed):
    out = str(issubclass(Amount, numbers.Real))
    numbers.Real.register(Amount)
    return {"out": out}
""",
        "registered classes",
        "numbers.Real",
        "numbers.Real.register(Amount)",
    ),
    "a variable that the C library alone has": Leaky(
        """
import ctypes
libc = ctypes.CDLL(None)
getenv, setenv = libc.getenv, libc.setenv
getenv.restype = ctypes.c_char_p
def wire(entrypoint, params, seed):
    out = str(getenv(b"SCALE"))
    setenv(b"SCALE", b"2", 1)
    return {"out": out}
""",
        "environment of the C library",
        "environ",
        "setenv(b",
    ),
}

C_SOURCE = """
#include <Python.h>
static double held_total = 0;
static PyObject *add(PyObject *self, PyObject *args) {
    double x;
    if (!PyArg_ParseTuple(args, "d", &x)) return NULL;
    held_total += x;
    return PyFloat_FromDouble(held_total);
}
static PyMethodDef methods[] = {{"add", add, METH_VARARGS, ""}, {NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native", "", -1, methods};
PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&module); }
"""
CPP_SOURCE = """
#include <pybind11/pybind11.h>
#include <vector>
static double accumulate(double x) {
    static double calls = 0;
    static std::vector<double> seen;
    calls += 1;
    seen.push_back(x);
    double sum = 0;
    for (double v : seen) sum += v;
    return sum * calls;
}
PYBIND11_MODULE(native, m) { m.def("add", &accumulate); }
"""
C_SETUP = """
from setuptools import Extension, setup
setup(ext_modules=[Extension("native", ["native.c"])])
"""
CPP_SETUP = """
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
setup(ext_modules=[Pybind11Extension("native", ["native.cpp"], extra_link_args={link})])
"""
NATIVE_PROJECT = f"""
[build-system]
requires = {{requires}}
build-backend = "setuptools.build_meta"
[project]
name = "probe"
version = "1.0"
[project.entry-points."{GROUP}"]
execute = "probe:wire"
[tool.setuptools]
py-modules = ["probe"]
"""
NATIVE_WIRE = """
import native
def wire(entrypoint, params, seed):
    return {"out": {"total": native.add(seed)}}
"""


def native_bundle(folder: Path, language: str, stripped: bool = False) -> Path:
    """A bundle whose extension keeps a total, in C with setuptools or in C++ with pybind11."""
    if language == "C":
        requires, files = ["setuptools>=61"], {"native.c": C_SOURCE, "setup.py": C_SETUP}
    else:
        requires = ["setuptools>=61", "pybind11>=2.10"]
        files = {"native.cpp": CPP_SOURCE, "setup.py": CPP_SETUP.format(link=["-s"] if stripped else [])}
    return write_bundle(folder, NATIVE_WIRE, pyproject=NATIVE_PROJECT.format(requires=requires), files=files)
