"""A bundle's registry.yaml, which anybody may have written."""

from pathlib import Path

import pytest

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.registry import MAX_BYTES, REGISTRY, BundleRegistry, Entry, read_registry

PUBLISHED = """
version: '1.0'
models:
  sir:
    entrypoint: models.sir:StarsimSIR
    path: models/sir.py
    class_name: StarsimSIR
    scenarios: [baseline]
    parameters: []
    outputs: [prevalence]
    data: [data/a.csv]
    data_digests: {}
    model_digest: null
targets:
  prevalence:
    path: targets/fit.py
    entrypoint: targets.fit:prevalence
    model_output: prevalence
    data: []
target_sets:
  all:
    targets: [prevalence]
    weights: {}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / REGISTRY
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_as_the_published_tool_writes_it(tmp_path: Path) -> None:
    assert read_registry(write(tmp_path, PUBLISHED)) == BundleRegistry(
        models={"sir": Entry("models.sir:StarsimSIR", ("baseline",), (), ("prevalence",), ("data/a.csv",))},
        targets={"prevalence": Entry("targets.fit:prevalence")},
        target_sets={"all": ("prevalence",)},
    )


@pytest.mark.parametrize("text", ["", "version: '1.0'\nmodels: {}\ntargets: {}\n", "models: null"])
def test_an_empty_one(tmp_path: Path, text: str) -> None:
    assert read_registry(write(tmp_path, text)) == BundleRegistry()


def test_none(tmp_path: Path) -> None:
    assert read_registry(tmp_path) == BundleRegistry()
    (tmp_path / REGISTRY.parent).write_text("a file")
    assert read_registry(tmp_path) == BundleRegistry()


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "models: [",
        "models: {a: 1}",
        "targets: {a: {entrypoint: [1]}}",
        "targets: {a: {entrypoint: a.b:c, data: text}}",
        "!!python/object/apply:os.system ['true']",
        "target_sets: {a: [1]}",
        "models: {a: {entrypoint: a.b:c}, a: {entrypoint: a.b:d}}",
        b"\xff\xfe\x00",
        "a: " + "x" * MAX_BYTES,
        "[" * 20_000,
    ],
)
def test_what_is_not_one(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"registry\.yaml") as caught:
        read_registry(write(tmp_path, text))
    assert caught.value.type == "registry_invalid"


@pytest.mark.parametrize("text", ["a: 1" + ":1" * 400_000, "a: !!int 1" + ":1" * 400_000, "a: 0x" + "f" * 900_000])
def test_a_number_that_takes_hours_to_read_is_a_text(tmp_path: Path, text: str) -> None:
    assert read_registry(write(tmp_path, text)) == BundleRegistry()


def test_what_is_empty_and_what_is_written_once(tmp_path: Path) -> None:
    """An alias is what PyYAML makes of a list that is there twice."""
    text = """
models:
  1: {entrypoint: "m:A", outputs: &id001 [yes, 2], parameters: null, data: ~}
  b: {entrypoint: "m:B", outputs: *id001}
targets:
"""
    models = {"1": Entry("m:A", outputs=("yes", "2")), "b": Entry("m:B", outputs=("yes", "2"))}
    assert read_registry(write(tmp_path, text)) == BundleRegistry(models=models)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(PUBLISHED)
    (tmp_path / REGISTRY.parent).mkdir()
    (tmp_path / REGISTRY).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="can't be read"):
        read_registry(tmp_path)
