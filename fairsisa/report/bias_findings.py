"""The sentences on top of the page about bias and behaviour."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from fairsisa.bias.benchmark import BIAS, CAPABILITY, NOT_COMPARED, TOXICITY
from fairsisa.bias.measuring import NO_BETTER, NOTHING_SCORED
from fairsisa.report.bias_content import BiasReport, overall, series_names
from fairsisa.report.rows import Row, records
from fairsisa.report.words import UNDEFINED, count, listed, percent

MOST_NAMED = 6
MOST_HARMS, MOST_OTHERS = 4, 2


def findings(content: BiasReport) -> list[str]:
    """Say what is no better than chance, what is biased, what differs after correction, what changed in behaviour."""
    told = [
        *_incapable(content),
        *_at_chance(content),
        *_biased(content),
        *_differing(content),
        *_collapsing(content),
        *_behaving(content),
        *_diverging(content),
        *_missing(content),
    ]
    return told or ["Nothing was measured."]


def value_words(value: float, unit: str, *, plus: bool = False) -> str:
    """Return a metric's value, or with `plus` a difference: one decimal of a percentage, three of anything else.

    What would look like 0 and is not has one digit that counts.
    """
    if not math.isfinite(value):
        return UNDEFINED
    sign, decimals = "+" if plus else "", 1 if unit == "%" else 3
    shown = f"{value:{sign}.0e}" if 0 < abs(value) < 0.5 * 10**-decimals else f"{value:{sign},.{decimals}f}"
    return f"{shown} {'points' if plus else '%'}" if unit == "%" else shown


def metric_words(name: object) -> str:
    """Return a metric's name as words."""
    return str(name).replace("_", " ")


def p_words(p: float) -> str:
    """Return a p-value with two digits that count."""
    if not math.isfinite(p):
        return UNDEFINED
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def differs(row: Row, alpha: float) -> bool:
    """Return whether a comparison tells the two models apart: its corrected p-value, and its interval leaves out 0.

    McNemar's test takes items as independent; where clusters hold many, only the interval knows.
    """
    return bool(row["p_holm"] < alpha and (row["low"] > 0 or row["high"] < 0))


def _incapable(content: BiasReport) -> Iterator[str]:
    rows = [row for row in records(content.models) if row["capable"] is False]
    if rows:
        named = listed([f"{row['name']} ({row['capability']})" for row in rows], most=MOST_NAMED)
        yield (
            f"Beware: the capability check is failed by {named}. A network that has learnt nothing looks fair, or "
            "unfair, by chance: what it scores below says nothing about bias."
        )


def _at_chance(content: BiasReport) -> Iterator[str]:
    table = overall(content.measures)
    for flag in (NO_BETTER, NOTHING_SCORED):
        flagged = table[table["flag"] == flag]
        for (benchmark, metric), own in flagged.groupby(["benchmark", "metric"], sort=False):
            models = listed(list(dict.fromkeys(own["model"])), most=MOST_NAMED)
            yield f"Beware: on {benchmark}, {metric_words(metric)} is flagged ({flag}) for {models}."


def _biased(content: BiasReport) -> Iterator[str]:
    """Say for which models the interval of a bias metric leaves out the value of a model without the bias."""
    table = overall(content.measures)
    table = table[(table["aspect"] == BIAS) & table[["neutral", "value", "low", "high"]].notna().all(axis=1)]
    table = table[table["magnitude"].ne(True)]  # noise alone puts those above neutral
    for (name, metric), own in table.groupby([series_names(table), "metric"], sort=False):
        rows = records(own)
        apart = [row for row in rows if row["low"] > row["neutral"] or row["high"] < row["neutral"]]
        furthest = max(apart or rows, key=lambda row: abs(row["value"] - row["neutral"]))
        unit = str(furthest["unit"])
        ends = f"{value_words(furthest['low'], unit)} to {value_words(furthest['high'], unit)}"
        which = "" if len(rows) == 1 else " furthest away"
        told = "is" if apart else "is not"
        of = "" if len(rows) == 1 else f" for {len(apart) or 'none'} of {count(len(rows), 'model')}"
        if len(rows) > 1:
            told = "is"
        yield (
            f"{name}: {metric_words(metric)} {told} told apart from the neutral "
            f"{value_words(furthest['neutral'], unit)}{of};{which} {furthest['model']} has "
            f"{value_words(furthest['value'], unit)} ({ends})."
        )


