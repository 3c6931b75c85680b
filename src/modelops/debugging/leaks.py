"""Do tasks that share a process change one another's results, which ones, and through what?

1. Every task cold, twice, the second time with another hash seed: outputs that are equal depend on neither chance nor
   seed. Where they are not, once more with each seed: what differs with an equal seed is nondeterministic by itself,
   and what does not comes from the seed. So each output is told apart, and most tasks run no third time.
2. All tasks in one shared process, in the given order, in reverse and shuffled; and each in a fork of the warm server,
   which must equal cold.
3. For each task that differs from cold: the smallest set of earlier tasks that is enough, by bisection.
4. Those again with a look at the process before and after them. Then the old values are put back: what makes the
   difference go is a cause, and the line that changes it is sought. What can't be tested so is a suspect.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from modelops_contracts import digest_bytes

from modelops.adapters.exec_env.runner_settings import RunnerSettings

from .compare import differences, differing, fingerprint
from .findings import HASH_SEED, NONDETERMINISTIC, STABLE, UNKNOWN, Cause, Cold, Findings, Leak
from .inside.causes import NO_RESULT, Cure, Trial, find_cures
from .inside.fingerprints import plain_result
from .inside.smallest import smallest_set
from .policy import in_bytes, with_hash_seed
from .shared import TRIALS, Change, Shared, SharedProcess, is_of_task
from .tasks import Task, is_aggregation
from .workbench import Outcome, Output, Workbench, result_of

LEAST_SECONDS, LEAST_RUNS = 120.0, 60  # that the search may take, however short or few the cold runs were
PLAIN_LIBRARIES = 6  # whose data without addresses is put back by itself
GENERATORS = ("random", "numpy.random")
Progress = Callable[[str, int, int], None]
_Pair = tuple[Future[tuple[Outcome, float]], Future[tuple[Outcome, float]]]


class CouldNotTell(Exception):
    """The tasks could not be run at all; the sentence says why."""


@dataclass(frozen=True)
class _Case:
    """A victim, with the earlier tasks of an order in which it differs."""

    victim: int
    earlier: tuple[int, ...]
    outcome: Outcome
    as_given: bool  # in the order that was given, which says most to whoever gave it


class LeakSearch:
    """One search. `jobs` runs go on at once; `progress` is called with what is done, how many of how many."""

    def __init__(self, bench: Workbench, tasks: Sequence[Task], seed: int, jobs: int, progress: Progress) -> None:
        self._bench, self._tasks = bench, list(tasks)
        self._shared = SharedProcess(bench)
        self._seed, self._progress = seed, progress
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="leaks")
        self._lock = threading.Lock()
        self._witnesses: dict[tuple[int, tuple[int, ...]], Shared] = {}  # runs in which those changed that victim
        self._begun, self._deadline = time.monotonic(), 0.0
        self.found = Findings()

    def run(self) -> Findings:
        """The whole search; CouldNotTell where no task could be run."""
        try:
            self._run_cold()
            spent = sum(cold.seconds for cold in self.found.cold)
            enough = LEAST_RUNS * spent / len(self._tasks)
            self._deadline = self._begun + max(LEAST_SECONDS, enough, 3 * spent)
            cases = self._run_orders()
            failures = [cold.outcome.failure for cold in self.found.cold]
            if all(failures):
                self.found.problems.append(
                    f"no task has a result, the first of them: {(failures[0] or {}).get('error')}"
                )
            self._explain_nondeterminism()
            groups = self._find_polluters(cases)
            self._examine(groups)
        finally:
            self._bench.stop()
            self._pool.shutdown(cancel_futures=True)
            self.found.seconds = time.monotonic() - self._begun
        return self.found

    # --- cold

    def _run_cold(self) -> None:
        now = str(self._bench.policy["execute"].get("environment", {}).get("PYTHONHASHSEED", "random"))
        other = "1" if now != "1" else "2"
        seeded = self._bench.under(with_hash_seed(self._bench.policy, other), "other-hash-seed")
        runs = [self._cold_pair(task, seeded) for task in self._tasks]
        again: dict[int, _Pair] = {}
        for number, (one, two) in enumerate(runs):
            cold = _first_judgement(*result_of(one), *result_of(two))
            self.found.cold.append(cold)
            if number == 0 and cold.verdict == UNKNOWN:
                raise CouldNotTell(str((cold.outcome.failure or {}).get("error")))
            if cold.verdict not in (STABLE, UNKNOWN):
                again[number] = self._cold_pair(self._tasks[number], seeded)
            self._progress("cold", number + 1, len(self._tasks))
        for number, pair in again.items():
            four = [result_of(run)[0] for run in (*runs[number], *pair)]
            self.found.cold[number] = _tell_apart(self.found.cold[number], *four)

    def _cold_pair(self, task: Task, seeded: RunnerSettings) -> _Pair:
        return self._pool.submit(self._cold, task), self._pool.submit(self._cold, task, seeded)

    def _cold(self, task: Task, settings: RunnerSettings | None = None) -> tuple[Outcome, float]:
        begun = time.monotonic()
        outcome = self._bench.task(task, settings)
        self._count()
        if is_aggregation(task) and outcome.failure is None:
            outcome = _as_result(outcome)
        return outcome, time.monotonic() - begun

    def _explain_nondeterminism(self) -> None:
        """Seed the global generators, twice: what is the same then came from one of them."""
        wanted = [number for number, cold in enumerate(self.found.cold) if cold.verdict == NONDETERMINISTIC]
        for number in wanted[:1]:
            cold = self.found.cold[number]
            if self._is_deterministic(number, GENERATORS):
                cold.unseeded = [name for name in GENERATORS if self._is_deterministic(number, [name])]

    def _is_deterministic(self, number: int, seeded: Sequence[str]) -> bool:
        runs = [self._pool.submit(self._together, [number], seed=list(seeded)) for _ in range(2)]
        one, two = (result_of(run).outcomes[-1:] for run in runs)
        return bool(one and two) and not differing(one[0], two[0])

    # --- shared

    def _run_orders(self) -> list[_Case]:
        """Every order, and the forks; the tasks that differ from cold."""
        sound = [number for number, cold in enumerate(self.found.cold) if not _is_crash(cold.outcome)]
        shuffled = list(sound)
        random.Random(self._seed).shuffle(shuffled)
        orders = {"given": sound, "reverse": sound[::-1], "shuffled": shuffled}
        self.found.orders = {name: order for name, order in orders.items() if len(order) > 1}
        forks = self._pool.submit(self._run_forks)
        runs = {name: self._pool.submit(self._together, order) for name, order in self.found.orders.items()}
        cases: list[_Case] = []
        for done, (name, run) in enumerate(runs.items(), 1):
            cases += self._compare_order(name, result_of(run))
            self._progress("shared", done, len(runs) + 1)
        result_of(forks)
        self._progress("shared", len(runs) + 1, len(runs) + 1)
        return cases

    def _compare_order(self, name: str, shared: Shared) -> list[_Case]:
        order, cases = self.found.orders[name], []
        for place, (number, outcome) in enumerate(zip(order, shared.outcomes, strict=False)):
            if self._differs(number, outcome):
                cases.append(_Case(number, tuple(order[:place]), outcome, name == "given"))
        self.found.differs[name] = [case.victim for case in cases]
        missing = order[len(shared.outcomes) :]
        if missing:
            why = (shared.failure or {}).get("error", "the process ended")
            self.found.problems.append(f"{len(missing)} tasks were not run in the {name} order: {why}")
        return [case for case in cases if case.earlier]

    def _run_forks(self) -> None:
        self.found.differs["fork"] = []
        numbers = [number for number, cold in enumerate(self.found.cold) if cold.verdict != UNKNOWN]
        served = self._bench.serve([self._tasks[number] for number in numbers])
        for number, outcome in zip(numbers, served, strict=False):
            self._count()
            if outcome.failure is not None and not is_of_task(outcome.failure):
                self.found.problems.append(f"the warm server did not run a task: {outcome.failure['error']}")
                continue
            outcome = _as_result(outcome) if "loss" in outcome.body else outcome
            if self._differs(number, outcome):
                cold = self.found.cold[number]
                self.found.fork[number] = differences(cold.outcome, outcome, cold.unstable)
                self.found.differs["fork"].append(number)

    # --- the smallest sets

    def _find_polluters(self, cases: Sequence[_Case]) -> dict[tuple[int, ...], list[_Case]]:
        """The victims by the smallest sets of earlier tasks that were found for them."""
        shortest: dict[int, _Case] = {}
        for case in sorted(cases, key=lambda case: (not case.as_given, len(case.earlier))):
            shortest.setdefault(case.victim, case)
        known: list[tuple[int, ...]] = []
        groups: dict[tuple[int, ...], list[_Case]] = {}
        waiting = sorted(shortest.values(), key=lambda case: (not case.as_given, case.victim))
        self.found.not_searched = []
        total = len(waiting)
        while waiting:
            # The first alone: most often its set is that of the others as well.
            now, waiting = (waiting[:1], waiting[1:]) if not known else (waiting, [])
            for case, polluters in zip(now, self._pool_map(lambda c: self._polluters_of(c, known), now), strict=True):
                if polluters == ():
                    self.found.not_searched.append(case.victim)
                elif polluters is None:
                    self.found.not_reproduced.append(case.victim)
                else:
                    known.append(polluters) if polluters not in known else None
                    groups.setdefault(polluters, []).append(case)
                self._progress("bisect", total - len(waiting), total)
        return groups

    def _polluters_of(self, case: _Case, known: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
        """The smallest set; () where there is no time, None where it does not happen again."""
        for guess in [*known, case.earlier[-1:]]:
            if self._is_late():
                return ()
            if case.victim not in guess and self._is_polluted(case.victim, guess):
                return guess
        found = smallest_set(case.earlier, lambda part: self._is_polluted(case.victim, part))
        return None if found is None else tuple(found)

    def _is_polluted(self, victim: int, earlier: Sequence[int], **asked: Any) -> bool:
        shared = self._together([*earlier, victim], **asked)
        is_polluted = len(shared.outcomes) == len(earlier) + 1 and self._ends_unlike(shared, victim)
        if is_polluted and not asked:
            self._witnesses[victim, tuple(earlier)] = shared
        return is_polluted

    def _ends_unlike(self, shared: Shared, victim: int) -> bool:
        """Whether the last outcome is not what the victim gives cold."""
        return bool(self._unlike(victim, shared))

    def _unlike(self, victim: int, shared: Shared) -> set[str]:
        """The outputs of the last outcome that are not what the victim gives cold."""
        cold = self.found.cold[victim]
        if not shared.outcomes or cold.verdict == UNKNOWN or "failure" in cold.unstable:
            return set()
        return set(differing(cold.outcome, shared.outcomes[-1], cold.unstable))

    # --- through what

    def _examine(self, groups: Mapping[tuple[int, ...], list[_Case]]) -> None:
        """Every set of polluters with the first of its victims; then the others, by the causes that were found."""
        for done, (polluters, cases) in enumerate(groups.items()):
            self._progress("examine", done, len(groups))
            left = cases
            while left:
                case, *left = left
                leak, modules = self._examine_one(case, polluters)
                self.found.leaks.append(leak)
                if not leak.causes or leak.suspects:
                    leak.others = dict.fromkeys((other.victim for other in left), None)
                    break
                explained = self._explained(leak, [other.victim for other in left], modules)
                leak.others = {victim: answer for victim, answer in explained.items() if answer is not False}
                left = [other for other in left if explained[other.victim] is False]
        self._progress("examine", len(groups), len(groups))

    def _examine_one(self, case: _Case, polluters: tuple[int, ...]) -> tuple[Leak, list[str]]:
        """What can be said of one victim, and the modules that its polluters import."""
        cold = self.found.cold[case.victim]
        leak = Leak(list(polluters), case.victim, differences(cold.outcome, case.outcome, cold.unstable))
        if self._is_late():
            leak.note = "there was no time to look for the cause; run it on fewer tasks"
            return leak, []
        witness = self._witnesses[case.victim, polluters]
        modules = witness.modules
        leak.differences = differences(cold.outcome, witness.outcomes[-1], cold.unstable)
        if modules and self._is_polluted(case.victim, (), preload=modules):
            leak.imports = smallest_set(modules, lambda m: self._is_polluted(case.victim, (), preload=m)) or []
            return leak, modules
        known = [c.change.key for other in self.found.leaks for c in other.causes if not c.change.is_native]
        if known:  # most often there is one cause, and to see that takes a moment
            look = self._together([*polluters, case.victim], preload=modules, look=sorted({*known}))
            if self._ends_unlike(look, case.victim) and not self._find_causes(leak, look, modules):
                return leak, modules
        look = self._together([*polluters, case.victim], preload=modules, look=True)
        if modules and not self._ends_unlike(look, case.victim):  # it is the importing meanwhile that does it
            modules = []
            look = self._together([*polluters, case.victim], look=True)
        if not self._ends_unlike(look, case.victim):  # else whatever is put back would seem to be the cause
            leak.note = "it does not happen while the process is looked at"
            return leak, modules
        if look.native and not look.native.startswith("looked"):
            leak.note = f"native data was not looked at: {look.native}"
        if left := self._find_causes(leak, look, modules):
            if leak.causes:
                leak.note = f"no cause was found for {', '.join(sorted(left))}"
            causes = [cause.change for cause in leak.causes]
            rest = [change for change in look.changes if change not in causes]
            leak.suspects = [change for change in rest if change.is_near] or rest
            if self._is_late():
                leak.note = "there was no time to tell the cause from the rest; run it on fewer tasks"
            if not leak.suspects:
                leak.note = leak.note or "nothing that was looked at had changed"
        return leak, modules

    def _find_causes(self, leak: Leak, look: Shared, modules: list[str]) -> set[str]:
        """The fewest changes that, put back, make outputs as cold; the outputs for which there is no cause yet.

        They are sought in forks of one process, which takes a fraction of the time, and then each is tried in a
        process of its own. Where forks do not tell, all of the search runs so.
        """
        left = self._unlike(leak.victim, look)
        changes = {change.key: change for change in look.changes}
        portions = [[change.key for change in portion] for portion in _portions(look.changes)]
        leak.causes = []
        confirmed = self._confirm(leak, self._cures_in_forks(leak, portions, left, modules), left, modules)
        if confirmed is None:
            cures = find_cures(portions, left, self._trial(leak, modules))
            confirmed = self._confirm(leak, cures, left, modules) or []
        for cure, lines in confirmed:
            had = {cause.change.key for cause in leak.causes}
            leak.causes += [Cause(changes[key], lines.get(key)) for key in cure.keys if key not in had]
            left -= cure.outputs
        return left

    def _cures_in_forks(self, leak: Leak, portions: list[list[str]], left: set[str], modules: list[str]) -> list[Cure]:
        """What one process found in forks of itself: nothing where forks can't tell, or there is no time."""
        if self._is_late() or not portions:
            return []
        cold = self.found.cold[leak.victim]
        limit = TRIALS * self._bench.policy["execute"]["limits"]["wall_seconds"]
        ask = {"portions": portions, "left": sorted(left), "cold": fingerprint(cold.outcome)}
        ask |= {"unstable": cold.unstable, "seconds": min(limit, self._deadline - time.monotonic())}
        cures = self._together([*leak.polluters, leak.victim], preload=modules, trials=ask).cures or []
        asked = {key for portion in portions for key in portion}
        return [c for c in cures if c.keys and c.outputs and asked.issuperset(c.keys) and c.outputs <= left]

    def _confirm(
        self, leak: Leak, cures: Sequence[Cure], left: set[str], modules: list[str]
    ) -> list[tuple[Cure, Mapping[str, Any]]] | None:
        """Each cure with the lines that make its changes; None where there is none, or one does not do it again."""
        confirmed = []
        for cure in cures:
            told = self._together([*leak.polluters, leak.victim], preload=modules, restore=cure.keys, watch=cure.keys)
            still = self._still_unlike(leak.victim, told, leak.polluters)
            if not still <= left - cure.outputs:  # to be watched may change it
                again = self._trial(leak, modules)(cure.keys)
                if again is None or not again <= left - cure.outputs:
                    return None
            confirmed.append((cure, told.lines))
        return confirmed or None

    def _trial(self, leak: Leak, modules: list[str]) -> Trial:
        """A trial is a process of its own."""
        earlier = leak.polluters

        def trial(keys: list[str]) -> set[str] | None:
            if self._is_late():
                return None
            shared = self._together([*earlier, leak.victim], preload=modules, restore=keys)
            return self._still_unlike(leak.victim, shared, earlier)

        return trial

    def _still_unlike(self, victim: int, shared: Shared, earlier: Sequence[int]) -> set[str]:
        """The victim's outputs that are not as cold; what did harm leaves none."""
        return self._unlike(victim, shared) if len(shared.outcomes) == len(earlier) + 1 else set(NO_RESULT)

    def _is_cured(self, victim: int, leak: Leak, modules: list[str]) -> bool | None:
        """Whether the causes are this victim's as well; None where there is no time."""
        still = self._trial(replace(leak, victim=victim), modules)([cause.change.key for cause in leak.causes])
        return None if still is None else not still

    def _explained(self, leak: Leak, victims: Sequence[int], modules: list[str]) -> dict[int, bool | None]:
        """Whether the causes are those of other victims too: of all at once where they go before every task, else one
        by one."""
        keys = [cause.change.key for cause in leak.causes]
        answers: dict[int, bool | None] = {}
        if len(victims) > 1 and not self._is_late():
            order = self.found.orders["given"]
            shared = self._together(order, preload=modules, restore=keys, each=True)
            healed = {n for n, o in zip(order, shared.outcomes, strict=False) if not self._differs(n, o)}
            answers = dict.fromkeys(healed.intersection(victims), True)
        left = [victim for victim in victims if victim not in answers]
        cured = partial(self._is_cured, leak=leak, modules=modules)
        return {**answers, **dict(zip(left, self._pool_map(cured, left), strict=True))}

    # --- runs

    def _together(self, numbers: Sequence[int], **asked: Any) -> Shared:
        self._count()
        return self._shared.run([self._tasks[number] for number in numbers], **asked)

    def _differs(self, number: int, outcome: Outcome) -> bool:
        cold = self.found.cold[number]
        if cold.verdict == UNKNOWN or "failure" in cold.unstable:
            return False
        return bool(differing(cold.outcome, outcome, cold.unstable))

    def _pool_map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [result_of(run) for run in [self._pool.submit(function, item) for item in items]]

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _count(self) -> None:
        with self._lock:
            self.found.runs += 1


