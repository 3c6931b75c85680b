"""Dependencies as data: what is taken, what is refused, and that what we write again is what we read."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

SHA = "a" * 64
GOOD = [
    ("numpy", "numpy"),
    ("  numpy  ", "numpy"),
    ("zope.interface", "zope.interface"),
    ("a", "a"),
    ("numpy>=1.26", "numpy>=1.26"),
    ("numpy >= 1.26 , < 3", "numpy>=1.26,<3"),
    ("numpy (>=1.26,<3)", "numpy>=1.26,<3"),
    ("numpy(~=1.26.0)", "numpy~=1.26.0"),
    ("numpy ==1.*", "numpy==1.*"),
    ("numpy!=1.5,!=1.6rc1", "numpy!=1.5,!=1.6rc1"),
    ("torch==2.1+cpu", "torch==2.1+cpu"),
    ("epoch==1!2.0", "epoch==1!2.0"),
    ("uvicorn[standard]", "uvicorn[standard]"),
    ("a [ b , c-d ] >=1", "a[b,c-d]>=1"),
    ("empty[]", "empty[]"),
    ('x; python_version < "3.12"', 'x ; python_version < "3.12"'),
    ("x>=1;sys_platform=='linux' and (extra == 'a' or os_name != \"nt\")", None),
    ('x[a] >= 1 ; python_version in "3.11, 3.12"', 'x[a]>=1 ; python_version in "3.11, 3.12"'),
    ("x @ https://host.example/x-1-py3-none-any.whl", "x @ https://host.example/x-1-py3-none-any.whl"),
    (
        f"x@https://host.example:8443/a%20b/x.whl#sha256={SHA}",
        f"x @ https://host.example:8443/a%20b/x.whl#sha256={SHA}",
    ),
    (
        "x[a] @ https://h.example/x.whl ; os_name == 'posix'",
        "x[a] @ https://h.example/x.whl ; os_name == 'posix'",
    ),
    ("x @ git+https://github.com/o/r", "x @ git+https://github.com/o/r"),
    ("x @ git+https://github.com/o/r.git@v1.0#subdirectory=a/b", None),
    ("x @ git+https://github.com/o/r@0123abcd ; python_version>'3'", None),
    ("x @ https://[2606:4700::1111]/x.whl", None),
]


@pytest.mark.parametrize(("text", "line"), GOOD, ids=[text for text, _ in GOOD])
def test_a_good_dependency_is_written_again_in_one_form(
    runner_module: Any, default_profile: Any, text: str, line: str | None
) -> None:
    parsed = runner_module.parse_requirement(text, default_profile.dependencies, "test")
    assert line is None or parsed.line() == line
    assert runner_module.parse_requirement(parsed.line(), default_profile.dependencies, "test") == parsed


def test_the_parts_of_a_dependency(runner_module: Any, default_profile: Any) -> None:
    text = "My.Pkg [a, b] @ git+https://h.example/o/r@main#subdirectory=s ; os_name == 'posix'"
    parsed = runner_module.parse_requirement(text, default_profile.dependencies, "test")
    assert (parsed.name, parsed.extras, parsed.versions) == ("My.Pkg", "[a,b]", "")
    assert (parsed.url, parsed.marker) == (
        "git+https://h.example/o/r@main#subdirectory=s",
        "os_name == 'posix'",
    )


BAD = [
    "",
    "-",
    "-r /etc/passwd",
    "-e .",
    "-e git+https://github.com/o/r#egg=x",
    "--index-url https://evil.example/simple",
    "--extra-index-url=https://evil.example",
    "--no-binary :all:",
    "--find-links /tmp",
    "-c constraints.txt",
    ".",
    "..",
    "./local",
    "../a.whl",
    "/etc/passwd",
    "x @ ../a.whl",
    "x @ /etc/passwd",
    "x @ -e",
    "x @ ${HOME}/a.whl",
    "x @ file:///etc/passwd",
    "x @ FILE:///etc/passwd",
    "x @ http://host.example/a.whl",
    "x @ git+http://host.example/r",
    "x @ git+ssh://git@host.example/r",
    "x @ git+file:///repo",
    "x @ git://host.example/r",
    "x @ hg+https://host.example/r",
    "x @ ftp://host.example/a.whl",
    "x @ https://user:password@host.example/a.whl",
    "x @ https://user@host.example/a.whl",
    "x @ git+https://token@github.com/o/r",
    "x @ https://host.example/${SECRET}",
    "x @ https://${SECRET}.example/a.whl",
    "x @ https://host.example",
    "x @ https:///a.whl",
    "x @ https://host.example\\@evil.example/a.whl",
    "x @ https://host.example:\u0661/a.whl",
    "x @ https://127.0.0.1/a.whl",
    "x @ https://10.0.0.1/a.whl",
    "x @ https://169.254.169.254/latest/meta-data",
    "x @ https://[::1]/a.whl",
    "x @ https://[::ffff:127.0.0.1]/a.whl",
    "x @ https://2130706433/a.whl",
    "x @ https://0x7f.1/a.whl",
    "x @ https://127.1/a.whl",
    "x @ https://localhost/a.whl",
    "x @ https://LOCALHOST./a.whl",
    "x @ https://db.internal/a.whl",
    "six====1.0",
    "six===--index-url",
    "six==--index-url",
    "six==${VERSION}",
    "six>=1 -r x",
    "six --hash=sha256:0",
    "six; os_name == '${SECRET}'",
    "six; os_name == 'a' # comment",
    "six; os_name == 'a'\n-r /etc/passwd",
    "six\n--index-url https://evil.example",
    "six\r-e .",
    "six\x00",
    "six\u2028-e .",
    "\u017fix",
    "s\u0131x",
    "x" * 5000,
    "six[a",
    "six[${A}]",
    "six>",
    "six 1.0",
    "six @",
    "git+https://github.com/o/r",
    "https://host.example/a.whl",
]


@pytest.mark.parametrize("text", BAD, ids=[ascii(text)[:60] for text in BAD])
def test_a_dependency_that_a_tool_would_expand_read_or_run_is_refused(
    runner_module: Any, default_profile: Any, text: str
) -> None:
    with pytest.raises(runner_module.Failure, match=r"^here: ") as caught:
        runner_module.parse_requirement(text, default_profile.dependencies, "here")
    assert (caught.value.phase, caught.value.type) == ("bundle", "dependency_refused")
    assert len(caught.value.error) < 1500


def test_the_profile_says_which_urls_are_taken(runner_module: Any, default_profile: Any) -> None:
    policy = default_profile.dependencies
    cases = [
        ("x @ https://h.example/x.whl", policy._replace(direct_urls=False), "direct_urls"),
        ("x @ git+https://h.example/r", policy._replace(git=False), "dependencies.git"),
    ]
    for text, narrow, key in cases:
        runner_module.parse_requirement(text, policy, "test")
        with pytest.raises(runner_module.Failure, match=key):
            runner_module.parse_requirement(text, narrow, "test")


def test_private_addresses_are_taken_where_the_profile_says_so(runner_module: Any, default_profile: Any) -> None:
    policy = default_profile.dependencies._replace(private_addresses=True)
    assert runner_module.parse_requirement("x @ https://localhost:8443/x.whl", policy, "test").url


@given(st.text() | st.from_regex(r"[a-z]+(\[[a-z,]*\])? ?(@ ?\S+|[<>=!~]{1,3} ?\S+)? ?(;.*)?", fullmatch=True))
def test_any_text_is_refused_or_survives_being_written(runner_module: Any, default_profile: Any, text: str) -> None:
    try:
        parsed = runner_module.parse_requirement(text, default_profile.dependencies, "test")
    except runner_module.Failure as failure:
        assert failure.type == "dependency_refused"
        return
    line = parsed.line()
    assert runner_module.parse_requirement(line, default_profile.dependencies, "test") == parsed
    assert line.splitlines() == [line] and line.isascii() and "${" not in line and not line.startswith("-")


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
clauses = st.from_regex(r"(~=|===?|!=|<=|>=|<|>)[0-9][A-Za-z0-9.*+!_-]{0,8}", fullmatch=True)
markers = st.sampled_from(["", 'python_version < "3.12"', "extra == 'a' or (os_name in 'a, b')"])
urls = st.from_regex(
    r"(git\+)?https://[a-z]{1,9}\.example(:[0-9]{1,4})?/[A-Za-z0-9._~/?#@!&'()*+,;=%-]{0,30}", fullmatch=True
)


@given(names, st.lists(names, max_size=3), st.lists(clauses, max_size=3), urls | st.just(""), markers)
def test_writing_and_parsing_are_inverse(
    runner_module: Any,
    default_profile: Any,
    name: str,
    extras: list[str],
    versions: list[str],
    url: str,
    marker: str,
) -> None:
    text = "[" + ",".join(extras) + "]" if extras else ""
    made = runner_module.Requirement(name, text, "" if url else ",".join(versions), url, marker)
    assert runner_module.parse_requirement(made.line(), default_profile.dependencies, "test") == made


def draft_of(module: Any, profile: Any, text: str) -> Any:
    """A requirements.txt of its own folder, read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "requirements.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        draft = module.Draft(folder, profile.dependencies, module.index_settings({}))
        draft.read_requirements("requirements.txt", "requirements.txt")
    return draft


