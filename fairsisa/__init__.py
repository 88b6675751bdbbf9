"""Train models you can delete people from, and keep them fair when you do."""

__version__ = "0.1.0"
