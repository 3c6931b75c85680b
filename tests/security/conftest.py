"""Who runs the runner (root, an ordinary user), and under which profile: what a security test is given."""

from collections.abc import Callable

import pytest
from accounts import Account

from security.hostile import HostileRunner, runner_for


@pytest.fixture
def hostile(request: pytest.FixtureRequest, accounts: dict[str, Account]) -> HostileRunner:
    request.node.user_properties.extend(zip(("account", "profile"), request.param, strict=True))
    return runner_for(accounts, *request.param)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`family("install")` counts the test in the table of probes."""
    return lambda name: request.node.user_properties.append(("family", name))


@pytest.fixture(autouse=True)
def _family_of_module(request: pytest.FixtureRequest) -> None:
    name = getattr(request.module, "FAMILY", None)
    if name:
        request.node.user_properties.append(("family", name))
