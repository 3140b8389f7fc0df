"""Metrics, benchmarks, and what this machine has."""
