"""From tables to plots and pages."""
