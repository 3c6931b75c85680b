"""Wheels are unpacked as data: a good one is laid out as a venv, a hostile one is refused."""

import base64
import errno
import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

INFO = "demo-1.0.dist-info"
SITE = "lib/python3.11/site-packages"
Make = Callable[..., Path]
Unpack = Callable[[Path], dict[str, Any]]


def row(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f'"{name}",sha256={digest},{len(data)}\n'


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a wheel of `files` with a RECORD that fits; `record` replaces it, None leaves it out."""

    def write(
        files: Mapping[str, bytes] | None = None,
        *,
        record: str | None = "",
        points: str = "",
        modes: Mapping[str, int] | None = None,
    ) -> Path:
        content = dict(files or {"demo/__init__.py": b"A = 1\n"})
        content.setdefault(f"{INFO}/METADATA", b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        content.setdefault(f"{INFO}/WHEEL", b"Wheel-Version: 1.0\n")
        if points:
            content[f"{INFO}/entry_points.txt"] = points.encode()
        rows = "".join(row(name, data) for name, data in content.items()) + f"{INFO}/RECORD,,\n"
        path = tmp_path / "demo-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (modes or {}).get(name, 0o644) << 16
                archive.writestr(info, data, zipfile.ZIP_DEFLATED)
            if record is not None:
                archive.writestr(f"{INFO}/RECORD", record or rows)
        return path

    return write


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / "venv"


@pytest.fixture
def unpack(runner_module: Any, venv: Path) -> Unpack:
    return lambda wheel: dict(runner_module.unpack_wheel(str(wheel), str(venv), "python3.11", 1 << 20))


@pytest.fixture
def refuse(runner_module: Any, unpack: Unpack, tmp_path: Path) -> Callable[[Path], str]:
    """Unpack a wheel that must be refused, with nothing outside the target, and give the error."""

    def check(wheel: Path) -> str:
        before = {path for path in tmp_path.iterdir() if path.name != "venv"}
        with pytest.raises(runner_module.Failure) as caught:
            unpack(wheel)
        assert (caught.value.phase, caught.value.type) == ("install", "wheel_invalid")
        assert {path for path in tmp_path.iterdir() if path.name != "venv"} == before
        return str(caught.value.error)

    return check


def test_a_wheel_is_laid_out_as_a_venv(runner_module: Any, make: Make, unpack: Unpack, venv: Path) -> None:
    metadata = (
        b"Name: demo\r\n"
        b"Requires-Dist: six>=1\r\n"
        b"REQUIRES-DIST: idna ; extra == 'a'\r\n"
        b"\r\n"
        b"Requires-Dist: not-a-header\n"
    )
    wheel = make(
        {
            "demo/__init__.py": b"A = 1\n",
            "demo/data.bin": b"\0",
            "single.py": b"",
            f"{INFO}/METADATA": metadata,
        },
        points="[console_scripts]\ndemo = demo:main\n[group.x]\nname = demo.mod:obj [extra]\n",
    )
    found = unpack(wheel)
    assert found == {
        "console_scripts": {"demo": "demo:main"},
        "group.x": {"name": "demo.mod:obj [extra]"},
    }
    assert runner_module.wheel_requires(str(wheel)) == ["six>=1", "idna ; extra == 'a'"]
    assert (venv / SITE / "demo/__init__.py").read_text() == "A = 1\n"
    assert (venv / SITE / "demo/data.bin").read_bytes() == b"\0"
    assert (venv / SITE / INFO / "RECORD").is_file()


def test_every_data_scheme_has_its_place(make: Make, unpack: Unpack, venv: Path) -> None:
    schemes = {"purelib": SITE, "platlib": SITE, "scripts": "bin", "data": "", "headers": "include/demo"}
    unpack(make({f"demo-1.0.data/{scheme}/{scheme}.txt": scheme.encode() for scheme in schemes}))
    for scheme, folder in schemes.items():
        assert (venv / folder / f"{scheme}.txt").read_text() == scheme


def test_scripts_of_a_wheel_start_the_venvs_python(make: Make, unpack: Unpack, venv: Path) -> None:
    scripts = {"a": b"#!python\nprint()\n", "b": b"#!python -s\nx\n", "c": b"#!/bin/sh\n", "d": b"\x7fELF"}
    unpack(make({f"demo-1.0.data/scripts/{name}": data for name, data in scripts.items()}))
    texts = {name: (venv / "bin" / name).read_bytes() for name in scripts}
    assert texts == {**scripts, "a": b"#!/venv/bin/python\nprint()\n", "b": b"#!/venv/bin/python -s\nx\n"}
    assert all(os.access(venv / "bin" / name, os.X_OK) for name in scripts)


def test_a_data_file_that_looks_like_a_script_is_not_changed(make: Make, unpack: Unpack, venv: Path) -> None:
    unpack(make({"demo/template.txt": b"#!python\n"}))
    assert (venv / SITE / "demo/template.txt").read_bytes() == b"#!python\n"


def test_a_console_script_starts_the_venvs_python(make: Make, unpack: Unpack, venv: Path) -> None:
    unpack(make(points="[console_scripts]\nrun = demo.cli:App.main [extra]\n"))
    text = (venv / "bin" / "run").read_text()
    assert text.splitlines()[0] == "#!/venv/bin/python"
    assert "from demo.cli import App\nsys.exit(App.main())" in text
    compile(text, "run", "exec")


@pytest.mark.parametrize(
    "point", ["../run = demo:main", "python3 = demo:main", "run = demo:main();x", "run = os;x:y", ".x = a:b"]
)
def test_a_console_script_that_is_no_plain_name_is_left_out(make: Make, unpack: Unpack, venv: Path, point: str) -> None:
    unpack(make(points=f"[console_scripts]\n{point}\n"))
    assert not (venv / "bin").exists()


def test_only_regular_files_with_plain_modes_are_made(make: Make, unpack: Unpack, venv: Path) -> None:
    modes = {
        "demo/link": stat.S_IFLNK | 0o777,
        "demo/suid": stat.S_IFREG | 0o4755,
        "demo/fifo": stat.S_IFIFO | 0o666,
    }
    unpack(make(dict.fromkeys(modes, b"/etc/shadow"), modes=modes))
    for name in modes:
        status = (venv / SITE / name).lstat()
        assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) in (0o644, 0o755)


NAMES = [
    "../out",
    "demo/../../out",
    "/etc/out",
    "demo//x",
    "./x",
    "demo/./x",
    "a\\..\\x",
    "demo/\x1b",
    "C:\\x",
    "demo/a\nb",
]


@pytest.mark.parametrize("name", NAMES, ids=map(ascii, NAMES))
def test_an_unsafe_name_is_refused(make: Make, refuse: Callable[[Path], str], name: str) -> None:
    assert "unsafe file name" in refuse(make({name: b"x"}))


def test_a_file_that_comes_twice_is_refused(make: Make, refuse: Callable[[Path], str]) -> None:
    wheel = make()
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("demo/__init__.py", b"A = 2\n")
    assert "two files" in refuse(wheel)


def test_two_schemes_with_the_same_place_are_refused(make: Make, refuse: Callable[[Path], str]) -> None:
    refuse(make({"demo.py": b"A = 1\n", "demo-1.0.data/purelib/demo.py": b"A = 2\n"}))


def test_a_file_below_a_file_is_refused(make: Make, refuse: Callable[[Path], str]) -> None:
    refuse(make({"demo": b"", "demo/x": b""}))


RECORDS = {
    "none for a file": f"{INFO}/RECORD,,\n",
    "another digest": row("demo/__init__.py", b"A = 2\n"),
    "no digest": "demo/__init__.py,,\n",
    "md5": "demo/__init__.py,md5=1B2M2Y8AsgTpgAmY7PhCfg,6\n",
    "not CSV": '"',
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_a_file_that_is_not_what_record_says_is_refused(make: Make, refuse: Callable[[Path], str], record: str) -> None:
    assert "RECORD" in refuse(make(record=record))


def test_a_wheel_without_record_is_refused(make: Make, refuse: Callable[[Path], str]) -> None:
    assert "RECORD" in refuse(make(record=None))


@pytest.mark.parametrize("name", ["python", "python3", "python3.11", "activate", "activate.fish"])
def test_a_wheel_that_would_replace_the_interpreter_is_refused(
    make: Make, refuse: Callable[[Path], str], name: str
) -> None:
    assert "would replace" in refuse(make({f"demo-1.0.data/scripts/{name}": b"x"}))
    assert "would replace" in refuse(make({f"demo-1.0.data/data/bin/{name}": b"x"}))


def test_a_wheel_that_would_replace_the_venvs_configuration_is_refused(
    make: Make, refuse: Callable[[Path], str]
) -> None:
    assert "would replace" in refuse(make({"demo-1.0.data/data/pyvenv.cfg": b"home = /tmp"}))


@pytest.mark.parametrize("name", ["demo-1.0.data/other/x", "demo-1.0.data/scripts", "demo-1.0.data/x"])
def test_an_unknown_data_scheme_is_refused(make: Make, refuse: Callable[[Path], str], name: str) -> None:
    assert "scheme" in refuse(make({name: b"x"}))


def test_a_bomb_is_refused_before_a_byte_is_written(make: Make, refuse: Callable[[Path], str], venv: Path) -> None:
    assert "max_wheel_bytes" in refuse(make({"demo/zeros": bytes(2 << 20)}))
    assert not venv.exists()


def test_a_size_that_is_a_lie_is_refused(make: Make, refuse: Callable[[Path], str], venv: Path) -> None:
    wheel = make({"demo/zeros": bytes(2 << 20)})
    data = wheel.read_bytes()
    wheel.write_bytes(data.replace((2 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refuse(wheel)
    assert sum(path.stat().st_size for path in venv.rglob("*") if path.is_file()) < 1 << 20


@pytest.mark.parametrize("infos", [[], [INFO, "other-1.0.dist-info"]], ids=["none", "two"])
def test_a_wheel_has_one_dist_info(tmp_path: Path, refuse: Callable[[Path], str], infos: list[str]) -> None:
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo.py", "")
        for info in infos:
            archive.writestr(f"{info}/RECORD", "")
    assert "one .dist-info" in refuse(wheel)


@pytest.mark.parametrize("points", ["no section", "[a\n", "\xff".encode("latin-1").decode("latin-1") + "=", "[a]\nb"])
def test_entry_points_that_are_none_are_refused(make: Make, refuse: Callable[[Path], str], points: str) -> None:
    refuse(make(points=points))


def test_a_file_where_the_scripts_go_is_refused(make: Make, refuse: Callable[[Path], str]) -> None:
    files = {"demo/__init__.py": b"", "demo-1.0.data/data/bin": b""}
    assert "can't be unpacked" in refuse(make(files, points="[console_scripts]\ndemo = demo:main\n"))


def test_no_archive(tmp_path: Path, refuse: Callable[[Path], str]) -> None:
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 no archive")
    assert "can't be unpacked" in refuse(wheel)


def directory(archive: zipfile.ZipFile) -> None:
    """Comments of members come to 17 MiB of the directory of names, which zipfile reads whole."""
    for number in range(272):
        info = zipfile.ZipInfo(f"demo/{number}")
        info.comment = bytes(65_535)
        archive.writestr(info, b"")


def compressed_size(archive: zipfile.ZipFile) -> None:
    archive.filelist[-1].compress_size = 17 << 20


def told_as(end: bytes) -> bytes:
    return end


def hidden(end: bytes) -> bytes:
    """The mark by which one finds the record with the size, once more, in its place for an offset."""
    return end[:16] + b"PK\5\6" + end[20:]


def in_zip64(end: bytes) -> bytes:
    """The record of a larger format, which has precedence, has the size; the other says none."""
    count, size, offset = struct.unpack("<HII", end[10:20])
    large = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    return large + struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1) + end[:12] + bytes(4) + end[16:]


@pytest.mark.parametrize("swell, end", [(directory, told_as), (directory, hidden), (directory, in_zip64),
                                        (compressed_size, told_as)])  # fmt: skip
def test_what_zipfile_reads_whole_has_a_limit(
    make: Make, refuse: Callable[[Path], str], swell: Callable[[zipfile.ZipFile], None], end: Callable[[bytes], bytes]
) -> None:
    wheel = make()
    with zipfile.ZipFile(wheel, "a") as archive:
        swell(archive)
        archive._didModify = True  # type: ignore[attr-defined]
    data = wheel.read_bytes()
    wheel.write_bytes(data[:-22] + end(data[-22:]))
    assert zipfile.ZipFile(wheel).infolist()
    assert "is too large" in refuse(wheel)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_can_be_a_bomb_is_refused(make: Make, refuse: Callable[[Path], str], kind: int) -> None:
    """zipfile decompresses a megabyte of it at once: a wheel of 1,137 bytes took 3 GB of memory."""
    wheel = make()
    with zipfile.ZipFile(wheel, "a", kind) as archive:
        archive.writestr(f"{INFO}/LICENSE", b"MIT")
    assert "neither stored nor deflated" in refuse(wheel)


@given(st.data())
def test_a_damaged_wheel_is_refused_or_what_its_record_says(
    runner_module: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    wheel = folder / "demo-1.0-py3-none-any.whl"
    content = {"demo/__init__.py": b"A = 1\n" * 50, f"{INFO}/METADATA": b"Name: demo\n"}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
        archive.writestr(f"{INFO}/RECORD", "".join(row(name, text) for name, text in content.items()))
    damaged = bytearray(wheel.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    wheel.write_bytes(damaged)
    try:
        runner_module.unpack_wheel(str(wheel), str(folder / "venv"), "python3.11", 1 << 20)
    except runner_module.Failure as failure:
        assert failure.type == "wheel_invalid"
    else:
        module = folder / "venv" / SITE / "demo" / "__init__.py"
        assert not module.exists() or module.read_bytes() == content["demo/__init__.py"]


GOOD_FILES = [
    "six-1.17.0-py2.py3-none-any.whl",
    "a-1-1build-py3-none-any.whl",
    "a.b-1.0+local-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
]
BAD_FILES = [
    "six.whl",
    "../six-1-py3-none-any.whl",
    "a/b-1-py3-none-any.whl",
    "six-1-py3-none-any.whl\n",
    "-1-py3-none-any.whl",
    "six-1-py3-none-any.zip",
]


@pytest.mark.parametrize("name", GOOD_FILES)
def test_a_wheels_file_name_is_taken(runner_module: Any, name: str) -> None:
    assert runner_module.is_wheel_name(name)


@pytest.mark.parametrize("name", BAD_FILES)
def test_another_file_name_is_not(runner_module: Any, name: str) -> None:
    assert not runner_module.is_wheel_name(name)


# --- linking trees into a venv


def tree_of(module: Any, path: Path, files: Mapping[str, str]) -> Any:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return module.Tree(str(path), module.list_files(str(path)), {})


def test_the_first_of_two_wheels_with_the_same_file_wins(runner_module: Any, tmp_path: Path, venv: Path) -> None:
    for number in (1, 2):
        tree = tree_of(runner_module, tmp_path / str(number), {"a/same": str(number), f"a/own{number}": ""})
        runner_module.link_tree(tree, str(venv))
    assert (venv / "a/same").read_text() == "1"
    assert sorted(os.listdir(venv / "a")) == ["own1", "own2", "same"]


@pytest.mark.parametrize("second", ["a/b", "a/b/c"])
def test_a_file_and_a_folder_of_one_name_are_refused(
    runner_module: Any, tmp_path: Path, venv: Path, second: str
) -> None:
    runner_module.link_tree(tree_of(runner_module, tmp_path / "1", {"a": ""}), str(venv))
    with pytest.raises(runner_module.Failure) as raised:
        runner_module.link_tree(tree_of(runner_module, tmp_path / "2", {second: ""}), str(venv))
    assert (raised.value.type, "disagree" in raised.value.error) == ("wheel_invalid", True)


def test_a_full_disk_is_not_blamed_on_a_wheel(
    runner_module: Any, tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tree = tree_of(runner_module, tmp_path / "1", {"a": ""})
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space") as raised:
        runner_module.link_tree(tree, str(venv))
    assert runner_module.host_failure(raised.value).type == "host_exhausted"


def test_a_download_is_unpacked_early_also_where_there_are_no_links(
    runner_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(runner_module.os, "link", no_links)
    begun: list[str] = []
    store = SimpleNamespace(fresh=lambda name: str(tmp_path / name), path=lambda *parts: "/".join(parts))
    background = SimpleNamespace(ahead=lambda place, make: begun.append(place))
    profile = SimpleNamespace(dependencies=SimpleNamespace(max_packages=1))
    host = SimpleNamespace(store=store, background=background, profile=profile)
    downloads = runner_module.Downloads(host, SimpleNamespace(key=lambda: "key"))
    name = "a-1-py3-none-any.whl"
    downloads.entries = [{"url": f"https://index/{name}", "sha256": hashlib.sha256(b"wheel").hexdigest()}]
    downloads.opened("0", 5)
    downloads.data(b"wheel")
    downloads.closed()
    assert len(begun) == 1 and (tmp_path / "fetched" / "wheel-0" / name).read_bytes() == b"wheel"
