"""Artefacts on disk, named by their lineage."""

from fairsisa.store.directory import Artefact, Entry, Removal, Store
from fairsisa.store.manifest import Manifest

__all__ = ["Artefact", "Entry", "Manifest", "Removal", "Store"]
