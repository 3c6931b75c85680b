"""Run one task for a person, stand where it failed, find what leaks between tasks.

The files `inside_*.py` are programs for the runner's `--instrument`: they run in the sandbox, with the bundle. All else
runs outside and takes what comes out of a sandbox as the data of a hostile process.
"""
