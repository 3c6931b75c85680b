"""Text of others, so that whoever shows it does not do what it says."""


def printable(text: str) -> str:
    """The text with all that can't be seen, but line ends and tabs, written out: control characters and formats."""
    return "".join(c if c.isprintable() or c in "\t\n" else ascii(c)[1:-1] for c in text)
