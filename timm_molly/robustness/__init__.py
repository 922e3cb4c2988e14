"""Measuring robustness: corruptions, benchmarks, metrics and the report of `timm-molly validate`."""
