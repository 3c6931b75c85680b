"""What tools/deploy/Containerfile copies is let through by .dockerignore, and is what the wheel is made of."""

import tomllib

from conftest import ROOT

LINES = (ROOT / "tools/deploy/Containerfile").read_text().splitlines()
COPIED = {name for line in LINES if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]}


def test_the_build_sees_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert "*" in ignored and len(COPIED) > 5
    for name in COPIED:
        assert (ROOT / name).exists() and any(f"{name}/".startswith(f"{path}/") for path in let_through), name


def test_the_build_has_all_that_the_wheel_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]:
        assert any(f"{name}/".startswith(f"{path}/") for path in COPIED), name
