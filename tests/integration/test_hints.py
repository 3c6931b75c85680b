"""Where the sandbox is why a task failed, the error says so after the exception's own words; else it says nothing."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, Runner, project
from suites import rows

Bundle = Callable[..., Path]
CODE = """
import os, pathlib, shutil, socket, subprocess, sys, urllib.request

def wire(entrypoint, params, seed):
    exec(params["code"], {**globals()})
    return {"out": "done"}
"""
FILES = {"data/x.csv": "x", "scripts/helper.py": "", "scripts/run.sh": "true\n"}
NETWORK = "The sandbox has no network"
HINTED = {
    "urllib": ("urllib.request.urlopen('https://example.org')", NETWORK),
    "name": ("socket.getaddrinfo('example.org', 443)", NETWORK),
    "address": ("socket.create_connection(('192.0.2.1', 80), 5)", NETWORK),
    "ftp": ("import ftplib; ftplib.FTP('example.org')", NETWORK),
    "wrapped": (
        "try:\n socket.getaddrinfo('example.org', 1)\nexcept OSError as e:\n raise RuntimeError('no data') from e",
        NETWORK,
    ),
    "in libc's words alone": ("raise RuntimeError('db: Temporary failure in name resolution')", NETWORK),
    "a group of exceptions": (
        "try:\n socket.getaddrinfo('example.org', 1)\n"
        "except OSError as e:\n raise ExceptionGroup('both', [e, ValueError('x')]) from None",
        NETWORK,
    ),
    "in curl's words": ("raise OSError('curlCode: 6; Details: Could not resolve host: s3.example.org')", NETWORK),
    "in polars' words": ("raise OSError('builder error: No CA certificates were loaded from the system')", NETWORK),
    "in duckdb's words": (
        "raise RuntimeError('Failed to download extension \"httpfs\"\\n(ERROR Could not establish connection)')",
        NETWORK,
    ),
    "dot, as graphviz says it": (
        "try:\n subprocess.run([pathlib.Path('dot')])\nexcept OSError as e:\n raise RuntimeError('no dot') from e",
        "The program 'dot' is not in the sandbox",
    ),
    "another name": ("import yaml", "no module 'yaml': declare 'pyyaml'"),
    "hidden by from None": (
        "try:\n socket.getaddrinfo('example.org', 1)\nexcept OSError:\n raise RuntimeError('no data') from None",
        NETWORK,
    ),
    "netCDF, which speaks of the disk": (
        "raise OSError(-68, 'NetCDF: I/O failure', 'https://example.org/x.nc')",
        NETWORK,
    ),
    "boto": ("raise ValueError('Could not connect to the endpoint URL: \"https://b.s3.amazonaws.com/\"')", NETWORK),
    "execvp": ("os.execvp('git', ['git'])", "The program 'git' is not in the sandbox"),
    "posix_spawn": ("os.posix_spawn('/usr/bin/git', ['git'], {})", "The program 'git' is not in the sandbox"),
    "asyncio": (
        "import asyncio\nasync def main(): await asyncio.create_subprocess_exec('git', 'log')\nasyncio.run(main())",
        "The program 'git' is not in the sandbox",
    ),
    "system": ("status = os.system('git log')\nif status: raise RuntimeError(status)", "The program 'git'"),
    "system, in words": ("if os.system('git log'): raise RuntimeError('git failed')", "The program 'git'"),
    "a shell's words": (
        "done = subprocess.run(['bash', '-c', 'git log'], capture_output=True, text=True)\n"
        "if done.returncode: raise RuntimeError(done.stderr)",
        "The program 'git'",
    ),
    "env's words": (
        "done = subprocess.run(['env', 'git', 'log'], capture_output=True, text=True)\n"
        "if done.returncode: raise RuntimeError(done.stderr)",
        "The program 'git'",
    ),
    "a path of the host": ("open('/home/ann/data.csv')", "'/home/ann/data.csv' would lie on the host"),
    "a path of the host, written": ("open('/scratch/out.csv', 'w')", "by paths relative to its top"),
    "pandas' words": ("raise OSError(\"non-existent directory: '/data'\")", "'/data' would lie on the host"),
    "polars' words": (
        "raise FileNotFoundError('No such file or directory (os error 2): /data/x')",
        "'/data/x' would lie",
    ),
    "folders counted up": (
        "open('/venv/lib/python3.11/data/x.csv')",
        "The bundle holds data/x.csv, and the package is installed elsewhere: open 'data/x.csv'",
    ),
    "a service of the host, in redis' words": (
        "raise OSError('Error 111 connecting to localhost:6379. Connection refused.')",
        "A task reaches no service of the host",
    ),
    "a service of the host, in psycopg's words": (
        "raise OSError('connection to server at \"localhost\" (127.0.0.1), port 5432 failed: Connection refused')",
        "A task reaches no service of the host",
    ),
    "a script without the right": (
        "subprocess.run(['./scripts/run.sh'])",
        "call what reads it, as `bash scripts/run.sh`",
    ),
    "git": ("subprocess.run(['git', 'log'])", "The program 'git' is not in the sandbox"),
    "gcc": ("subprocess.run(['/usr/bin/gcc', 'x.c'])", "The program 'gcc' is not in the sandbox"),
    "Rscript": ("subprocess.check_output(['Rscript', 'x.R'])", "(execute.programs)"),
    "shell": ("subprocess.run('git log', shell=True, check=True)", "The program 'git'"),
    "a variable": ("os.environ['API_KEY']", "none of the host's environment variables"),
    "a locale": ("import locale; locale.setlocale(locale.LC_ALL, 'xx_XX.UTF-8')", "the locales C and C.UTF-8 alone"),
    "standard input": ("input('go? ')", "no standard input"),
    "breakpoint": ("breakpoint()\npass", "no terminal"),
    "a drive": (r"open('C:\\Users\\ann\\data.csv')", "would lie on the host"),
    "shell, unheard": ("subprocess.run('git log', shell=True, check=True, capture_output=True)", "Status 127"),
    "module": ("import numppy", "no module 'numppy'"),
    "helper": ("import helper", "The bundle holds scripts/helper.py"),
    "own file": ("open('data/x.csv', 'w')", "'data/x.csv' is a file of the bundle"),
    "own file, appended": ("open('data/x.csv', 'a')", "'data/x.csv' is a file of the bundle"),
    "own file, by its place": ("open('/bundle/data/x.csv', 'w')", "'data/x.csv' is a file of the bundle"),
    "beside the module": ("os.mkdir(os.path.join(os.path.dirname(__file__), 'out'))", "its working directory"),
    "a new file of the bundle, in netCDF's words": (
        "raise PermissionError(13, 'Permission denied', '/bundle/x.nc')",
        "its working directory",
    ),
    "a new file of the host, in netCDF's words": (
        "raise PermissionError(13, 'Permission denied', '/data/x.nc')",
        "'/data/x.nc' would lie on the host",
    ),
    "root": ("os.mkdir('/results')", "its working directory"),
    "space": ("open('/dev/shm/x', 'wb').write(bytes(80 << 20))", "/dev/shm 64.0 MiB (execute.shm_bytes)"),
    "a large file": ("open('big', 'wb').truncate(1 << 45)", "(execute.limits.file_bytes)"),
    "a distribution": ("import importlib.metadata; importlib.metadata.version('numppy')", "no distribution 'numppy'"),
    "files": ("fs = [open('/dev/null') for _ in range(2000)]", "1024 files open (execute.limits.open_files)"),
}
SILENT = {
    "no such file": "open('data/absent.csv')",
    "no such folder to work in": "subprocess.run(['ls'], cwd='absent')",
    "a program's own status": "subprocess.run(['false'], check=True)",
    "nobody listens": "socket.create_connection(('127.0.0.1', 9))",
    "a script that is not there": "subprocess.run(['./run.sh'])",
    "a program that fails after another was not there": "os.system('git log'); raise ValueError('negative rate')",
    "a file of the sandbox's own places": "open('/tmp/absent')",
    "a page that is not there": "raise FileNotFoundError(2, 'Not found', 'https://127.0.0.1:9/x')",
    "what was met before": "try:\n open('/mnt/x')\nexcept OSError:\n pass\nraise ValueError('x') from None",
    "a submodule": "import json.absent",
    "an attribute": "from json import absent",
    "a file without a right": "os.chmod('mine', 0) if open('mine', 'w') else 0; open('mine')",
    "a database opened to be read": "import sqlite3; sqlite3.connect('x.db').execute('create table t(a)'); "
    "sqlite3.connect('file:x.db?mode=ro', uri=True).execute('create table u(a)')",
    "another mapping": "dict(os.environ)['API_KEY']",
    "the end of a file": "raise EOFError('Ran out of input')",
    "another error": "raise ValueError('no network')",
    "a refused kind of socket": "socket.socket(40, 1)",
}


def ask(run: Runner, path: Path, codes: list[str], *options: str) -> list[Result]:
    tasks = [{"entrypoint": "main", "params": {"code": code}, "seed": 1} for code in codes]
    return run.served(path, tasks, *options)


def test_the_cause_and_what_to_do(run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]]) -> None:
    options = profile_with('[execute]\nshm_bytes = "64MiB"')
    codes = [code.replace("__file__", "'/bundle/probe.py'") for code, _ in HINTED.values()]
    results = ask(run, bundle(CODE, files=FILES), codes, *options)
    for (name, (_, hint)), result in zip(HINTED.items(), results, strict=True):
        assert result.error["type"] == "task_exception", name
        words = result.error["exception"]["message"].rstrip()
        after = result.error["error"].split(words, 1)[1] if words else result.error["error"]
        assert hint in after, (name, result.error["error"])


# Python's own word for these has no path: the line that raised it has.
UNTOLD = {
    "os.execv('/usr/bin/git', ['git'])": "The program 'git' is not in the sandbox",
    "os.execle('/usr/local/bin/git', 'git', {})": "The program 'git' is not in the sandbox",
    "os.posix_spawnp('git', ['git'], {})": "The program 'git' is not in the sandbox",
    "os.posix_spawn('scripts/run.sh', ['run'], {})": "call what reads it, as `bash scripts/run.sh`",
    "sqlite3.connect('/bundle/new.db')": "A task can write to its working directory",
    "sqlite3.connect(NEW)": "A task can write to its working directory",
    "sqlite3.connect('/home/ann/x.db')": "'/home/ann/x.db' would lie on the host",
    "sqlite3.connect('absent/x.db')": "",
    "sqlite3.connect(str(NEW))": "",
    "os.execv('absent', ['absent'])": "",
    "raise OSError(os.spawnlp(os.P_WAIT, 'git', 'git', 'log'))": "The program 'git' is not in the sandbox",
    "x = os.spawnv(os.P_WAIT, '/usr/bin/git', ['git'])\n    raise ValueError(f'git: {x}')": "The program 'git' is not",
    "x = 'git'\n    os.spawnvpe(os.P_NOWAIT, x, [x], {})\n    raise OSError(32512)": "The program 'git' is not",
    "os.spawnlp(os.P_WAIT, 'git', 'git', 'log')\n    raise ValueError('negative rate')": "",
    "raise OSError(os.spawnlp(os.P_WAIT, 'ls', 'ls', 'absent'))": "",
    "os.execv('data/absent', ['absent'])": "",
}


def test_what_an_exception_does_not_tell_its_line_does(run: Runner, bundle: Bundle) -> None:
    calls = "".join(f"def call{number}():\n    {call}\n" for number, call in enumerate(UNTOLD))
    head = "import os, pathlib, sqlite3\nNEW = pathlib.Path('/bundle/new.db')\n"
    path = bundle(f"{head}{calls}def wire(e, p, s):\n    globals()['call' + p['code']]()\n", files=FILES)
    results = ask(run, path, [str(number) for number in range(len(UNTOLD))])
    for (call, hint), result in zip(UNTOLD.items(), results, strict=True):
        after = result.error["error"].split(result.error["exception"]["message"], 1)[1]
        assert hint in after and bool(hint) == bool(after), (call, result.error["error"])
    in_strict = bundle("import sqlite3\ndef wire(e, p, s):\n    sqlite3.connect('new.db')\n")
    assert "under this profile" in run(in_strict, None, "--profile", "strict").error["error"]


def test_a_build_that_imports_what_it_does_not_require(run: Runner, bundle: Bundle) -> None:
    error = run(bundle(CODE, backend="import numpy\n")).error
    assert error["type"] == "build_failed" and "(pyproject.toml) alone: add what brings 'numpy'" in error["error"]


LACKS = {
    "../meson.build:1:0: ERROR: Unknown compiler(s): [['gfortran'], ['flang-new'], ['ifort']]": "'gfortran'",
    "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory": "'x86_64-linux-gnu-gcc'",
    "  No CMAKE_Fortran_COMPILER could be found.": "a compiler of Fortran",
    "error: can't find Rust compiler": "a compiler of Rust",
    "Cargo, the Rust package manager, is not installed or is not on PATH.": "a compiler of Rust",
    "rustc, the rust compiler, is not installed or not in PATH.": "a compiler of Rust",
    "error: command 'gcc' failed with exit code 1": "",
}


SAID = ("../meson.build:1:0: ERROR: Unknown compiler(s): [['gfortran'], ['flang-new'], ['ifort']]", [*LACKS][-1])


@pytest.mark.parametrize("said", rows({said: said for said in LACKS}, SAID, "how another tool says it"))
def test_a_build_that_lacks_a_compiler_names_it(run: Runner, bundle: Bundle, said: str) -> None:
    error = run(bundle(CODE, backend=f"def build_wheel(*_):\n    print({said!r})\n    raise SystemExit(1)\n")).error
    assert error["type"] == "build_failed"
    assert (f"The build needs {LACKS[said]}: install" in error["error"]) == bool(LACKS[said])


MASKED = {
    "network": ("socket.getaddrinfo('example.org', 1)", NETWORK),
    "program": ("subprocess.run(['git', 'log'])", "The program 'git' is not in the sandbox"),
    "module": ("import numppy", "no module 'numppy'"),
    "own file": ("open('data/x.csv', 'w')", "'data/x.csv' is a file of the bundle"),
    "root": ("os.mkdir('/results')", "its working directory"),
    "a path of the host": ("open('/home/ann/data.csv')", "'/home/ann/data.csv' would lie on the host"),
    "no cause of ours": ("open('data/absent.csv')", "in place of a result)"),
}
MASKS = """
import os, socket, subprocess, traceback

