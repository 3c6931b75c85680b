"""A birth and death process by Gillespie's direct method, compiled; numba keeps the machine code in its cache."""

import numpy as np
from numba import njit


@njit(cache=True)
def step(population: int, birth: float, death: float) -> float:
    rate = population * (birth + death)
    return np.random.exponential(1.0 / rate)


@njit(cache=True)
def simulate(population: int, birth: float, death: float, end: float, seed: int) -> np.ndarray:
    """The population at each whole point in time up to `end`."""
    np.random.seed(seed)
    series = np.zeros(int(end) + 1, dtype=np.int64)
    time, mark = 0.0, 0
    while population > 0 and mark <= end:
        time += step(population, birth, death)
        while mark <= end and mark < time:
            series[mark] = population
            mark += 1
        population += 1 if np.random.random() < birth / (birth + death) else -1
    return series
