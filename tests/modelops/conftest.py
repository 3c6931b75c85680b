"""Fixtures for the adapters and services: a repository, both environments on the real runner, no residue."""

from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from environments import Environments, runners, wait_until

from modelops.adapters.bundle import LocalBundleRepository

SWITCHES = (
    "REUSE",
    "PRESERVE_TMP",
    "VENVS_DIR",
    "SANDBOX_PROFILES_DIR",
    "MODELOPS_COLD_DEBUG",
    "MODELOPS_ENABLE_LEGACY_COLD",
    "MODELOPS_BUNDLE_REPOSITORY",
    "MODELOPS_RUNNER_STORE_DIR",
    "MODELOPS_SANDBOX_PROFILE",
    "MODELOPS_TASK_TIMEOUT_SECONDS",
    "MODELOPS_MAX_WARM_SERVERS",
    "MODELOPS_BUNDLE_SOURCE",
    "MODELOPS_BUNDLE_REGISTRY",
    "MODELOPS_BUNDLES_CACHE_DIR",
    "MODELOPS_BUNDLES_DIR",
    "MODELOPS_BUNDLE_INSECURE",
    "MODELOPS_BUNDLE_TOKEN_HOST",
    "REGISTRY_USERNAME",
    "REGISTRY_PASSWORD",
)


@pytest.fixture(scope="session", autouse=True)
def scratch_of_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A scheduler of a test's own makes a folder for its files as well as a worker."""
    with dask.config.set({"temporary-directory": str(tmp_path_factory.mktemp("dask"))}):
        yield


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No switch of the caller reaches a test, and nothing is stored outside of it."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELOPS_STORAGE_DIR", str(tmp_path / "storage"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")


@pytest.fixture(autouse=True)
def no_residue(tmp_path: Path, own_environment: None) -> Iterator[None]:
    """After every test: no runner of it is left, and no directory that somebody worked in."""
    yield
    wait_until(lambda: not runners(tmp_path), "a runner outlived its test")
    left = list(tmp_path.rglob(".working-*"))
    assert not left, left


@pytest.fixture
def repository(tmp_path: Path) -> LocalBundleRepository:
    root = tmp_path / "repository"
    root.mkdir()
    return LocalBundleRepository(root)


@pytest.fixture
def environments(repository: LocalBundleRepository, tmp_path: Path, store: Path) -> Iterator[Environments]:
    made = Environments(repository, tmp_path, store)
    yield made
    for exec_env in made.made:
        exec_env.shutdown()


@pytest.fixture(params=["cold", "warm"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