def parse_file(module: Any, profile: Any, text: str) -> list[str]:
    return [item.line() for item in draft_of(module, profile, text).requirements]


FILES = {
    "empty": ("", []),
    "comments": ("# one\n  # two\nsix # three\n\n\t\n", ["six"]),
    "fragment is no comment": (
        "x @ git+https://h.example/r#subdirectory=s # c",
        ["x @ git+https://h.example/r#subdirectory=s"],
    ),
    "continuation": (
        "six \\\n  >=1 \\\n  ; os_name == 'posix'\nidna",
        ["six>=1 ; os_name == 'posix'", "idna"],
    ),
    "windows": ("six\r\nidna \\\r\n  >=3\r\n", ["six", "idna>=3"]),
    "no last newline": ("six", ["six"]),
}


@pytest.mark.parametrize(("text", "lines"), FILES.values(), ids=FILES.keys())
def test_a_requirements_file(runner_module: Any, default_profile: Any, text: str, lines: list[str]) -> None:
    assert parse_file(runner_module, default_profile, text) == lines


@pytest.mark.parametrize("separator", [" ", " \\\n    "])
def test_hashes_are_kept(runner_module: Any, default_profile: Any, separator: str) -> None:
    text = f"six==1.0{separator}--hash=sha256:{SHA}{separator}--hash=sha256:{'b' * 64}"
    (found,) = draft_of(runner_module, default_profile, text).requirements
    assert (found.line(), found.hashes) == ("six==1.0", {f"sha256:{SHA}", f"sha256:{'b' * 64}"})


