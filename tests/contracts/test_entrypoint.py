"""The two grammars of entry points."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import (
    ContractViolationError,
    EntrypointFormatError,
    format_entrypoint,
    parse_entrypoint,
)

WORD = string.ascii_letters + string.digits + "_"
IMPORT_PATHS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}\.[A-Za-z_]\w{0,10}", fullmatch=True)
SCENARIOS = st.from_regex(r"[a-z0-9]([a-z0-9\-_.]{0,62}[a-z0-9])?", fullmatch=True)
OBJECTS = st.text(WORD, min_size=1)


@given(IMPORT_PATHS, SCENARIOS)
def test_model_form_round_trip(import_path: str, scenario: str) -> None:
    entrypoint = format_entrypoint(import_path, scenario)
    assert entrypoint == f"{import_path}/{scenario}"
    assert parse_entrypoint(entrypoint) == (import_path, scenario)


@given(IMPORT_PATHS, OBJECTS)
def test_object_form(module_path: str, name: str) -> None:
    assert parse_entrypoint(f"{module_path}:{name}") == (module_path, name)


@pytest.mark.parametrize(
    "entrypoint",
    [
        "a.b/c",
        "mywire.wire/main",
        "covid.models.SEIR/high-growth_v1.2",
        "_a._b/0",
        "a..b/c",
        "a.bé/c",
        "a.b/" + "c" * 64,
        "a.b:C",
        "a.b.c:_d",
        "a.b:1",
    ],
)
def test_accepted(entrypoint: str) -> None:
    assert len(parse_entrypoint(entrypoint)) == 2


@pytest.mark.parametrize(
    "entrypoint",
    [
        "",
        "main",
        "a.b",
        "/",
        ":",
        "a.b/c:d",
        "a.b:c/d",
        "a/c",
        "a:c",
        "a.b/",
        "/c",
        "a.b:",
        ":c",
        "a.b/c/d",
        "a.b:c:d",
        "1a.b/c",
        "a.é/c",
        "a.1b/c",
        ".a/c",
        "a./c",
        "a-b.c/d",
        "a b.c/d",
        "a.b/C",
        "a.b/-c",
        "a.b/c-",
        "a.b/_c",
        "a.b/c.",
        "a.b/c d",
        "a.b/" + "c" * 65,
        "a.b/c@0123456789ab",
        "a.b:c.d",
        "a.b:c-d",
        "a.b/c\n",
        "a.b:c\n",
        "a.b\n/c",
        " a.b/c",
    ],
)
def test_refused(entrypoint: str) -> None:
    with pytest.raises(EntrypointFormatError):
        parse_entrypoint(entrypoint)


@given(st.text(string.ascii_lowercase + "./:-_ \n", max_size=12))
def test_parts_that_parse_make_the_same_text(text: str) -> None:
    try:
        first, second = parse_entrypoint(text)
    except EntrypointFormatError:
        return
    separator = "/" if "/" in text else ":"
    assert first + separator + second == text
    assert "." in first


@pytest.mark.parametrize(
    ("import_path", "scenario", "name"),
    [
        ("model", "baseline", "import_path"),
        ("", "baseline", "import_path"),
        ("a.b\n", "baseline", "import_path"),
        ("a.b:c", "baseline", "import_path"),
        ("a.b", "", "scenario"),
        ("a.b", "Base", "scenario"),
        ("a.b", "base\n", "scenario"),
        ("a.b", "c/d", "scenario"),
    ],
)
def test_format_names_the_bad_part(import_path: str, scenario: str, name: str) -> None:
    with pytest.raises(EntrypointFormatError, match=f"^{name} "):
        format_entrypoint(import_path, scenario)


def test_the_error_is_a_value_error_and_a_contract_violation() -> None:
    assert issubclass(EntrypointFormatError, ValueError)
    assert issubclass(EntrypointFormatError, ContractViolationError)
