from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from fairsisa.fairness.evaluation import evaluate
from fairsisa.fairness.predictors import HeldOut, Predictor
from fairsisa.intervals import Bootstrap
from fairsisa.report.content import Fact, RunReport
from fairsisa.report.numbers import metrics_json
from fairsisa.report.page import write_report
from fairsisa.report.svg import THEMED
from fairsisa.report.writing import code_block, markdown_text
from test_report_content import make_report

VOID = {"meta", "br", "img", "link", "input", "hr"}
EVIL = '<script>alert("1")</script> | `code` **bold** [link](http://x) $x$ &amp;'


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "new" / "folder"
    content = make_report()
    return content, [path.read_text(encoding="utf-8") for path in write_report(directory, content)], directory


def evil_report():
    labels = np.array([0, 1] * 40)
    ids = tuple(str(number) for number in range(80))
    groups = np.array([EVIL, EVIL, "b", "b"] * 20, dtype=object)
    held = HeldOut(ids, np.array(ids), labels, (EVIL + "0", EVIL), {EVIL: groups})
    predictors = [Predictor(EVIL, labels.copy()), Predictor("baseline " + EVIL, np.roll(labels, 1))]
    return RunReport(
        EVIL,
        evaluate(held, predictors, bootstrap=Bootstrap(num_replicates=20)),
        ensemble=EVIL,
        baselines=("baseline " + EVIL,),
        facts=(Fact(EVIL, EVIL, EVIL),),
        warnings=(EVIL,),
        commands=(EVIL,),
        settings={EVIL: EVIL},
        environment={EVIL: [EVIL]},
    )


def test_the_three_files_are_written_and_nothing_else(written):
    _, _, directory = written
    assert sorted(path.name for path in directory.iterdir()) == ["metrics.json", "report.html", "report.md"]


def test_the_page_stands_alone_and_runs_nothing(written):
    page = Page(written[1][0])
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "srcset", "action")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in written[1][0]
    assert "url(http" not in written[1][0]
    policy = page.attributes.index(("http-equiv", "Content-Security-Policy"))
    assert page.attributes[policy + 1] == ("content", "default-src 'none'; style-src 'unsafe-inline'")


def test_every_id_is_unique_and_every_reference_leads_somewhere(written):
    page = Page(written[1][0])
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", written[1][0]))
    assert wanted <= set(ids)


def test_the_page_opens_with_the_headline_and_ends_with_how_to_reproduce(written):
    content, (html, markdown, _), _ = written
    for text in (Page(html).text, markdown):
        places = [
            text.index(words)
            for words in (
                "Toy run",
                "mean_score decides ",
                "Training time",
                "The base model saw other data.",
                "Accuracy, ranking and calibration",
                "Equalized odds difference of every predictor",
                "Every slice",
                "What these numbers cannot tell",
                "Words used here",
                "fairsisa train data=toy",
                "data.columns",
            )
        ]
        assert places == sorted(places)
    assert html.count("<figure") == 7
    found = content.evaluation.metrics.query("predictor == 'mean_score' and metric == 'accuracy'").iloc[0]
    shown = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    assert shown in Page(html).text
    assert shown in markdown


def test_dark_pages_and_print_have_their_own_colours(written):
    html = written[1][0]
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html
    used = set(re.findall(r"var\(--([a-z]+)\)", html)) | set(THEMED.values())
    for block in re.findall(r":root \{[^}]*\}", html):
        defined = set(re.findall(r"--([a-z]+):", block)) | {"sans"}
        assert used <= defined


def test_words_of_the_user_are_never_markup(tmp_path):
    html, _, numbers = (path.read_text(encoding="utf-8") for path in write_report(tmp_path, evil_report()))
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(EVIL) > 20
    assert json.loads(numbers)["title"] == EVIL
    assert json.loads(numbers)["settings"] == {EVIL: EVIL}


