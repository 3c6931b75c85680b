"""The leak report as one self-contained page."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import leak_words
from .leak_report import Report


def leak_page(report: Report) -> str:
    """The page. It asks nothing of anybody; everything of the bundle is escaped."""
    pages = Environment(loader=PackageLoader("modelops.debugging"), autoescape=True, undefined=StrictUndefined)
    pages.trim_blocks = pages.lstrip_blocks = True
    return pages.get_template("leaks.html").render(report=report, words=leak_words)
