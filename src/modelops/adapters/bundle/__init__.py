"""Bundle repositories: where the code of a task comes from, addressed by the digest of its content."""

from .errors import BundleError
from .local import LocalBundleRepository
from .references import BundleReference, parse_reference

__all__ = ["BundleError", "BundleReference", "LocalBundleRepository", "parse_reference"]
