"""MLflow -> one tidy frame, a row a trial, and the rule of what may be pooled.

The one idea is that every table starts from the same frame, and the frame from the tracker alone. Failed trials are rows like the
others: they have an outcome and no time. Which attempt at a trial counts is decided without looking at how long it took. Trials are
pooled only where all their parameters and their surroundings are equal but for those a table spreads out; `comparable` splits a frame
so that no table has to remember it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sweeps.metrics import SUMMARY
from sweeps.names import short_names, written
from sweeps.tracker import artifact_text, find_sweep, plan_rows, resolve_uri
from sweeps.tracking import SETTLED, children

if TYPE_CHECKING:
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "speech"
IDLE_AT_0 = ("loader.prefetch_factor", "loader.start_method", "loader.persistent_workers")  # a plan runs 0 workers once for all of these
AGED = {"corpus.cache": "warm", "corpus.read_latency_s": 0.0}  # parameters younger than some runs, which ran with these values
SURROUNDINGS = ("device", "device_name", "cpu_name", "cores", "threads", "precision", "channels_last")  # tags; equal or not pooled


def sweep_runs(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT) -> pd.DataFrame:
    """The trials of a sweep, a row a key: its latest settled attempt that nothing disturbed, else its latest settled one, else its latest.
    Oldest first. Before the first trial there is no row, and few columns.

    Columns, absent values NaN, None or NA:
        sweep, run_id, run_name, key, block, evidence   str
        repeat             Int64
        outcome            str: an outcome of sweeps.tracking, or 'running'
        settled, planned   bool: will not be run again; belongs to the latest plan of the sweep
        attempts           int64, runs with this key
        disturbed          str: what disturbed this attempt from outside; None where nothing did
        disturbances       int64: settled runs with this key that were disturbed
        started            datetime64, UTC
        device, device_name, cpu_name, cores, threads, precision, channels_last   str: hardware and what was pinned on it
        node, git_commit, versions   str: the machine's name, the commit that ran, and libraries as JSON text {"torch": "2.14.1", ...}
        validation_clips, warmup_epochs   float64
        batch_bytes        float64: of /dev/shm; NaN until a trial has ended
        forecast_fit       str: fits, depends or overflows, foreseen before the trial; None in runs older than the forecast
        epoch_s, accuracy ...   float64: every name of sweeps.metrics.SUMMARY, in its unit there
        loader.num_workers, sgdr.lr ...   every resolved parameter under its dotted name: numbers where all values are, otherwise str;
                           sizes in bytes, lists as JSON text; of the parameters in AGED a run that is older has the value there

    frame.attrs holds `sweep`, `uri` (absolute), `experiment`, `plan`, the number of trials of the latest plan that are to be measured,
    `forecast_only`, a dict for each of its trials that `method: forecast` left to its forecast: sweep, key, block, repeat, its forecast_...
    as far as the plan has them, and its parameters as above; and `not_run`, a dict for each that is to be measured and has no run yet:
    sweep, key, block, repeat, and its parameters as far as the plan has them or the trials of its block agree on them. LookupError if
    there is no such sweep: it lists those there are.
    """
    client, parent = find_sweep(name, uri, experiment)
    attempts = children(client, parent)
    frame = trial_frame(name, attempts, plan_rows(client, parent) if attempts else [])
    frame.attrs |= {"uri": resolve_uri(uri), "experiment": experiment}
    return frame


def trial_frame(name: str, attempts: "Sequence[Run]", rows_of_plan: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of `sweep_runs` but for the place, from a sweep's runs, newest first, and the rows of its plan.json."""
    attempts = [run for run in attempts if run.data.params]  # a launch that was killed as it opened a run left nothing to tell
    settled = {run.data.tags["key"] for run in attempts if _is_settled(run)}
    forecast_only = [row for row in rows_of_plan if not row.get("measured", True) and row["key"] not in settled]
    plan = {row["key"] for row in rows_of_plan} - {row["key"] for row in forecast_only}
    counts = Counter(run.data.tags["key"] for run in attempts)
    disturbances = Counter(run.data.tags["key"] for run in attempts if _is_settled(run) and _disturbed(run))
    kept: dict[str, Run] = {}
    for run in sorted(attempts, key=_worth, reverse=True):  # stable: newest first among those worth the same
        kept.setdefault(run.data.tags["key"], run)
    of_key = {key: {"planned": key in plan, "attempts": counts[key], "disturbances": disturbances[key]} for key in kept}
    rows = [{"sweep": name} | _row(run) | of_key[key] for key, run in kept.items()]
    frame = pd.DataFrame(rows, columns=None if rows else ["sweep", "run_name", "block", "outcome", "evidence", "planned"])
    if rows:
        frame = frame.sort_values("started", kind="stable", ignore_index=True)
        converted = ["repeat", *(column for column in frame if "." in column)]
        frame = frame.fillna({name: value for name, value in AGED.items() if name in frame})
        frame[converted] = frame[converted].convert_dtypes()
    frame.attrs = {"sweep": name, "plan": len(plan), "forecast_only": [{"sweep": name} | _forecast_row(row) for row in forecast_only]}
    frame.attrs["not_run"] = [{"sweep": name} | row for row in _not_run(rows_of_plan, plan - kept.keys(), frame)]
    return frame


