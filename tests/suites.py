"""Which tests run, and which of them on one worker: a pytest plugin.

The default suite tries everything once: each probe, bomb, fault and hostile bundle under one account and one profile,
and of the ways to say one thing (a source, a layout, a setting) those that are read by different code.
`--full` adds what is marked `@pytest.mark.full("why")`, on a test or on a parameter: other accounts and profiles,
containers, fuzzing, long sweeps. Where two things do not touch (how a probe is asked, by whom and under which profile)
each value of one meets one of the other, not all. `THOROUGH=1` in the environment makes the sweeps of the full suite
longer still.
"""

import gc
from collections.abc import Collection, Generator, Mapping
from typing import Any

import pytest

MARKERS = (
    "full(why): left to the full suite (--full), and why",
    "xdist_group(name): runs on one worker with the others of its name, to share what is dear to make",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run what is marked full too: other accounts, containers, ...")


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.hookimpl(tryfirst=True)  # before pytest makes a test of each row
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Leave out the rows that are marked full, where not all of a test's are: each worker would make thousands of tests
    and drop them."""
    if metafunc.config.getoption("--full"):
        return
    for mark in metafunc.definition.iter_markers("parametrize"):
        rows = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
        if isinstance(rows, list) and not isinstance(mark.kwargs.get("ids"), list):
            rows[:] = [row for row in rows if not left_to_full(row)] or rows


def left_to_full(row: object) -> bool:
    """Whether a row of a table is a `pytest.param` with a marker that says why the full suite alone runs it."""
    marks = getattr(row, "marks", ())
    return any(mark.name == "full" and len(mark.args) == 1 and isinstance(mark.args[0], str) for mark in marks)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: to look for garbage in it, again and again, takes a tenth of all time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the tests' names
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("full"):
            if len(mark.args) != 1 or not isinstance(mark.args[0], str):
                raise pytest.UsageError(f"{item.nodeid}: the marker says why: full('why')")
    if config.getoption("--full"):
        return
    left = [item for item in items if item.get_closest_marker("full")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """On a worker: what belongs on one worker is known to xdist as such. It fails in silence with a pytest that is too
    new for it, and what is shared is then made on each worker."""
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            mark = item.get_closest_marker("xdist_group")
            if mark and not item.nodeid.endswith(f"@{mark.args[0]}"):
                raise pytest.UsageError(f"{item.nodeid}: pytest-xdist does not keep the group {mark.args[0]!r}")


def rows(table: Mapping[str, Any], first: Collection[str], why: str) -> list[Any]:
    """A table of one test's cases as its parameters: the default suite runs those named `first`, the full one all."""
    assert table.keys() >= set(first), set(first) - table.keys()
    left = pytest.mark.full(why)
    values = {name: row if isinstance(row, tuple) else (row,) for name, row in table.items()}
    return [pytest.param(*row, id=name, marks=() if name in first else left) for name, row in values.items()]


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether this is the full suite: for tests that do something more often there."""
    return bool(pytestconfig.getoption("--full"))
