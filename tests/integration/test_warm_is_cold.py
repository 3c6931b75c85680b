"""A task of a server has the bytes of a cold run: of many seeds, in any order, in any server, whatever generator it
draws from. `tests/bench/bench_models.py` compares the same of real models."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner

pytestmark = pytest.mark.xdist_group("real packages")

# As what wraps a model: it imports at the task, keeps a table in its cache, and leaves its own state behind.
MODEL = """
import json, os

def wire(entrypoint, params, seed):
    import decimal, fractions, random, statistics
    path = os.path.expanduser("~/.cache/model/table")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            json.dump([str(fractions.Fraction(n, 7)) for n in range(50)], file)
    with open(path) as file:
        table = json.load(file)
    random.seed(seed)
    state = random.getstate()
    decimal.getcontext().prec = 5 + seed % 10
    numbers = [random.gauss(0, 1) for _ in range(101)]  # an odd count leaves one of a pair behind
    left = [*{str(n) for n in numbers}]  # in the order of their hashes
    return {"out": json.dumps([numbers, table, left, str(decimal.Decimal(seed) / 3), statistics.mean(numbers)]),
            "raw": repr(state).encode()}
"""
SEEDS = [*range(18), 2**32 + 5, 2**64 - 1]


def task_of(seed: int) -> dict[str, Any]:
    return {"entrypoint": "main", "params": {}, "seed": seed}


def test_many_seeds_in_any_order_in_two_servers(
    run: Runner, bundle: Callable[..., Path], tmp_path: Path, full: bool
) -> None:
    source = bundle(MODEL, files={"own": str(tmp_path)})
    seeds = SEEDS if full else SEEDS[1::3]
    served = [*zip(seeds, run.served(source, [task_of(seed) for seed in seeds]), strict=True)]  # learns on its way
    cold = {seed: run(source, task_of(seed), env={"REUSE": "1"}) for seed in seeds}
    shuffled = random.Random(1).sample(seeds * 2, 2 * len(seeds))
    answers = run.served(source, [task_of(seed) for seed in shuffled])  # begins with what was learned
    assert all(answer.body["metrics"]["preloaded_modules"] for answer in answers)
    for seed, answer in [*served, *zip(shuffled, answers, strict=True)]:
        assert answer.outputs == cold[seed].outputs
        assert answer.body["task_id"] == cold[seed].body["task_id"]
    assert len({result.outputs["out"] for result in cold.values()}) == len(seeds)


SEEDED = """
import json, {imports}
{seed}

def wire(*task):
    return {{"out": json.dumps([{draw} for _ in range(3)])}}
"""
NUMPY, NONE = ("numpy",), ()
JITTED = """numba, numpy
@numba.njit
def start(value):
    numpy.random.seed(value)
@numba.njit
def draw():
    return numpy.random.random()
"""
OWN_RNG = "OWN = numpy.random.default_rng({})"
GENERATORS = {
    "random": pytest.param(
        *("random", "random.seed({})", "random.random()", NONE),
        marks=pytest.mark.full("the next row has this and one that is left of a pair"),
    ),
    "random, drawn from": ("random", "random.seed({}); random.gauss(0, 1)", "random.gauss(0, 1)", NONE),
    "numpy": ("numpy.random", "numpy.random.seed({})", "numpy.random.random()", NUMPY),
    "one of random's": ("random\nOWN = random.Random()", "OWN.seed(a={})", "OWN.random()", NONE),
    "one of numpy's": ("numpy.random\nOWN = numpy.random.default_rng()", OWN_RNG, "OWN.random()", NUMPY),
    "its children": pytest.param(
        *("numpy.random\nOWN = numpy.random.default_rng()", OWN_RNG, "OWN.spawn(1)[0].random()", NUMPY),
        marks=pytest.mark.full("one of numpy's, asked for more"),
    ),
    "an old one of numpy's": pytest.param(
        *("numpy.random\nOWN = numpy.random.RandomState()", "OWN.seed({}); OWN.normal()", "OWN.normal()", NUMPY),
        marks=pytest.mark.full("another class of numpy's"),
    ),
    "a source of numpy's": pytest.param(
        *("numpy.random as r\nOWN = r.SeedSequence()", "OWN = r.SeedSequence({})"),
        *("r.default_rng(OWN.spawn(1)[0]).random()", NUMPY),
        marks=pytest.mark.full("another class of numpy's"),
    ),
    "numba": pytest.param(
        *(JITTED, "start({})", "draw()", ("numba",)),
        marks=pytest.mark.full("installs a large package"),
    ),
}


def drawn(run: Runner, source: Path, count: int) -> list[Any]:
    return [json.loads(answer.outputs["out"]) for answer in run.served(source, [task_of(1)] * count)]


@pytest.mark.parametrize("imports, seed, draw, needs", GENERATORS.values(), ids=GENERATORS)
def test_a_seed_that_the_bundle_s_import_sets_holds_in_each_task(
    run: Runner, bundle: Callable[..., Path], index: None, imports: str, seed: str, draw: str, needs: tuple[str, ...]
) -> None:
    source = bundle(SEEDED.format(imports=imports, seed=seed.format(5), draw=draw), needs=needs)
    cold = json.loads(run(source, task_of(1)).outputs["out"])
    assert drawn(run, source, 3) == [cold] * 3


@pytest.mark.parametrize("imports, seed, draw, needs", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_that_nobody_seeded_is_another_in_each_task(
    run: Runner, bundle: Callable[..., Path], index: None, imports: str, seed: str, draw: str, needs: tuple[str, ...]
) -> None:
    """Replicates of a model that forgot to seed would else be copies of each other."""
    waste = f"[{draw} for _ in range(1000)]"
    source = bundle(SEEDED.format(imports=imports, seed=waste, draw=draw), needs=needs)
    assert len({json.dumps(numbers) for numbers in drawn(run, source, 4)}) == 4
