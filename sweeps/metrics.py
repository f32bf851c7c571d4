"""Defines every figure in the tracker with its name, its unit and its meaning.

Names with a slash, and lr, are series: snapshot/... by cycle, the others by epoch. All other names
belong to a trial's summary, which is logged once. The reason is that MLflow's run search returns
the last step of a series and never its median. An absent figure was not measured; 0 never stands
for a missing value.
"""

from speech.spelling import similar_word

SERIES: dict[str, tuple[str, str]] = {
    "time/epoch_s": ("s", "host's wall clock of the epoch; the five spans below are its parts"),
    "time/start_s": ("s", "creating the loader's iterator and its workers"),
    "time/first_batch_s": ("s", "waiting for the epoch's first batch"),
    "time/data_wait_s": ("s", "waiting for the later batches"),
    "time/step_s": (
        "s",
        (
            "training steps, or the host's share of them on an accelerator, up to the last"
            " synchronised one"
        ),
    ),
    "time/other_s": ("s", "the rest of the epoch: bookkeeping between the spans above"),
    "time/eval_s": ("s", "evaluation on the validation split, outside the epoch"),
    "time/snapshot_s": ("s", "writing a snapshot and measuring the ensemble, outside the epoch"),
    "accelerator/busy_fraction": (
        "1",
        (
            "share of the epoch within steps on the accelerator, copies and gaps between kernels"
            " included"
        ),
    ),
    "stall/steps": ("steps", "steps before which the accelerator idled for more than 1 ms"),
    "stall/max_gap_s": ("s", "the accelerator's longest pause between two steps"),
    "loader/prefetch_hit_rate": (
        "1",
        (
            "share of the steps whose batch was prepared before the loop requested it; absent"
            " without workers"
        ),
    ),
    "cpu/main_s": ("s", "CPU time of the training process, all its threads"),
    "cpu/worker_s": (
        "s",
        (
            "CPU time of all processes below the training process, its loader workers above all;"
            " absent without workers"
        ),
    ),
    "cpu/batch_s": (
        "s",
        (
            "CPU time that the preparation of a batch took, median over the epoch's batches: the"
            " speed that the epoch met"
        ),
    ),
    "cpu/external_fraction": (
        "1",
        (
            "share of the trial's cores that processes outside it used, those of the launch"
            " included; under a CPU quota, share of the quota's time"
        ),
    ),
    "cpu/throttled_s": (
        "s",
        (
            "time for which a CPU quota held tasks back, summed over the cores: of the trial's"
            " control group or of one above it, whichever was held back longer; absent without a"
            " quota"
        ),
    ),
    "cpu/throttled_fraction": (
        "1",
        (
            "share of the quota's periods, of 0.1 s mostly, in which it was used up; absent without"
            " a quota"
        ),
    ),
    "pressure/io_fraction": (
        "1",
        "share of the epoch in which some task on the node waited for a disk (PSI)",
    ),
    "pressure/memory_fraction": (
        "1",
        "share of the epoch in which some task on the node waited for memory (PSI)",
    ),
    "io/read_bytes": (
        "B",
        "bytes that the trial read from storage rather than from the page cache",
    ),
    "gpu/utilisation": (
        "1",
        (
            "share of the time in which a kernel of any process ran, by NVML, validation included;"
            " mean over the trial's GPUs"
        ),
    ),
    "gpu/memory_bytes": ("B", "most bytes that the trial held on its GPUs, by NVML"),
    "gpu/external_fraction": (
        "1",
        (
            "share of the time, validation included, that a GPU of the trial computed for other"
            " processes, by NVML; of several GPUs the largest"
        ),
    ),
    "rate/clips_per_s": ("1/s", "training clips per second of the epoch"),
    "shm/peak_bytes": ("B", "most bytes in use on the trial's /dev/shm during the epoch"),
    "loss/training": ("nat", "mean training loss of the epoch"),
    "loss/validation": ("nat", "mean loss on the validation split"),
    "accuracy/validation": ("1", "accuracy on the validation split"),
    "lr": ("1", "learning rate at the epoch's last step"),
    "snapshot/accuracy": ("1", "validation accuracy of the cycle's snapshot alone"),
    "snapshot/ensemble_accuracy": (
        "1",
        "validation accuracy of the softmax average of the snapshots so far",
    ),
    "snapshot/disagreement": (
        "1",
        "share of validation clips on which two snapshots give different answers, mean over pairs",
    ),
}
SUMMARY: dict[str, tuple[str, str]] = {
    "epoch_s": ("s", "median of time/epoch_s over the timed epochs"),
    "start_s": ("s", "median of time/start_s over the timed epochs"),
    "first_batch_s": ("s", "median of time/first_batch_s over the timed epochs"),
    "data_wait_s": ("s", "median of time/data_wait_s over the timed epochs"),
    "step_s": ("s", "median of time/step_s over the timed epochs"),
    "other_s": ("s", "median of time/other_s over the timed epochs"),
    "busy_fraction": ("1", "median of accelerator/busy_fraction over the timed epochs"),
    "stall_steps": ("steps", "median of stall/steps over the timed epochs"),
    "max_gap_s": ("s", "median of stall/max_gap_s over the timed epochs"),
    "prefetch_hit_rate": (
        "1",
        "median of loader/prefetch_hit_rate over the timed epochs; absent without workers",
    ),
    "main_cpu_s": ("s", "median of cpu/main_s over the timed epochs"),
    "worker_cpu_s": ("s", "median of cpu/worker_s over the timed epochs; absent without workers"),
    "batch_cpu_s": ("s", "median of cpu/batch_s over the timed epochs"),
    "batch_cpu_min_s": ("s", "smallest cpu/batch_s of a timed epoch"),
    "batch_cpu_max_s": ("s", "largest cpu/batch_s of a timed epoch"),
    "disturbed_epochs": (
        "epochs",
        (
            "warm epochs that something outside the trial disturbed; unless that is all of them,"
            " they are not timed epochs"
        ),
    ),
    "external_cpu_fraction": (
        "1",
        "mean of cpu/external_fraction over the timed epochs, weighted by their time",
    ),
    "throttled_s": (
        "s",
        "median of cpu/throttled_s over the timed epochs; absent without a CPU quota",
    ),
    "throttled_fraction": (
        "1",
        "median of cpu/throttled_fraction over the timed epochs; absent without a CPU quota",
    ),
    "gpu_utilisation": ("1", "median of gpu/utilisation over the timed epochs"),
    "gpu_memory_bytes": ("B", "median of gpu/memory_bytes over the timed epochs"),
    "read_bytes": ("B", "median of io/read_bytes over the timed epochs"),
    "wait_fraction": (
        "1",
        "median share of a timed epoch spent waiting for batches, the first one included",
    ),
    "clips_per_s": ("1/s", "median of rate/clips_per_s over the timed epochs"),
    "shm_peak_bytes": ("B", "most bytes in use on the trial's /dev/shm"),
    "forecast_shm_min_bytes": (
        "B",
        "forecast: a smaller /dev/shm overflows for certain; 0 without workers",
    ),
    "forecast_shm_expected_bytes": (
        "B",
        "forecast: about the peak if the workers are the slower side",
    ),
    "forecast_shm_max_bytes": (
        "B",
        "forecast: no trial uses more; the peak if the training loop is the slower side",
    ),
    "forecast_epoch_s": ("s", "forecast: a warm epoch, simulated from what a calibration measured"),
    "forecast_epoch_low_s": ("s", "forecast: low end of the interval of forecast_epoch_s"),
    "forecast_epoch_high_s": ("s", "forecast: high end of the interval of forecast_epoch_s"),
    "forecast_first_batch_s": ("s", "forecast: first_batch_s"),
    "forecast_first_batch_low_s": (
        "s",
        "forecast: low end of the interval of forecast_first_batch_s",
    ),
    "forecast_first_batch_high_s": (
        "s",
        "forecast: high end of the interval of forecast_first_batch_s",
    ),
    "forecast_wait_fraction": ("1", "forecast: wait_fraction"),
    "forecast_stall_steps": ("steps", "forecast: stall_steps"),
    "forecast_shm_peak_bytes": (
        "B",
        "forecast: most bytes in use on the trial's /dev/shm, at these rates",
    ),
    "forecast_batch_cpu_s": ("s", "forecast: batch_cpu_s"),
    "forecast_at_start_s": (
        "s",
        "forecast: the same epoch at the speed that a probe measured as the trial started",
    ),
    "forecast_at_start_low_s": ("s", "forecast: low end of the interval of forecast_at_start_s"),
    "forecast_at_start_high_s": ("s", "forecast: high end of the interval of forecast_at_start_s"),
    "forecast_at_speed_s": (
        "s",
        (
            "the same epoch simulated after the trial, at the speed that batch_cpu_s shows: what is"
            " left of the error is the model's"
        ),
    ),
    "forecast_closed_form_s": (
        "s",
        (
            "forecast by the simpler closed form: the slowest of step, cores and reads, times the"
            " batches, and a first batch"
        ),
    ),
    "train_s": (
        "s",
        "sum of time/epoch_s over all epochs, warm-up included, evaluation and snapshots not",
    ),
    "accuracy": ("1", "validation accuracy of the last snapshot alone"),
    "best_snapshot_accuracy": ("1", "validation accuracy of the best snapshot alone"),
    "ensemble_accuracy": ("1", "validation accuracy of the softmax average of all snapshots"),
    "largest_label_fraction": (
        "1",
        (
            "share of the validation clips that the largest label has: the accuracy of always"
            " answering it"
        ),
    ),
    "shared_speakers": (
        "1",
        ("1: speakers are in several splits, so accuracies are optimistic; otherwise absent"),
    ),
    "diverged_snapshots": (
        "snapshots",
        "cycles of the schedule that added no member to the ensemble because training diverged",
    ),
    "test_accuracy": (
        "1",
        "accuracy of the last snapshot on the test split, for the trial chosen on validation",
    ),
    "test_ensemble_accuracy": (
        "1",
        "accuracy of the ensemble on the test split, for the trial chosen on validation",
    ),
    "test_clips": ("clips", "size of the test split"),
    "test_largest_label_fraction": ("1", "share of the test clips that the largest label has"),
}
METRICS = SERIES | SUMMARY  # name -> (unit, meaning)


def check_name(name: str) -> str:
    """Returns a name that METRICS defines; raises ValueError, with a similar name, for others."""
    if name not in METRICS:
        similar = similar_word(name, METRICS)
        raise ValueError(
            f"metric {name!r} has no unit and meaning: add it to METRICS"
            + (f", or write {similar}" if similar else "")
        )
    return name
