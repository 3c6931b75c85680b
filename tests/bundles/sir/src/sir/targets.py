"""Targets: how far a set of simulations is from what was observed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

OBSERVED = {"attack_rate": 0.94, "peak_day": 38}
SURVEY = {30: 0.15, 40: 0.29, 60: 0.11}  # day of the survey, share of the sample that was infected
SAMPLE = 200


def fit(
    sim_returns: Sequence[Mapping[str, Any]], target_data: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Plain target: squared relative error of the mean summary, over all observed figures."""
    observed = target_data or OBSERVED
    summaries = [json.loads(sim["outputs"]["summary"]["inline"]) for sim in sim_returns]
    if not summaries:
        raise ValueError("there is nothing to compare: sim_returns is empty")
    means = {name: float(np.mean([summary[name] for summary in summaries])) for name in observed}
    errors = {name: (means[name] / observed[name] - 1.0) ** 2 for name in observed}
    return {"loss": sum(errors.values()), "diagnostics": {"means": means, "n_replicates": len(summaries)}}


class Evaluation(NamedTuple):
    """What a Calabaria target gives back: a log likelihood for each replicate."""

    name: str
    weight: float
    loglik_per_rep: np.ndarray


class PrevalenceTarget:
    """Binomial likelihood of the surveys, given the share of infected people in each replicate."""

    model_output = "timeseries"

    def evaluate(self, sim_outputs: Sequence[Mapping[str, pl.DataFrame]]) -> Evaluation:
        logliks = [self.loglik(outputs[self.model_output]) for outputs in sim_outputs]
        return Evaluation("prevalence", 1.0, np.array(logliks))

    @staticmethod
    def loglik(table: pl.DataFrame) -> float:
        population = table.select(pl.sum_horizontal("susceptible", "infected", "recovered")).item(0, 0)
        infected = dict(zip(table["day"], table["infected"], strict=True))
        days = [day for day in SURVEY if day in infected]
        chance = np.clip([infected[day] / population for day in days], 1e-6, 1 - 1e-6)
        positive = np.round([SURVEY[day] * SAMPLE for day in days])
        return float(np.sum(positive * np.log(chance) + (SAMPLE - positive) * np.log1p(-chance)))


def prevalence() -> PrevalenceTarget:
    """Calabaria target: called without arguments, it returns the object that evaluates."""
    return PrevalenceTarget()