def _differing(content: BiasReport) -> Iterator[str]:
    """Say which comparisons hold after correction, which do not, and what lies within the floor."""
    rows = [row for row in records(content.comparisons) if math.isfinite(row["p_value"])]
    if not rows:
        return
    told = sorted((row for row in rows if differs(row, content.alpha)), key=lambda row: row["p_holm"])
    shown = [row for row in told if not row["group"]] or told
    yield (
        f"{len(told) or 'None'} of {count(len(rows), 'comparison')} (metrics, groups and models) "
        f"{'is' if len(told) == 1 else 'are'} told apart after Holm's correction at {content.alpha:.2g}"
        f"{'.' if told else '; that is no proof that nothing changed.'}"
    )
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in shown:
        alike.setdefault((row["benchmark"], row["readout"], row["metric"], row["group"]), []).append(row)
    strongest = [max(rows, key=lambda row: abs(row["difference"])) for rows in alike.values()]
    harms = [row for row in strongest if row["aspect"] in (BIAS, TOXICITY)][:MOST_HARMS]
    others = [row for row in strongest if row["aspect"] not in (BIAS, TOXICITY)][:MOST_OTHERS]
    for row in (*harms, *others):
        same = len(alike[row["benchmark"], row["readout"], row["metric"], row["group"]]) - 1
        yield _difference(row) + (f" The same metric is told apart for {count(same, 'other model')}." if same else "")
    if len(strongest) > len(harms) + len(others):
        yield f"{len(strongest) - len(harms) - len(others):,} more metrics that differ are in the tables below."
    inside = [row for row in rows if row["above_floor"] is False and row["to_one"] + row["to_zero"] > 0]
    if inside:
        names = listed(list(dict.fromkeys(f"{row['other']} on {row['benchmark']}" for row in inside)), most=MOST_NAMED)
        yield (
            f"Within the floor, so not due to the model: {names} changed no more answers than the same model does "
            "when it is asked again in batches of another size."
        )


def _difference(row: Row) -> str:
    unit = str(row["unit"])
    before, after = (value_words(row[name], unit) for name in ("base_value", "other_value"))
    low, high = (value_words(row[name], unit, plus=True).removesuffix(" points") for name in ("low", "high"))
    where = f"{row['benchmark']}, {row['group']}" if row["group"] else row["benchmark"]
    flips = ""
    if row["flips"]:
        flips = (
            f"; {row['to_one'] + row['to_zero']:,} of its items changed, {row['to_one']:,} up, {row['to_zero']:,} down"
        )
    return (
        f"{where}: {metric_words(row['metric'])} goes from {before} ({row['base']}) to {after} ({row['other']}), "
        f"{value_words(row['difference'], unit, plus=True)} ({low} to {high}), corrected {p_words(row['p_holm'])}"
        f"{flips}{_towards(row)}."
    )


def _towards(row: Row) -> str:
    if not math.isfinite(row["neutral"]):
        return ""
    closer = abs(row["other_value"] - row["neutral"]) < abs(row["base_value"] - row["neutral"])
    return f"; that is {'closer to' if closer else 'further from'} neutral"


def _collapsing(content: BiasReport) -> Iterator[str]:
    """Warn of models that moved towards neutral while a capability fell."""
    table = overall(content.comparisons)
    fell = [row for row in records(table[table["aspect"] == CAPABILITY]) if differs(row, content.alpha)]
    lost = {(row["base"], row["other"]) for row in fell if row["difference"] * row["better"] < 0}
    fairer = dict.fromkeys(
        row["other"]
        for row in records(table[table["aspect"] == BIAS])
        if (row["base"], row["other"]) in lost and differs(row, content.alpha) and "closer" in _towards(row)
    )
    if fairer:
        yield (
            f"Beware: {listed(list(fairer), most=MOST_NAMED)} moved closer to neutral and lost capability too. A model "
            "that knows less is torn less between two answers: that is no gain in fairness."
        )


def _behaving(content: BiasReport) -> Iterator[str]:
    """Say where most answers changed, of benchmarks with a key."""
    rows = [row for row in records(content.behaviours) if math.isfinite(row["flips"]) and row["flips_of"] != "outcome"]
    if not rows:
        return
    most = max(rows, key=lambda row: (row["flips"], row["all_flips"]))
    if not any(row["flips"] > 0 or row["all_flips"] > 0 for row in rows):
        yield f"No answer changed in any of {count(len(rows), 'comparison')} of behaviour."
        return
    yield (
        f"Most flips: {most['other']} on {most['benchmark']} is right where {most['base']} is wrong, or wrong where it "
        f"is right, on {percent(most['flips'])} of {count(int(most['num_items']), 'item')}, and gives another answer "
        f"on {percent(most['all_flips'])}, while accuracy changes by {100 * most['accuracy_change']:+.1f} points."
    )


def _diverging(content: BiasReport) -> Iterator[str]:
    rows = [row for row in records(content.divergences) if math.isfinite(row["kl_forward"])]
    if rows:
        most = max(rows, key=lambda row: row["kl_forward"])
        yield (
            f"Furthest from its base in what it predicts: {most['other']} on {most['corpus']}, "
            f"{most['kl_forward']:.3g} nats a token from {most['base']}, with the same likeliest token at "
            f"{percent(most['same_top'])} of positions."
        )


def _missing(content: BiasReport) -> Iterator[str]:
    notes = content.notes
    if len(notes):
        apart = notes["state"] == NOT_COMPARED
        yield from (f"Not compared: {reason}." for reason in dict.fromkeys(notes["reason"][apart]))
        notes = notes[~apart]
    if len(notes):
        number = int(pd.to_numeric(notes["count"]).fillna(1).sum())
        where = listed(list(dict.fromkeys(notes["benchmark"])), most=MOST_NAMED)
        yield f"Over all models, {count(number, 'item')} of {where} could not be asked or scored; why is told below."
