"""What a source tree says about itself, read as data."""

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st


def read(module: Any, profile: Any, folder: Path, **files: str) -> Any:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return module.read_plan(str(folder), profile.dependencies, module.index_settings({}))


def test_a_project_without_a_build_system_is_virtual(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    plan = read(runner_module, default_profile, tmp_path, pyproject_toml='[project]\nname = "x"\nversion = "1"\n')
    assert (plan.kind, plan.project.backend) == ("virtual", "")


@pytest.mark.parametrize(
    "files",
    [
        {"setup_py": "", "pyproject_toml": '[project]\nname = "x"'},
        {"setup_py": ""},
        {"setup_cfg": "[metadata]\nname = x"},
        {"setup_cfg": "[options]\npy_modules = x", "pyproject_toml": '[project]\nname = "x"'},
        {"pyproject_toml": '[project]\nname = "x"\n[tool.setuptools]\npy-modules = ["x"]'},
    ],
)
def test_what_setuptools_builds(
    runner_module: Any, default_profile: Any, tmp_path: Path, files: dict[str, str]
) -> None:
    project = read(runner_module, default_profile, tmp_path, **files).project
    assert project.backend == "setuptools.build_meta:__legacy__"
    assert [item.name for item in project.build_requires] == ["setuptools"]
    assert (project.requires, project.requires_python, project.backend_path) == ([], "", [])


def test_every_field_is_read(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    text = """
[build-system]
requires = ["hatchling >= 1", "x @ git+https://h.example/r"]
build-backend = "hatchling.build"
backend-path = ["backend"]
[project]
name = "x"
requires-python = ">=3.8"
dynamic = ["version"]
dependencies = ["six", "idna (>=3)"]
[tool.uv.sources]
six = { git = "https://h.example/six", tag = "1" }
"""
    plan = read(runner_module, default_profile, tmp_path, pyproject_toml=text)
    project = plan.project
    assert (project.backend, project.backend_path, project.requires_python) == (
        "hatchling.build",
        ["backend"],
        ">=3.8",
    )
    assert [item.line() for item in project.requires] == ["six", "idna>=3"]
    assert plan.origins["six"] == [("git+https://h.example/six@1", "")]
    assert [item.line() for item in project.build_requires] == ["hatchling>=1", "x @ git+https://h.example/r"]


def test_without_a_project_requirements_txt_counts(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    plan = read(runner_module, default_profile, tmp_path, requirements_txt="\ufeffsix\n")
    assert (plan.kind, [item.name for item in plan.requirements]) == ("requirements", ["six"])


def test_a_pyproject_of_tools_alone_is_no_project(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    files = {"pyproject_toml": "[tool.ruff]\nline-length = 1\n", "requirements_txt": "six"}
    plan = read(runner_module, default_profile, tmp_path, **files)
    assert (plan.kind, [item.name for item in plan.requirements]) == ("requirements", ["six"])


def test_a_project_hides_requirements_txt(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    text = '[project]\nname = "x"\nversion = "1"\ndependencies = []'
    plan = read(runner_module, default_profile, tmp_path, pyproject_toml=text, requirements_txt="-r /etc/shadow")
    assert [item.name for item in plan.requirements] == ["x"] and "requirements.txt is not read" in plan.notes[0]


def test_a_lock_of_nothing_hides_no_requirements(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    """Both were left out: each for the other's sake."""
    plan = read(runner_module, default_profile, tmp_path, uv_lock="version = 1\n", requirements_txt="six\n")
    assert (plan.lock, [item.name for item in plan.requirements]) == ("", ["six"])
    assert plan.notes == ["uv.lock is not read: there is no [project] that it locks"]


def test_an_empty_bundle_needs_nothing(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    plan = read(runner_module, default_profile, tmp_path)
    assert (plan.kind, plan.requirements, plan.lines()) == ("requirements", [], [])


INVALID = {
    "not TOML": "[",
    "too deep": "a = " + "[" * 5000,
    "long number": "a = " + "9" * 5000,
    "project is a string": 'project = "x"',
    "build-system is a list": "build-system = []",
    "backend is a number": '[build-system]\nbuild-backend = 1\n[project]\nname = "x"',
    "requires is a string": '[build-system]\nrequires = "setuptools"',
    "a number among the requires": '[build-system]\nrequires = ["a", 1]',
    "dependencies is a table": "[project.dependencies]\na = 1",
    "requires-python is a list": "[project]\nrequires-python = []",
    "absolute backend path": '[build-system]\nbackend-path = ["/etc"]',
    "climbing backend path": '[build-system]\nbackend-path = ["a/../../b"]',
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_an_invalid_pyproject_is_a_bundle_error(
    runner_module: Any, default_profile: Any, tmp_path: Path, text: str
) -> None:
    with pytest.raises(runner_module.Failure, match=r"pyproject\.toml") as caught:
        read(runner_module, default_profile, tmp_path, pyproject_toml=text)
    assert (caught.value.phase, caught.value.type) == ("bundle", "pyproject_invalid")


@pytest.mark.parametrize("table", ["[project]\ndependencies", "[build-system]\nrequires"])
@pytest.mark.parametrize(
    "line", ["x @ file:///etc/passwd", "-r /etc/passwd", "x @ ${HOME}", "x @ https://u:p@h.example/x"]
)
def test_refused_dependencies_are_refused_in_either_table(
    runner_module: Any, default_profile: Any, tmp_path: Path, table: str, line: str
) -> None:
    with pytest.raises(runner_module.Failure) as caught:
        text = f"{table} = ['{line}']\n" + "[build-system]\n" * ("build" not in table)
        read(runner_module, default_profile, tmp_path, pyproject_toml=text)
    assert caught.value.type == "dependency_refused"


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.txt"])
def test_a_link_is_not_followed(runner_module: Any, default_profile: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(runner_module.Failure, match="regular file") as caught:
        read(runner_module, default_profile, tmp_path)
    assert caught.value.type == "unsafe_file" and "root" not in caught.value.error


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.txt"])
def test_a_fifo_or_directory_is_refused_at_once(
    runner_module: Any, default_profile: Any, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(runner_module.Failure, match="regular file"):
        read(runner_module, default_profile, tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(runner_module.Failure, match="regular file"):
        read(runner_module, default_profile, tmp_path)


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.txt"])
@pytest.mark.parametrize("content", [b"\xff\xff", b"#" * (5 << 20)], ids=["not UTF-8", "too large"])
def test_an_unreadable_file_is_a_bundle_error(
    runner_module: Any, default_profile: Any, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(runner_module.Failure, match=name) as caught:
        read(runner_module, default_profile, tmp_path)
    assert caught.value.phase == "bundle"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
fields = ("requires", "build-backend", "backend-path", "dependencies", "requires-python", "name")


@given(
    st.dictionaries(
        st.sampled_from(["project", "build-system"]),
        st.dictionaries(st.sampled_from(fields), values) | values,
    )
)
def test_any_table_is_a_project_or_a_bundle_error(
    runner_module: Any, default_profile: Any, table: dict[str, Any]
) -> None:
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(runner_module, "read_bundle_toml", lambda *_: table),
        ):
            Path(folder, "pyproject.toml").write_text("")
            project = runner_module.read_project(folder, ".", default_profile.dependencies, True)
    except runner_module.Failure as failure:
        assert failure.phase == "bundle"
    else:
        assert isinstance(project.backend, str) and isinstance(project.requires_python, str)


@pytest.mark.parametrize("pattern", ["../*", "/etc", "a/**/b/**/c/**", r"a\u0000/*"])
def test_members_are_looked_for_in_the_bundle_alone(
    runner_module: Any, default_profile: Any, tmp_path: Path, pattern: str
) -> None:
    text = f'[tool.uv.workspace]\nmembers = ["{pattern}"]\n'
    with pytest.raises(runner_module.Failure, match="leads out of the bundle, or is too wide"):
        read(runner_module, default_profile, tmp_path, pyproject_toml=text)
