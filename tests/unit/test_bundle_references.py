"""References to bundles in a registry, as people and tasks write them."""

import pytest

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.authorization import read_challenges
from modelops.adapters.bundle.references import parse_place, parse_target

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "expected"),
    [
        ("ghcr.io/org/sir", None, "ghcr.io/org/sir:latest"),
        ("ghcr.io/org/sir:v1", None, "ghcr.io/org/sir:v1"),
        ("oci://ghcr.io/org/sir:v1", None, "ghcr.io/org/sir:v1"),
        ("localhost:5000/sir", None, "localhost:5000/sir:latest"),
        ("localhost/sir:v1", None, "localhost/sir:v1"),
        ("[::1]:5000/sir:v1", None, "[::1]:5000/sir:v1"),
        (f"ghcr.io/org/sir@sha256:{HEX}", None, f"ghcr.io/org/sir@sha256:{HEX}"),
        (f"ghcr.io/org/sir:v1@sha256:{HEX.upper()}", None, f"ghcr.io/org/sir@sha256:{HEX}"),
        ("sir:v1", "ghcr.io/org", "ghcr.io/org/sir:v1"),
        ("deep/sir", "https://ghcr.io/org/", "ghcr.io/org/deep/sir:latest"),
        (f"sha256:{HEX}", "ghcr.io/org/sir", f"ghcr.io/org/sir@sha256:{HEX}"),
        ("quay.io/other/sir", "ghcr.io/org", "quay.io/other/sir:latest"),
    ],
)
def test_targets(text: str, registry: str | None, expected: str) -> None:
    assert str(parse_target(text, registry)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", ":", "sir", "org/sir:v1", f"sha256:{HEX}", f"sha256:{HEX}\n", "ghcr.io/Org/sir", "ghcr.io/org/sir:"),
        *("ghcr.io/org//sir", "ghcr.io/../sir", "ghcr.io/org/sir@sha256:12", "ghcr.io/org/sir@md5:12", "-.io/x"),
        *("ghcr.io/org/sir:a b", "ghcr.io/org/sir:v1\n", "http://ghcr.io/org/sir", "user:pw@ghcr.io/org/sir"),
        *("ghcr.io/" + "a" * 300, "ghcr.io:x/y", "ghcr.io:99999/y", "ghcr.io:0/y", "a..b/y"),
        *("[::::]:80/y", "a" * 64 + ".io/y"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(BundleError) as error:
        parse_target(text, None)
    assert error.value.type == "bundle_ref_invalid"


def test_names_below_a_registry() -> None:
    place = parse_place("ghcr.io/org")
    assert str(place.below("sir")) == "ghcr.io/org/sir" == str(place.below("ghcr.io/org/sir"))
    for name in ("ghcr.io/organised/sir", "quay.io/org/sir", "../sir", "/sir", "Sir", "sir/"):
        with pytest.raises(BundleError):
            place.below(name)


def test_what_a_place_holds() -> None:
    place = parse_place("ghcr.io/org/models")
    assert place.holds("ghcr.io/org/models") and place.holds("ghcr.io/org/models/sir")
    assert not place.holds("ghcr.io/org/models2") and not place.holds("ghcr.io/org")


def test_challenges() -> None:
    header = 'Basic realm="a, b", Bearer realm="https://x/t?y=\\"z\\"",service=s, scope="repository:a:pull,push x"'
    basic, bearer = read_challenges(header)
    assert basic == ("basic", {"realm": "a, b"})
    assert bearer.scheme == "bearer" and bearer.parameters["realm"] == 'https://x/t?y="z"'
    assert bearer.parameters["service"] == "s" and bearer.parameters["scope"] == "repository:a:pull,push x"
    for nonsense in ("", "=", ",,,", 'realm="x"', "Bearer", 'Bearer realm="', "\x00"):
        assert all(not challenge.parameters.get("service") for challenge in read_challenges(nonsense))
