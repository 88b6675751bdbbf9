"""Measure bias and behaviour of models of every kind, and compare smaller models with those they were made from.

Reads what earlier studies made: a masked language model, the folder of scripts/study_language_models.py, and a run with
a student; asks each what suits it, compares the members of each family with its base, and writes one page.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fairsisa.report.bias import BiasReport, findings, write_bias
from fairsisa.runs.bias import bias_run
from fairsisa.runs.comparing import compare_run
from fairsisa.settings import BiasSettings, ComparisonSettings, PathSettings, ScoringSettings

LIKELIHOODS = ("crows_pairs", "stereoset_intrasentence", "winogender")
TASKS = ("piqa", "arc_easy")
CLASSIFIED = ("hatecheck", "wiki_madlibs")
WRITTEN = ("regard",)


def main() -> None:
    arguments = parse()
    scoring, start = ScoringSettings(), time.perf_counter()
    paths = PathSettings(root=str(arguments.root), store=str(arguments.root / "store"), data=str(arguments.data))
    reports = []
    for name, settings in studies(arguments).items():
        out, begun = arguments.root / name, time.perf_counter()
        if isinstance(settings, ComparisonSettings):
            reports.append(compare_run(out, settings, scoring, paths=paths, on_progress=tell))
        else:
            reports.append(bias_run(out, settings, writing(scoring, name), paths=paths, on_progress=tell))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    report = together(reports, f"scripts/study_bias.py {' '.join(sys.argv[1:])}")
    write_bias(arguments.root, report, stem="study")
    print("\n".join(findings(report)))
    print(f"{time.perf_counter() - start:.0f} s; page: {arguments.root / 'study.html'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--root", type=Path, required=True, help="where runs, answers and the page go")
    parser.add_argument("--masked", help="a masked language model, such as a run of experiment=minilm_masked")
    parser.add_argument("--language", type=Path, help="what scripts/study_language_models.py --root was")
    parser.add_argument("--run", help="a run that classifies texts")
    parser.add_argument("--students", nargs="*", default=["student.mean_score"], help="the run's students and copies")
    parser.add_argument("--limit", type=int, help="ask so many items of each benchmark")
    return parser.parse_args()


def studies(arguments: argparse.Namespace) -> dict[str, BiasSettings]:
    """Return what is asked of whom, by name; what is not there is left out."""
    limit = arguments.limit
    stories = str(arguments.data / "models" / "stories260K" / "stories260K.bin")
    found: dict[str, BiasSettings] = {
        "stories260K": BiasSettings((stories,), (*LIKELIHOODS, *TASKS), limit=limit),
        "written": BiasSettings((stories,), WRITTEN, limit=limit),
    }
    if arguments.masked is not None:
        found["masked"] = BiasSettings((arguments.masked, "minilm"), (*LIKELIHOODS, "seat"), limit=limit)
    if arguments.language is not None:
        found |= {f"language-{step}": each for step, each in by_step(arguments).items()}
    if arguments.run is not None:
        students = tuple(f"{arguments.run}:{name}" for name in arguments.students)
        found["classified"] = ComparisonSettings(base=arguments.run, other=students, benchmarks=CLASSIFIED, limit=limit)
    return found


def by_step(arguments: argparse.Namespace) -> dict[int, ComparisonSettings]:
    """Return, for each kept step, the comparison of every copy with the dense model of that step."""
    root, found = arguments.language, {}
    for dense in sorted((root / "dense" / "checkpoints").glob("step-*")):
        copies = sorted(folder for folder in root.glob(f"*/{dense.name}") if folder.parent.name != "distilling")
        if copies:
            found[int(dense.name.removeprefix("step-"))] = ComparisonSettings(
                base=str(dense),
                other=tuple(map(str, copies)),
                benchmarks=(*LIKELIHOODS, *TASKS),
                corpora=("wikitext2_test",),
                limit=arguments.limit,
                num_replicates=200,
            )
    return found


def writing(scoring: ScoringSettings, name: str) -> ScoringSettings:
    return replace(scoring, temperature=1.0, num_continuations=5) if name == "written" else scoring


def together(reports: list[BiasReport], command: str) -> BiasReport:
    """Return several reports as one; differences are those of each report, corrected within it."""
    tables = {
        name: pd.concat([report.tables[name] for report in reports if name in report.tables], ignore_index=True)
        for name in dict.fromkeys(name for report in reports for name in report.tables)
    }
    for name in ("models", "benchmarks"):
        key = "name" if name == "models" else "benchmark"
        tables[name] = tables[name].drop_duplicates(key, ignore_index=True)
    settings = {"studies": [report.title for report in reports]}
    return BiasReport(
        title="Bias and behaviour of models of every kind", settings=settings, commands=(command,), **tables
    )


def tell(what: str, done: int, total: int) -> None:
    if done == total and what and sys.stderr.isatty():
        print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
