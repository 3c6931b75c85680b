"""What bwrap is told, as a pure function of profile and paths."""

import os
import string
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILES
from hypothesis import given
from hypothesis import strategies as st

PHASES = ("fetch", "build", "compile", "execute")
PLACES = {
    "fetch": ["/links"],
    "build": ["/source", "/venv"],
    "compile": ["/tree"],
    "execute": ["/bundle", "/venv"],
}
ONE_PATH = ("--dir", "--tmpfs", "--proc", "--dev", "--mqueue", "--remount-ro", "--chdir")
TWO_PATHS = ("--ro-bind", "--bind", "--symlink", "--dev-bind", "--ro-bind-data", "--file")


def arguments(module: Any, phase: str, policy: Any, common: Any, fds: Any = None) -> list[str]:
    mounts = [
        module.Mount("/usr", "/usr"),
        module.Mount("/some/etc", "/etc"),
        module.Mount("/some/child.py", "/runner/child.py"),
    ]
    mounts += [module.Mount(f"/some/run{place}", place) for place in PLACES[phase]]
    command = ["/venv/bin/python", "-I", "-S", "-u", "-B", "/runner/child.py", "--sandboxed-child"]
    box = module.Sandbox(phase, policy, common, mounts, [("usr/lib", "/lib")], {}, "/bundle", command)
    return list(module.bwrap_arguments(box, fds or module.Descriptors([11, 12], 10)))


def targets(options: list[str]) -> list[tuple[str, str]]:
    """Every option that makes something at a path, with the path."""
    found = []
    for index, option in enumerate(options):
        if option in ONE_PATH:
            found.append((option, options[index + 1]))
        if option in TWO_PATHS:
            found.append((option, options[index + 2]))
    return found


@pytest.fixture(scope="module", params=["default", "strict", "debug", "container"])
def profile(request: pytest.FixtureRequest, runner_module: Any) -> Any:
    return runner_module.load_profile(request.param, [str(PROFILES)])


@pytest.mark.parametrize("phase", PHASES)
def test_every_promise_is_among_the_options(runner_module: Any, profile: Any, phase: str) -> None:
    whole = arguments(runner_module, phase, getattr(profile, phase), profile.sandbox)
    options = whole[: whole.index("--")]
    for promise in (
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-cgroup",
    ):
        assert promise in options
    for promise in ("--new-session", "--die-with-parent"):
        assert promise in options
    assert options[options.index("--cap-drop") + 1] == "ALL"
    named = "--hostname" in options and options[options.index("--hostname") + 1] == "sandbox"
    assert named == profile.sandbox.proc  # the container profile has neither
    assert ("--unshare-net" in options) == (phase != "fetch")
    assert not {"--cap-add", "--share-net", "--bind", "--dev-bind", "--setenv", "--overlay"} & {*options}
    assert options[-2:] == ["--chdir", "/bundle"]


def test_namespaces_are_kept_out_by_the_sysctl_unless_the_profile_leaves_it_to_seccomp(
    runner_module: Any, profile: Any
) -> None:
    options = arguments(runner_module, "execute", profile.execute, profile.sandbox)
    sysctl = profile.sandbox.nested_userns == "sysctl"
    assert ("--disable-userns" in options) == ("--assert-userns-disabled" in options) == sysctl


def test_without_proc_there_is_none(runner_module: Any, profile: Any) -> None:
    options = arguments(runner_module, "execute", profile.execute, profile.sandbox)
    assert any(path.startswith("/proc") for _, path in targets(options)) == profile.sandbox.proc


def test_masked_parts_of_proc_are_covered_after_proc_is_mounted(runner_module: Any, default_profile: Any) -> None:
    made = targets(arguments(runner_module, "execute", default_profile.execute, default_profile.sandbox))
    order = [path for _, path in made]
    for path in default_profile.sandbox.masked:
        if os.path.exists(path):
            assert order.index(path) > order.index("/proc")
    assert ("--remount-ro", "/proc/sys") in made


@pytest.mark.parametrize("path", ["/tmp", "/dev/shm"])
def test_every_tmpfs_has_a_size(runner_module: Any, profile: Any, path: str) -> None:
    options = arguments(runner_module, "execute", profile.execute, profile.sandbox)
    sizes = {options[i + 1]: options[i - 3] for i, option in enumerate(options) if option == "--tmpfs"}
    assert [options[i - 4] for i, option in enumerate(options) if option == "--tmpfs"] == ["--size"] * len(sizes)
    expected = profile.execute.tmp_bytes if path == "/tmp" else profile.execute.shm_bytes
    assert sizes[path] == str(expected)


def test_the_roots_become_read_only_last(runner_module: Any, profile: Any) -> None:
    options = arguments(runner_module, "execute", profile.execute, profile.sandbox)
    made = targets(options)
    assert made[-3:-1] == [("--remount-ro", "/dev"), ("--remount-ro", "/")]


def test_descriptors_are_named_once(runner_module: Any, default_profile: Any) -> None:
    options = arguments(runner_module, "execute", default_profile.execute, default_profile.sandbox)
    assert [options[i + 1] for i, option in enumerate(options) if option == "--add-seccomp-fd"] == [
        "11",
        "12",
    ]
    assert [options[i + 1] for i, option in enumerate(options) if option == "--json-status-fd"] == ["10"]


def test_the_command_is_last_and_isolated(runner_module: Any, default_profile: Any) -> None:
    whole = arguments(runner_module, "execute", default_profile.execute, default_profile.sandbox)
    assert whole[whole.index("--") + 1 :][:3] == ["/venv/bin/python", "-I", "-S"]


