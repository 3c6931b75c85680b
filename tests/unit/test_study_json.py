"""A study as the published tools write it, read as data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from modelops_contracts import UniqueParameterSet

from modelops.adapters.bundle.registry import BundleRegistry, Entry
from modelops.services.study import Study, Target
from modelops.services.study_json import find_targets, points, read_study_json, replicate_seed, study_of

REF = "sha256:" + "0" * 64
REGISTRY = BundleRegistry(
    targets={"prevalence": Entry("targets.fit:prevalence"), "deaths": Entry("targets.fit:deaths")},
    target_sets={"all": ("prevalence", "deaths")},
)
# As the published command line wrote it: Sobol, two replicates.
SOBOL: dict[str, Any] = {
    "model": "models.sir",
    "scenario": "baseline",
    "parameter_sets": [
        {"params": {"beta": 0.09189560012891888, "dur_inf": 8.700575806200504}},
        {"params": {"beta": 0.19269997064955532, "dur_inf": 5.179869599640369}},
    ],
    "sampling_method": "sobol",
    "n_replicates": 2,
    "outputs": None,
    "metadata": {"n_samples": 2, "model_class": "models.sir:StarsimSIR", "tags": {}},
}


def study(targets: list[str] | None = None, **fields: Any) -> Study:
    return study_of({**SOBOL, **fields}, REF, REGISTRY, targets)


def test_replicates_have_the_published_seeds() -> None:
    found = study()
    assert found.entrypoint == "models.sir/baseline" and found.outputs is None and found.targets == []
    assert [point.parameters.params["beta"] for point in found.points] == [0.09189560012891888] * 2 + [
        0.19269997064955532
    ] * 2
    param_id = found.points[0].parameters.param_id
    assert param_id == "b8553faa668d1d179598e0dad7b88a641f030a70f6b2be9e8a738299596825ce"
    expected = [
        int(hashlib.blake2b(f"{param_id}:{n}".encode(), digest_size=8).hexdigest()[-8:], 16) for n in range(2)
    ]  # modulo 2^32 is the last four bytes of a big-endian number
    assert [point.seed for point in found.points[:2]] == expected == [1486892828, 1441764940]


def test_both_forms_and_explicit_seeds() -> None:
    sets = [{"x": 1}, {"params": {"x": 2}, "seed": 2**64 - 1}, {"params": {"x": 3}, "seed": None}, {"params": 4}]
    found = list(points({"parameter_sets": sets, "n_replicates": 2}))
    assert [(dict(point.parameters.params), point.seed) for point in found[2:3]] == [({"x": 2}, 2**64 - 1)]
    assert [dict(point.parameters.params) for point in found] == [
        {"x": 1}, {"x": 1}, {"x": 2}, {"x": 3}, {"x": 3}, {"params": 4}, {"params": 4},
    ]  # fmt: skip
    assert found[1].seed == replicate_seed(UniqueParameterSet.from_dict({"x": 1}), 1)


def test_equal_simulations_are_run_once(caplog: pytest.LogCaptureFixture) -> None:
    same = {"params": {"x": 1}, "seed": 7}
    assert len(study(parameter_sets=[same, same, {"params": {"x": 1}, "seed": 8}]).points) == 2
    assert "repeats another with the seed 7" in caplog.text


def test_replicates_of_one_set_are_one_group() -> None:
    sets = [{"params": {"x": 1}, "seed": 1}, {"params": {"x": 2}, "seed": 1}, {"params": {"x": 1}, "seed": 2}]
    assert study(parameter_sets=sets).groups() == [[0, 2], [1]]


def test_targets_by_entry_point_by_name_and_by_set() -> None:
    direct, old = Target("a.b:c", "a.b:c"), Target("targets.fit/fit", "targets.fit/fit")
    prevalence, deaths = Target("prevalence", "targets.fit:prevalence"), Target("deaths", "targets.fit:deaths")
    assert study(targets=["a.b:c", "targets.fit/fit"]).targets == [direct, old]
    body = {"targets": ["all", "a.b:c", "prevalence"]}
    assert study_of({**SOBOL, **body}, REF, REGISTRY).targets == [prevalence, deaths, direct]
    assert study_of({**SOBOL, **body}, REF, REGISTRY, ["deaths"]).targets == [deaths]
    with pytest.raises(ValueError, match=r"'absent' is no target.*all, deaths, prevalence"):
        study(targets=["absent"])


def test_target_sets_that_name_each_other() -> None:
    registry = BundleRegistry(
        targets={"a": Entry("m.t:a")}, target_sets={"s": ("t", "a"), "t": ("s", "u"), "u": ("u",)}
    )
    assert find_targets(["s", "t"], registry) == [Target("a", "m.t:a")]


def test_outputs() -> None:
    assert study(outputs=["b", "a"]).task(0).outputs == ("a", "b")
    with pytest.raises(ValueError, match="empty list"):
        study(outputs=[])


def test_fields_that_are_not_known_are_told(caplog: pytest.LogCaptureFixture) -> None:
    study(priority=3)
    assert "priority" in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": 1}, "model"),
        ({"model": "sir"}, "import_path|entrypoint"),
        ({"scenario": "Base"}, "scenario"),
        ({"parameter_sets": {}}, "parameter_sets"),
        ({"parameter_sets": []}, "at least one"),
        ({"parameter_sets": [1]}, "parameter set 1 of 1"),
        ({"parameter_sets": [{"x": 1}, {"x": [1]}]}, "parameter set 2 of 2"),
        ({"parameter_sets": [{"x": float("nan")}]}, "parameter set 1"),
        ({"parameter_sets": [{"params": {}, "seed": -1}]}, "seed"),
        ({"parameter_sets": [{"params": {}, "seed": 2**64}]}, "seed"),
        ({"parameter_sets": [{"params": {}, "seed": True}]}, "seed"),
        ({"parameter_sets": [{"params": {}, "weight": 1}]}, "weight beside"),
        ({"n_replicates": 0}, "n_replicates"),
        ({"n_replicates": "2"}, "n_replicates"),
        ({"n_replicates": 10**12}, "2 parameter sets with 1,000,000,000,000 seeds each"),
        ({"outputs": "a"}, "outputs"),
        ({"targets": [1]}, "targets"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study_of({**SOBOL, **fields}, REF, REGISTRY)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    twice = json.dumps(SOBOL).replace("{", '{"model": "models.other", ', 1)
    for text in ("", "[]", "{}", '{"model": 1}', "[" * 100_000, twice):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"study\.json"):
            read_study_json(path)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # as programs on Windows write it
        path.write_text(json.dumps(SOBOL), encoding=encoding)
        assert read_study_json(path) == SOBOL
