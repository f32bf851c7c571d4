"""Converts times to money, where the sweep file gives the price of a node.

The unit is that of `resources.price_per_hour`, in whatever currency the user pays. A price is the
time that the node trains multiplied by that rate: an epoch costs its epoch seconds, and a trial the
seconds of all its epochs. Validation, and what a launch spends around its trials, are not included.
"""

import math
from collections.abc import Iterator

import pandas as pd

from analysis.comparable_groups import comparable
from analysis.number_text import or_dash
from analysis.runs import SweepRuns
from analysis.text_tables import grid, heading
from analysis.timed_trials import timed_trials

NOTE = "Median seconds of an epoch, and of all epochs of a trial, times the price of the node."


def prices(runs: SweepRuns) -> pd.DataFrame:
    """Returns a tidy frame, a row a point that has a time; none without a price.

    Columns:
        sweep, block, varied, surroundings   str; `varied` names the point
        n             int: trials behind the price of an epoch
        epoch_price   float, in the unit of price_per_hour
        trial_price   float, likewise, of all epochs of a trial
    """
    return pd.DataFrame(list(_rows(runs)))


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns a table of prices for each machine; none without a price."""
    rows = prices(runs)
    if rows.empty:
        return []
    return [
        _table(runs, same, markdown)
        for _, same in rows.groupby(["block", "surroundings"], sort=False)
    ]


def price_sentence(runs: SweepRuns, trials: pd.DataFrame) -> str:
    """Returns a sentence on what an epoch and a trial of these trials cost; '' without a price."""
    if runs.price_per_hour is None:
        return ""
    epoch_price, trial_price = _price_of(trials, runs.price_per_hour)
    known = [
        f"{noun} costs {price_text(price)}"
        for noun, price in (("an epoch", epoch_price), ("a trial", trial_price))
        if not math.isnan(price)
    ]
    if not known:
        return ""
    return f" At {runs.price_per_hour:,.10g} an hour {' and '.join(known)}."


def price_text(price: float) -> str:
    """Returns a price with three significant digits, without an exponent; '-' if it is missing."""
    if not price > 0:
        return or_dash(price, ".0f")
    return f"{price:,.{max(0, 2 - math.floor(math.log10(price)))}f}"


def _rows(runs: SweepRuns) -> Iterator[dict[str, object]]:
    """Yields the rows of `prices`."""
    if runs.price_per_hour is None:
        return
    for group in comparable(runs, ()):
        epoch_price, trial_price = _price_of(group.trials, runs.price_per_hour)
        if not (math.isnan(epoch_price) and math.isnan(trial_price)):
            yield {
                **group.labels,
                "n": len(timed_trials(group.trials)),
                "epoch_price": epoch_price,
                "trial_price": trial_price,
            }


def _price_of(trials: pd.DataFrame, price_per_hour: float) -> tuple[float, float]:
    """Returns the prices of an epoch and of a trial; NaN for one without a time."""
    hours = (
        timed_trials(trials)["epoch_s"].median() / 3600,
        trials.loc[_trained_all_epochs(trials), "train_s"].median() / 3600,
    )
    return hours[0] * price_per_hour, hours[1] * price_per_hour


def _trained_all_epochs(trials: pd.DataFrame) -> pd.Series:
    """Returns a mask of the trials that completed. One that diverges may stop early."""
    return (trials["outcome"] == "completed") & ~(trials["diverged_snapshots"] > 0)


def _table(runs: SweepRuns, rows: pd.DataFrame, markdown: bool) -> str:
    """Returns the table of one block on one machine."""
    first = rows.iloc[0].copy()
    first["varied"] = ""
    title = heading(f"Price at {runs.price_per_hour:,.10g} an hour", first, markdown)
    texts = [
        [row.varied or "all", str(row.n), price_text(row.epoch_price), price_text(row.trial_price)]
        for row in rows.itertuples()
    ]
    body = grid(
        ["point", "n", "an epoch", "a trial"], texts, ["left", "right", "right", "right"], markdown
    )
    return "\n".join([title, body, "", NOTE])
