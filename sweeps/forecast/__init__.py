"""Forecasts of a trial before it runs: seconds, /dev/shm and memory."""
