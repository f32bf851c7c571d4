"""WHAT IT MEANT: sweeps read back from the tracker alone, without torch or Ray.

Frames by name     runs.sweep_runs, runs.joined_runs (a row a trial); filters.matching
                   series.epoch_rows, series.snapshot_rows, series.disagreements (a row an epoch, a snapshot, a pair of snapshots)
Tables as frames   tradeoff.epoch_times, epochs.epoch_parts, forecasts.forecasts, cycles.cycle_accuracies, recommendation.recommendations,
                   cycle_choice.cycle_recommendations, fit.fits
Pictures           plots.epoch_seconds, where_epochs_go, shm_peaks; cycle_plots.training_course, ensemble_accuracy,
                   snapshot_disagreement (each: a frame of sweep_runs -> a Figure); stalls.picture (a trial's records -> a Figure)
On a page          tables.render, `python -m analysis NAME`

    trials = matching(sweep_runs("first-look"), ["block=workers"])
    epoch_times(trials)
    epoch_seconds(trials)
"""
