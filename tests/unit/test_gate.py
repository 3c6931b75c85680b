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
from servers import LocalServer, authority, listening


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
        assert gate.refused == {f"{host}:{listener.port}"} and host in gate.reason()


def test_control_of_the_refusals(runner_module: ModuleType) -> None:
    """An address that the caller named is reached, and what comes after is the other side's."""
    with listening() as listener:
        open_to = runner_module.Gate([f"127.0.0.1:{listener.port}"])
        assert b" 200 " in ask(open_to, f"CONNECT 127.0.0.1:{listener.port} HTTP/1.1")
        assert b" 403 " in ask(open_to, f"CONNECT localhost:{listener.port} HTTP/1.1")  # not as it was named


def test_only_who_knows_the_word_may_ask(gate: Any) -> None:
    assert b" 407 " in ask(gate, "CONNECT 192.0.2.1:443 HTTP/1.1", password="guess")
    assert gate.refused == set()


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
            assert gate.refused == (set() if hosts else {server.host})
