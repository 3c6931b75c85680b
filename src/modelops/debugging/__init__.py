"""Run one task for a person, stand where it failed, find what leaks between tasks.

What lies in `inside` runs in the sandbox, with the bundle, by the runner's `--instrument`. All else runs outside and
takes what comes out of a sandbox as the data of a hostile process.
"""
