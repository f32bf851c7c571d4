"""Reads sweeps back from the tracker alone, without torch or Ray, and shows them.

    Trials             runs.sweep_runs, runs.join_sweep_runs (-> SweepRuns: a row a trial, and the
                       facts that no row holds); filters.filter_trials
    Data frames        series.epoch_rows, series.snapshot_rows (a row an epoch, a snapshot)
                       series.disagreements (a row a pair of snapshots)
    Tables as frames   tradeoff.epoch_times, loader_tables.key_times, epochs.epoch_parts,
                       forecasts.forecasts, forecasts.choices, shm_table.fits,
                       cycles.cycle_accuracies, recommendation.recommendations,
                       cycle_recommendation.cycle_recommendations
    Pictures           epoch_time_plot.epoch_seconds, epoch_parts_plot.where_epochs_go,
                       shm_plot.shm_peaks, cycle_plots.training_course,
                       ensemble_plot.ensemble_accuracy, cycle_plots.snapshot_disagreement
                       (SweepRuns -> a Figure);
                       epoch_timeline.draw_epoch (a trial's records -> a Figure)
    Text               tables.render, `python -m analysis NAME`

Example:

    runs = filter_trials(sweep_runs("first-look"), ["block=workers"])
    epoch_times(runs)
    epoch_seconds(runs)
"""
