"""Lists what happens to the environment variables of Ray and Tune, by the Ray that a launch uses.

A Ray of the launch's own takes over nothing that was meant for another Ray. A Ray that the launch
joins keeps the settings of its owner. sweeps/environment.py applies the rules.
"""

from sweeps.environment_variables import PASS, REMOVE, SET, Rule

_TUNE = (
    Rule(
        "RAY_worker_oom_score_adjustment",
        SET,
        "the OOM killer must end a trial's process before those that watch it",
        "0",
    ),
    Rule(
        "RAY_memory_monitor_refresh_ms",
        SET,
        "it would end the actor at 95 % of memory, and the sweep; the kernel's OOM killer ends a"
        " trial",
        "0",
    ),
    Rule(
        "RAY_worker_niceness",
        SET,
        "Ray lowers its workers' priority to 15, and with it a trial's against all else on the"
        " machine",
        "0",
    ),
    Rule("RAY_USAGE_STATS_ENABLED", SET, "no usage statistics are sent", "0"),
    Rule("RAY_DEDUP_LOGS", SET, "the log is complete", "0"),
    Rule("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", SET, "a trial that requests no GPU sees none", "1"),
    Rule("RAY_AIR_NEW_OUTPUT", SET, "the launch prints its own output", "0"),
    Rule("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", SET, "MLflow stores the metrics", "1"),
    Rule(
        "TUNE_DISABLE_SIGINT_HANDLER",
        SET,
        "the launch handles Ctrl-C; Tune would continue for a while",
        "1",
    ),
    Rule(
        "TUNE_GLOBAL_CHECKPOINT_S",
        SET,
        "Tune restores nothing; trial ids decide what runs again",
        "1e9",
    ),
    Rule(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
        SET,
        "under `uv run` Ray would upload the project and start its workers through uv",
        "0",
    ),
    Rule("TUNE_*", REMOVE, "chooses folders, queues and output of Tune"),
)
OWN_RAY = (
    *_TUNE,
    Rule(
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        SET,
        "where Ray knows no clusters, it listens on loopback only",
        "0",
    ),
    Rule("RAY_*", REMOVE, "addresses, folders, hooks, tokens and limits of another Ray"),
    Rule("__RAY_*", REMOVE, "hooks of another Ray's workers"),
)
JOINED_RAY = (
    *_TUNE,
    Rule(
        "RAY_RUNTIME_ENV_HOOK RAY_JOB_CONFIG_JSON_ENV_VAR RAY_OVERRIDE_JOB_RUNTIME_ENV"
        " RAY_NAMESPACE RAY_JOB_ID RAY_JOB_NAME",
        REMOVE,
        "the launch gets a job of its own, with its own working folder and variables",
    ),
    Rule(
        "RAY_CLIENT_MODE RAY_ENABLE_AUTO_CONNECT RAY_DEBUG RAY_DEBUG_POST_MORTEM"
        " RAY_PICKLE_VERBOSE_DEBUG",
        REMOVE,
        "changes how the launch joins, or stops its workers in a debugger",
    ),
    Rule(
        "RAY_LOG_TO_DRIVER RAY_LOGGER_LEVEL RAY_LOGGING_CONFIG_ENCODING RAY_COLOR_PREFIX"
        " RAY_FLUSH_DRIVER_LOGS",
        REMOVE,
        "prints among the launch's lines",
    ),
    Rule(
        "RAY_EXPERIMENTAL_NOSET_* RAY_CHDIR_TO_TRIAL_DIR",
        REMOVE,
        "a trial would see GPUs that others have, or another folder",
    ),
    Rule(
        "RAY_*",
        PASS,
        "addresses, tokens, certificates and limits of the cluster, which its owner has chosen",
    ),
)
