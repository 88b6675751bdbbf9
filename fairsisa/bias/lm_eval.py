"""Tasks of lm-evaluation-harness as benchmarks, put and judged by fairsisa."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import CAPABILITY, Benchmark, Files, Metric, Readout, by_item, score_row, scores_table
from fairsisa.bias.benchmarks.lambada import PERPLEXITY, RIGHT, judge_last_word
from fairsisa.bias.benchmarks.task_prompts import SHARED, Prompt
from fairsisa.bias.benchmarks.tasks import KEY, NORMALISED, PLAIN, WITH_LENGTHS, ask_partial, choice_metrics
from fairsisa.bias.benchmarks.tasks import judge_summed
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_continuations
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import nearest

MULTIPLE_CHOICE, LOGLIKELIHOOD, GENERATE_UNTIL = "multiple_choice", "loglikelihood", "generate_until"
OUTPUT_TYPES = (MULTIPLE_CHOICE, LOGLIKELIHOOD, GENERATE_UNTIL)
TARGET = "target"
MAX_NEW_TOKENS = 256
"""What lm-eval writes at most where a task does not say."""
INSTALL = "Tasks of lm-eval need the package lm-eval: pip install 'fairsisa[lm-eval]'."
