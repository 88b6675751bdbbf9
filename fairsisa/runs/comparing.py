"""The verb `compare`: models against one, item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning.loggers.logger import Logger

from fairsisa.bias.behaviour import behaviour_of
from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.bias.comparing import compare, floor_of, holm_over
from fairsisa.bias.divergence import block_divergences, option_divergence
from fairsisa.bias.evaluation import Evaluated
from fairsisa.data.corpus_blocks import encode_blocks
from fairsisa.data.texts import find_text
from fairsisa.errors import ConfigError
from fairsisa.execution.local import computing_threads
from fairsisa.models.text_tokenizers import end_of
from fairsisa.report.bias import BiasReport, write_bias
from fairsisa.runs.bias import Progress, Result, Session, evaluate_models, nothing_to_tell, report_of
from fairsisa.runs.bias_logging import log_measures
from fairsisa.runs.directory import Run
from fairsisa.runs.training import data_root
from fairsisa.settings import ComparisonSettings, PathSettings, ScoringSettings
from fairsisa.store.durable import explained