def joined_runs(names: Sequence[str], uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT) -> pd.DataFrame:
    """The trials of several sweeps of one experiment, one sweep after the other, in a frame like that of `sweep_runs`.

    Column `sweep` tells them apart, and no table pools across it. LookupError as there.
    """
    frames = [sweep_runs(name, uri, experiment) for name in dict.fromkeys(names)]
    if len(frames) == 1:
        return frames[0]
    attrs = frames[0].attrs | {"sweep": " + ".join(frame.attrs["sweep"] for frame in frames)}
    attrs |= {name: [row for frame in frames for row in frame.attrs[name]] for name in ("forecast_only", "not_run")}
    attrs["plan"] = sum(frame.attrs["plan"] for frame in frames)
    for frame in frames:
        frame.attrs = {}
    joined = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
    joined = joined.fillna({name: value for name, value in AGED.items() if name in joined})  # one sweep may be older than the other
    joined.attrs = attrs
    return joined


def sweep_yaml(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT) -> str:
    """The file that the latest launch of a sweep was given. LookupError as `sweep_runs`."""
    client, parent = find_sweep(name, uri, experiment)
    return artifact_text(client, parent, "sweep.yaml")


class Comparable(NamedTuple):
    """Trials that differ only in what their table spreads out, in repeat and in seed."""

    sweep: str
    block: str
    varied: str  # 'form=png prefetch_factor=4': what tells this group from the block's others; empty when it is the only one
    surroundings: str  # 'paced: 25 ms a step · 2 cores · 2 threads · float32'
    trials: pd.DataFrame
    forecast_only: pd.DataFrame  # those that were planned like them and never measured, as in frame.attrs; the columns spread out at least
    not_run: pd.DataFrame  # those that are to be measured and have no run yet, likewise

    @property
    def labels(self) -> dict[str, str]:
        """The first columns of every tidy table: which of its tables a row belongs to."""
        return {"sweep": self.sweep, "block": self.block, "varied": self.varied, "surroundings": self.surroundings}

    def values(self, column: str) -> set[Any]:
        """What the trials have in a column, measured or not; None where they have nothing."""
        return _values(self.trials, column) | _values(self.forecast_only, column) | _values(self.not_run, column)


