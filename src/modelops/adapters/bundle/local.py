"""A repository of bundles on this machine.

Below its root:

    sha256/<hex>/        a bundle: a read-only copy, named by the digest of its content
    names/<name>/<hex>   an empty file: the name has had a bundle with that digest
    <folder>/            any other folder that is a bundle is offered under its own name

A root that is itself a bundle is a repository of that one; `sha256` and `names` then lie in `cache_dir`, by
default in the storage directory: nothing is ever written into a bundle.
"""

import os
from contextlib import suppress
from pathlib import Path

from modelops.adapters.working_dir import WorkingDir
from modelops.bounded_toml import parse_toml
from modelops.places import default_storage_dir

from .content import copy_bundle, digest_of
from .errors import BundleError
from .references import BundleReference, check_name, is_name, parse_reference

_COPIES, _NAMES = "sha256", "names"
_MARKS = ("pyproject.toml", "requirements.txt", "setup.py")


class LocalBundleRepository:
    """The `BundleRepository` port on a directory. Many processes may use one root at once."""

    def __init__(self, bundles_dir: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(bundles_dir).absolute()
        if not self.root.is_dir():
            raise BundleError("repository_not_found", f"there is no bundle repository at {str(self.root)!r}")
        self.is_one_bundle = is_bundle(self.root)
        self._kept = self.root
        if self.is_one_bundle:
            self._kept = Path(cache_dir or default_storage_dir() / "bundles").absolute()

    def ensure_local(self, bundle_ref: str) -> tuple[str, Path]:
        """The canonical digest (`sha256:<hex>`) and the folder of a read-only copy, verified just now."""
        reference = parse_reference(bundle_ref)
        copy = self._copy(reference.digest)
        if not copy.is_dir() or not self._has_name(reference):
            self._take_in(reference)
        found = digest_of(copy, exclude=())
        if found != reference.digest:
            raise BundleError(
                "bundle_changed",
                f"the copy {str(copy)!r} of {bundle_ref} has been changed: its digest is now sha256:{found}; "
                "remove it and add the bundle again",
            )
        return f"sha256:{reference.digest}", copy

    def exists(self, bundle_ref: str) -> bool:
        """Whether the repository has the bundle, which `ensure_local` then still verifies."""
        try:
            reference = parse_reference(bundle_ref)
            if self._copy(reference.digest).is_dir() and self._has_name(reference):
                return True
            self._find_source(reference)
        except BundleError:
            return False
        return True

    def add(self, folder: str | os.PathLike[str], name: str | None = None) -> str:
        """Copy a bundle into the repository and return its reference, `name@sha256:<hex>`.

        Without a name it gets that of its project, or of its folder.
        """
        source = Path(folder).absolute()
        if self.is_one_bundle:
            problem = f"{str(self.root)!r} is itself a bundle and can't take another; name another repository"
            raise BundleError("repository_is_bundle", problem)
        if source.is_dir() and not is_bundle(source):
            problem = f"{str(source)!r} is not a bundle: it has neither {', '.join(_MARKS)} nor a Python module"
            raise BundleError("not_a_bundle", problem)
        chosen = check_name(name or project_name(source) or source.name)
        reference = BundleReference(chosen, self._keep(source))
        self._register(reference)
        return str(reference)

    def references(self) -> list[str]:
        """The references of all bundles that the repository knows, by name."""
        known = {BundleReference(path.parent.name, path.name) for path in self._kept.glob(f"{_NAMES}/*/*")}
        known |= {BundleReference(name, digest_of(path)) for name, path in self._sources().items()}
        return sorted(map(str, known))

    def _copy(self, digest: str) -> Path:
        return self._kept / _COPIES / digest

    def _has_name(self, reference: BundleReference) -> bool:
        return reference.name is None or (self._kept / _NAMES / reference.name / reference.digest).is_file()

    def _register(self, reference: BundleReference) -> None:
        assert reference.name is not None
        mark = self._kept / _NAMES / reference.name / reference.digest
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def _take_in(self, reference: BundleReference) -> None:
        """Make the copy from one of the folders that are offered under their own names."""
        name, source = self._find_source(reference)
        if self._keep(source) != reference.digest:
            raise BundleError("bundle_changed", f"the bundle {str(source)!r} was changed while it was copied")
        self._register(BundleReference(name, reference.digest))

    def _find_source(self, reference: BundleReference) -> tuple[str, Path]:
        sources = self._sources()
        if reference.name is not None:
            sources = {name: path for name, path in sources.items() if name == reference.name}
        for name, path in sources.items():
            found = digest_of(path)
            if found == reference.digest:
                return name, path
            if reference.name is not None:
                problem = f"the bundle {name!r} has been changed: its digest is sha256:{found}, and not {reference}"
                raise BundleError("bundle_changed", problem)
        raise BundleError("bundle_not_found", f"bundle not found: the repository {str(self.root)!r} has no {reference}")

    def _sources(self) -> dict[str, Path]:
        if self.is_one_bundle:
            return {project_name(self.root) or self.root.name: self.root}
        folders = [path for path in sorted(self.root.iterdir()) if path.name not in (_COPIES, _NAMES)]
        return {path.name: path for path in folders if is_name(path.name) and not path.is_symlink() and is_bundle(path)}

    def _keep(self, source: Path) -> str:
        """Copy `source` under its digest: aside first, and then by one rename."""
        copies = self._kept / _COPIES
        with WorkingDir(copies) as working:
            aside = working.path / "bundle"
            digest = copy_bundle(source, aside)
            os.chmod(aside, 0o755)  # a directory that moves to another parent must be writable
            with suppress(OSError):  # there already: equal content, from another process perhaps
                os.rename(aside, copies / digest)
                os.chmod(copies / digest, 0o555)
        if not self._copy(digest).is_dir():
            raise BundleError("repository_unwritable", f"the bundle could not be copied to {str(copies)!r}")
        return digest


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle: it can be installed, or it has Python modules."""
    return any((folder / mark).is_file() for mark in _MARKS) or any(folder.glob("*.py"))


def project_name(folder: Path) -> str | None:
    """The name in a bundle's pyproject.toml, where it has one that can be read."""
    path = folder / "pyproject.toml"
    if path.is_symlink() or not path.is_file():  # it might lead out of the bundle, or be a pipe
        return None
    try:
        name = parse_toml(path.read_bytes())["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None
