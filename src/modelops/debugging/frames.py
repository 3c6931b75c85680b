"""Which files of a sandbox are the bundle's own."""

from pathlib import Path, PurePosixPath


def is_own_file(file: str, bundle: Path) -> bool:
    """Whether a path inside the sandbox is the bundle's code, in place or installed from it."""
    return own_path(file, bundle) is not None


def own_path(file: str, bundle: Path) -> str | None:
    """The path in the bundle of a file as the sandbox sees it, or None where it is not the bundle's."""
    path = PurePosixPath(file)
    if ".." in path.parts:
        return None
    if path.is_relative_to("/bundle"):
        return str(path.relative_to("/bundle"))
    if not path.is_relative_to("/venv") or "site-packages" not in path.parts:
        return None
    inside = PurePosixPath(*path.parts[path.parts.index("site-packages") + 1 :])
    for base in ("", "src", "lib", "python"):
        if (bundle / base / inside).is_file():
            return str(PurePosixPath(base) / inside)
    return None
