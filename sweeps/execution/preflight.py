"""Determines before the first trial what this machine can do: a private /dev/shm, GPUs, corpora.

Every check is a real attempt in a process tree like that of a trial. A machine that cannot provide
what a trial requests is therefore detected at once, and not by trial 37.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from speech.byte_sizes import format_size
from speech.config import TrialConfig
from speech.shm_usage import shm_usage
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.host.node import Log, Node, PreflightError
from sweeps.names import run_name
from sweeps.sandbox.isolation import ForkServer, Record, Task

# The import of torch takes 2 s from memory, and a minute from a slow network drive
SURVEY_TIMEOUT_S = 300.0

ALLOW_NAMESPACES = """A private /dev/shm for each trial needs mount namespaces, which this machine forbids: {problem}.
Allow them in one of these ways:
  Docker or Podman   --cap-add SYS_ADMIN --security-opt apparmor=unconfined (or --privileged)
  Ubuntu 24.04 on    sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
  older Debian       sudo sysctl kernel.unprivileged_userns_clone=1
  limit of none      sudo sysctl user.max_user_namespaces=10000
or use the machine's own /dev/shm: resources: {{shm: host}}, with loader.shm_size: {size} or without shm_size."""  # noqa: E501

# Exceptions that reject a trial's configuration, or the clips that it names, in a sentence
CONFIG_ERRORS = ("Infeasible", "WeightsError", "CorpusError", "BadClip")
OWN_ERRORS = ("DeviceError", "ShmSizeError")  # other exceptions of this project


def read_hardware(fork_server: ForkServer, config: SweepConfig, log_file: Path) -> Node:
    """Determines the hardware of this machine inside a process tree.

    The tree has a /dev/shm of 1 MiB, or the machine's own /dev/shm if the sweep is configured for
    that.
    """
    private = config.resources.shm == "private"
    task = Task("list_gpus", {}, private, 1 << 20 if private else None)
    hardware = run_task(
        fork_server,
        task,
        log_file,
        "list_gpus",
        "the hardware of this machine can't be determined: {problem}",
        SURVEY_TIMEOUT_S,
    )
    gpus = [] if config.resources.gpus == 0 else hardware["gpus"]
    return Node.local(gpus)


def check_shm_sizes(config: SweepConfig, configs: list[TrialConfig]) -> None:
    """Raises PreflightError if a trial on the machine's own /dev/shm requests another size than
    that has.
    """
    limit = shm_usage().limit_bytes
    requested = {
        trial.loader.shm_size
        for trial in configs
        if trial.loader.shm_size and config.resources.shm == "host"
    }
    for size in requested - {limit}:
        raise PreflightError(
            f"loader.shm_size: {format_size(size)}, but with resources.shm: host the trial uses"
            f" the machine's own /dev/shm of {format_size(limit)}. Write this size, or remove"
            " shm_size, or write resources.shm: private."
        )


def prepare(
    fork_server: ForkServer, trials: Sequence[TrialSpec], log_file: Path, log: Log
) -> dict[str, str]:
    """Prepares all data that trials read before the first of them runs: statistics, pictures,
    weights, a batch of clips.

    Returns the reasons why trials cannot be trained as configured, by trial id. It logs them, and
    the other trials run. Raises PreflightError if no trial can run, or if the cause is not in a
    trial's configuration.
    """
    groups: dict[tuple, list[TrialSpec]] = defaultdict(list)
    for trial in trials:
        config = trial.config
        deciding = (
            config.corpus.selection_key(),
            config.features.model_dump_json(),
            config.model.weights,
            config.loader.format,
            config.loader.batch_size,
            config.augment.noise > 0,
            tuple(config.device.prefer),
        )
        groups[deciding].append(trial)
    refused: dict[str, str] = {}
    for group in groups.values():
        if problem := _find_obstacle(fork_server, group[0], log_file, log):
            refused |= {trial.trial_id: problem for trial in group}
    lines = refusals(trials, refused)
    if refused and len(refused) == len(trials):
        raise PreflightError(
            "no trial can run.\n" + "\n".join(lines) if len(lines) > 1 else lines[0]
        )
    for line in lines:
        log(line)
    return refused


def refusals(trials: Sequence[TrialSpec], refused: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason in `refused`, which is indexed by trial id.

    A line names the first trial with the reason and the number of others.
    """
    names_by_problem: dict[str, list[str]] = defaultdict(list)
    for trial in trials:
        if trial.trial_id in refused:
            names_by_problem[refused[trial.trial_id]].append(
                run_name(trial.block, trial.swept, trial.repeat)
            )
    return [
        f"can't be trained: {names[0]}"
        + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        + f": {problem}"
        for problem, names in names_by_problem.items()
    ]


def _find_obstacle(
    fork_server: ForkServer, trial: TrialSpec, log_file: Path, log: Log
) -> str | None:
    """Returns why a trial like this cannot be trained as configured; None if it can."""
    name = run_name(trial.block, trial.swept, trial.repeat)
    for record in fork_server.run(
        Task("prepare", trial.config.model_dump(), private=False), log_file
    ):
        if record["kind"] == "log":
            log(record["line"])
        if record["kind"] == "error" and record["type"] in CONFIG_ERRORS:
            return record["message"]
        _raise_for(record, f"the data can't be prepared for {name}: {{problem}}", log_file)
    return None


def run_task(
    fork_server: ForkServer,
    task: Task,
    log_file: Path,
    kind: str,
    message: str,
    timeout_s: float | None = None,
) -> Record:
    """Runs a task and returns its one record of `kind`.

    Raises PreflightError with `message`, which contains '{problem}', if the task reports an error
    instead, or nothing within `timeout_s` seconds.
    """
    result = None
    for record in fork_server.run(task, log_file, timeout_s):
        if record.get("timeout"):
            raise PreflightError(
                _fill_in(
                    message, f"a process that imports torch has not answered for {timeout_s:.0f} s."
                )
            )
        _raise_for(record, message, log_file)
        result = record if record["kind"] == kind else result
    if result is None:
        raise PreflightError(
            _fill_in(message, f"a process ended without a result. Its output is in {log_file}.")
        )
    return result


def _raise_for(record: Record, message: str, log_file: Path) -> None:
    """Raises PreflightError if `record` reports an error or a process that has ended with another
    status than 0.
    """
    if record["kind"] == "error":
        if record["type"] == "IsolationError":
            raise PreflightError(
                ALLOW_NAMESPACES.format(
                    problem=record["message"], size=format_size(shm_usage().limit_bytes)
                )
            )
        raise PreflightError(_fill_in(message, _format_problem(record)))
    if record["kind"] == "exit" and record["status"] != 0:
        raise PreflightError(
            _fill_in(
                message,
                f"its process ended with status {record['status']}. Its output is in {log_file}.",
            )
        )


def _fill_in(message: str, problem: str) -> str:
    """Returns `message` with `problem` in place of '{problem}'.

    It does not use str.format, since the names of trials in a message may contain braces.
    """
    return message.replace("{problem}", problem)


def _format_problem(record: Record) -> str:
    """Returns the problem that an error record reports.

    The message of this project's exceptions is a sentence. The message of others says little
    without the type, as in KeyError: 'x'.
    """
    message = record["message"].strip()
    return (
        message
        if message and record["type"] in (*CONFIG_ERRORS, *OWN_ERRORS)
        else f"{record['type']}: {message}".removesuffix(": ")
    )
