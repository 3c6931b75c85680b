"""An index that the bundle names is the attacker's: where its pages and links may lead, and what goes along."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import NamedTuple

import pytest
from conftest import Result
from servers import PUBLIC, LocalServer, Proxy, plain, protected, redirect, wheel, write_tree

from security.hostile import HostileRunner, runs, turns
from security.test_confusion import bundle

FAMILY = "install"
FILE, DATA = wheel("extra", "1.0", {"extra.py": "WHOSE = 'theirs'\n"})
LOGIN = "caller:s3cr3t"


class Net(NamedTuple):
    """The attacker's index and a host of theirs, both at public addresses; the caller's index, which asks for a login;
    a service of this machine, with and without TLS."""

    index: LocalServer
    other: LocalServer
    callers: LocalServer
    inner: LocalServer
    clear: LocalServer
    proxy: Proxy

    def environment(self) -> dict[str, str]:
        named = {"UV_DEFAULT_INDEX": self.callers.url(credentials=LOGIN), "HTTPS_PROXY": self.proxy.url}
        return {**self.callers.environment(**named), "HTTP_PROXY": self.proxy.url, "NO_PROXY": "localhost"}


@pytest.fixture
def net() -> Iterator[Net]:
    index, other = LocalServer(name="192.0.2.1"), LocalServer(name="198.51.100.1")
    with index, other, LocalServer() as callers, LocalServer() as inner, LocalServer(tls=False) as clear:
        for server in (other, inner, clear):
            server.add(FILE, DATA)
        callers.add(*wheel("open", "1.0", {"open.py": ""}))
        callers.content[f"/files/{FILE}"] = DATA  # listed under another name
        callers.files["hidden"] = {FILE: {"url": callers.url(f"/files/{FILE}"), "sha256": sha256(DATA).hexdigest()}}
        for place in ("/simple/", "/files/"):
            callers.behave(place, protected(LOGIN)(callers))
        with Proxy() as proxy:
            yield Net(index, other, callers, inner, clear, proxy)


def link(url: str) -> Callable[[Net], None]:
    def arrange(net: Net) -> None:
        body = f'<a href="{placed(url, net)}#sha256={sha256(DATA).hexdigest()}">{FILE}</a>'
        net.index.behave("/simple/extra/", plain(body.encode()))

    return arrange


def led(path: str, url: str) -> Callable[[Net], None]:
    def arrange(net: Net) -> None:
        net.index.add(FILE, DATA)
        net.index.behave(path, redirect(placed(url, net)))

    return arrange


def placed(url: str, net: Net) -> str:
    for name in ("other", "callers", "inner", "clear"):
        url = url.replace(name.upper(), getattr(net, name).host)
    return url


NOWHERE = {
    "a link to a file of the host": link("file:///etc/passwd"),
    "a link to a file of the sandbox": link(f"file:///links/{FILE}"),
    "a link without TLS": link(f"http://CLEAR/files/{FILE}"),
    "a link to this machine": link(f"https://INNER/files/{FILE}"),
    "a link with a login": link(f"https://u:p@OTHER/files/{FILE}"),
    "a page that leads off TLS": led("/simple/extra/", "http://CLEAR/simple/extra/"),
    "a page that leads to this machine": led("/simple/extra/", "https://INNER/simple/extra/"),
    "a page that leads to a file": led("/simple/extra/", "file:///etc/passwd"),
    "a file that leads off TLS": led("/files/", f"http://CLEAR/files/{FILE}"),
    "a file that leads to this machine": led("/files/", f"https://INNER/files/{FILE}"),
    "a file that leads elsewhere with a login": led("/files/", f"https://u:p@OTHER/files/{FILE}"),
    "a link to the caller's host": link(f"https://CALLERS/files/{FILE}"),
    "a link with a login to the caller's host": link(f"https://x:y@CALLERS/files/{FILE}"),
    "a page that leads to the caller's host": led("/simple/extra/", "https://CALLERS/simple/hidden/"),
    "a file that leads to the caller's host": led("/files/", f"https://CALLERS/files/{FILE}"),
}
ELSEWHERE = {
    "a link": link(f"https://OTHER/files/{FILE}"),
    "a page that leads": led("/simple/extra/", "https://OTHER/simple/extra/"),
    "a page that leads with a login": led("/simple/extra/", "https://u:p@OTHER/simple/extra/"),
    "a file that leads": led("/files/", f"https://OTHER/files/{FILE}"),
}


def go(hostile: HostileRunner, net: Net, explicit: bool) -> Result:
    place = hostile.bundle()
    (place / "pyproject.toml").unlink()
    more = f'[[tool.uv.index]]\nname = "theirs"\nurl = "{net.index.url()}"\n'
    more += 'explicit = true\n[tool.uv.sources]\nextra = {index = "theirs"}\n' if explicit else ""
    write_tree(place, bundle(["extra", "open"], more, "extra"))
    return hostile.afresh(place, None, env=net.environment(), name="where an index of the bundle's own leads")


SOME = (
    "a link to a file of the host", "a link without TLS", "a link to this machine", "a link with a login",
    "a page that leads off TLS", "a page that leads to this machine", "a file that leads to this machine",
    "a link to the caller's host",
)  # fmt: skip


@turns("case", NOWHERE, ("root", "default"), ("user", "default"), first=SOME, why="the same place by another way")
def test_an_index_leads_to_no_other_place(case: str, hostile: HostileRunner, net: Net) -> None:
    """Not off https, not to this machine, not to what the caller's login opens; also where the caller has a proxy."""
    NOWHERE[case](net)
    result = go(hostile, net, explicit=len(case) % 2 == 0)
    assert result.error["type"] in ("dependency_unavailable", "dependency_refused"), result.body
    assert "retries" not in result.error["error"]  # what can't be is asked for once
    assert net.inner.log == net.clear.log == []
    assert not [target for target in net.proxy.asked if not target.startswith(PUBLIC)]
    assert not any(server.saw("s3cr3t") for server in (net.index, net.other))
    assert "s3cr3t" not in str(result.body) + result.stderr


SERVED = ELSEWHERE.keys() - {"a page that leads"}


@turns("case", ELSEWHERE, ("root", "default"), ("user", "default"), first=SERVED, why="the same page without a login")
def test_control(case: str, hostile: HostileRunner, net: Net) -> None:
    """Another public host serves it; the caller's login goes to the caller's index, and a proxy leads to the others."""
    ELSEWHERE[case](net)
    assert go(hostile, net, explicit=True).outputs == {"out": b"theirs"}
    assert net.callers.saw("s3cr3t") and not any(server.saw("s3cr3t") for server in (net.index, net.other))
    assert set(net.proxy.asked) == {net.index.host, net.other.host}


@runs(("root", "default"), ("user", "default"))
def test_a_link_to_what_the_callers_index_lists_is_followed(hostile: HostileRunner, net: Net) -> None:
    """As an index that mirrors another: the file is the caller's to give."""
    net.callers.add(FILE, DATA)
    link(f"https://CALLERS/files/{FILE}")(net)
    assert go(hostile, net, explicit=True).outputs == {"out": b"theirs"}
