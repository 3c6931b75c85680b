"""A new template is a help: a server that can't have one goes on with the one that it has."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize("why", ["failure", "full disk"])
def test_a_template_that_can_not_be_begun_ends_no_server(runner_module: Any, capfd: Any, why: str) -> None:
    failure = runner_module.Failure("host", "bwrap_failed", "no sandbox")
    full = OSError(errno.ENOSPC, "No space left on device")
    written: list[bool] = []

    class Server(runner_module.Server):  # type: ignore[misc, name-defined]
        def start(self) -> Any:
            raise failure if why == "failure" else full

    host = SimpleNamespace(profile=SimpleNamespace(serve=SimpleNamespace(preload=True)))
    learned = SimpleNamespace(write=lambda: written.append(True))
    server = Server(host, None, None, learned)
    server.grown = True
    server.prepare_next()
    assert server.coming is None and written == [True]
    assert "no new template" in capfd.readouterr().err


def test_a_wait_that_is_over_before_it_begins_is_none(runner_module: Any) -> None:
    """The time is looked at twice, and a busy machine may pass the end of it in between."""
    host = SimpleNamespace(profile=SimpleNamespace(serve=SimpleNamespace(preload=True)))
    runner_module.Server(host, None, SimpleNamespace(open=False), None).attend(-1e-9)