def wire(entrypoint, params, seed):
    try:
        exec(params["code"])
    except Exception as error:
        told = {"success": False, "error": str(error), "traceback": traceback.format_exc()}
        return {"table": b"", "metadata": told}
"""


def test_an_error_that_was_caught_and_returned_has_them_too(run: Runner, bundle: Bundle) -> None:
    results = ask(run, bundle(MASKS, files=FILES), [code for code, _ in MASKED.values()])
    for (name, (_, hint)), result in zip(MASKED.items(), results, strict=True):
        assert result.error["type"] == "task_exception" and result.error["exception"]["type"] != "Exception", name
        after = result.error["error"].split("caught this itself, ", 1)[1]
        assert hint in after and (name != "no cause of ours" or after.endswith(hint)), (name, after)


def test_no_guess(run: Runner, bundle: Bundle) -> None:
    for (name, _), result in zip(SILENT.items(), ask(run, bundle(CODE), list(SILENT.values())), strict=True):
        assert result.error["error"].endswith(result.error["exception"]["message"]), (name, result.error["error"])


def test_under_strict(run: Runner, bundle: Bundle) -> None:
    codes = ["os.makedirs('results')", "subprocess.run(['ls'])"]
    folder, program = ask(run, bundle(CODE), codes, "--profile", "strict")
    assert '(execute.working_directory = "bundle"): use tempfile' in folder.error["error"]
    assert "this profile has no programs (execute.programs)" in program.error["error"]


ANOTHER = pytest.mark.full("another library")


@pytest.mark.parametrize(
    "needs, call",
    [
        ("requests", "import requests; requests.get('https://example.org')"),
        pytest.param("httpx", "import httpx; httpx.get('https://example.org')", marks=ANOTHER),
        pytest.param("urllib3", "import urllib3; urllib3.request('GET', 'https://x.org', retries=0)", marks=ANOTHER),
        pytest.param("aiohttp", "import aiohttp, asyncio\nasync def f():\n  async with aiohttp.ClientSession() as s:\n"
                     "    await s.get('https://example.org')\nasyncio.run(f())", marks=ANOTHER),
    ],
)  # fmt: skip
def test_the_libraries_that_people_use(run: Runner, bundle: Bundle, needs: str, call: str) -> None:
    code = f"def wire(e, p, s): exec({call!r}, {{}})"
    error = run(bundle(code, needs=[needs])).error
    assert error["type"] == "task_exception" and NETWORK in error["error"]


def test_the_nearest_declared_name(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("import six_\ndef wire(e, p, s): return {}", needs=["six"])).error
    assert "the nearest name that it declares is 'six'" in error["error"]


ASIDE = {
    "its extra 'network'": '[project.optional-dependencies]\nnetwork = ["Scikit_Learn>=1", "six"]\n',
    "its group 'sim'": '[dependency-groups]\nsim = ["scikit-learn"]\nall = [{include-group = "sim"}]\n',
    "its group 'poetry'": '[tool.poetry.group.poetry.dependencies]\nscikit-learn = "*"\n',
    "its group 'pdm'": '[tool.pdm.dev-dependencies]\npdm = ["scikit-learn"]\n',
}


FILES_ASIDE = {
    "requirements.txt": "-r other.txt\nscikit-learn>=1\n",
    "environment.yml": "dependencies:\n  - python=3.11\n  - scikit-learn=1.5\n",
    "Pipfile": '[packages]\nscikit-learn = "*"\n',
}


@pytest.mark.parametrize("where", [*ASIDE, *FILES_ASIDE])
def test_a_package_that_is_declared_and_not_installed(run: Runner, bundle: Bundle, where: str) -> None:
    files = {where: FILES_ASIDE[where]} if where in FILES_ASIDE else {}
    text = project().replace("[project]\n", "[project]\ndependencies = []\n") + ASIDE.get(where, "")
    path = bundle("def wire(e, p, s):\n    import sklearn", pyproject=text, files=files)
    assert f"The bundle declares it in {where} alone" in run(path).error["error"]


def test_a_database_of_the_bundle(run: Runner, bundle: Bundle) -> None:
    path = bundle("import sqlite3\ndef wire(e, p, s): sqlite3.connect('x.db').execute('insert into t values (1)')")
    sqlite3.connect(path / "x.db").execute("create table t (a)").connection.close()
    error = run(path).error
    assert error["exception"]["type"] == "OperationalError" and "open a copy of it" in error["error"]


def test_a_build_that_downloads_is_named(run: Runner, bundle: Bundle) -> None:
    download = "import urllib.request\n\ndef build_wheel(*_):\n    urllib.request.urlopen('https://example.org')\n"
    error = run(bundle(CODE, backend=download)).error
    assert error["type"] == "build_failed" and error["error"].startswith("probe: the build phase raised URLError")
    assert "A build has no network" in error["error"]


def test_data_that_the_build_left_out(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "src" / "pkg").mkdir(parents=True)
    (tmp_path / "src" / "pkg" / "params.csv").write_text("a,b")
    (tmp_path / "src" / "pkg" / "__init__.py").write_text(
        "from pathlib import Path\nDATA = Path(__file__).parent / 'params.csv'\n"
        "def wire(e, p, s): return {'out': DATA.read_text()}"
    )
    system = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    (tmp_path / "pyproject.toml").write_text(system + project().replace("probe:wire", "pkg:wire"))
    error = run(tmp_path).error
    assert error["exception"]["type"] == "FileNotFoundError"
    assert "The bundle holds src/pkg/params.csv, which its build left out" in error["error"]
    assert '[tool.setuptools.package-data] pkg = ["params.csv"]' in error["error"]


WITHOUT_PROC = [
    "psutil.virtual_memory()",
    "psutil.Process().memory_info()",
    pytest.param("distributed.LocalCluster(processes=False)", marks=pytest.mark.full("installs a dozen packages")),
]


@pytest.mark.parametrize("call", WITHOUT_PROC)
def test_a_profile_without_proc_is_named(run: Runner, bundle: Bundle, call: str) -> None:
    library = call.partition(".")[0]
    code = f"def wire(e, p, s):\n    import {library}\n    return {{'out': str({call})}}"
    result = run(bundle(code, needs=[library]), None, "--profile", "container")
    assert "(sandbox.proc = false)" in result.error["error"]
