"""Builds, watches and ends a process tree that has its own /dev/shm."""
