"""Rates by group, and what is derived from them."""
