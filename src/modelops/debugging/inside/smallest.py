"""The smallest part of a list that is enough, found by bisection: of earlier tasks, of modules, of changes."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def smallest_set(items: Sequence[Item], is_enough: Callable[[list[Item]], bool]) -> list[Item] | None:
    """A smallest part of `items`, in their order, for which `is_enough`; None where what it says does not hold twice.

    It must hold for all items and not for none. Each round finds, by bisection, the shortest beginning that is enough
    together with what is known to be needed; its last item is needed as well. So n items of which k are needed take
    about k * log2(n) trials. No item of the result can be left out.
    """
    asked: dict[tuple[Item, ...], bool] = {(): False}

    def ask(part: list[Item]) -> bool:
        ordered = tuple(item for item in items if item in part)
        if ordered not in asked:
            asked[ordered] = is_enough(list(ordered))
        return asked[ordered]

    needed: list[Item] = []
    rest = list(items)
    while not ask(needed):
        if not rest:
            return None
        low, high = 0, len(rest)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if ask([*rest[:middle], *needed]) else (middle, high)
        needed.append(rest[high - 1])
        rest = rest[: high - 1]
    for item in list(needed) if len(needed) > 1 else []:
        fewer = [other for other in needed if other != item]
        if ask(fewer):
            needed = fewer
    return [item for item in items if item in needed]
