"""The command line: `fairsisa <verb> [settings]`."""

from fairsisa.cli.main import main

__all__ = ["main"]
