"""Text of others, so that whoever shows it does not do what it says."""


def printable(text: str) -> str:
    """The text with all that can't be seen, but line ends and tabs, written out: control characters and formats."""
    return "".join(c if c.isprintable() or c in "\t\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str, longest: int = 4000) -> str:
    """The text as a part of a line: line ends and tabs are written out as well, and a long one has no end."""
    plain = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return plain if len(plain) <= longest else f"{plain[:longest]}.."
