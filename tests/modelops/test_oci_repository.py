"""The repository on a real registry: what it reads, keeps, sends, and how it is let in."""

import base64
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oras.provider
import pytest
from conftest import write_bundle
from environments import ECHO, Environments, sim_task, wait_until
from registries import LAYOUT, Registry, TokenService, needs_htpasswd, needs_registry
from servers import LocalServer, authority
from typer.testing import CliRunner

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.artifact import Blob, sha256_of, write_index
from modelops.adapters.bundle.oci import OciBundleRepository
from modelops.adapters.bundle.transport import Patience
from modelops.cli import app as command_line
from modelops.commands.bundle import app
from modelops.services.bundles import find_bundle
from modelops.services.dask_simulation import DaskSimulationService
from modelops.worker.settings import WorkerSettings

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


@pytest.mark.xdist_group("real packages")
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


def test_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    own = {"REGISTRY_USERNAME": "user", "REGISTRY_PASSWORD": SECRET}
    source = write_bundle(tmp_path / "source", ECHO)
    with LocalServer(tls=False) as server:
        tokens = TokenService(server, "user", SECRET)
        with Registry(tmp_path, tokens=tokens) as registry:
            pushed = repository(registry, "org/new", tmp_path / "pushing", **own).push(source, "v1")
            assert {"repository:org/new:pull,push", "repository:org/new:push,pull"} & {*tokens.scopes}
            found = repository(registry, "org/new", tmp_path / "cache", **own)
            assert found.resolve("v1") == pushed
            assert files_of(found.ensure_local(pushed)[1]) == files_of(source)
            with pytest.raises(BundleError) as error:
                repository(registry, "org/new", tmp_path / "refused").ensure_local(pushed)
            assert error.value.type == "registry_denied"
    assert SECRET not in caplog.text and tokens.login[6:] not in caplog.text


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


# --- other processes, and the end of one

FETCH = """
import resource, sys
from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.oci import OciBundleRepository

place, cache, digest, limit = sys.argv[1:]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    print(OciBundleRepository(place, cache, insecure=True).ensure_local(digest)[1])
except BundleError as error:
    sys.exit(f"{error.type} {error.retryable} {error}")
"""


