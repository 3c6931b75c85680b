"""`python -m modelops.worker.cold_runner`: the old name of the runner.

See `modelops.adapters.exec_env.cold`.
"""

import logging
import os
import sys

from modelops.adapters.exec_env import cold
from modelops.adapters.exec_env.runner_settings import find_runner

OLD, NEW = "modelops.worker.cold_runner", "tools/ultra_cold_runner.py"

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Refuse with status 2, or become the new runner, with the same arguments and the same standard input."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if not cold.is_enabled():
        logger.error(cold.refusal(OLD, NEW))
        return 2
    logger.warning(cold.warning(OLD, NEW))
    os.execv(sys.executable, [sys.executable, str(find_runner()), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