def comparable(frame: pd.DataFrame, spread: tuple[str, ...]) -> Iterator[Comparable]:
    """Splits the planned trials by sweep, block, every parameter outside `spread` that varies, and surroundings."""
    planned = frame[frame["planned"].astype(bool)]  # a frame without rows has no types
    planned.attrs = {}  # pandas copies them, deeply, at nearly every step
    unmeasured = [pd.DataFrame(frame.attrs.get(name, [])) for name in ("forecast_only", "not_run")]
    for block, trials in planned.groupby("block", sort=False):
        trials = _with_surroundings(trials)
        foreseen, missing = (rows[rows["block"] == block] if len(rows) else rows for rows in unmeasured)
        known = (trials, foreseen, missing)
        columns = dict.fromkeys(column for each in known for column in each if "." in column and column not in spread)
        varying = [column for column in ("sweep", *columns) if len(set[Any]().union(*(_values(each, column) for each in known))) > 1]
        names = short_names(varying)
        idle = [column for column in varying if column in IDLE_AT_0]
        trials = trials.assign(**{column: None for column in varying if column not in trials})
        for _, group in trials.groupby([*varying, *SURROUNDINGS], sort=False, dropna=False):
            first = group.iloc[0]
            if idle:
                group = pd.concat([group, _alike_at_0(trials, first, [*varying, *SURROUNDINGS], idle)]).drop_duplicates("key")
            varied = " ".join(f"{names[column]}={_shown(column, first[column])}" for column in varying)
            here = (len(foreseen) or len(missing)) and _is_newest(first, trials[_alike(trials, first, varying)])
            beside = [_beside(rows if here else rows.iloc[:0], first, varying, idle, spread) for rows in (foreseen, missing)]
            yield Comparable(str(first.get("sweep", "")), str(block), varied, _describe(first), group, *beside)


def _beside(rows: pd.DataFrame, first: pd.Series, varying: list[str], idle: list[str], spread: tuple[str, ...]) -> pd.DataFrame:
    """Those of the trials without a run that would be in the group of `first`."""
    if len(rows):
        alike = rows[_alike(rows, first, varying)]
        rows = pd.concat([alike, _alike_at_0(rows, first, varying, idle)]).drop_duplicates("key") if idle else alike
    return rows.reindex(columns=[*dict.fromkeys((*rows, *spread))])


def _values(trials: pd.DataFrame, column: str) -> set[Any]:
    """A column that there is not holds nothing but None."""
    found = trials[column] if column in trials else [None] * min(len(trials), 1)
    return {None if pd.isna(value) else value for value in found}


def _alike(trials: pd.DataFrame, first: pd.Series, columns: list[str]) -> pd.Series:
    """Which trials equal `first` in these columns; nothing equals nothing."""
    alike = pd.Series(True, index=trials.index)
    for column in columns:
        found = trials[column] if column in trials else pd.Series(None, index=trials.index, dtype=object)
        alike &= ((found == first[column]).fillna(False) | (found.isna() & pd.isna(first[column]))).astype(bool)
    return alike


def _alike_at_0(trials: pd.DataFrame, first: pd.Series, columns: list[str], idle: list[str]) -> pd.DataFrame:
    """The trials without workers that differ from `first` in nothing but keys that mean nothing at 0 workers: their baseline too."""
    alike = _alike(trials, first, [column for column in columns if column not in idle])
    return trials[alike & (trials["loader.num_workers"] == 0).fillna(False).astype(bool)]


def _is_newest(first: pd.Series, trials: pd.DataFrame) -> bool:
    """Whether `first` ran where the latest of `trials` did: a forecast is one for the machine of the latest launch."""
    return bool(_alike(trials, first, list(SURROUNDINGS)).iloc[-1])


