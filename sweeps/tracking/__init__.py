"""Stores the results of a sweep: MLflow, the outbox before it, states and reruns."""
