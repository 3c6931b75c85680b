"""Which repository a worker has its bundles from, by the published worker's variables and by plug-ins."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_bundle
from environments import ECHO
from typer.testing import CliRunner

from modelops.adapters.bundle import BundleError, LocalBundleRepository
from modelops.adapters.bundle.oci import OciBundleRepository
from modelops.adapters.bundle.sources import OURS, make_repository
from modelops.cli import app
from modelops.services.bundles import find_bundle
from modelops.services.dask_simulation import DaskSimulationService
from modelops.worker.settings import WorkerSettings

# As the published class is called and made; what it reads is a directory, so that no registry is needed.
PUBLISHED = """
from pathlib import Path

class ModelOpsBundleRepository:
    def __init__(self, registry_ref, cache_dir, cache_structure="digest_short", default_tag="latest", insecure=False):
        self.given = (registry_ref, cache_dir, cache_structure, default_tag, insecure)

    def ensure_local(self, bundle_ref):
        return bundle_ref, Path(self.given[0])

    def exists(self, bundle_ref):
        return True
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`plug_in(code, name="module:object", ..)` installs a distribution with a module and its entry points."""
    count = iter(range(100))

    def install(code: str, module: str = "plugged", **points: str) -> None:
        folder = tmp_path / f"site{next(count)}"
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[modelops.bundle_repos]\n{lines}")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def made(tmp_path: Path, **environ: str) -> object:
    return make_repository(environ, tmp_path / "storage")


def test_ours_are_entry_points_too() -> None:
    from importlib.metadata import distribution

    points = distribution("modelops").entry_points.select(group="modelops.bundle_repos")
    assert {point.name: point.value for point in points} == OURS
    assert {point.load() for point in points} == {OciBundleRepository, LocalBundleRepository}


def test_the_published_workers_variables(tmp_path: Path) -> None:
    registry = {"MODELOPS_BUNDLE_REGISTRY": "ghcr.io/org/models"}
    for environ in (registry, {**registry, "MODELOPS_BUNDLE_SOURCE": "oci"}):
        found = made(tmp_path, MODELOPS_BUNDLES_CACHE_DIR=str(tmp_path / "cache"), **environ)
        assert isinstance(found, OciBundleRepository) and str(found.place) == "ghcr.io/org/models"
        assert found.cache.root == tmp_path / "cache" / "oci" and not found._insecure
    for value, insecure in (("true", True), ("True", True), ("1", False), ("yes", False), ("", False)):
        found = made(tmp_path, **registry, MODELOPS_BUNDLE_INSECURE=value)
        assert isinstance(found, OciBundleRepository) and found._insecure is insecure
    (tmp_path / "bundles").mkdir()
    for name in ("MODELOPS_BUNDLES_DIR", "MODELOPS_BUNDLE_REPOSITORY"):
        local = made(tmp_path, MODELOPS_BUNDLE_SOURCE="file", **{name: str(tmp_path / "bundles")})
        assert isinstance(local, LocalBundleRepository) and local.root == tmp_path / "bundles"
    default = made(tmp_path)
    assert isinstance(default, LocalBundleRepository) and default.root == tmp_path / "storage" / "bundles"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MODELOPS_BUNDLE_SOURCE": "absent"}, ["'absent'", "there are file, oci"]),
        ({"MODELOPS_BUNDLE_SOURCE": "OCI"}, ["'OCI'", "file, oci"]),
        ({"MODELOPS_BUNDLE_SOURCE": "oci"}, ["needs 'registry_ref'", "set MODELOPS_BUNDLE_REGISTRY"]),
        ({"MODELOPS_BUNDLE_REGISTRY": "a.org/b", "MODELOPS_BUNDLES_DIR": "/x"}, ["MODELOPS_BUNDLE_SOURCE=oci or"]),
        ({"MODELOPS_BUNDLE_REPOSITORY": "/y", "MODELOPS_BUNDLES_DIR": "/x"}, ["two directories"]),
    ],
)
def test_what_is_in_doubt_is_an_error(tmp_path: Path, environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(BundleError) as error:
        made(tmp_path, **environ)
    assert error.value.type == "bundle_source_invalid" and all(word in str(error.value) for word in words)


def test_a_class_of_the_published_signature(tmp_path: Path, plug_in: Callable[..., None]) -> None:
    plug_in(PUBLISHED, modelops_bundle="plugged:ModelOpsBundleRepository")
    environ = {"MODELOPS_BUNDLE_REGISTRY": "ghcr.io/org/models", "MODELOPS_BUNDLE_INSECURE": "true"}
    found = made(tmp_path, MODELOPS_BUNDLE_SOURCE="modelops_bundle", MODELOPS_BUNDLES_CACHE_DIR="/cache", **environ)
    assert found.given == ("ghcr.io/org/models", "/cache", "digest_short", "latest", True)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "point", "words"),
    [
        ("import absent_module", "plugged:Repository", ["can't be imported", "ModuleNotFoundError", "absent_module"]),
        ("raise SystemExit(3)", "plugged:Repository", ["can't be imported", "SystemExit"]),
        ("syntax error", "plugged:Repository", ["can't be imported", "SyntaxError"]),
        ("", "plugged:Repository", ["can't be imported", "Repository"]),
        ("class Repository:\n    def __init__(self, token, cache_dir): ...", "plugged:Repository", ["needs 'token'"]),
        ("class Repository:\n    def __init__(self, registry_ref, /): ...", "plugged:Repository", ["'registry_ref'"]),
        ("class Repository:\n    def __init__(self): raise OSError('no disk')", "plugged:Repository", ["no disk"]),
        ("class Repository:\n    def ensure_local(self, ref): ...", "plugged:Repository", ["no method exists"]),
        ("Repository = 3", "plugged:Repository", ["does not say what it takes"]),
    ],
)
def test_a_class_that_can_not_be_made(
    tmp_path: Path, plug_in: Callable[..., None], code: str, point: str, words: list[str]
) -> None:
    plug_in(code, mine=point)
    with pytest.raises(BundleError) as error:
        made(tmp_path, MODELOPS_BUNDLE_SOURCE="mine", MODELOPS_BUNDLE_REGISTRY="ghcr.io/org")
    assert error.value.type == "bundle_source_invalid"
    assert all(word in str(error.value) for word in ["'mine'", *words]), error.value


def test_two_of_one_name(tmp_path: Path, plug_in: Callable[..., None]) -> None:
    plug_in(PUBLISHED, oci="plugged:ModelOpsBundleRepository")
    with pytest.raises(BundleError, match="more than once") as error:
        made(tmp_path, MODELOPS_BUNDLE_SOURCE="oci", MODELOPS_BUNDLE_REGISTRY="ghcr.io/org")
    assert "plugged:" in str(error.value) and OURS["oci"] in str(error.value)


def test_a_worker_says_it_when_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_SOURCE", "absent")
    with pytest.raises(BundleError, match="there is no bundle source 'absent'"):
        DaskSimulationService(settings=WorkerSettings(), threads_per_worker=1)


def test_what_a_client_asks_for_goes_before(tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    environ = {"MODELOPS_BUNDLE_REGISTRY": "ghcr.io/org", "MODELOPS_BUNDLE_SOURCE": "oci"}
    found = make_repository(environ, tmp_path / "storage", str(tmp_path / "asked"))
    assert isinstance(found, LocalBundleRepository) and found.root == tmp_path / "asked"
    for own in ({}, environ, {"MODELOPS_BUNDLE_SOURCE": "file"}):
        told = make_repository(own, tmp_path / "storage", registry="quay.io/x")
        assert isinstance(told, OciBundleRepository) and str(told.place) == "quay.io/x"


def test_a_directory_named_on_the_command_line(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", ECHO)
    environ = {"MODELOPS_STORAGE_DIR": str(tmp_path / "storage")}
    found = find_bundle(str(source), environ=environ)
    assert (found.directory, found.registry) == (None, None) and (found.folder / "probe.py").is_file()
    assert find_bundle(found.reference, environ=environ) == found
    with_registry = {**environ, "MODELOPS_BUNDLE_SOURCE": "oci", "MODELOPS_BUNDLE_REGISTRY": "ghcr.io/org"}
    assert find_bundle(str(source), environ=with_registry).directory == str(tmp_path / "storage" / "bundles")
    chosen = find_bundle(str(source), tmp_path / "chosen", environ)
    assert chosen.directory == str(tmp_path / "chosen") and chosen.reference == found.reference


@pytest.mark.parametrize("name", ["MODELOPS_BUNDLES_DIR", "MODELOPS_BUNDLE_REPOSITORY"])
def test_commands_have_the_directory_of_the_variables(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / "source", ECHO)
    here = CliRunner(env={name: str(tmp_path / "own"), "MODELOPS_STORAGE_DIR": str(tmp_path / "storage")})
    added = here.invoke(app, ["bundle", "add", str(bundle)])
    assert added.exit_code == 0 and here.invoke(app, ["bundle", "list"]).stdout == added.stdout
    assert [str(found) for found in LocalBundleRepository(tmp_path / "own").references()] == [added.stdout.strip()]
    policy = here.invoke(app, ["run", added.stdout.strip(), "--print-policy"])
    assert policy.exit_code == 0 and "[execute]" in policy.stdout, policy


@pytest.mark.parametrize("command", ["run", "debug", "review"])
def test_commands_are_in_doubt_where_a_worker_is(tmp_path: Path, command: str) -> None:
    both = {"MODELOPS_BUNDLE_REPOSITORY": str(tmp_path), "MODELOPS_BUNDLE_REGISTRY": "a.org/b"}
    bundle = write_bundle(tmp_path / "source", ECHO)
    refused = CliRunner(env=both).invoke(app, [command, str(bundle), "--entrypoint", "a/b"])
    assert refused.exit_code == 2 and "MODELOPS_BUNDLE_SOURCE=oci or" in refused.stderr, refused
