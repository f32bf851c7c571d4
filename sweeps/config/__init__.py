"""Reads and checks a sweep file, and plans its trials."""
