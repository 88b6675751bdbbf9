"""What a model does to groups of people and to its own behaviour: benchmarks, readouts, paired statistics."""
