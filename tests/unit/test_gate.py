"""The proxy of the fetch sandbox: what the bundle names is reached at public addresses alone."""

import base64
import contextlib
import os
import socket
import subprocess
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from servers import LocalServer, Proxy, authority, listening


@pytest.fixture
def gate(runner_module: ModuleType) -> Any:
    return runner_module.Gate([])  # it listens as long as its process lives


def ask(gate: Any, request: str, password: str | None = None) -> bytes:
    """The first line of the answer to a request with the gate's own login, or another."""
    place = urlsplit(gate.url)
    login = base64.b64encode(f"gate:{password or place.password}".encode()).decode()
    with socket.create_connection((place.hostname, place.port), 30) as connection:
        connection.sendall(f"{request}\r\nProxy-Authorization: Basic {login}\r\n\r\n".encode())
        connection.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(4096).split(b"\r\n")[0]
    return b""


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "127.1", "2130706433", "0x7f.1",
        "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "[fe80::1]", "[fc00::1]",
    ],
)  # fmt: skip
def test_no_inner_address_is_reached(gate: Any, host: str) -> None:
    with listening() as listener:
        assert b" 403 " in ask(gate, f"CONNECT {host}:{listener.port} HTTP/1.1")
        assert set(gate.refused) == {f"{host}:{listener.port}"} and host in gate.reason()


def test_control_of_the_refusals(runner_module: ModuleType) -> None:
    """An address that the caller named is reached, and what comes after is the other side's."""
    with listening() as listener:
        open_to = runner_module.Gate([f"127.0.0.1:{listener.port}"])
        assert b" 200 " in ask(open_to, f"CONNECT 127.0.0.1:{listener.port} HTTP/1.1")
        assert b" 403 " in ask(open_to, f"CONNECT localhost:{listener.port} HTTP/1.1")  # not as it was named


def test_only_who_knows_the_word_may_ask(gate: Any) -> None:
    assert b" 407 " in ask(gate, "CONNECT 192.0.2.1:443 HTTP/1.1", password="guess")
    assert gate.refused == {}


@pytest.mark.parametrize(
    "request_line",
    [
        "GET http://127.0.0.1/ HTTP/1.1", "CONNECT 127.0.0.1 HTTP/1.1", "CONNECT 127.0.0.1:x HTTP/1.1", "CONNECT", "",
        "POST / HTTP/1.1", "CONNECT :443 HTTP/1.1", "CONNECT 127.0.0.1:99999999 HTTP/1.1", "\0\xff",
    ],
)  # fmt: skip
def test_what_is_no_tunnel_gets_none(gate: Any, request_line: str) -> None:
    assert b" 200 " not in ask(gate, request_line)
    assert b" 403 " in ask(gate, "CONNECT 127.0.0.1:9 HTTP/1.1")  # and the gate goes on


def test_git_passes_where_it_may(runner_module: ModuleType) -> None:
    """git asks without the login first, and again when it has been told of it."""
    with LocalServer() as server:
        url = server.git("lib", {"lib.py": ""})
        for hosts, code in (([server.host], 0), ([], 128)):
            gate = runner_module.Gate(hosts)
            environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_SSL_CAINFO": authority().bundle}
            done = subprocess.run(["git", "ls-remote", url], env={**environment, "https_proxy": gate.url})
            assert done.returncode == code
            assert set(gate.refused) == (set() if hosts else {server.host})


# --- the caller's own proxy


def by_proxy(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, proxy: str, hosts: tuple[str, ...] = (), **more: str
) -> Any:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HTTPS_PROXY": proxy, **more}.items():
        monkeypatch.setenv(name, value)
    return module.Gate(list(hosts))


def test_the_way_leads_through_the_callers_proxy(runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as listener, Proxy("me:s3cret") as proxy:
        gate = by_proxy(runner_module, monkeypatch, proxy.url)
        assert b" 200 " in ask(gate, f"CONNECT 192.0.2.1:{listener.port} HTTP/1.1")
        assert proxy.asked == [f"192.0.2.1:{listener.port}"] and gate.refused == {}


@pytest.mark.parametrize("no_proxy", ["", "*", "localhost,127.0.0.1,10.0.0.1,.invalid"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "[::1]", "no-such-name.invalid"])
def test_neither_a_proxy_nor_no_proxy_opens_the_gate(
    host: str, no_proxy: str, runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is private, or can't be told to be public, is asked neither of the proxy nor past it."""
    with listening() as listener, Proxy(more=(host,)) as proxy:
        gate = by_proxy(runner_module, monkeypatch, proxy.url, NO_PROXY=no_proxy)
        assert b" 403 " in ask(gate, f"CONNECT {host}:{listener.port} HTTP/1.1")
        assert proxy.asked == [] and listener.heard == []
        assert "private_addresses" in gate.reason() or (no_proxy and "looked up" in gate.reason())


def test_what_the_caller_named_is_the_proxys_to_find(
    runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as listener, Proxy(more=("index.invalid",)) as proxy:
        named = f"index.invalid:{listener.port}"
        gate = by_proxy(
            runner_module, monkeypatch, proxy.url, (named, f"127.0.0.1:{listener.port}"), NO_PROXY="127.0.0.1"
        )
        assert b" 200 " in ask(gate, f"CONNECT {named} HTTP/1.1")
        assert b" 200 " in ask(gate, f"CONNECT 127.0.0.1:{listener.port} HTTP/1.1")
        assert proxy.asked == [named]  # the other is reached past it, as NO_PROXY says


@pytest.mark.parametrize(
    "proxy, problem",
    [
        ("https://127.0.0.1:9", "https proxy"),
        ("socks5://127.0.0.1:9", "socks5 proxy"),
        ("http://127.0.0.1:9", "refused"),
    ],
)
def test_a_proxy_that_is_no_good(
    proxy: str, problem: str, runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = by_proxy(runner_module, monkeypatch, proxy)
    assert b" 403 " in ask(gate, "CONNECT 192.0.2.1:443 HTTP/1.1")
    assert problem in gate.reason()


def test_a_proxy_that_refuses(runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy("me:word") as proxy:
        gate = by_proxy(runner_module, monkeypatch, proxy.url.replace("word", "other"))
        assert b" 403 " in ask(gate, "CONNECT 192.0.2.1:443 HTTP/1.1")
        assert "407" in gate.reason() and "other" not in gate.reason()
