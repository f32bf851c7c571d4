"""Reports environment variables that a sweep overrules."""

from sweeps.config.config import SweepConfig
from sweeps.environment import overruled_messages


def overruled_by_sweep(config: SweepConfig) -> list[str]:
    """Returns a line for every environment variable that differs from the sweep's setting.

    A setting that the file itself contains needs no line.
    """
    tracking, lines = config.tracking, list[str]()
    if "uri" not in tracking.model_fields_set:
        lines += overruled_messages(
            "MLFLOW_TRACKING_URI", tracking.uri, "figures go to", "tracking.uri"
        )
    if "experiment" not in tracking.model_fields_set:
        for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            lines += overruled_messages(
                name, tracking.experiment, "runs go to the experiment", "tracking.experiment"
            )
    if "address" not in config.ray.model_fields_set:
        lines += overruled_messages(
            "RAY_ADDRESS", config.ray.address, "trials use the Ray address", "ray.address"
        )
    if "threads" not in config.model_fields_set:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            lines += overruled_messages(
                name, str(config.threads), "the number of threads is", "threads"
            )
    return lines
