"""Runs a launch: preflight, hosts, Ray, trials, retries, interruption.

Only this package imports Ray.
"""
