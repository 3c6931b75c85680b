"""A new template is a help: a server that can't have one goes on with the one that it has."""

import errno
import selectors
from types import SimpleNamespace
from typing import Any

import pytest

HOST = SimpleNamespace(
    profile=SimpleNamespace(serve=SimpleNamespace(preload=True)), store=SimpleNamespace(remember=lambda *_: None)
)


@pytest.mark.parametrize("why", ["failure", "full disk"])
def test_a_template_that_can_not_be_begun_ends_no_server(runner_module: Any, capfd: Any, why: str) -> None:
    failure = runner_module.Failure("host", "bwrap_failed", "no sandbox")
    full = OSError(errno.ENOSPC, "No space left on device")
    written: list[bool] = []

    class Server(runner_module.Server):  # type: ignore[misc, name-defined]
        def start(self) -> Any:
            raise failure if why == "failure" else full

    server = Server(HOST, None, None, SimpleNamespace(write=lambda: written.append(True)))
    server.grown = True
    server.prepare_next()
    assert server.coming is None and written == [True]
    assert "no new template" in capfd.readouterr().err


def test_a_wait_that_is_over_before_it_begins_is_none(runner_module: Any) -> None:
    """The time is looked at twice, and a busy machine may pass the end of it in between."""
    runner_module.Server(HOST, None, SimpleNamespace(open=False), None).attend(-1e-9)


class Coming(SimpleNamespace):
    """A sandbox that was begun beside the present one, and ends with `failure` before it is ready."""

    def __init__(self, failure: BaseException, **state: Any) -> None:
        known = {"ready": None, "failure": None, "violation": None, "process": SimpleNamespace(poll=lambda: 1)}
        super().__init__(**known | {"request": {"modules": []}, "closed": False} | state)
        self.error = failure

    def wait_until_ready(self) -> None:
        raise self.error

    def close(self) -> None:
        self.closed = True


def server_with(runner: Any, coming: Coming) -> Any:
    server = runner.Server(HOST, None, None, SimpleNamespace(key="key", files={}))
    server.current, server.coming = SimpleNamespace(close=lambda: None), coming
    return server


@pytest.mark.parametrize("modules", [[], ["numpy"]], ids=["caches alone", "modules"])
@pytest.mark.parametrize("how", ["ended", "over its limit"])
def test_a_template_that_fails_ends_no_server_and_is_closed(runner_module: Any, modules: list[str], how: str) -> None:
    running = {"process": SimpleNamespace(poll=lambda: None), "violation": "timeout"}
    failure = runner_module.Failure("execute", "timeout", "it took too long")
    coming = Coming(failure, request={"modules": modules}, **({} if how == "ended" else running))
    server = server_with(runner_module, coming)
    present = server.current
    server.take_over()
    assert coming.closed and server.coming is None and server.current is present


def test_a_signal_while_a_template_is_tried_leaves_no_sandbox(runner_module: Any) -> None:
    coming = Coming(runner_module.Killed(15))
    server = server_with(runner_module, coming)
    with pytest.raises(runner_module.Killed):
        server.take_over()
    server.close()
    assert coming.closed


def test_a_sandbox_that_was_not_seen_to_be_fit_is_not_there_for_the_next_task(runner_module: Any) -> None:
    """Its import may have taken too long: what it came to afterwards was never looked at."""
    coming = Coming(runner_module.Failure("execute", "timeout", "it took too long"))

    class Server(runner_module.Server):  # type: ignore[misc, name-defined]
        def start(self) -> Any:
            return coming

    with pytest.raises(runner_module.Failure):
        Server(HOST, None, None, None).session()
    assert coming.closed


def test_a_sandbox_that_was_given_up_is_not_waited_for(runner_module: Any) -> None:
    """No new one may have come in its place, where the machine had no room for one."""
    session = runner_module.Session.__new__(runner_module.Session)
    session.cleanup, session.alive, session.ended = runner_module.ExitStack(), False, False
    session.selector = session.cleanup.enter_context(selectors.PollSelector())
    session.close()
    server = runner_module.Server(HOST, None, SimpleNamespace(open=False), None)
    server.current = session
    server.attend(0)
