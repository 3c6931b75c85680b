"""A program for the runner's `--instrument`, packed by `instrument`: it runs in the sandbox, with the bundle."""
