"""Sharded, isolated, sliced and aggregated training (Bourtoule et al., IEEE S&P 2021)."""