OPTIONS = [
    "-r /etc/shadow",
    "-r/etc/shadow",
    "--requirement=/etc/shadow",
    "-c /etc/shadow",
    "-e /",
    "-i https://evil.example",
    "--index-url https://evil.example",
    "--extra-index-url https://evil.example",
    "--find-links /",
    "--no-binary :all:",
    "six --config-settings a=b",
    "six --global-option=x",
    "six --no-binary :all:",
    "six --hash=md5:00",
    "six --hash=sha256:00",
    f"six --hash=sha256:{'g' * 64}",
    "six --hashes",
    "six --pre",
    "six --no-index",
    "--no-build-isolation",
    "--pre six --hash",
    "-r",
    "'--pre",
    "six @ https://${TOKEN}@h.example/six-1-py3-none-any.whl",
    "https://a\u2100b.example/six-1-py3-none-any.whl",  # of which urllib says that it is no URL
]


@pytest.mark.parametrize("line", OPTIONS)
@pytest.mark.parametrize("before", ["", "six\n", "six \\\n"], ids=["alone", "after a line", "continued"])
def test_an_option_is_refused_with_its_line(runner_module: Any, default_profile: Any, line: str, before: str) -> None:
    with pytest.raises(runner_module.Failure, match=r"^requirements\.txt, line \d") as caught:
        parse_file(runner_module, default_profile, before + line)
    assert (caught.value.phase, caught.value.type) == ("bundle", "dependency_refused")


def test_a_hash_without_a_dependency_is_refused(runner_module: Any, default_profile: Any) -> None:
    with pytest.raises(runner_module.Failure, match="line 1"):
        parse_file(runner_module, default_profile, "--hash=sha256:" + SHA)


@given(st.text())
def test_any_requirements_file_is_parsed_or_refused(runner_module: Any, default_profile: Any, text: str) -> None:
    try:
        lines = parse_file(runner_module, default_profile, text)
    except runner_module.Failure as failure:
        assert failure.type == "dependency_refused"
    else:
        assert not any(line.startswith("-") or "\n" in line for line in lines)


MATCHES = [
    ("3.11.7", "", True),
    ("3.11.7", ">=3.8", True),
    ("3.11.7", ">=3.8,<4", True),
    ("3.11.7", " >= 3.8 , < 3.11 ", False),
    ("3.11.7", "==3.11.*", True),
    ("3.11.7", "==3.1.*", False),
    ("3.11.7", "==3.11", False),
    ("3.11.0", "==3.11", True),
    ("3.11.7", "!=3.11.7", False),
    ("3.11.7", "!=3.10.*", True),
    ("3.11.7", "!=3.11.*", False),
    ("3.11.7", "~=3.8", True),
    ("3.11.7", "~=3.12", False),
    ("3.11.7", "~=3.11.2", True),
    ("3.12.0", "~=3.11.2", False),
    ("3.9.18", ">=3.10", False),
    ("3.10.0", ">3.9", True),
    ("3.11.7", "<=3.11", False),
    ("3.11.7", "<=3.11.7", True),
    ("3.11.7", "<4.0", True),
    ("3.11.7", ">=3.8.0rc1", True),
    ("3.11.7", ">=3.8,", True),
]


