"""Fixtures of the tests of faults."""

from collections.abc import Callable, Iterator

import pytest
from accounts import Account
from servers import LocalServer

from faults.aftermath import SEED, FaultRunner, add_dependencies


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"FAULT_SEED={SEED}")


@pytest.fixture(scope="session")
def index() -> Iterator[LocalServer]:
    with LocalServer() as server:
        add_dependencies(server)
        yield server


@pytest.fixture
def runner_of(accounts: dict[str, Account], index: LocalServer) -> Callable[..., FaultRunner]:
    """`runner_of("root", "name")`: a runner of that account with a store of its own."""

    def make(who: str, name: str, *, server: bool = True) -> FaultRunner:
        if who not in accounts:
            pytest.skip("the tests do not run as root")
        return FaultRunner(accounts[who], name, index if server else None)

    return make


@pytest.fixture
def verdict(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """`verdict(fault, what came of it)`: a row of the table that evidence.py prints."""

    def record(fault: str, text: str) -> None:
        record_property("fault", fault)
        record_property("verdict", text)

    return record
