"""ModelOps: runs simulation bundles that nobody has to trust."""