def system_paths() -> st.SearchStrategy[list[str]]:
    tails = st.text(string.ascii_lowercase + "/", max_size=12).map(os.path.normpath)
    return st.lists(
        st.builds(
            lambda top, tail: os.path.normpath(f"{top}/{tail}"),
            st.sampled_from(["/usr", "/lib", "/opt"]),
            tails,
        )
    )


@given(data=st.data(), phase=st.sampled_from(PHASES))
def test_no_policy_opens_anything(runner_module: Any, default_profile: Any, data: st.DataObject, phase: str) -> None:
    policy = getattr(default_profile, phase)._replace(
        read_only=data.draw(system_paths()),
        tmp_bytes=data.draw(st.integers(1, 1 << 40)),
        shm_bytes=data.draw(st.integers(1, 1 << 40)),
        shell=data.draw(st.booleans()),
    )
    masked = data.draw(st.lists(st.sampled_from(["/proc/sys", "/proc/keys", "/proc/none", "/proc/bus"])))
    common = default_profile.sandbox._replace(
        proc=data.draw(st.booleans()),
        nested_userns=data.draw(st.sampled_from(["sysctl", "seccomp"])),
        masked=masked,
    )
    changed = default_profile._replace(**{phase: policy}, sandbox=common)
    runner_module.check_profile(changed, "/some/file")
    whole = arguments(runner_module, phase, policy, common)
    options = whole[: whole.index("--")]
    assert ("--unshare-net" in options) == (phase != "fetch")
    assert "--unshare-user" in options and options[options.index("--cap-drop") + 1] == "ALL"
    for option, path in targets(options):
        for untrusted in ("/bundle", "/venv", "/source", "/tree"):
            assert not path.startswith(untrusted + "/")
            assert path != untrusted or option in ("--ro-bind", "--chdir")
    writable = {path for option, path in targets(options) if option == "--tmpfs"} - {
        path for option, path in targets(options) if option == "--remount-ro"
    }
    assert writable == {"/tmp", "/dev/shm"}


def interpreter(module: Any, prefix: str, **changes: str) -> Any:
    own = module.Interpreter(**module.describe_interpreter())
    return own._replace(
        executable=f"{prefix}/bin/python3",
        prefix=prefix,
        exec_prefix=prefix,
        stdlib=f"{prefix}/lib/python3.11",
        **changes,
    )


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    folder = tmp_path / "python"
    for name in ("bin", "lib/python3.11"):
        (folder / name).mkdir(parents=True)
    (folder / "bin" / "python3").touch()
    return folder


def test_system_mounts_exist_and_none_lies_below_another(runner_module: Any, profile: Any, prefix: Path) -> None:
    for phase in PHASES:
        paths, links = runner_module.system_mounts(getattr(profile, phase), [interpreter(runner_module, str(prefix))])
        assert str(prefix) in paths
        for path in paths:
            assert os.path.exists(path) and os.path.realpath(path) == path
            assert not any(path.startswith(other + "/") for other in paths)
        for text, link in links:
            assert os.readlink(link) == text
            assert not any(link.startswith(path + "/") for path in paths)


@pytest.mark.parametrize("phase", PHASES)
def test_no_private_folder_of_the_host_is_mounted(runner_module: Any, profile: Any, phase: str) -> None:
    own = interpreter(runner_module, "/usr", version="3.11.2")
    paths, _ = runner_module.system_mounts(getattr(profile, phase), [own])
    for path in paths:
        assert path == "/etc/alternatives" or path.split("/")[1] not in (
            "etc",
            "var",
            "home",
            "root",
            "run",
            "sys",
            "tmp",
        )


def test_of_usr_only_the_standard_library_is_needed(runner_module: Any) -> None:
    assert interpreter(runner_module, "/usr").mounts() == ["/usr/bin/python3", "/usr/lib/python3.11"]


def test_a_prefix_of_its_own_is_needed_whole(runner_module: Any, prefix: Path) -> None:
    assert str(prefix) in interpreter(runner_module, str(prefix)).mounts()


@pytest.mark.parametrize("place", ["/", "/home", "/root", "/opt", "/tmp"])
def test_a_prefix_that_holds_more_than_python_is_refused(runner_module: Any, place: str) -> None:
    with pytest.raises(runner_module.Failure, match="holds more than Python"):
        runner_module.check_prefix(interpreter(runner_module, place))


def test_the_synthetic_etc_has_no_more_than_names(runner_module: Any, default_profile: Any, tmp_path: Path) -> None:
    runner_module.write_etc(str(tmp_path / "etc"), default_profile.sandbox, False)
    files = {str(path.relative_to(tmp_path / "etc")) for path in (tmp_path / "etc").rglob("*") if path.is_file()}
    assert files <= {"passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "localtime"}
    assert (tmp_path / "etc" / "passwd").read_text().count("\n") == 2


def test_the_rlimits_are_those_of_the_policy(runner_module: Any, default_profile: Any) -> None:
    limits = default_profile.execute.limits
    found = runner_module.rlimits(limits)
    assert found["RLIMIT_CORE"] == 0
    assert (found["RLIMIT_FSIZE"], found["RLIMIT_NOFILE"]) == (limits.file_bytes, limits.open_files)
    assert limits.cpu_seconds <= found["RLIMIT_CPU"] <= limits.cpu_seconds + 2
