"""Benchmarks: what each asks, how an answer is judged, and the metrics over judged answers."""
