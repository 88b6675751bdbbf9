"""The command line: compose settings with Hydra, call the run, show what came out."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

import fairsisa
from fairsisa.errors import ConfigError, FairsisaError
from fairsisa.settings import GROUPS, nearest, plain, run_settings, settings_from

ALLOWED_TARGETS = frozenset(
    {
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.loggers.WandbLogger",
        "pytorch_lightning.loggers.TensorBoardLogger",
    }
)
"""The only classes a config may name: what is instantiated decides what code runs."""

RUN_KEYS = ("seed", "data", "model", "partition", "trainer", "evaluation")
HYDRA_FLAGS = ("-m", "--multirun", "--cfg", "--info", "-c", "-i")


@dataclass(frozen=True)
class Verb:
    """One thing the command can do: the config it reads, what it is for, and the function that does it."""

    root: str
    summary: str
    example: str
    act: Callable[[DictConfig, Sequence[str]], None]


def main() -> None:
    """Run the command line and leave with its exit status: 0 done, 1 failed, 2 asked wrongly."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command, such as ["train", "experiment=quickstart"]; return its exit status."""
    errors = Console(stderr=True, soft_wrap=True)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        Console().print(_overview())
        return 0
    if arguments[0] == "--version":
        Console().print(f"fairsisa {fairsisa.__version__}", highlight=False)
        return 0
    try:
        name, verb, rest = _find_verb(arguments)
        if set(rest) & {"-h", "--help"}:
            Console().print(_help(name, verb))
            return 0
        _register_defaults()
        if set(rest) & set(HYDRA_FLAGS):
            return _through_hydra(name, verb, rest)
        verb.act(compose(verb.root, rest), rest)
    except ConfigError as error:
        errors.print(f"[red]fairsisa:[/red] {escape(str(error))}")
        return 2
    except FairsisaError as error:
        errors.print(f"[red]fairsisa:[/red] {escape(str(error))}")
        return 1
    return 0


