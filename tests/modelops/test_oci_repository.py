"""The repository on a real registry: what it reads, keeps, sends, and how it is let in."""

import base64
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oras.provider
import pytest
from conftest import write_bundle
from environments import ECHO, Environments, sim_task
from registries import LAYOUT, Registry, needs_htpasswd, needs_registry
from servers import authority

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.artifact import Blob, sha256_of, write_index
from modelops.adapters.bundle.oci import OciBundleRepository
from modelops.adapters.bundle.transport import Patience

pytestmark = needs_registry
IMPATIENT = Patience(attempts=3, first_wait=0.01, longest_wait=1, connect=5, idle=5, grace=20)
SECRET = "s3cr3t-pass:word"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path) as made:
        yield made


def repository(registry: Registry, path: str, cache: Path, **environ: str) -> OciBundleRepository:
    return OciBundleRepository(
        f"{registry.host}/{path}",
        cache,
        insecure=not registry.tls,
        environ={**os.environ, **environ},
        patience=IMPATIENT,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published_files() -> dict[str, bytes]:
    """The files of the published tool's artifact, by this test's own reading of it."""
    blobs = LAYOUT / "blobs" / "sha256"
    entry = json.loads((LAYOUT / "index.json").read_text())["manifests"][0]
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    return {
        layer["annotations"]["org.opencontainers.image.title"]: (blobs / layer["digest"][7:]).read_bytes()
        for layer in manifest["layers"]
    }


def requests(registry: Registry) -> int:
    """How many requests the registry has had: its log has a line each."""
    return (registry.folder / "log").read_text().count('"GET ')


def test_what_the_published_tool_wrote_runs_cold_and_warm(
    registry: Registry, tmp_path: Path, environments: Environments
) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    environments.repository = repository(registry, "org/sir", tmp_path / "cache")  # type: ignore[assignment]
    task = sim_task(digest, {"beta": 0.5}, 7, entrypoint="sir.model/baseline")
    results = [environments(kind).run(task) for kind in ("cold", "warm")]
    assert [result.error for result in results] == [None, None]
    first, second = ({name: a.checksum for name, a in result.outputs.items()} for result in results)
    assert first == second and first.keys() == {"timeseries", "summary"}


@pytest.mark.parametrize("form", ["{digest}", "sir@{digest}", "{host}/org/sir@{digest}"])
def test_references(registry: Registry, tmp_path: Path, form: str) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    path = "org/sir" if form == "{digest}" else "org"
    found = repository(registry, path, tmp_path / "cache")
    reference = form.format(digest=digest, host=registry.host)
    assert found.exists(reference)
    assert found.ensure_local(reference)[0] == digest
    assert files_of(found.ensure_local(reference)[1]) == published_files()


def test_what_is_not_there(registry: Registry, tmp_path: Path) -> None:
    found = repository(registry, "org/sir", tmp_path / "cache")
    unknown = "sha256:" + "0" * 64
    assert not found.exists(unknown) and not found.exists("sir:latest") and not found.exists(f"../x@{unknown}")
    with pytest.raises(BundleError, match="bundle not found") as error:
        found.ensure_local(unknown)
    assert (error.value.type, error.value.retryable) == ("bundle_not_found", False)


@pytest.mark.parametrize(
    "reference", ["{unknown}", "other.org/x@{unknown}", "UPPER@{unknown}", "a/../b@{unknown}", "latest"]
)
def test_references_that_are_refused(registry: Registry, tmp_path: Path, reference: str) -> None:
    found = repository(registry, "", tmp_path / "cache")
    with pytest.raises(BundleError) as error:
        found.ensure_local(reference.format(unknown="sha256:" + "0" * 64))
    assert error.value.type == "bundle_ref_invalid"


def test_a_copy_needs_no_registry_and_is_read_only(tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        digest = registry.load(LAYOUT, "org/sir")
        found = repository(registry, "org/sir", tmp_path / "cache")
        _, folder = found.ensure_local(digest)
    assert found.ensure_local(digest) == (digest, folder) and found.exists(digest)
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in [folder, *folder.rglob("*")]}
    assert modes == {0}
    with pytest.raises(BundleError) as error:
        found.ensure_local("sha256:" + "0" * 64)
    assert (error.value.type, error.value.retryable) == ("registry_unavailable", True)


MORE_DAMAGE = [
    pytest.param(damage, marks=pytest.mark.full("other ways to damage a copy"))
    for damage in ("truncated", "removed", "link", "folder", "index")
]


@pytest.mark.parametrize("damage", ["content", "added", "manifest", *MORE_DAMAGE])
def test_a_damaged_copy_is_made_again(registry: Registry, tmp_path: Path, damage: str) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    found = repository(registry, "org/sir", tmp_path / "cache")
    _, folder = found.ensure_local(digest)
    for path in (folder, folder / "src" / "sir"):
        path.chmod(0o755)
    victim = folder / "src" / "sir" / "model.py"
    if damage in ("content", "truncated"):
        victim.chmod(0o644)
        victim.write_bytes(b"evil" * 1000 if damage == "content" else b"")
    elif damage == "added":
        (folder / "sitecustomize.py").write_text("evil")
    elif damage == "folder":
        (folder / "empty").mkdir()
    elif damage in ("removed", "link"):
        victim.unlink()
        if damage == "link":
            victim.symlink_to(folder / "src" / "sir" / "wire.py")
    else:
        name = (
            digest[7:]
            if damage == "manifest"
            else json.loads(registry.manifest("org/sir", digest))["config"]["digest"][7:]
        )
        blob = found.cache.root / "blobs" / name
        blob.chmod(0o644)
        blob.write_bytes(b"{}")
    assert files_of(found.ensure_local(digest)[1]) == published_files()
    assert sorted(path.name for path in found.cache.root.iterdir()) == ["blobs", "bundles"]


def test_a_layer_that_is_there_is_not_fetched_again(registry: Registry, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", ECHO, files={"data/table.csv": "1,2\n" * 1000})
    out = repository(registry, "org/model", tmp_path / "cache")
    first = out.push(source, "v1")
    (source / "probe.py").write_text(ECHO + "# changed\n")
    second = out.push(source, "v2")
    assert first != second
    out.ensure_local(first)
    # A registry that has lost everything but what is new: the rest must come from here.
    new = {layer["digest"] for layer in layers(registry, second)} - {
        layer["digest"] for layer in layers(registry, first)
    }
    for layer in layers(registry, second):
        if layer["digest"] not in new:
            status, _, _ = registry.request("DELETE", f"/v2/org/model/blobs/{layer['digest']}")
            assert status == 202
    assert files_of(out.ensure_local(second)[1]) == files_of(source)


def layers(registry: Registry, digest: str) -> list[dict[str, str]]:
    return list(json.loads(registry.manifest("org/model", digest))["layers"])


def test_many_threads_and_two_repositories_on_one_cache(registry: Registry, tmp_path: Path) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    both = [repository(registry, "org/sir", tmp_path / "cache") for _ in range(2)]
    with ThreadPoolExecutor(12) as pool:
        found = set(pool.map(lambda number: both[number % 2].ensure_local(digest), range(24)))
    assert len(found) == 1 and files_of(found.pop()[1]) == published_files()
    assert not list((tmp_path / "cache").rglob(".working-*"))


# --- what is sent


def test_what_is_sent_is_as_the_published_tool_writes_it(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path, content in published_files().items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    (source / ".modelops-bundle" / "state.json").write_text("the tool's own")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("")
    (source / "src" / "sir" / "__pycache__").mkdir()
    (source / "src" / "sir" / "__pycache__" / "x.pyc").write_text("")
    digest = repository(registry, "org/ours", tmp_path / "cache").push(source, "v1")
    registry.load(LAYOUT, "org/theirs")
    ours, theirs = (
        json.loads(registry.manifest(name, tag)) for name, tag in (("org/ours", "v1"), ("org/theirs", "latest"))
    )
    assert sorted(ours.pop("layers"), key=str) == sorted(theirs.pop("layers"), key=str)
    indexes = [
        config_of(registry, name, body.pop("config")) for name, body in (("org/ours", ours), ("org/theirs", theirs))
    ]
    assert ours == theirs and list(ours) == list(theirs)
    mine, published = (json.loads(index) for index in indexes)
    assert mine.pop("tool")["name"] == "modelops" and published.pop("tool")["name"] == "modelops-bundle"
    assert len(mine.pop("created")) == len(published.pop("created"))
    assert mine == published
    # The bytes are those of the same serialisation: only the order of the layers is ours.
    raw = registry.manifest("org/ours", digest)
    assert json.dumps(json.loads(raw)).encode() == raw
    assert json.dumps(json.loads(indexes[0]), sort_keys=True, indent=2).encode() == indexes[0]


def config_of(registry: Registry, repository: str, descriptor: dict[str, str]) -> bytes:
    assert descriptor["mediaType"] == "application/vnd.modelops.bundle.index.v1+json"
    return registry.request("GET", f"/v2/{repository}/blobs/{descriptor['digest']}")[2]


def test_there_and_back(registry: Registry, tmp_path: Path) -> None:
    files = {"empty.txt": "", "data/ü b.bin": bytes(range(256)) * 5000, "same.txt": "x", "other/same.txt": "x"}
    source = write_bundle(tmp_path / "source", ECHO, files=files)
    out = repository(registry, "model", tmp_path / "cache")
    digest = out.push(source, "v1")
    assert out.resolve("v1") == digest == out.push(source, "v1"), "the same files keep their digest"
    assert files_of(out.ensure_local(digest)[1]) == files_of(source)
    described = out.describe(digest)
    assert described.artifact.size == sum(map(len, files_of(source).values()))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("link", "is a link"),
        ("folder", "is a link"),
        ("A.py", "case or Unicode"),
        ("nul.txt", "device"),
        ("x\\y", "backslash"),
    ],
)
def test_what_a_registry_can_not_have_is_not_sent(registry: Registry, tmp_path: Path, name: str, problem: str) -> None:
    source = write_bundle(tmp_path / "source", ECHO, files={"a.py": ""})
    if name == "link":
        (source / name).symlink_to("a.py")
    elif name == "folder":
        (source / name).symlink_to("backend")
    else:
        (source / name).write_text("")
    with pytest.raises(BundleError, match=problem) as error:
        repository(registry, "model", tmp_path / "cache").push(source, "v1")
    assert error.value.type == "unsafe_file"
    assert registry.request("GET", "/v2/model/manifests/v1")[0] == 404


def test_what_we_send_the_published_tools_client_reads_and_the_other_way_round(
    registry: Registry, tmp_path: Path
) -> None:
    client = oras.provider.Registry(insecure=True)
    source = write_bundle(tmp_path / "source", ECHO, files={"pkg/__init__.py": "", "data/b.bin": bytes(300_000)})
    repository(registry, "org/ours", tmp_path / "cache").push(source, "v1")
    client.pull(target=f"{registry.host}/org/ours:v1", outdir=str(tmp_path / "pulled"))
    assert files_of(tmp_path / "pulled") == files_of(source)

    files = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    blobs = {name: Blob(sha256_of(path.read_bytes()), path.stat().st_size) for name, path in files.items()}
    (tmp_path / "index.json").write_bytes(write_index(blobs, "2026-01-01T00:00:00Z", {"name": "other", "version": "1"}))
    titles = {str(path): {"org.opencontainers.image.title": name} for name, path in files.items()}
    (tmp_path / "titles.json").write_text(json.dumps(titles))
    client.push(
        target=f"{registry.host}/org/theirs:v1",
        files=list(map(str, files.values())),
        manifest_config=f"{tmp_path / 'index.json'}:application/vnd.modelops.bundle.index.v1+json",
        annotation_file=str(tmp_path / "titles.json"),
        disable_path_validation=True,
    )
    theirs = repository(registry, "org/theirs", tmp_path / "cache")
    assert files_of(theirs.ensure_local(theirs.resolve("v1"))[1]) == files_of(source)


# --- who is let in


@needs_htpasswd
def test_credentials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    docker = tmp_path / "config"
    docker.mkdir()
    with Registry(tmp_path, users={"user": SECRET, "other": "x"}) as registry:
        digest = registry.load(LAYOUT, "org/sir")
        helper = tmp_path / "bin" / "docker-credential-test"
        helper.parent.mkdir()
        answer = json.dumps({"ServerURL": registry.host, "Username": "user", "Secret": SECRET})
        helper.write_text(
            f"#!{sys.executable}\nimport sys\nassert sys.stdin.read() == {registry.host!r}\nprint({answer!r})\n"
        )
        helper.chmod(0o755)
        auth = base64.b64encode(f"user:{SECRET}".encode()).decode()
        configurations: list[object] = [
            {"auths": {registry.host: {"auth": auth}}},
            {"auths": {f"https://{registry.host}": {"auth": auth}}},
            {"credHelpers": {registry.host: "test"}},
            {"credsStore": "test", "auths": {registry.host: {}}},
        ]
        search = f"{helper.parent}:{os.environ['PATH']}"
        for number, configuration in enumerate(configurations):
            (docker / "config.json").write_text(json.dumps(configuration))
            found = repository(registry, "org/sir", tmp_path / f"cache{number}", DOCKER_CONFIG=str(docker), PATH=search)
            assert found.ensure_local(digest)[0] == digest, configuration
        (docker / "config.json").unlink()
        own = {"REGISTRY_USERNAME": "user", "REGISTRY_PASSWORD": SECRET}
        assert repository(registry, "org/sir", tmp_path / "own", **own).exists(digest)
        source = write_bundle(tmp_path / "source", ECHO)
        assert repository(registry, "org/new", tmp_path / "own", **own).push(source, "v1").startswith("sha256:")
        for refused in ({}, {**own, "REGISTRY_PASSWORD": "wrong"}, {**own, "MODELOPS_BUNDLE_REGISTRY": "other.org/x"}):
            with pytest.raises(BundleError, match="denies access") as error:
                repository(registry, "org/sir", tmp_path / "refused", **refused).ensure_local(digest)
            assert (error.value.type, error.value.retryable) == ("registry_denied", False)
        with pytest.raises(BundleError, match="REGISTRY_PASSWORD is not set") as error:
            repository(registry, "org/sir", tmp_path / "refused", REGISTRY_USERNAME="user").ensure_local(digest)
    assert SECRET not in caplog.text and auth not in caplog.text


def test_a_private_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry(tmp_path, tls=True) as registry:
        digest = registry.load(LAYOUT, "org/sir")
        with pytest.raises(BundleError, match="SSL_CERT_FILE") as error:
            repository(registry, "org/sir", tmp_path / "cache").ensure_local(digest)
        assert (error.value.type, error.value.retryable) == ("registry_untrusted", False)
        plain = OciBundleRepository(f"{registry.host}/org/sir", tmp_path / "cache", insecure=True, patience=IMPATIENT)
        with pytest.raises(BundleError, match="does it speak TLS"):
            plain.ensure_local(digest)
        monkeypatch.setenv("SSL_CERT_FILE", authority().bundle)
        found = repository(registry, "org/sir", tmp_path / "cache")
        assert files_of(found.ensure_local(digest)[1]) == published_files()


def test_plain_http_is_for_those_who_allow_it(registry: Registry, tmp_path: Path) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    with pytest.raises(BundleError, match="MODELOPS_BUNDLE_INSECURE=true") as error:
        OciBundleRepository(f"{registry.host}/org/sir", tmp_path / "cache", patience=IMPATIENT).ensure_local(digest)
    assert error.value.type == "registry_untrusted"
    with pytest.raises(BundleError, match="MODELOPS_BUNDLE_INSECURE=true"):
        OciBundleRepository(f"http://{registry.host}/org/sir", tmp_path / "cache")


def test_a_full_disk_leaves_nothing_that_is_used(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    found = repository(registry, "org/sir", tmp_path / "cache")
    allowed = threading.Semaphore(3)

    def adopt(file: Path, name: str) -> None:
        if not allowed.acquire(blocking=False):
            raise OSError(28, "No space left on device")
        type(found.cache).adopt(found.cache, file, name)

    monkeypatch.setattr(found.cache, "adopt", adopt)
    with pytest.raises(BundleError, match="No space left on device") as error:
        found.ensure_local(digest)
    assert (error.value.type, error.value.retryable) == ("cache_unwritable", True)
    assert not list((found.cache.root / "bundles").iterdir())
    again = repository(registry, "org/sir", tmp_path / "cache")
    assert files_of(again.ensure_local(digest)[1]) == published_files()