def test_markdown_tables_have_their_columns_whatever_the_names(tmp_path):
    markdown = write_report(tmp_path, evil_report())[1].read_text(encoding="utf-8")
    rendered = Page(MarkdownIt("commonmark").enable("table").render(markdown))
    assert rendered.open == []
    assert not {"script", "a", "img"} & set(rendered.tags)
    assert rendered.text.count(EVIL) > 20
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    widths = []
    for token in tokens:
        if token.type == "tr_open":
            widths.append(0)
        if token.type in ("td_open", "th_open"):
            widths[-1] += 1
        if token.type == "table_close":
            assert len(set(widths)) == 1
            widths = []


def test_the_numbers_are_those_of_the_tables(written):
    content, (_, _, text), _ = written

    def refuse(name):
        raise AssertionError(name)

    numbers = json.loads(text, parse_constant=refuse)
    assert numbers == json.loads(json.dumps(metrics_json(content), allow_nan=False))
    evaluation = content.evaluation
    for name in ("metrics", "by_group", "disagreement", "small_cells", "features"):
        frame = getattr(evaluation, name)
        again = pd.DataFrame(numbers[name], columns=frame.columns)
        pd.testing.assert_frame_equal(again, frame, check_dtype=False)
    assert {row["baseline"] for row in numbers["paired"]} == {"baseline whole"}
    assert {row["predictor"] for row in numbers["paired"]} == {"mean_score"}
    assert len(numbers["training"]) == len(content.training)
    assert [row["accuracy"] for row in numbers["curves"][:3]] == [None, None, 0.8]
    assert numbers["settings"] == {"data": {"name": "toy", "columns": ["a", "b"]}, "seed": 0, "risk": None}
    assert numbers["format"] == 1


def test_what_json_cannot_say_becomes_null_or_text():
    settings = {"a": math.inf, "b": np.float32(0.5), "c": np.array([1, 2]), "d": PurePosixPath("/x"), 5: {"e": True}}
    found = metrics_json(make_report(settings=settings))["settings"]
    assert found == {"a": None, "b": 0.5, "c": [1, 2], "d": "/x", "5": {"e": True}}
    assert type(found["b"]) is float


def test_a_bare_run_has_a_report_without_the_sections_it_lacks(tmp_path):
    bare = make_report(features=(), baselines=(), facts=(), warnings=(), commands=(), settings={}, environment={})
    empty = pd.DataFrame()
    paths = write_report(tmp_path, replace(bare, training=empty, curves=empty, roc=empty, reliability=empty))
    html, markdown, _ = (path.read_text(encoding="utf-8") for path in paths)
    page = Page(html)
    assert page.open == []
    assert page.tags.count("figure") == 2
    for text in (page.text, markdown):
        assert "Nothing stands out." in text
        assert "To reproduce" not in text
        assert "Every slice" not in text
    assert 'href="#training"' not in html


def test_more_than_two_classes_are_reported_class_by_class(tmp_path):
    html = write_report(tmp_path, make_report(num_classes=3))[0].read_text(encoding="utf-8")
    text = Page(html).text
    assert "decisions follow no single threshold" in text
    assert "sensitive feature group class examples" in text


def test_the_same_content_gives_the_same_bytes_and_old_files_are_replaced(tmp_path):
    content = make_report()
    first = [path.read_bytes() for path in write_report(tmp_path, content)]
    (tmp_path / "report.html").write_text("old")
    assert [path.read_bytes() for path in write_report(tmp_path, content)] == first


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("majority_vote", "majority_vote"),
        ("__init__ _a_", r"\_\_init\_\_ \_a\_"),
        ("a|b\nc", r"a\|b c"),
        ("<b>&amp;[x]", r"\<b\>\&amp;\[x\]"),
        (3, "3"),
    ],
)
def test_markdown_text_is_escaped(text, shown):
    assert markdown_text(text) == shown


def test_a_code_block_is_fenced_by_more_than_it_holds():
    assert code_block(["a", "b"]) == "```sh\na\nb\n```"
    assert code_block(["echo ```` x"]) == "`````sh\necho ```` x\n`````"
