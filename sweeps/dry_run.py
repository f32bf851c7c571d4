"""python launch.py sweep.yaml --dry-run: every trial of a sweep, its state, and whether its batches will fit into /dev/shm.

What is told comes from the file, the corpus and the tracker alone. Nothing is started, written to the tracker or held: a dry run can be
made while the sweep runs. Only the corpus is prepared, as keys and clips depend on it. What else a trial needs of this machine, a GPU or
a private /dev/shm, is asked by the preflight of a real launch.
"""

import tabulate

from sweeps.config import SweepConfig
from sweeps.forecast import VERDICTS, ShmFit, counted
from sweeps.plan import TrialSpec
from sweeps.preflight import Say
from sweeps.sweep import outline, planned, reached
from sweeps.tracking import SETTLED, Tracking, connect, database_file, resolve_uri, search_all, short_names, written

tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more


def tell(config: SweepConfig, say: Say) -> None:
    """Says the outline, a line a trial and the count of verdicts. PreflightError: a corpus or the tracker can't be used."""
    made, fits = planned(config, say)
    with reached(config):
        states = recorded(config)
    say(outline(config.name, made, [key for key, state in states.items() if state in SETTLED]))
    say(f"\n{table(made.trials, fits, states)}\n")
    say(f"/dev/shm: {counted(fits.values())}")


def recorded(config: SweepConfig) -> dict[str, str]:
    """key -> outcome of its settled attempt, otherwise of its latest; 'running' while it has none. Makes no database and no run."""
    uri = resolve_uri(config.tracking.uri)
    file = database_file(uri)
    if (file and not file.exists()) or connect(uri).get_experiment_by_name(config.tracking.experiment) is None:
        return {}
    tracking = Tracking(uri, config.tracking.experiment)
    sweeps = search_all(tracking.client, tracking.experiment_id, "tags.kind = 'sweep'")
    parent = next((run.info.run_id for run in sweeps if run.data.tags["sweep"] == config.name), None)
    if parent is None:
        return {}
    latest = {run.data.tags["key"]: run.data.tags.get("outcome", "running") for run in reversed(tracking.trials(parent))}
    return latest | tracking.settled_keys(parent)


def table(trials: list[TrialSpec], fits: dict[str, ShmFit], states: dict[str, str]) -> str:
    """A line a trial in the order of the plan; a swept value that another block sweeps is blank. Sizes in MiB."""
    names = short_names(dict.fromkeys(path for trial in trials for path in trial.swept))
    sizes = ["batch\nMiB", "overflows\nbelow MiB", "fits from\nMiB", "/dev/shm\nMiB"]
    headers = ["key", "block", "repeat", *names.values(), "state", *sizes, "verdict"]
    align = ["left", "left", "right", *["right"] * len(names), "left", *["right"] * len(sizes), "left"]
    rows = [_row(trial, list(names), fits[trial.key], states.get(trial.key, "new")) for trial in trials]
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


def _row(trial: TrialSpec, paths: list[str], fit: ShmFit, state: str) -> list[str]:
    swept = [written(path, trial.swept[path]) if path in trial.swept else "" for path in paths]
    sizes = [fit.batch_bytes, fit.floor_bytes, fit.bound_bytes, fit.limit_bytes]
    mib = [f"{size / 2**20:,.1f}" for size in sizes]
    return [trial.key, trial.block, str(trial.repeat), *swept, state, *mib, VERDICTS[fit.verdict][0]]
