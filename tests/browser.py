"""A page in a real browser, which would tell on it."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

QUIET = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions",
)  # fmt: skip


def page_as_shown(page: str, folder: Path) -> str:
    """The document that the browser makes of a page, which asks for nothing and logs nothing on the way."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    with proxy() as (port, asked):
        command = [chromium, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={folder / 'profile'}"]
        command += [f"--proxy-server=127.0.0.1:{port}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
        done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert not [line for line in asked if b"evil" in line], asked
    return done.stdout


@contextmanager
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A port that all requests of the browser go to, and what came."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096))

        threading.Thread(target=take, daemon=True).start()
        yield listener.getsockname()[1], asked
