"""Which changes are the causes: by putting old values back, in trials, wherever these run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .smallest import smallest_set

MOST_PARTS = 16  # of changes that are put back in parts, because all at once do harm

NO_RESULT = frozenset({""})  # of a trial that ended without one: it did harm
# With the old values of these keys put back: the outputs that are not as cold. None where there is no time for it.
Trial = Callable[[list[str]], "set[str] | None"]


class Cure(NamedTuple):
    """The fewest keys that, put back together, make these outputs as cold."""

    keys: list[str]
    outputs: set[str]


def find_cures(portions: Sequence[list[str]], differ: set[str], trial: Trial) -> list[Cure]:
    """Portions of keys are put back, the likeliest first, until no output is left of those that differ.

    Two outputs may differ for different reasons: each cure is for as many as one portion heals.
    """
    found: list[Cure] = []
    left = set(differ)
    for portion in portions:
        if not left:
            break
        keys, healed = _healing(portion, differ, left, trial)
        enough = _fewest(keys, healed, differ, trial) if healed else None
        if enough:
            found.append(Cure(enough, healed))
            left -= healed
    return found


def _healing(portion: list[str], differ: set[str], left: set[str], trial: Trial) -> tuple[list[str], set[str]]:
    """Keys that heal outputs, and which: all of these, else a half of what does other harm, and so on."""
    waiting = [portion]
    for _ in range(MOST_PARTS):
        if not waiting:
            break
        part = waiting.pop(0)
        still = trial(part)
        if still is None:
            break
        does_harm = not still <= differ
        if left - still and not does_harm:
            return part, left - still
        if does_harm and len(part) > 1:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return [], set()


def _fewest(keys: list[str], healed: set[str], differ: set[str], trial: Trial) -> list[str] | None:
    """The fewest of the keys that heal as much; None where there was no time: what was not tested would be a cause."""
    is_late = False

    def is_enough(part: list[str]) -> bool:
        nonlocal is_late
        if part == keys:
            return True
        still = None if is_late else trial(part)
        is_late = still is None
        return still is not None and still <= differ - healed

    found = smallest_set(keys, is_enough)
    return None if is_late else found
