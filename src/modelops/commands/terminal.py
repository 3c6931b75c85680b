"""How the commands for people print: never a control character of a bundle, amounts in human units."""

from rich.console import Console
from rich.text import Text

from modelops.printable import printable

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
SECONDS = "_seconds"


def consoles() -> tuple[Console, Console]:
    """For results and for progress: standard output and standard error."""
    return Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: object, style: str = "") -> Text:
    """Text of a bundle, which is never markup."""
    return Text(printable(str(text)), style)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in _SIZES[:-1]:
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} {_SIZES[-1]}"


def seconds(value: float) -> str:
    """A duration as people read it."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{int(value // 60)} min {value % 60:.0f} s"


def amount(name: str, value: float) -> str:
    """A metric or limit by its name's unit."""
    if name.endswith("_bytes"):
        return size(value)
    return seconds(value) if name.endswith(SECONDS) else f"{value:g}"
