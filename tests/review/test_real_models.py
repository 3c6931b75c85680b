"""What people really hand in: a review of it has nothing above notice, or nobody would read the next one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import project, write_bundle

HERE = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

DASK = """
import os
def cube(value):
    return value**3

def wire(entrypoint, params, seed):
    import dask.bag
    bag = dask.bag.from_sequence(range(20), npartitions=4)
    with dask.config.set(scheduler="processes", num_workers=2):
        return {"out": str(bag.map(cube).sum().compute()).encode()}
"""
PLOT = """
import io
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

def wire(entrypoint, params, seed):
    frame = pd.DataFrame(np.random.default_rng(seed).normal(size=(100, 3)), columns=list("abc")).cumsum()
    figure, axes = plt.subplots()
    frame.plot(ax=axes)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return {"picture": picture.getvalue(), "table": frame.describe().to_csv().encode()}
"""
NATIVE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(fast, module) { module.def("add", [](long a, long b) { return a + b; }); }
"""
SETUP = """
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
setup(ext_modules=[Pybind11Extension("fast", ["fast.cpp"])], py_modules=["probe"])
"""


class Model(NamedTuple):
    """A bundle that is there, or the code of one with what it depends on, and its task."""

    code: str = ""
    dependencies: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    folder: str = ""
    entrypoint: str = "main"


MODELS = {
    "sir": Model(folder="bundles/sir", entrypoint="sir.model/baseline"),
    "starsim": Model(folder="bench/models/starsim"),
    "numba": Model(folder="bench/models/numba"),
    "dask with processes": Model(DASK, ("dask", "cloudpickle")),
    "matplotlib and pandas": Model(PLOT, ("matplotlib", "pandas")),
    "a pybind11 build": Model(
        "import fast\ndef wire(entrypoint, params, seed):\n    return {'out': str(fast.add(seed, 1)).encode()}\n",
        build=("setuptools", "pybind11"), files={"fast.cpp": NATIVE, "setup.py": SETUP},
    ),
}  # fmt: skip


def made(folder: Path, model: Model) -> Path:
    if model.folder:
        return HERE / model.folder
    requires = f'[build-system]\nrequires = {json.dumps(model.build)}\nbuild-backend = "setuptools.build_meta"\n'
    text = project(*model.dependencies, built=not model.build)
    return write_bundle(folder, model.code, pyproject=requires * bool(model.build) + text, files=model.files)


@pytest.mark.full("a quiet bundle of its own, without packages, is in test_review.py")
@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_has_nothing_above_notice(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    if model.build and shutil.which("c++") is None:
        pytest.skip("a pybind11 build needs a C++ compiler on this host")
    bundle = made(tmp_path / "bundle", model)
    given = bundle / "task.json"
    task = tmp_path / "task.json"
    task.write_text(
        given.read_text() if given.exists() else json.dumps({"entrypoint": model.entrypoint, "params": {}, "seed": 1})
    )
    target = tmp_path / "report.json"
    command = [sys.executable, "-m", "modelops", "review", str(bundle), "--task", str(task), "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(target.read_text())
    assert {phase["outcome"] for phase in report["phases"]} == {"done"}, done.stdout
    above = [finding for finding in report["findings"] if finding["severity"] in ("warning", "alarm")]
    assert not above, json.dumps(above, indent=1)[:6000]