def _not_run(rows: Sequence[Mapping[str, Any]], keys: set[str], frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The trials of the plan with these keys. The plan has what they sweep; all else is as in their block, where that is of one kind."""
    shared: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["key"] not in keys or "swept" not in row:
            continue
        if (block := row["block"]) not in shared:
            trials = frame[(frame["block"] == block) & frame["planned"].astype(bool)]
            found = {column: _values(trials, column) for column in frame if "." in column}
            shared[block] = {column: next(iter(values)) for column, values in found.items() if len(values) == 1}
        yield {name: row[name] for name in ("key", "block", "repeat")} | shared[block] | _parameters(row["swept"])


def _forecast_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of the plan that is not to be measured, in the words of a measured one."""
    known = {name: row[name] for name in ("key", "block", "repeat", "forecast_fit") if name in row}
    return known | row["forecast"] | _parameters(row["config"])


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the plan as the tracker has those of a trial."""
    texts = {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in config.items()}
    return {name: None if config[name] is None else _value(text) for name, text in texts.items() if "." in name}


def _is_settled(run: "Run") -> bool:
    return run.info.status != "RUNNING" and run.data.tags.get("outcome") in SETTLED


def _disturbed(run: "Run") -> str | None:
    return run.data.tags.get("disturbed") or None


def _worth(run: "Run") -> int:
    """Attempts at a trial are ranked by this, then by age: how long they took has no say."""
    if not _is_settled(run):
        return 0
    return 1 if _disturbed(run) else 2


def _row(run: "Run") -> dict[str, Any]:
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    ended = run.info.status != "RUNNING"
    return {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "key": tags["key"],
        "block": tags["block"],
        "repeat": int(tags["repeat"]),
        "outcome": tags.get("outcome", "running") if ended else "running",
        "evidence": tags.get("evidence"),
        "settled": _is_settled(run),
        "disturbed": _disturbed(run),
        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
        **{tag: tags.get(tag) for tag in SURROUNDINGS},
        **{tag: tags.get(tag) for tag in ("node", "git_commit", "versions")},
        **{tag: float(tags.get(tag, "nan")) for tag in ("validation_clips", "warmup_epochs", "batch_bytes")},
        "forecast_fit": tags.get("forecast_fit"),
        **{name: metrics.get(name, float("nan")) for name in SUMMARY},
        **{name: _value(text) for name, text in params.items() if "." in name},
    }


def _value(text: str) -> Any:
    """A parameter as it was before MLflow made text of it; lists stay text, which a frame can group by."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def _shown(column: str, value: Any) -> str:
    return written(column, None if pd.isna(value) else value.item() if hasattr(value, "item") else value)


def _with_surroundings(trials: pd.DataFrame) -> pd.DataFrame:
    """A trial that died before it could say where it ran belongs to the others of its block, if those agree."""
    known = {tag: trials[tag].dropna().unique() for tag in SURROUNDINGS}
    return trials.fillna({tag: values[0] for tag, values in known.items() if len(values) == 1})


def _describe(trial: pd.Series) -> str:
    """'modelled accelerator, paced: 25 ms a step · Xeon · 4 cores · 2 threads · float32 · each read waits 20 ms'."""
    tags = {tag: trial[tag] for tag in SURROUNDINGS if pd.notna(trial[tag])}
    device = tags.get("device_name", tags.get("device", "device unknown"))
    if tags.get("device") == "paced":
        device = f"modelled accelerator, {device}"
    threads = f"{tags['threads']} thread" + ("s" if tags["threads"] != "1" else "") if "threads" in tags else None
    numbers = " ".join([*filter(None, [tags.get("precision")]), *(["channels_last"] if tags.get("channels_last") == "true" else [])])
    cpu = tags.get("cpu_name") if tags.get("cpu_name") != device else None
    cores = f"{tags['cores']} core" + ("s" if tags["cores"] != "1" else "") if "cores" in tags else None
    return " · ".join(filter(None, [device, cpu, cores, threads, numbers, *_reading(trial)]))


def _reading(trial: pd.Series) -> list[str]:
    """How clips were read, where it was not from a warm cache as fast as they come."""
    said = []
    if trial.get("corpus.cache", "warm") == "cold":
        said.append("cold cache: files dropped before each epoch")
    if latency := trial.get("corpus.read_latency_s", 0.0):
        said.append(f"each read waits {1000 * latency:g} ms")
    return said
