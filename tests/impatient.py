"""Real trials under a watch of little patience, so that a hang shows within a second:
Template(tasks="tests.impatient")."""

from speech.tasks import TASKS as TRAINING
from sweeps.sandbox import hang

# in the template's process, and so in each init that is forked from it
hang.LONG_WAIT_S, hang.CHECK_INTERVAL_S = 0.2, 0.05

TASKS = TRAINING
