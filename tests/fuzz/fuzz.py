"""The coverage-guided fuzzer: `python tests/fuzz/fuzz.py TARGET [options of libFuzzer] [corpus]`.

It ends when it finds an input on which the runner raises what it does not promise, writes where it must not,
hangs (-timeout) or swells (-rss_limit_mb), and leaves that input in a file.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(TESTS.parent / "tools"), str(TESTS)]
with atheris.instrument_imports(include=["ultra_cold_runner", "fuzz.targets", "zipfile", "tarfile", "configparser"]):
    import configparser  # noqa: F401  (the runner imports these where it needs them, and then it is too late)
    import tarfile  # noqa: F401
    import zipfile  # noqa: F401

    import ultra_cold_runner

    from fuzz.targets import TARGETS, seeds


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    scratch = tempfile.mkdtemp(prefix="cold-runner-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    corpus = Path(scratch, "corpus")
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    folder = Path(scratch, "folder")

    def once(data: bytes) -> None:
        folder.mkdir()
        try:
            target(ultra_cold_runner, folder, data)
        finally:
            shutil.rmtree(folder)

    child = os.fork()  # libFuzzer ends its process; the parent stays to remove the scratch
    if child == 0:
        atheris.Setup([*sys.argv, str(corpus)], once)
        atheris.Fuzz()
    _, status = os.waitpid(child, 0)
    shutil.rmtree(scratch)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


main()