def compose(root: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config of a verb under the given overrides.

    Raises:
        ConfigError: when an override is misspelt, naming the nearest key or option.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"Expected settings written key=value, got {override!r}; see fairsisa --help.")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        try:
            return hydra.compose(config_name=root, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            known = hydra.compose(config_name=root)
            raise ConfigError(_explained(error, overrides, known)) from error


def config_folder() -> Path:
    """Return the folder of configs: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    found = [folder for folder in (package / "conf", package.parent / "conf") if (folder / "train.yaml").is_file()]
    if not found:
        raise ConfigError(f"The configs of fairsisa are in neither {package / 'conf'} nor beside it: reinstall it.")
    return found[0]


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain Python values, interpolations resolved.

    Raises:
        ConfigError: naming the key, when a value that a person must give is missing.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"Set {', '.join(f'{key}=...' for key in missing)}: only you can know.")
    values = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def instantiate_loggers(nodes: Mapping[str, Any], run: Path) -> list[Any]:
    """Return the Lightning loggers that a config names.

    Raises:
        ConfigError: when `_target_` is not one of `ALLOWED_TARGETS`.
    """
    loggers = []
    for name, node in nodes.items():
        target = str(node.get("_target_"))
        if target not in ALLOWED_TARGETS:
            raise ConfigError(f"logger.{name}._target_={target} is not allowed.{nearest(target, ALLOWED_TARGETS)}")
        if any("_target_" in str(value) for key, value in node.items() if key != "_target_"):
            raise ConfigError(f"logger.{name} names a second _target_ inside the first; that is not allowed.")
        run.mkdir(parents=True, exist_ok=True)
        loggers.append(hydra.utils.instantiate({**node, "save_dir": str(run)}))
    return loggers


def run_directory(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """Return `run` if given; else a folder named after the experiment and a digest of all that decides its results.

    So the same command goes on where it stopped, and another one starts another run.
    """
    if config.get("run"):
        return Path(str(config["run"])).expanduser()
    decided = {key: config[key] for key in RUN_KEYS}
    source = Path(str(config["data"].get("path") or "")).expanduser()
    content = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""
    digest = hashlib.sha256((json.dumps(decided, sort_keys=True) + content).encode()).hexdigest()[:8]
    chosen = [value for key, _, value in (o.partition("=") for o in overrides) if key in ("experiment", "+experiment")]
    name = chosen[-1] if chosen else str(config["data"]["name"])
    return Path(str(config["paths"]["root"])).expanduser() / f"{re.sub(r'[^a-zA-Z0-9_-]', '-', name)}-{digest}"


def _train(composed: DictConfig, overrides: Sequence[str]) -> None:
    from fairsisa.runs import Run, evaluate_run, train_run  # noqa: PLC0415 - torch is not needed to say "no such key"
    from fairsisa.runs.logging import log_result, logged  # noqa: PLC0415

    config = plain_config(composed)
    settings = run_settings({key: config[key] for key in RUN_KEYS})
    paths = settings_from(GROUPS["paths"], config["paths"], "paths")
    execution = settings_from(GROUPS["execution"], config["execution"], "execution")
    run, console = Run(run_directory(config, overrides)), Console()
    console.print(f"run: {run.directory}", highlight=False, soft_wrap=True)
    loggers = instantiate_loggers(config["logger"], run.directory)
    with logged(loggers, settings), _progress(settings, console) as on_event:
        handler = _both(on_event, loggers)
        command = " ".join(["fairsisa", "train", *overrides])
        train_run(settings, run, paths=paths, execution=execution, on_event=handler, command=command)
        report = evaluate_run(run, execution=execution, on_event=handler)
        log_result(loggers, run.ensemble, report)
    _show(report, run, console)


def _evaluate(composed: DictConfig, overrides: Sequence[str]) -> None:
    from fairsisa.runs import Run, evaluate_run  # noqa: PLC0415 - torch is not needed to say "no such key"

    config = plain_config(composed)
    run, console = Run(config["run"]), Console()
    asked = {key: value for key, value in config["evaluation"].items() if value is not None}
    settings = settings_from(GROUPS["evaluation"], plain(run.settings.evaluation) | asked, "evaluation")
    execution = settings_from(GROUPS["execution"], config["execution"], "execution")
    with _progress(run.settings, console) as on_event:
        report = evaluate_run(run, settings=settings, execution=execution, on_event=on_event)
    _show(report, run, console)


def _data_list(composed: DictConfig, overrides: Sequence[str]) -> None:
    from fairsisa.data.corpora import list_corpora  # noqa: PLC0415 - pandas is not needed to show help

    _print_rows(list_corpora())


def _data_prepare(composed: DictConfig, overrides: Sequence[str]) -> None:
    from fairsisa.data.corpora import load_corpus  # noqa: PLC0415 - pandas is not needed to show help
    from fairsisa.data.summary import describe_examples  # noqa: PLC0415
    from fairsisa.runs.training import data_root  # noqa: PLC0415
    from fairsisa.tables import write_examples  # noqa: PLC0415

    config = plain_config(composed)
    paths = settings_from(GROUPS["paths"], config["paths"], "paths")
    examples = load_corpus(config["data"], root=data_root(paths), cache=Path(paths.cache).expanduser())
    out = Path(str(config["out"] or Path(paths.root) / "data" / f"{examples.name}.parquet"))
    write_examples(examples, out)
    _print_rows(describe_examples(examples))
    Console().print(f"examples table: {out}", highlight=False, soft_wrap=True)


def _store_ls(composed: DictConfig, overrides: Sequence[str]) -> None:
    from fairsisa.runs import Run  # noqa: PLC0415 - torch is not needed to show help
    from fairsisa.store import Store  # noqa: PLC0415

    config = plain_config(composed)
    store = Run(config["run"]).store if config["run"] else Store(Path(config["paths"]["store"]).expanduser())
    rows = [
        {
            "name": entry.name[:12],
            "kind": entry.kind,
            "examples": f"{entry.num_examples:,}",
            "KiB": f"{entry.num_bytes / 1024:,.1f}",
            "parents": " ".join(parent[:12] for parent in entry.parents),
            "created": entry.created,
        }
        for entry in store.entries()
    ]
    _print_rows(rows)
    total = sum(entry.num_bytes for entry in store.entries())
    Console().print(f"{len(rows)} artefacts, {total / 2**20:,.1f} MiB in {store.root}", highlight=False, soft_wrap=True)


VERBS: Mapping[str, Verb] = {
    "train": Verb(
        "train",
        "Train a shard ensemble and its baselines, measure it and write its report.",
        "fairsisa train experiment=quickstart",
        _train,
    ),
    "evaluate": Verb(
        "evaluate", "Measure a trained run again.", "fairsisa evaluate run=runs/quickstart-1a2b", _evaluate
    ),
    "data list": Verb("data", "List the corpora that can be named.", "fairsisa data list", _data_list),
    "data prepare": Verb(
        "data", "Load and check a corpus, write its examples table.", "fairsisa data prepare data=adult", _data_prepare
    ),
    "store ls": Verb(
        "store", "List the artefacts of a store or a run.", "fairsisa store ls run=runs/quickstart-1a2b", _store_ls
    ),
}


def _find_verb(arguments: Sequence[str]) -> tuple[str, Verb, list[str]]:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in VERBS:
            return name, VERBS[name], list(arguments[length:])
    asked = " ".join(word for word in arguments[:2] if "=" not in word)
    raise ConfigError(f"Unknown command {asked!r}.{nearest(asked, VERBS)}")


def _register_defaults() -> None:
    store = ConfigStore.instance()
    for group, kind in GROUPS.items():
        store.store(group=group, name="base", node=plain(kind()))
    store.store(group="evaluation", name="as_trained", node=dict.fromkeys(plain(GROUPS["evaluation"]())))


def _through_hydra(name: str, verb: Verb, rest: list[str]) -> int:
    """Let Hydra's own runner take over, for sweeps and for its flags."""
    overrides = [word for word in rest if "=" in word]

    def job(config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415 - only inside a Hydra job

        verb.act(config, list(HydraConfig.get().overrides.task) or overrides)

    sys.argv = [f"fairsisa {name}", *rest]
    hydra.main(config_path=str(config_folder()), config_name=verb.root, version_base="1.3")(job)()
    return 0


def _explained(error: Exception, overrides: Sequence[str], known: DictConfig) -> str:
    keys, groups = _known_keys(known), _options()
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        if group in groups and value and not value.startswith(("[", "{")) and value not in (*groups[group], "null"):
            return f"Unknown {group} {value!r}.{nearest(value, groups[group])}"
        if key not in keys and key not in groups and not override.startswith("+"):
            return f"Unknown setting {key!r}.{nearest(key, [*keys, *groups])}"
    return str(error).split("\n\n")[0].replace("\n", " ")


def _known_keys(config: DictConfig, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in config:
        node = OmegaConf.to_container(config).get(key)  # type: ignore[union-attr]
        found.append(f"{prefix}{key}")
        if isinstance(node, dict):
            found += _known_keys(OmegaConf.create(node), f"{prefix}{key}.")
    return found


def _options() -> dict[str, list[str]]:
    folders = [folder for folder in config_folder().iterdir() if folder.is_dir()]
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml")) + ["base"] * (folder.name in GROUPS)
        for folder in folders
    }


def _overview() -> RichTable:
    table = RichTable(
        title="Train models you can delete people from, and keep them fair when you do.", box=None, title_justify="left"
    )
    table.add_column("command")
    table.add_column("what it does")
    for name, verb in VERBS.items():
        table.add_row(f"fairsisa {name}", verb.summary)
    table.add_row("", "Settings follow as key=value; `fairsisa <command> --help` lists them.")
    return table


def _help(name: str, verb: Verb) -> str:
    _register_defaults()
    config = compose(verb.root, [])
    groups = {group: options for group, options in _options().items() if group in config or group == "experiment"}
    lines = [verb.summary, "", f"  {verb.example}", "", "Choose as a whole:"]
    lines += [f"  {group}=" + " | ".join(options) for group, options in sorted(groups.items()) if options]
    lines += ["", "Set one by one (shown with their defaults):"]
    lines += [f"  {key}={value}" for key, value in _leaves(config)]
    lines += ["", "Sweep with -m and commas: fairsisa train -m partition.num_shards=1,3,5 experiment=quickstart"]
    return escape("\n".join(lines))


def _leaves(config: DictConfig) -> list[tuple[str, Any]]:
    container = OmegaConf.to_container(config)

    def walk(node: Any, prefix: str) -> list[tuple[str, Any]]:
        if isinstance(node, dict) and node:
            return [
                leaf for key, value in node.items() for leaf in walk(value, f"{prefix}.{key}" if prefix else str(key))
            ]
        return [(prefix, "null" if node is None else node)]

    return walk(container, "")


def _progress(settings: Any, console: Console) -> Any:
    from fairsisa.report.progress import training_progress  # noqa: PLC0415 - torch is not needed to show help

    slices = {f"shard-{k}": settings.partition.num_slices for k in range(settings.partition.num_shards)}
    slices |= {f"baseline-{name}": 1 for name in settings.evaluation.baselines}
    return training_progress(slices, console)


def _both(on_event: Callable[[Any], None], loggers: Sequence[Any]) -> Callable[[Any], None]:
    from fairsisa.runs.logging import metrics_handler  # noqa: PLC0415 - torch is not needed to show help

    log = metrics_handler(loggers)

    def handle(event: Any) -> None:
        on_event(event)
        log(event)

    return handle


def _show(report: Any, run: Any, console: Console) -> None:
    from fairsisa.report.findings import headline  # noqa: PLC0415 - pandas is not needed to show help

    for sentence in headline(report):
        console.print(sentence, highlight=False)
    console.print(f"report: {run.path('report.html')}", highlight=False, soft_wrap=True)


def _print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    table = RichTable(box=None, header_style="bold")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console().print(table)


logging.getLogger("fairsisa").addHandler(logging.NullHandler())
