"""ModelOps: runs simulation bundles that nobody has to trust."""

from .contracts import require_contracts

require_contracts()