def jobs_for(bench: Workbench, processors: int, available: int) -> int:
    """How many runs fit side by side: as many as processors, while their memory limits fit what is free."""
    limit = in_bytes(bench.policy["execute"]["limits"]["memory_bytes"])
    return max(1, min(processors, available // max(1, int(limit)), 8))


def _portions(changes: Sequence[Change]) -> list[list[Change]]:
    """What is put back at once, in this order: what can do harm comes last. Equal portions are one."""
    python = [c for c in changes if not c.is_native]
    python_near = [c for c in python if c.is_near]
    native_own = [c for c in changes if c.is_native and c.own]
    plain: dict[str, list[Change]] = {}
    for change in changes:
        if change.is_native and not change.points:
            plain.setdefault(change.library, []).append(change)
    few = sorted(plain.values(), key=len)[:PLAIN_LIBRARIES]
    portions: list[list[Change]] = []
    for portion in (python_near, native_own, python, *few, [*python, *native_own], list(changes)):
        portion = [change for change in portion if change.can_be_put_back]
        if portion and portion not in portions:
            portions.append(portion)
    return portions


def _first_judgement(one: Outcome, seconds: float, two: Outcome, more: float) -> Cold:
    """Of a run with each hash seed. Where they differ it is not known yet by what."""
    failed = [o.failure for o in (one, two) if o.failure and not is_of_task(o.failure)]
    if failed:
        return Cold(Outcome(failure=failed[0]), UNKNOWN)
    return Cold(one, HASH_SEED if differing(one, two) else STABLE, seconds=max(seconds, more))


def _tell_apart(cold: Cold, one: Outcome, two: Outcome, three: Outcome, four: Outcome) -> Cold:
    """Of two runs with each hash seed: `one` and `three`, `two` and `four`."""
    failed = [o.failure for o in (three, four) if o.failure and not is_of_task(o.failure)]
    if failed:
        return Cold(Outcome(failure=failed[0]), UNKNOWN)
    by_itself = sorted({*differing(one, three), *differing(two, four)})
    gaps = [*differences(one, three), *differences(two, four, differing(one, three))]
    return replace(
        cold,
        verdict=NONDETERMINISTIC if by_itself else HASH_SEED,
        unstable=by_itself,
        by_hash_seed=differing(one, two, by_itself),
        differences=[{**gap, "by": NONDETERMINISTIC} for gap in gaps]
        + [{**gap, "by": HASH_SEED} for gap in differences(one, two, by_itself)],
    )


def _is_crash(outcome: Outcome) -> bool:
    """Whether the task ends its process: it can't share one."""
    failure = outcome.failure
    return failure is not None and "exception" not in failure


def _as_result(outcome: Outcome) -> Outcome:
    """An aggregation's outcome, with its result as the one output."""
    body = {name: value for name, value in outcome.body.items() if name != "metrics"}
    content = plain_result(json.dumps(body).encode())
    return Outcome({"result": Output(len(content), digest_bytes(content), content)}, body=outcome.body)
