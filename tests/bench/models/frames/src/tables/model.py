"""The same totals by pandas and by polars."""

import io

import numpy as np
import pandas as pd
import polars as pl


def summarise(rows: int, groups: int, seed: int) -> dict[str, bytes]:
    """Sums by group, as CSV (pandas) and as Arrow IPC (polars)."""
    rng = np.random.default_rng(seed)
    keys, values = rng.integers(0, groups, rows), rng.normal(size=rows)
    by_pandas = pd.DataFrame({"group": keys, "value": values}).groupby("group").sum()
    by_polars = pl.DataFrame({"group": keys, "value": values}).sort("group", maintain_order=True)
    totals = by_polars.group_by("group", maintain_order=True).agg(pl.col("value").sum())
    arrow = io.BytesIO()
    totals.write_ipc(arrow)
    return {"pandas": by_pandas.to_csv().encode(), "polars": arrow.getvalue()}
