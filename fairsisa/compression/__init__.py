"""Smaller models made from a trained one."""
