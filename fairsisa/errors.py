"""What a caller of fairsisa may catch: every error of the package, in one place."""

from __future__ import annotations


class FairsisaError(Exception):
    """The root of all errors that fairsisa raises on purpose."""


class DataError(FairsisaError, ValueError):
    """A table, file or download does not hold what it must; the message names rows and an example."""


class ChecksumError(DataError):
    """A file's SHA-256 differs from the one on record."""


class ConfigError(FairsisaError, ValueError):
    """A setting is unknown, out of range or contradicts another; the message names the cure."""


class PartitionError(FairsisaError, ValueError):
    """The examples cannot be dealt to shards and slices as asked."""


class StoreError(FairsisaError):
    """The store refuses an operation; nothing was changed."""


class MissingArtefactError(StoreError, KeyError):
    """No artefact of that name exists in the store."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CorruptArtefactError(StoreError):
    """An artefact's bytes differ from the digest in its manifest."""


class ModelError(FairsisaError):
    """A base model cannot be found, verified or built."""


class TrainingError(FairsisaError):
    """Training stopped before it was done; what was finished is kept, and the message says how to go on."""


class RunError(FairsisaError):
    """A run directory is missing, incomplete or in use by another command."""


class RequestError(FairsisaError, ValueError):
    """An unlearning request names what is not there, or nothing at all; nothing was received."""


class LedgerError(FairsisaError):
    """The ledger refuses, is damaged, or its key is missing; what was received is kept."""


class VerificationError(FairsisaError):
    """A check of forgotten data, a certificate or a replay failed; the message names what was found."""


class SolverError(FairsisaError):
    """No solver gave an answer that keeps its promise; the message says what each one said."""


class StaleError(FairsisaError):
    """A post-processor was fitted on something that is no longer served; refit it."""
