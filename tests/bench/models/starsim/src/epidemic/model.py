"""The model. Only a task imports it."""

from collections.abc import Mapping

import starsim as ss


def simulate(params: Mapping[str, float], seed: int) -> dict[str, list[float]]:
    """Infected and recovered people on each day."""
    sim = ss.Sim(
        n_agents=int(params["n_agents"]),
        diseases=ss.SIR(beta=ss.peryear(params["beta"]), dur_inf=ss.years(params["years_infected"])),
        networks=ss.RandomNet(n_contacts=4),
        dur=int(params["steps"]),
        rand_seed=seed % 2**31,
        verbose=0,
    )
    sim.run()
    return {name: [float(value) for value in sim.results.sir[name]] for name in ("n_infected", "n_recovered")}
