"""What the pages of reports have in common: one look, no request to anywhere, and of a bundle nothing but text."""

import base64
import hashlib
from typing import Any

import jinja2
from markupsafe import Markup

from modelops.printable import printable

CLOSED = "base-uri 'none'; form-action 'none'"


def render(package: str, template: str, script: str = "", **values: Any) -> str:
    """The page of a template of that package, as one file; `script` is another of its templates.

    Values are escaped. What could hide or reorder the text around it, as a mark of writing direction, is written out.
    A strict content security policy allows this style and this script alone.
    """
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("modelops.pages", "")]),
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=written_out, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, code = read(pages, "page.css"), read(pages, script) if script else ""
    scripts = f"script-src '{digest(code)}'; " if code else ""
    return pages.get_template(template).render(
        style=Markup(style),
        script=Markup(code),
        policy=f"default-src 'none'; style-src '{digest(style)}'; {scripts}{CLOSED}",
        **values,
    )


def written_out(value: Any) -> Any:
    """Text as it can be seen; markup and all else as it is."""
    return printable(value) if type(value) is str else value


def read(pages: jinja2.Environment, name: str) -> str:
    assert pages.loader is not None
    return pages.loader.get_source(pages, name)[0]


def digest(text: str) -> str:
    """The source expression of an inline block (Content Security Policy level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
