"""Describes the machine that trials run on, locks it, and checks whether it is idle."""
