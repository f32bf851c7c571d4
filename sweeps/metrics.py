"""Every figure the tracker holds: one name, one unit, one meaning.

Names with a slash, and lr, are series: snapshot/... by cycle, the others by epoch. The rest is a trial's summary, logged once, because
MLflow's run search returns a series' last step and never its median. Absent means not measured; nothing is ever 0 for want of a value.
"""

import difflib

SERIES: dict[str, tuple[str, str]] = {
    "time/epoch_s": ("s", "host's wall clock of the epoch; the five spans below are its parts"),
    "time/start_s": ("s", "making the loader's iterator, its workers with it"),
    "time/fill_s": ("s", "waiting for the epoch's first batch"),
    "time/wait_s": ("s", "waiting for the later batches"),
    "time/step_s": ("s", "training steps, or the host's share of them on an accelerator, up to the last synchronised one"),
    "time/other_s": ("s", "the rest of the epoch: bookkeeping between the spans above"),
    "time/eval_s": ("s", "evaluation on the validation split, outside the epoch"),
    "time/snapshot_s": ("s", "writing a snapshot and measuring the ensemble, outside the epoch"),
    "accelerator/busy_fraction": (
        "1",
        "share of the epoch within steps on the accelerator, copies and gaps between kernels included",
    ),
    "stall/steps": ("steps", "steps the accelerator waited for, idle for more than 1 ms"),
    "stall/max_gap_s": ("s", "the accelerator's longest pause between two steps"),
    "loader/occupancy": ("1", "share of the steps whose batch was prepared before the loop asked for it; absent without workers"),
    "cpu/main_s": ("s", "CPU time of the training process, all its threads"),
    "cpu/worker_s": ("s", "CPU time of all processes below the training process, its loader workers above all; absent without workers"),
    "cpu/outside_fraction": ("1", "share of the trial's cores that something outside it used, the launch's own processes included"),
    "pressure/io_fraction": ("1", "share of the epoch in which some task on the node waited for a disk (PSI)"),
    "pressure/memory_fraction": ("1", "share of the epoch in which some task on the node waited for memory (PSI)"),
    "io/read_bytes": ("B", "bytes that the trial read from storage rather than from the page cache"),
    "rate/clips_per_s": ("1/s", "training clips per second of the epoch"),
    "shm/peak_bytes": ("B", "most bytes in use on the trial's /dev/shm during the epoch"),
    "loss/training": ("nat", "mean training loss of the epoch"),
    "loss/validation": ("nat", "mean loss on the validation split"),
    "accuracy/validation": ("1", "accuracy on the validation split"),
    "lr": ("1", "learning rate at the epoch's last step"),
    "snapshot/accuracy": ("1", "validation accuracy of the cycle's snapshot alone"),
    "snapshot/ensemble_accuracy": ("1", "validation accuracy of the softmax average of the snapshots so far"),
    "snapshot/disagreement": ("1", "share of validation clips on which two snapshots name different words, mean over pairs"),
}
SUMMARY: dict[str, tuple[str, str]] = {
    "epoch_s": ("s", "median of time/epoch_s over the warm epochs"),
    "start_s": ("s", "median of time/start_s over the warm epochs"),
    "fill_s": ("s", "median of time/fill_s over the warm epochs"),
    "wait_s": ("s", "median of time/wait_s over the warm epochs"),
    "step_s": ("s", "median of time/step_s over the warm epochs"),
    "other_s": ("s", "median of time/other_s over the warm epochs"),
    "busy_fraction": ("1", "median of accelerator/busy_fraction over the warm epochs"),
    "stall_steps": ("steps", "median of stall/steps over the warm epochs"),
    "max_gap_s": ("s", "median of stall/max_gap_s over the warm epochs"),
    "occupancy": ("1", "median of loader/occupancy over the warm epochs; absent without workers"),
    "main_cpu_s": ("s", "median of cpu/main_s over the warm epochs"),
    "worker_cpu_s": ("s", "median of cpu/worker_s over the warm epochs; absent without workers"),
    "outside_fraction": ("1", "mean of cpu/outside_fraction over the warm epochs, weighted by their time"),
    "read_bytes": ("B", "median of io/read_bytes over the warm epochs"),
    "wait_fraction": ("1", "median share of a warm epoch spent waiting for batches, the first one included"),
    "clips_per_s": ("1/s", "median of rate/clips_per_s over the warm epochs"),
    "shm_peak_bytes": ("B", "most bytes in use on the trial's /dev/shm"),
    "forecast_shm_floor_bytes": ("B", "foreseen: a smaller /dev/shm overflows for certain; 0 without workers"),
    "forecast_shm_typical_bytes": ("B", "foreseen: about the peak where the workers are the slow side"),
    "forecast_shm_bound_bytes": ("B", "foreseen: no trial takes more; the peak where the training loop is the slow side"),
    "forecast_epoch_s": ("s", "foreseen: a warm epoch, simulated from what a calibration measured"),
    "forecast_epoch_low_s": ("s", "foreseen: low end of the interval of forecast_epoch_s"),
    "forecast_epoch_high_s": ("s", "foreseen: high end of the interval of forecast_epoch_s"),
    "forecast_fill_s": ("s", "foreseen: fill_s"),
    "forecast_fill_low_s": ("s", "foreseen: low end of the interval of forecast_fill_s"),
    "forecast_fill_high_s": ("s", "foreseen: high end of the interval of forecast_fill_s"),
    "forecast_wait_fraction": ("1", "foreseen: wait_fraction"),
    "forecast_stall_steps": ("steps", "foreseen: stall_steps"),
    "forecast_shm_peak_bytes": ("B", "foreseen: most bytes in use on the trial's /dev/shm, at these rates"),
    "forecast_closed_form_s": ("s", "foreseen by the naive rival: the slowest of step, cores and reads, times the batches, and a fill"),
    "train_s": ("s", "sum of time/epoch_s over all epochs, warm-up included, evaluation and snapshots not"),
    "accuracy": ("1", "validation accuracy of the last snapshot alone"),
    "best_snapshot_accuracy": ("1", "validation accuracy of the best snapshot alone"),
    "ensemble_accuracy": ("1", "validation accuracy of the softmax average of all snapshots"),
    "test_accuracy": ("1", "accuracy of the last snapshot on the test split, for the trial chosen on validation"),
    "test_ensemble_accuracy": ("1", "accuracy of the ensemble on the test split, for the trial chosen on validation"),
    "test_clips": ("clips", "size of the test split"),
}
METRICS = SERIES | SUMMARY  # name -> (unit, meaning)


def check_name(name: str) -> str:
    """The name, where METRICS has it; otherwise a ValueError that names the nearest."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        raise ValueError(f"metric {name!r} has no unit and meaning: add it to METRICS" + (f", or write {near[0]}" if near else ""))
    return name
