"""`python -m modelops.adapters.bundle`: add a directory to a repository and print its reference."""

from .command import app

if __name__ == "__main__":
    app(prog_name="python -m modelops.adapters.bundle")
