from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fairsisa.report.certificate import headline, write_certificate_page
from fairsisa.sisa.certificate import LIMITS, PurgedKind
from fairsisa.sisa.membership import membership_report
from test_certificate import digest_of, make_certificate, make_constituent
from test_report_page import Page

EVIL = '<script>alert("1")</script> &amp; {{ 7 * 7 }}'


def shown(tmp_path, **changes):
    path = write_certificate_page(tmp_path / "new" / "certificate.html", make_certificate(**changes))
    return path.read_text(encoding="utf-8")


def test_page_says_what_was_done_and_what_it_cannot_say(tmp_path):
    page = Page(shown(tmp_path))
    assert page.open == []
    for part in (
        "Deletion of 12 examples",
        "12 examples were removed; 2 of 5 constituents had learnt from them and started again from before that.",
        "5 artefacts were made from them and deleted from disk.",
        "1 example was asked for but not there",
        "9 train, 2 calibration, 1 test",
        "5,120 presentations of examples; 5,120 planned",
        "3 min 33 s",
        "91.0 MB",
        "Level: replay.",
        "No purged file exists.",
        "Erasure under Art. 17 GDPR",
        "2026-11-21 03:04:11",
        "Smoke test: cannot prove forgetting.",
        "fairsisa verify certificate=",
        digest_of("request"),
        digest_of("head"),
        *LIMITS,
    ):
        assert part in page.text


def test_page_stands_alone(tmp_path):
    text = shown(tmp_path)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src"))
    assert "http://" not in text
    assert "https://" not in text
    targets = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= targets


def test_numbers_of_the_tables_are_those_of_the_certificate(tmp_path):
    text = shown(tmp_path)
    rows = re.findall(r'<th scope="row">(shard-\d)</th>(.*?)</tr>', text)
    cells = [(name, re.findall(r"<td[^>]*>(.*?)</td>", rest)) for name, rest in rows]
    assert cells[:2] == [("shard-0", ["0", "2", "2", "3"]), ("shard-3", ["3", "2", "2", "3"])]
    made = make_constituent(3).new[1]
    expected = [f"{value[:16]}…" for value in (made.name, made.payload_digest, made.ids_root)]
    assert ("shard-3", expected) in cells[2:]


def test_text_of_others_is_shown_and_never_run(tmp_path):
    owner = {EVIL: (digest_of(1),)}
    parts = (replace(make_constituent(0), name=EVIL),)
    purged = (PurgedKind(kind=EVIL, names=(EVIL,), num_bytes=3),)
    text = shown(
        tmp_path,
        reason=EVIL,
        findings=(EVIL,),
        held_by_others=owner,
        constituents=parts,
        purged=purged,
        environment={EVIL: EVIL},
        num_examples={EVIL: 1},
        request_id=EVIL,
        ledger_id=EVIL,
        fairsisa_version=EVIL,
        limits=(EVIL,),
    )
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count('<script>alert("1")</script> &amp; {{ 7 * 7 }}') >= 9


def test_what_other_runs_hold_is_on_the_page(tmp_path):
    held = {"/data/runs/other": (digest_of("a"), digest_of("b"))}
    page = Page(shown(tmp_path, held_by_others=held))
    assert "2 artefacts were kept: other runs still claim" in page.text
    assert "/data/runs/other" in page.text
    assert digest_of("b")[:16] in page.text
    assert "other runs" not in Page(shown(tmp_path)).text.lower()


def test_an_empty_certificate_has_a_page(tmp_path):
    page = Page(
        shown(
            tmp_path,
            num_examples={"test": 1},
            num_skipped=0,
            constituents=(),
            purged=(),
            findings=(),
            membership=None,
            environment={},
            level="none",
            reason="",
        )
    )
    assert "Deletion of 1 example" in page.text
    assert "1 example was removed; no constituent had learnt from it, so none was trained again." in page.text
    assert "0 artefacts" not in page.text
    assert "Nothing on disk had been made from the examples." in page.text
    assert "Nothing was checked afterwards." in page.text
    assert "Smoke test" not in page.text
    assert "bit by bit" not in page.text


def test_a_missing_attack_result_has_its_reason(tmp_path):
    none, some = np.zeros(0), np.ones(3)
    report = membership_report(members_before=none, nonmembers_before=some, members_after=some, nonmembers_after=some)
    page = Page(shown(tmp_path, membership=report))
    assert "undefined no members" in page.text
    assert "0.500" in page.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"same_environment": True}, "comparable bit by bit"),
        ({"same_environment": False}, "not comparable by bits"),
        ({"level": "lineage"}, "Checked afterwards: whether an artefact in use descends from a deleted example."),
        ({"level": "disk"}, "whether a purged file is still on disk."),
        ({"level": "replay"}, "training again from scratch"),
        ({"constituents": (replace(make_constituent(2), new=(), absences=()),)}, "shard-2 made no new checkpoint"),
        ({"num_constituents": 2}, "2 of 2 constituents had learnt"),
    ],
)
def test_headline_follows_the_certificate(changes, sentence):
    assert sentence in " ".join(headline(make_certificate(**changes)))


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
    ],
)
def test_sizes_are_in_the_unit_that_suits_them(tmp_path, num_bytes, words):
    purged = (PurgedKind(kind="features", names=(digest_of(1),), num_bytes=num_bytes),)
    assert f'<td class="number">{words}</td>' in shown(tmp_path, purged=purged)
