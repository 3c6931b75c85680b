"""The leak report as one self-contained page."""

from modelops import pages

from . import leak_words
from .leak_report import Report


def leak_page(report: Report) -> str:
    """The page."""
    return pages.render("modelops.debugging", "leaks.html", report=report, words=leak_words)
