"""A target's entry point, in the old form and in the new one."""

import pytest

from modelops.adapters.exec_env.payload import target_location


@pytest.mark.parametrize(
    ("entrypoint", "location"),
    [
        ("targets.fit:loss", "targets.fit:loss"),
        ("targets.compute_loss/compute_loss", "targets:compute_loss"),
        ("targets.covid/deaths", "targets:covid"),
        ("my.package.targets/deaths", "my.package.targets:deaths"),
        ("dummy.targets/deaths", "targets:deaths"),
        ("dummy.targets.covid/deaths", "targets:covid"),
        ("dummy.my.package.targets/deaths", "my.package.targets:deaths"),
        ("targets/deaths", "targets:deaths"),
        ("dummy/deaths", "dummy:deaths"),
    ],
)
def test_the_location_of_a_target(entrypoint: str, location: str) -> None:
    assert target_location(entrypoint) == location
