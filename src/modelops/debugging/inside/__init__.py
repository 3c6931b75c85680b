"""What runs in the sandbox, with the bundle: `leaks`, packed with all beside it, and `debug`, a file by itself.

It uses the standard library alone. `causes`, `fingerprints` and `smallest` are used outside as well.
"""
