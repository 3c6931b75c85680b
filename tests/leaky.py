"""Bundles that leak, each in one way, and what a search for leaks has to say of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from conftest import GROUP, write_bundle


class Leaky(NamedTuple):
    """`kind` and `name` of the cause, and a text of the line that makes it. `needs` are dependencies."""

    wire: str
    kind: str
    name: str
    line: str
    needs: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """The bundle."""
        if not self.needs:
            return write_bundle(folder, self.wire)
        return write_bundle(folder, self.wire, pyproject=PROJECT.format(needs=list(self.needs)))


PROJECT = f"""
[build-system]
requires = []
build-backend = "tiny_backend"
backend-path = ["backend"]
[project]
name = "probe"
version = "1.0"
dependencies = {{needs}}
[project.entry-points."{GROUP}"]
execute = "probe:wire"
"""

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
