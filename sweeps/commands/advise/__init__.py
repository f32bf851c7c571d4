"""Recommends a number of workers for the loader of any PyTorch project (launch.py advise)."""
