"""What the command can do: one entry per verb, so that help needs no heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Verb:
    """One thing the command can do: the module and function of `cli` that act, its root config, and its purpose."""

    act: str
    root: str
    summary: str
    example: str


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "train": Verb(
            "verbs.train",
            "train",
            "Train a shard ensemble and its baselines, measure it and write its report.",
            "fairsisa train experiment=quickstart",
        ),
        "evaluate": Verb(
            "verbs.evaluate", "evaluate", "Measure a trained run again.", "fairsisa evaluate run=runs/my-run"
        ),
        "postprocess": Verb(
            "fairness.postprocess",
            "postprocess",
            "Make a run's decisions fair: fit a rule over its votes on calibration data, serve it, measure it.",
            "fairsisa postprocess run=runs/my-run criterion=equalized_odds tolerance=0.05 sensitive_feature=sex",
        ),
        "frontier": Verb(
            "fairness.frontier",
            "frontier",
            "Draw what fairness costs: accuracy against difference, every strategy at every tolerance.",
            "fairsisa frontier run=runs/my-run criterion=equalized_odds sensitive_feature=sex",
        ),
        "distil": Verb(
            "compressing.distil",
            "distil",
            "Train one small student of a run's ensemble, or of its fair decisions, and measure it beside them.",
            "fairsisa distil run=runs/my-run num_layers=2 teacher=fair postprocessor=religion",
        ),
        "distil lm": Verb(
            "language.pretrain",
            "pretrain",
            "Train a small language model on what a large one says.",
            "fairsisa distil lm run=runs/student teacher=gpt2 num_layers=6 corpus=tinystories_train",
        ),
        "compress": Verb(
            "compressing.compress",
            "compress",
            "Prune and quantise a run's models, or a model folder, by a chain of steps; measure what that did.",
            "fairsisa compress run=runs/my-run compression=[wanda_2to4,int8_dynamic]",
        ),
        "prune": Verb(
            "compressing.prune",
            "prune",
            "Prune a run's models, or a model folder: one step of `compress`.",
            "fairsisa prune run=runs/my-run method=wanda sparsity=0.5",
        ),
        "quantise": Verb(
            "compressing.quantise",
            "quantise",
            "Quantise a run's models, or a model folder: one step of `compress`.",
            "fairsisa quantise folder=gpt2 out=gpt2-4-bits method=round_to_nearest bits=4 group_size=32",
        ),
        "export": Verb(
            "compressing.export",
            "export",
            "Save a run's student or compressed copies as model folders.",
            "fairsisa export run=runs/my-run name=student.mean_score out=small-model",
        ),
        "plan": Verb(
            "planning.plan",
            "plan",
            "Say what a deletion would touch and cost, or (simulate=...) which partition suits; touch nothing.",
            "fairsisa plan run=runs/my-run request.ids=[a17,b4]",
        ),
        "unlearn": Verb(
            "forgetting.unlearn",
            "unlearn",
            "Forget examples exactly: retrain what they touched, purge what was made from them, certify it.",
            "fairsisa unlearn run=runs/my-run request.ids=[a17,b4] request.reason='asked by mail'",
        ),
        "unlearn flush": Verb(
            "forgetting.flush",
            "flush",
            "Execute all requests that wait, at once.",
            "fairsisa unlearn flush run=runs/my-run",
        ),
        "simulate": Verb(
            "studying.simulate",
            "simulate",
            "Study deletions: forget step by step, and measure accuracy, fairness and cost beside retraining.",
            "fairsisa simulate experiment=deletions_quickstart",
        ),
        "add": Verb(
            "forgetting.add",
            "add",
            "Train on new examples too, as one more slice of every shard; nothing old moves.",
            "fairsisa add run=runs/my-run data.path=new.csv",
        ),
        "pretrain": Verb(
            "language.pretrain",
            "pretrain",
            "Train a language model on a text, keep checkpoints on the way, and measure them.",
            "fairsisa pretrain experiment=tinystories_gpt2 run=runs/stories",
        ),
        "perplexity": Verb(
            "language.perplexity",
            "perplexity",
            "Say how well language models, compressed ones too, predict texts, and at what size and speed.",
            "fairsisa perplexity run=runs/stories",
        ),
        "bias": Verb(
            "bias.bias",
            "bias",
            "Ask any model benchmarks of social bias, toxicity and behaviour; keep every item's score.",
            "fairsisa bias model=bert-base-uncased benchmarks=[crows_pairs,stereoset_intrasentence]",
        ),
        "bias list": Verb("bias.bias_list", "bias", "List the benchmarks that can be named.", "fairsisa bias list"),
        "compare": Verb(
            "bias.compare",
            "compare",
            "Compare models with one, item by item: what flipped, which way, and is it more than chance.",
            "fairsisa compare base=gpt2 other=[gpt2-4-bits,gpt2-pruned] benchmarks=[crows_pairs,piqa]",
        ),
        "ledger": Verb(
            "proving.ledger",
            "ledger",
            "Show who asked to be forgotten (as keyed hashes), and how far that has come.",
            "fairsisa ledger run=runs/my-run",
        ),
        "verify": Verb(
            "proving.verify",
            "verify",
            "Check that nothing made from forgotten examples is left, or check a certificate.",
            "fairsisa verify run=runs/my-run level=replay",
        ),
        "doctor": Verb(
            "proving.doctor", "doctor", "Check a run and say what is wrong.", "fairsisa doctor run=runs/my-run"
        ),
        "data list": Verb("verbs.data_list", "data", "List the corpora that can be named.", "fairsisa data list"),
        "data prepare": Verb(
            "verbs.data_prepare",
            "data",
            "Load and check a corpus, and write its examples table.",
            "fairsisa data prepare data=adult",
        ),
        "store ls": Verb(
            "keeping.store_ls", "store", "List the artefacts of a store or a run.", "fairsisa store ls run=runs/my-run"
        ),
        "store gc": Verb(
            "keeping.store_gc",
            "store_gc",
            "Delete what no run needs, and checkpoints that a retention policy does not keep.",
            "fairsisa store gc run=runs/my-run store.retention=optimal store.max_bytes=2e9",
        ),
    }
)
