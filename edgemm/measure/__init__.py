"""Evaluation, benchmarks, inspection, and what this machine has."""
