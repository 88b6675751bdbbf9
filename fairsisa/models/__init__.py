"""The Lightning modules, and the networks inside them."""
