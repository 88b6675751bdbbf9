"""Artefacts on disk, named by their lineage."""

from fairsisa.store.directory import Store
from fairsisa.store.manifest import Manifest
from fairsisa.store.values import Artefact, Collected, Entry, Removal

__all__ = ["Artefact", "Collected", "Entry", "Manifest", "Removal", "Store"]
