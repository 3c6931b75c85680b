"""The local repository: references, names, verification."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import write_bundle
from typer.testing import CliRunner

from modelops.adapters.bundle import BundleError, LocalBundleRepository, parse_reference
from modelops.adapters.bundle.content import digest_of
from modelops.commands.bundle import app

UNKNOWN = "0" * 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "source", "def wire(*_): return {'a': 'b'}\n")


def test_add_and_resolve(repository: LocalBundleRepository, source: Path) -> None:
    reference = repository.add(source)
    assert reference == f"probe@sha256:{digest_of(source)}"
    for ref in (reference, reference.partition("@")[2], reference.upper().replace("PROBE@SHA256", "probe@sha256")):
        assert repository.exists(ref)
        digest, path = repository.ensure_local(ref)
        assert digest == f"sha256:{digest_of(source)}"
        assert (path / "probe.py").read_text() == (source / "probe.py").read_text()
    assert path != source and not path.is_relative_to(source)


def test_adding_again_gives_the_same(repository: LocalBundleRepository, source: Path) -> None:
    assert repository.add(source) == repository.add(source)
    assert len(list((repository.root / "sha256").iterdir())) == 1


def test_a_name_may_have_many_digests(repository: LocalBundleRepository, source: Path) -> None:
    first = repository.add(source)
    (source / "probe.py").write_text("changed")
    second = repository.add(source)
    assert first != second
    assert repository.references() == sorted([first, second])
    assert all(repository.exists(ref) for ref in (first, second))


def test_a_name_does_not_stand_for_anothers_digest(repository: LocalBundleRepository, source: Path) -> None:
    reference = repository.add(source, "one")
    other = reference.replace("one@", "two@")
    assert not repository.exists(other)
    with pytest.raises(BundleError) as error:
        repository.ensure_local(other)
    assert error.value.type == "bundle_not_found"


def test_the_name_falls_back_to_the_folder(repository: LocalBundleRepository, tmp_path: Path) -> None:
    for name, content in (
        ("plain", None),
        ("odd", "not toml ["),
        ("list", "project = []"),
        ("number", "[project]\nname = 1"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "wire.py").write_text(name)
        if content is not None:
            (folder / "pyproject.toml").write_text(content)
        assert repository.add(folder).startswith(f"{name}@sha256:")


@pytest.mark.parametrize(
    "ref",
    [
        f"../x@sha256:{UNKNOWN}",
        f"a/b@sha256:{UNKNOWN}",
        f".@sha256:{UNKNOWN}",
        f"..@sha256:{UNKNOWN}",
        f".hidden@sha256:{UNKNOWN}",
        f"a@b@sha256:{UNKNOWN}",
        f"@sha256:{UNKNOWN}",
        f"a\0b@sha256:{UNKNOWN}",
        "sha256:../../../../etc",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        f"sha256:{UNKNOWN}\n",
        f"md5:{UNKNOWN}",
        UNKNOWN,
        "",
    ],
)
def test_strange_references_are_refused(repository: LocalBundleRepository, ref: str) -> None:
    assert not repository.exists(ref)
    with pytest.raises(BundleError) as error:
        repository.ensure_local(ref)
    assert error.value.type == "bundle_ref_invalid"


def test_an_unknown_digest(repository: LocalBundleRepository) -> None:
    assert not repository.exists(f"sha256:{UNKNOWN}")
    with pytest.raises(BundleError, match=UNKNOWN) as error:
        repository.ensure_local(f"sha256:{UNKNOWN}")
    assert error.value.type == "bundle_not_found"


@pytest.mark.parametrize("change", ["content", "new", "bytecode", "mode"])
def test_a_changed_copy_is_found_every_time(repository: LocalBundleRepository, source: Path, change: str) -> None:
    reference = repository.add(source)
    _, copy = repository.ensure_local(reference)
    copy.chmod(0o755)
    (copy / "probe.py").chmod(0o755 if change == "mode" else 0o644)
    if change == "content":
        (copy / "probe.py").write_text("evil")
    elif change == "new":
        (copy / "sitecustomize.py").write_text("evil")
    elif change == "bytecode":
        (copy / "__pycache__").mkdir()
        (copy / "__pycache__" / "probe.cpython-311.pyc").write_bytes(b"evil")
    for _ in range(2):
        with pytest.raises(BundleError, match="has been changed") as error:
            repository.ensure_local(reference)
        assert error.value.type == "bundle_changed"


def test_folders_beside_are_offered_under_their_names(repository: LocalBundleRepository, source: Path) -> None:
    shutil.copytree(source, repository.root / "mine")
    shutil.copytree(source, repository.root / ".hidden")
    (repository.root / "no-bundle").mkdir()
    (repository.root / "linked").symlink_to(source)
    reference = f"mine@sha256:{digest_of(source)}"
    assert repository.references() == [reference] and repository.exists(reference)
    _, path = repository.ensure_local(reference)
    assert path == repository.root / "sha256" / digest_of(source)
    assert repository.ensure_local(f"sha256:{digest_of(source)}") == (f"sha256:{digest_of(source)}", path)


def test_a_folder_that_changed_is_an_error_of_its_own(repository: LocalBundleRepository, source: Path) -> None:
    shutil.copytree(source, repository.root / "mine")
    old = digest_of(source)
    (repository.root / "mine" / "probe.py").write_text("changed")
    assert not repository.exists(f"mine@sha256:{old}")
    with pytest.raises(BundleError, match="has been changed") as error:
        repository.ensure_local(f"mine@sha256:{old}")
    assert error.value.type == "bundle_changed"


def test_one_bundle_as_a_repository(source: Path, tmp_path: Path) -> None:
    repository = LocalBundleRepository(source, cache_dir=tmp_path / "copies")
    reference = f"probe@sha256:{digest_of(source)}"
    before = sorted(path for path in source.rglob("*"))
    assert repository.references() == [reference] and repository.exists(reference)
    digest, path = repository.ensure_local(reference)
    assert digest == f"sha256:{digest_of(source)}" and path.parent == tmp_path / "copies" / "sha256"
    assert sorted(path for path in source.rglob("*")) == before, "a bundle is never written to"
    with pytest.raises(BundleError) as error:
        repository.add(source)
    assert error.value.type == "repository_is_bundle"


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        LocalBundleRepository(tmp_path / "absent")
    assert error.value.type == "repository_not_found"


def test_what_is_no_bundle(repository: LocalBundleRepository, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError) as error:
        repository.add(tmp_path / "empty")
    assert error.value.type == "not_a_bundle"
    with pytest.raises(BundleError) as error:
        repository.add(tmp_path / "absent")
    assert error.value.type == "bundle_not_found"


def test_an_unsafe_bundle_leaves_nothing(repository: LocalBundleRepository, source: Path) -> None:
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError):
        repository.add(source)
    assert list((repository.root / "sha256").iterdir()) == []


def test_many_threads_add_the_same(repository: LocalBundleRepository, source: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        references = set(pool.map(lambda _: repository.add(source), range(24)))
    assert len(references) == 1
    repository.ensure_local(references.pop())
    assert len(list((repository.root / "sha256").iterdir())) == 1


def test_the_parts_of_a_reference() -> None:
    assert parse_reference(f"a.b-c_1@sha256:{'AB' * 32}") == ("a.b-c_1", "ab" * 32)
    assert str(parse_reference(f"sha256:{UNKNOWN}")) == f"sha256:{UNKNOWN}"


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BundleError("some_type", "some words")))
    assert (error.type, str(error)) == ("some_type", "some words")


def test_the_command(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    options = ["--repository", str(tmp_path / "there")]
    added = CliRunner().invoke(app, ["add", str(source), *options])
    assert added.exit_code == 0 and added.stdout == f"probe@sha256:{digest_of(source)}\n"
    assert CliRunner().invoke(app, ["list", *options]).stdout == added.stdout
    verified = CliRunner().invoke(app, ["verify", added.stdout.strip(), *options])
    assert verified.stdout == f"{tmp_path / 'there' / 'sha256' / digest_of(source)}\n"


def test_the_command_makes_a_repository_of_its_own(source: Path, tmp_path: Path) -> None:
    added = CliRunner().invoke(app, ["add", str(source), "--name", "other"])
    assert added.exit_code == 0 and added.stdout.startswith("other@sha256:")
    assert (tmp_path / "storage" / "bundles" / "sha256" / digest_of(source)).is_dir()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["add", str(tmp_path / "absent")])
    assert refused.exit_code == 1 and "bundle_not_found" in refused.stderr and refused.stdout == ""
    refused = CliRunner().invoke(app, ["verify", f"sha256:{UNKNOWN}"])
    assert refused.exit_code == 1 and "bundle_not_found" in refused.stderr
    refused = CliRunner().invoke(app, ["list", "--repository", str(tmp_path / "absent")])
    assert refused.exit_code == 1 and "repository_not_found" in refused.stderr
