"""From a corpus to an examples table, and from a table to batches."""
