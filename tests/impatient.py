"""Real trials under a watch of little patience, so that a hang shows within a second: Template(tasks="tests.impatient")."""

from speech.tasks import TASKS as TRAINING
from sweeps import hang

hang.STALL_S, hang.LOOK_S = 0.2, 0.05  # in the template's process, and so in each init that is forked from it

TASKS = TRAINING