@pytest.mark.parametrize(("version", "specifier", "expected"), MATCHES)
def test_requires_python(runner_module: Any, version: str, specifier: str, expected: bool) -> None:
    assert runner_module.version_matches(version, specifier) is expected


@pytest.mark.parametrize(
    "specifier",
    [
        "three",
        "3.11",
        "=>3",
        "===3.11",
        ">=",
        ">=3; x",
        "${HOME}",
        "\0",
        pytest.param(">=" + "1" * 5000, id="endless"),
        pytest.param(">=3" + "a" * 300 + "/python", id="a path at the end of a long one"),
        pytest.param(">=3," * 300 + "/python", id="a path after many"),
    ],
)
def test_a_specifier_that_is_none_is_refused(runner_module: Any, specifier: str) -> None:
    with pytest.raises(runner_module.Failure, match="requires-python") as caught:
        runner_module.version_matches("3.11.7", specifier)
    assert (caught.value.phase, caught.value.type) == ("bundle", "pyproject_invalid")


@given(st.text() | st.from_regex(r"(~=|===?|!=|<=|>=|<|>)[\d.*]{0,12}", fullmatch=True))
def test_any_specifier_is_decided_or_refused(runner_module: Any, specifier: str) -> None:
    try:
        assert runner_module.version_matches("3.11.7", specifier) in (True, False)
    except runner_module.Failure as failure:
        assert failure.type == "pyproject_invalid"


ENVIRONMENT = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "sys_platform": "linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_release": "6.1.0-18-amd64",
}
MARKERS = [
    ("python_version < '3.9'", False),
    ("python_version<'3.12'", True),
    ("'3.9' <= python_version", True),
    ("python_full_version >= '3.11.7'", True),
    ("python_version in '3.10, 3.11'", True),
    ("python_version not in '3.10 3.11'", False),
    ("sys_platform == 'linux' and (platform_machine == 'arm64' or os_name == \"posix\")", True),
    ("sys_platform == 'win32' or os_name == 'nt' and python_version > '3'", False),
    ("sys_platform == 'linux' or os_name == 'nt' and python_version < '3'", True),
    ("((sys_platform != 'win32'))", True),
    ("extra == 'Sim_X'", True),
    ("extra != 'sim-x'", False),
    ("extra == 'other'", False),
    ("'sim.x' in extras", True),
    ("'dev' in dependency_groups", False),
    ("platform_release >= '5'", True),
    ("os.name == 'posix'", True),
]


@pytest.mark.parametrize(("marker", "holds"), MARKERS, ids=[marker for marker, _ in MARKERS])
def test_a_marker(runner_module: Any, marker: str, holds: bool) -> None:
    assert runner_module.marker_holds(marker, ENVIRONMENT, {"sim-x"}) is holds


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "os_name",
        "os_name ==",
        "os_name == 'a' and",
        "(os_name == 'a'",
        "who == 'a'",
        "a b c",
        "(" * 200,
        "os_name == 'a')",
    ],
)
def test_what_is_no_marker(runner_module: Any, marker: str) -> None:
    with pytest.raises(ValueError):
        runner_module.marker_holds(marker, ENVIRONMENT)


@given(st.text(alphabet="()'\" andorextrapython_version<>=!~inot1.", max_size=60))
def test_any_marker_holds_or_is_none(runner_module: Any, marker: str) -> None:
    with suppress(ValueError):
        assert runner_module.marker_holds(marker, ENVIRONMENT) in (True, False)


FILE_PROJECTS = [
    ("Foo_Bar-1.0-py3-none-any.whl", "foo-bar"),
    ("dist/foo-1.0-1-cp311-cp311-linux_x86_64.whl", "foo"),
    ("foo-bar-1.0.tar.gz", "foo-bar"),
    ("foo-1.0.zip", "foo"),
    ("foo.tar.gz", ""),
    ("data.zip", ""),
    ("foo.whl", ""),
]


@pytest.mark.parametrize(("name", "project"), FILE_PROJECTS)
def test_the_project_of_a_file(runner_module: Any, name: str, project: str) -> None:
    assert runner_module.file_project(name) == project
