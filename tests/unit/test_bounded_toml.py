"""TOML that would take hours to read is refused, by the runner and on this side of it."""

from pathlib import Path
from typing import Any

import pytest

from modelops.adapters.bundle.local import project_name
from modelops.bounded_toml import MAX_BYTES, parse_toml
from modelops.review.supply import read_project
from modelops.services.preflight import check_reproducibility

PROJECT = '[project]\nname = "x"\n'
SLOW = ["a." * 400_000 + "a = 1", f"[{'a.' * 400_000}a]", ("a." * 2000 + "a = 1\n") * 100]


@pytest.mark.parametrize("slow", SLOW)
def test_what_would_take_hours(tmp_path: Path, runner_module: Any, slow: str) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT + slow)
    assert project_name(tmp_path) is None and read_project(tmp_path) == {}
    assert list(check_reproducibility(tmp_path, {})) == []
    for read in (runner_module.Toml.loads, lambda text: parse_toml(text.encode())):
        with pytest.raises(ValueError, match="too many parts"):
            read(PROJECT + slow)


def test_what_is_read(tmp_path: Path, runner_module: Any) -> None:
    text = f"{PROJECT}description = {'1.0, ' * 900!r}\n[tool.a.b]\nc = 1\n"
    assert parse_toml(text.encode()) == runner_module.Toml.loads(text)
    (tmp_path / "pyproject.toml").write_text(text)
    assert project_name(tmp_path) == "x" and read_project(tmp_path)["name"] == "x"
    with pytest.raises(ValueError, match="too large"):
        parse_toml(b"#" * (MAX_BYTES + 1))
