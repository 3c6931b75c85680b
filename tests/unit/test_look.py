"""A look at the process: what many places share is taken apart once, changes once, and is no part of a copy."""

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelops.debugging.inside import look as looking
from modelops.debugging.inside import places
from modelops.debugging.inside.process import Process, put_back, save
from modelops.debugging.inside.values import identity

COUNT, SIZE = 300, 500


class Holder:
    """What many of a package's objects are: each holds what all share."""

    def __init__(self, graph: object) -> None:
        self.graph = graph


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("sharing")
    graph = {number: [number] for number in range(SIZE)}
    vars(module).update({f"holder{number}": Holder(graph) for number in range(COUNT)}, OPTIONS={"verbose": 0.1})
    vars(module)["reader"] = Holder(vars(module)["OPTIONS"])
    monkeypatch.setitem(sys.modules, "sharing", module)
    yield module


def look(process: Process) -> looking.Look:
    return looking.Look(process, [place for place in process.places() if ":sharing:" in place.key], with_native=False)


def test_what_many_places_share_is_taken_apart_once(package: types.ModuleType) -> None:
    process = Process(types.ModuleType("child"))
    before = look(process)
    assert len(before.places) == COUNT + 2 and before.complete
    assert sum(leaves.nodes for leaves in before.leaves.values()) < 3 * SIZE + 10 * COUNT
    package.holder7.graph[3].append("more")
    (change,) = looking.python_changes(before, look(process))
    assert change["key"].startswith("attribute:sharing:holder") and "[3][1]" in str(change["parts"])


def test_what_is_put_back_leaves_other_places_as_they_are(package: types.ModuleType) -> None:
    process = Process(types.ModuleType("child"))
    options, holder, before = package.OPTIONS, package.reader, look(process)
    saved = save(["attribute:sharing:OPTIONS", "attribute:sharing:reader"], process)
    options["verbose"] = 9
    assert [change["name"] for change in looking.python_changes(before, look(process))] == ["sharing.OPTIONS"]
    put_back(saved, process)
    assert package.OPTIONS is options and options == {"verbose": 0.1}
    assert package.reader is holder and holder.graph is options


class Library:
    """As cffi's: among the modules, said to be one, and without attributes of its own."""

    __slots__ = ()
    __class__ = types.ModuleType  # type: ignore[assignment]


def test_what_only_says_that_it_is_a_module_is_passed_over(
    package: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    assert isinstance(library, types.ModuleType)
    monkeypatch.setitem(sys.modules, "sharing.lib", library)  # type: ignore[arg-type]
    package.lib = library  # type: ignore[attr-defined]
    process = Process(types.ModuleType("child"))
    assert look(process).complete and identity(library).startswith("Library @")


def test_a_tree_deeper_than_python_recurses_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = sys.getrecursionlimit() + 100
    subprocess.run(["mkdir", "-p", "/".join("d" * depth)], check=True)
    monkeypatch.setattr(places, "TOPS", (str(tmp_path),))
    try:
        found = places.files()
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)
    assert len(found) == depth + 1 and found[-1].name.endswith("/d/d")
