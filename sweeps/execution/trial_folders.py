"""Removes the folders of trials that no launch will continue."""

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from sweeps.config.plan import TRIAL_ID_DIGITS
from sweeps.execution.trial_runner import LEARNED


def remove_trial_folders(folder: Path, resumable: Collection[str]) -> None:
    """Removes from the sweep's folder on this machine the files of trials whose id is not in
    `resumable`.
    """
    for trial_folder in [*folder.glob("[0-9a-f]" * TRIAL_ID_DIGITS), *folder.glob(f"{LEARNED}/*")]:
        if trial_folder.name not in resumable:
            shutil.rmtree(trial_folder, ignore_errors=True)  # machines may share the folder
    with contextlib.suppress(OSError):  # the folder is missing or not empty
        (folder / LEARNED).rmdir()
