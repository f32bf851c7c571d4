"""Measures the costs of a batch on this machine, for this project's loader and for others."""