def fetching(registry: Registry, cache: Path, digest: str, limit: int = 0) -> "subprocess.Popen[str]":
    """A process that fetches a bundle, and may write files of at most `limit` bytes."""
    place = f"{registry.host}/org/model"
    command = [sys.executable, "-c", FETCH, place, str(cache), digest, str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def large(registry: Registry, tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    """A bundle of many layers in the registry: its digest and its files."""
    files = {f"data/{number}.bin": os.urandom(200_000) for number in range(40)}
    source = write_bundle(tmp_path / "source", ECHO, files=files)
    return repository(registry, "org/model", tmp_path / "pushing").push(source, "v1"), files_of(source)


def test_processes_share_a_cache(
    registry: Registry, tmp_path: Path, large: tuple[str, dict[str, bytes]], full: bool
) -> None:
    digest, files = large
    processes = [fetching(registry, tmp_path / "cache", digest) for _ in range(4 if full else 2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in answers}) == 1, answers
    assert files_of(Path(answers[0][0].strip())) == files
    assert sorted(path.name for path in (tmp_path / "cache" / "oci").iterdir()) == ["blobs", "bundles"]


ANOTHER_MOMENT = pytest.mark.full("another moment")


@pytest.mark.parametrize("blobs", [10, *(pytest.param(count, marks=ANOTHER_MOMENT) for count in (1, 25))])
def test_a_kill_leaves_nothing_that_is_used(
    registry: Registry, tmp_path: Path, large: tuple[str, dict[str, bytes]], blobs: int
) -> None:
    digest, files = large
    cache = tmp_path / "cache"
    process = fetching(registry, cache, digest)
    wait_until(lambda: len(list(cache.glob("oci/blobs/*"))) >= blobs or process.poll() is not None, "nothing comes")
    process.kill()
    process.communicate()
    for kept in cache.glob("oci/blobs/*"):
        assert sha256_of(kept.read_bytes()) == kept.name, "half a blob under its name"
    there = len(list(cache.glob("oci/blobs/*")))
    assert blobs <= there
    out, error = fetching(registry, cache, digest).communicate(timeout=120)
    assert files_of(Path(out.strip())) == files, error
    assert not list(cache.glob("oci/.working-*")), "what the killed one left is swept"


def test_what_can_not_be_written_is_said(
    registry: Registry, tmp_path: Path, large: tuple[str, dict[str, bytes]]
) -> None:
    digest, files = large
    process = fetching(registry, tmp_path / "cache", digest, limit=50_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1 and error.startswith("cache_unwritable True") and "File too large" in error
    assert not list((tmp_path / "cache").glob("oci/bundles/*")) and not list(
        (tmp_path / "cache").glob("oci/.working-*")
    )
    out, error = fetching(registry, tmp_path / "cache", digest).communicate(timeout=120)
    assert files_of(Path(out.strip())) == files, error


# --- the command line, and workers


def test_the_commands(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    source = write_bundle(tmp_path / "source", ECHO, files={".modelops-bundle/registry.yaml": REGISTRY_YAML})
    (source / ".modelops-bundle" / "config.yaml").write_text("the tool's own")
    pushed = run.invoke(app, ["push", str(source), f"{registry.host}/org/sir:v1"])
    reference = pushed.stdout.strip()
    assert pushed.exit_code == 0 and reference.startswith(f"{registry.host}/org/sir@sha256:"), pushed.stderr
    assert run.invoke(app, ["push", str(source), f"{registry.host}/org/sir:v2"]).exit_code == 0
    shown = run.invoke(app, ["show", f"{registry.host}/org/sir:v1"]).stdout
    for words in (reference, "model sir: models.sir:SIR", "target fit: targets:fit", "probe.py", "registry.yaml"):
        assert words in shown
    assert "config.yaml" not in shown and "\x1b" not in shown
    pulled = run.invoke(app, ["pull", f"{registry.host}/org/sir:v1"])
    assert pulled.stdout.strip() == reference and (tmp_path / "sir" / "probe.py").stat().st_mode & 0o200
    expected = {path: data for path, data in files_of(source).items() if not path.endswith("config.yaml")}
    assert files_of(tmp_path / "sir") == expected
    again = run.invoke(app, ["pull", reference])
    assert again.exit_code == 1 and "directory_not_empty" in again.stderr
    assert run.invoke(app, ["pull", reference, str(tmp_path / "deep" / "other")]).exit_code == 0
    monkeypatch.setenv("MODELOPS_BUNDLE_REGISTRY", f"{registry.host}/org")
    assert run.invoke(app, ["show", "sir:v1"]).stdout == shown
    for arguments, words in (
        (["show", "sir:absent"], "bundle_not_found"),
        (["show", "Sir"], "bundle_ref_invalid"),
        (["push", str(source), reference], "bundle_ref_invalid"),
        (["push", str(tmp_path / "nowhere"), "sir:v3"], "bundle_not_found"),
    ):
        refused = run.invoke(app, arguments)
        assert refused.exit_code == 1 and words in refused.stderr and refused.stdout == ""


def test_a_bundle_is_pulled_into_a_directory_that_is_there(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    registry.load(LAYOUT, "org/sir")
    place = tmp_path / "here"
    (place / ".working-left").mkdir(parents=True)  # by one that was killed
    monkeypatch.chdir(place)
    before = place.stat().st_ino
    done = CliRunner().invoke(app, ["pull", f"{registry.host}/org/sir", "."])
    assert done.exit_code == 0, done.stderr
    assert place.stat().st_ino == before, "who is in it is somewhere else now"
    assert files_of(place) == published_files() and not list(place.glob(".working-*"))


def test_what_is_no_bundle_is_told_from_what_is_not_there(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    digest = registry.load(LAYOUT, "org/sir")
    manifest = registry.manifest("org/sir", "latest")
    oci_type, docker = (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
    listed = [{"mediaType": oci_type, "digest": digest, "size": len(manifest)}]
    index = "application/vnd.oci.image.index.v1+json"
    image = json.loads(manifest) | {"mediaType": docker}
    image["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    empty = json.loads(manifest) | {"artifactType": "application/x"}
    empty["config"]["mediaType"] = "application/vnd.oci.empty.v1+json"
    others = {
        "index": (index, {"schemaVersion": 2, "mediaType": index, "manifests": listed}),
        "image": (docker, image),
        "artifact": (oci_type, empty),
    }
    for tag, (kind, body) in others.items():
        data = json.dumps(body).encode()
        assert registry.request("PUT", f"/v2/org/sir/manifests/{tag}", data, Content_Type=kind)[0] == 201
        for name in (f"org/sir:{tag}", f"org/sir@sha256:{sha256_of(data)}"):
            shown = CliRunner().invoke(app, ["show", f"{registry.host}/{name}"])
            assert shown.exit_code == 1 and "is of type" in shown.stderr and "bundle's is" in shown.stderr
    referrer = json.loads(manifest) | {"subject": listed[0], "artifactType": "application/x"}
    data = json.dumps(referrer).encode()
    assert registry.request("PUT", "/v2/org/sir/manifests/referrer", data, Content_Type=oci_type)[0] == 201
    assert CliRunner().invoke(app, ["show", f"{registry.host}/org/sir:referrer"]).exit_code == 0


def test_odd_names_and_empty_files(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    names = [
        "empty",
        "empty too",
        "a %23 ?#&=+.txt",
        "gr\u00f6\u00dfe-\u65e5\u672c",
        "e\u0301",
        "l" * 255,
        ".env",
        ".modelopsignore",
    ]
    source = write_bundle(tmp_path / "source", ECHO, files=dict.fromkeys(names, ""))
    (source / names[2]).write_text("x")
    target = f"{registry.host}/org/odd"
    assert CliRunner().invoke(app, ["push", str(source), target]).exit_code == 0
    assert ".modelopsignore is the published tool's and is not read" in caplog.text
    assert CliRunner().invoke(app, ["pull", target, str(tmp_path / "copy")]).exit_code == 0
    assert files_of(tmp_path / "copy") == files_of(source)
    shown = CliRunner().invoke(app, ["show", target]).stdout
    assert shown.count("l") >= 255 and "\u2026" not in shown, "a name is cut"


@pytest.mark.parametrize("structure", ["digest", "digest_short", "digest_full"])
def test_the_published_structures_of_a_cache(registry: Registry, tmp_path: Path, structure: str) -> None:
    digest = registry.load(LAYOUT, "org/sir")
    found = OciBundleRepository(f"{registry.host}/org/sir", tmp_path / "cache", structure, insecure=True)
    assert found.ensure_local(digest)[0] == digest


REGISTRY_YAML = """
models: {"s\\eir": {entrypoint: "models.sir:SIR"}, sir: {entrypoint: "models.sir:SIR"}}
targets: {fit: {entrypoint: "targets:fit"}}
"""


LEAKS = """
SEEN = []
def wire(entrypoint, params, seed):
    if entrypoint == "bad":
        raise ValueError("no such model")
    SEEN.append(seed)
    return {"out": str(len(SEEN))}
"""


def test_one_task_of_a_bundle_in_a_registry(
    registry: Registry, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run`, `debug` and `leaks` take a tag or a digest, and name the digest from then on."""
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    monkeypatch.setenv("VENVS_DIR", str(tmp_path / "venvs"))
    run, tag = CliRunner(), f"{registry.host}/org/sir:v1"
    digest = run.invoke(app, ["push", str(write_bundle(tmp_path / "source", LEAKS)), tag]).stdout.strip()
    for reference in (tag, digest):
        done = run.invoke(command_line, ["run", reference, "--entrypoint", "main"])
        assert done.exit_code == 0 and "out" in done.stdout, done.output
    failed = run.invoke(command_line, ["run", tag, "--entrypoint", "bad", "--json"])
    failure, script = tmp_path / "failure.json", tmp_path / "commands"
    failure.write_text(failed.stdout)
    script.write_text("p entrypoint\n")
    kept = json.loads(failed.stdout)["_fatal_error"]["debug"]
    assert digest.endswith(kept["bundle"].rpartition("@")[2]) and "sha256:" in kept["bundle"]  # tags move
    # A failure that is taken home is of that digest, though the tag is of something else by then.
    write_bundle(tmp_path / "later", LEAKS.replace("no such model", "another"))
    assert run.invoke(app, ["push", str(tmp_path / "later"), tag]).exit_code == 0
    stood = run.invoke(command_line, ["debug", str(failure), "--script", str(script)])
    assert "'bad'" in stood.stdout and "no such model" in stood.stdout, stood.output
    report = tmp_path / "leaks.json"
    arguments = ["leaks", digest, "--entrypoint", "main", "--seeds", "1-2", "--json", str(report)]
    assert run.invoke(command_line, arguments).exit_code == 1
    causes = [cause["name"] for leak in json.loads(report.read_text())["leaks"] for cause in leak["causes"]]
    assert set(causes) == {"probe.SEEN"}
    absent = run.invoke(command_line, ["run", f"{registry.host}/org/sir:absent", "--entrypoint", "main"])
    assert absent.exit_code == 2 and "not found" in absent.stderr.replace("_", " "), absent.output


FULL_REFERENCE = pytest.param("by the client", marks=pytest.mark.full("the same, with less to find out"))


@pytest.mark.parametrize("told", ["by its own variables", FULL_REFERENCE])
def test_a_study_of_a_bundle_in_a_registry(
    registry: Registry, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("MODELOPS_BUNDLE_INSECURE", "true")
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    repository(registry, "org/sir", tmp_path / "cache").push(write_bundle(tmp_path / "source", ECHO), "v1")
    if told == "by its own variables":
        monkeypatch.setenv("MODELOPS_BUNDLE_REGISTRY", f"{registry.host}/org")
        name = "sir:v1"
    else:
        name = f"{registry.host}/org/sir:v1"
    found = find_bundle(name)
    assert (found.registry is None) is (told == "by its own variables")
    task = sim_task(found.reference, {"a": 1})
    with DaskSimulationService(
        settings=WorkerSettings(bundle_registry=found.registry), threads_per_worker=1
    ) as service:
        result = service.submit(task).result()
    assert result.error is None, result
