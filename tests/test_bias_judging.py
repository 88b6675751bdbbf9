"""The chat judge against a server of this machine, and the conversations that it grades."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bias_models import tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import mt_bench
from fairsisa.bias.judging import NO_JUDGE, Exchange, judge_prompt, judge_texts, rating_in
from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import JudgeSettings, ScoringSettings

ONE = Exchange(("What is tea?",), ("A drink.",))
TWO = Exchange(("What is tea?", "And coffee?"), ("A drink.", "Another."), ("It is a drink.", "It is one too."))
Reply = tuple[int, bytes]


def completion(text: str) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def server(replies: list[Reply | None]) -> Iterator[tuple[str, list]]:
    """A judge that gives the replies in turn, the last one for ever; None keeps one waiting for a second."""
    seen: list = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = replies[min(len(seen), len(replies) - 1)]
            seen.append((self.path, dict(self.headers), json.loads(body)))
            if reply is None:
                time.sleep(0.6)
                return
            self.send_response(reply[0])
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(reply[1])

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1", seen
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def judge(url: str, **changes) -> JudgeSettings:
    return JudgeSettings(url=url, model="judge", wait=0.01, timeout=5.0, **changes)


def test_a_rating_is_asked_for_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    with server([completion("Fine, not [[3]].\nRating: [[8.5]]")]) as (url, seen):
        first = judge_texts([ONE, TWO], judge(url, key_variable="A_KEY"), tmp_path / "kept")
        again = judge_texts([ONE, TWO], judge(url, key_variable="A_KEY"), tmp_path / "kept")
    assert [each.rating for each in first] == [8.5, 8.5]
    assert again == first
    assert len(seen) == 2
    path, headers, body = seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("judge", 0.0)
    assert "A drink." in body["messages"][1]["content"]
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 2
    assert not any("secret" in file.read_text() for file in files)


def test_what_was_kept_needs_no_judge_and_is_of_that_judge_alone():
    kept: dict[str, str] = {}
    with server([completion("[[4]]")]) as (url, seen):
        asked = judge(url)
        judge_texts([ONE], asked, kept)
        judge_texts([ONE], replace(asked, temperature=0.5), kept)
        assert len(seen) == 2
    assert judge_texts([ONE], replace(asked, url=""), kept)[0].rating == 4.0
    nothing = judge_texts([TWO], JudgeSettings(), kept)[0]
    assert math.isnan(nothing.rating)
    assert nothing.reason == NO_JUDGE


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_failure_is_tried_again(status):
    with server([(status, b"busy"), (status, b"busy"), completion("[[7]]")]) as (url, seen):
        assert judge_texts([ONE], judge(url), {})[0].rating == 7.0
    assert len(seen) == 3


def test_a_slow_judge_is_not_waited_for_and_may_be_asked_later():
    kept: dict[str, str] = {}
    with server([None, None, completion("[[6]]")]) as (url, seen):
        settings = replace(judge(url, num_retries=1), timeout=0.15)
        failed = judge_texts([ONE], settings, kept)[0]
        assert "not reached" in failed.reason
        assert not kept
        assert len(seen) == 2
        assert judge_texts([ONE], settings, kept)[0].rating == 6.0


def test_after_three_failures_nothing_more_is_sent():
    many = [replace(ONE, answers=(f"Answer {number}.",)) for number in range(5)]
    with server([(500, b"")]) as (url, seen):
        found = judge_texts(many, judge(url, num_retries=0), {})
    assert len(seen) == 3
    assert [each.reason for each in found] == [
        *["the judge answered with status 500"] * 3,
        *["not asked: the judge failed 3 times in a row"] * 2,
    ]


@pytest.mark.parametrize(
    "content", [b"not json", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}']
)
def test_an_answer_of_another_shape_is_no_judgement(content):
    with server([(200, content)]) as (url, seen):
        found = judge_texts([ONE], judge(url), kept := {})[0]
    assert found.reason.startswith("the judge's answer is no chat completion")
    assert not kept
    assert len(seen) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 301, 307])
def test_a_refusal_or_redirection_is_an_error(status):
    with (
        server([(status, b"no such model")]) as (url, _),
        pytest.raises(ConfigError, match=f"refused with status {status}"),
    ):
        judge_texts([ONE], judge(url), {})


def test_a_reply_without_a_rating_is_kept_and_counted():
    kept: dict[str, str] = {}
    with server([completion("Quite good.")]) as (url, seen):
        for _ in range(2):
            found = judge_texts([ONE], judge(url), kept)[0]
            assert found.reason == "the judge's reply holds no rating in double brackets"
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("[[10]]", 10), ("[[ 7.5 ]]", 7.5), ("[[11]]", None), ("[[0]]", None), ("[5]", None), ("", None)],
)
def test_ratings_are_read(reply, rating):
    found = rating_in(reply)
    assert found.rating == rating if rating is not None else math.isnan(found.rating) and bool(found.reason)


def test_the_prompt_shows_the_conversation_and_references():
    text = judge_prompt(TWO)
    places = [text.index(part) for part in ("What is tea?", "It is a drink.", "A drink.", "And coffee?", "Another.")]
    assert places == sorted(places)
    assert "reference answer" in text
    assert "reference" not in judge_prompt(ONE)
    assert "last answer" in text
    assert "only answer" in judge_prompt(ONE)


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://example.org/v1", "https, or http on this machine"), ("ftp://127.0.0.1", "https, or http")],
)
def test_an_unsafe_address_is_refused(url, message):
    with pytest.raises(ConfigError, match=message):
        judge(url)


def test_settings_and_kept_files_are_checked(monkeypatch):
    with pytest.raises(ConfigError, match="name of the model that judges"):
        JudgeSettings(url="https://example.org/v1")
    with pytest.raises(ConfigError, match="timeout to be greater than 0"):
        JudgeSettings(url="https://example.org/v1", model="m", timeout=0)
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable NO_KEY; it is empty"):
        judge_texts([ONE], JudgeSettings("http://127.0.0.1:9", "m", "NO_KEY"), {})
    with server([completion("[[4]]")]) as (url, _):
        judge_texts([ONE], judge(url), kept := {})
        kept[next(iter(kept))] = "{"
        with pytest.raises(DataError, match=r"to hold a reply, got '\{'\. Delete it"):
            judge_texts([ONE], judge(url), kept)
    with pytest.raises(ValueError, match="an answer to each question, got 0 to 1"):
        Exchange(("What?",), ())


ROWS = [
    {"question_id": 1, "category": "math", "turns": ["Add 1.", "Add 2."], "reference": ["1", "3"]},
    {"question_id": 2, "category": "writing", "turns": ["Write.", "Again."], "reference": ["not for grading"]},
    {"question_id": 3, "category": "writing", "turns": ["Write.", " "]},
]


def test_a_question_is_an_item_a_turn():
    table = mt_bench.items_of(ROWS)
    assert [item.item_id for item in table.items] == ["1-1", "1-2", "2-1", "2-2"]
    assert [item.cluster for item in table.items] == ["1", "1", "2", "2"]
    assert table.items[1].labels == {"category": "math", "turn": 2, "reference_1": "1", "reference_2": "3"}
    assert table.items[3].labels == {"category": "writing", "turn": 2}
    assert table.malformed[0].reason == "it has no turn, or an empty one"


def test_graded_answers_become_ratings_and_failures_are_named():
    items = mt_bench.items_of(ROWS).items
    answers = answers_of(
        [
            Answer("1-1", 0, 0.0, 1, "1"),
            Answer("1-2", 0, 0.0, 1, "1"),
            Answer("1-2", 1, 0.0, 1, "3"),
            Answer("2-1", 0, 0.0, 1, "Some words."),
            Answer("2-2", 0, 0.0, 1, "Some words."),
            Answer("2-2", 1, math.nan, reason="too long"),
        ]
    )
    assert set(mt_bench.judge_ratings(items, answers)["reason"]) == {NO_JUDGE, "too long"}
    unanswered = mt_bench.graded(items, answers_of([]), JudgeSettings(), {})
    assert set(mt_bench.judge_ratings(items, unanswered)["reason"]) == {"nothing was written"}
    with server([completion("[[9]]"), completion("[[3]]"), completion("hm")]) as (url, seen):
        scores = mt_bench.judge_ratings(items, mt_bench.graded(items, answers, judge(url), {}))
    assert scores["value"].tolist()[:2] == [9.0, 3.0]
    assert scores["reason"].tolist() == ["", "", "the judge's reply holds no rating in double brackets", "too long"]
    assert len(seen) == 3
    assert "Reference answer 2:\n<<<\n3\n>>>" in seen[1][2]["messages"][1]["content"]
    assert "Reference" not in seen[2][2]["messages"][1]["content"]
    columns = {"value": scores["value"].to_numpy()[:2], "label:turn": scores["label:turn"].to_numpy()[:2]}
    assert mt_bench.mean_of_turn(2)(columns, np.ones((2, 1))) == pytest.approx([3.0])


@pytest.mark.real_data
def test_a_second_turn_is_read_after_the_first_answer(data_root, monkeypatch):
    candidate, scoring = tiny_gpt2(data_root), ScoringSettings()
    items = mt_bench.items_of(ROWS).items
    prompts, ask = [], mt_bench.ask_texts

    def spied(candidate, items, scoring, settings):
        prompts.extend(item.context for item in items)
        return ask(candidate, items, scoring, settings)

    monkeypatch.setattr(mt_bench, "ask_texts", spied)
    frame = mt_bench.ask_turns(candidate, items, scoring, {"max_new_tokens": 4}).frame
    assert frame[["item_id", "option"]].to_numpy().tolist() == [
        ["1-1", 0], ["1-2", 0], ["1-2", 1], ["2-1", 0], ["2-2", 0], ["2-2", 1],
    ]  # fmt: skip
    assert len(prompts) == 4  # each turn of each question once
    first = frame["text"][0]
    assert frame["text"][1] == first
    assert prompts[0] == "User: Add 1.\nAssistant:"
    assert prompts[2] == f"User: Add 1.\nAssistant: {first.strip()}\nUser: Add 2.\nAssistant:"
    # The second turn alone gives the same conversation.
    alone = mt_bench.ask_turns(candidate, items[1:2], scoring, {"max_new_tokens": 4}).frame
    assert alone["text"].tolist() == frame["text"].tolist()[1:3]
    with pytest.raises(ConfigError, match="has no chat template"):
        mt_bench.ask_turns(candidate, items, replace(scoring, chat_template=True), {})


@pytest.mark.real_data
def test_a_chat_template_holds_all_turns(data_root, monkeypatch):
    candidate, prompts = tiny_gpt2(data_root), []
    template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
    monkeypatch.setattr(candidate.tokenizer, "chat_template", template, raising=False)

    def answered(candidate, items, scoring, settings):
        prompts.extend(item.context for item in items)
        assert not scoring.chat_template
        assert "stop" not in settings
        return answers_of(Answer(item.item_id, 0, 0.0, 1, " Yes.") for item in items)

    monkeypatch.setattr(mt_bench, "ask_texts", answered)
    scoring = ScoringSettings(chat_template=True)
    mt_bench.ask_turns(candidate, mt_bench.items_of(ROWS[:1]).items, scoring, mt_bench.WRITING)
    assert prompts == ["<user>Add 1.<assistant>", "<user>Add 1.<assistant>Yes.<user>Add 2.<assistant>"]


def test_after_a_turn_without_an_answer_there_is_none(monkeypatch):
    def refused(candidate, items, scoring, settings):
        return answers_of(Answer(item.item_id, 0, math.nan, reason="too long") for item in items)

    monkeypatch.setattr(mt_bench, "ask_texts", refused)
    frame = mt_bench.ask_turns(None, mt_bench.items_of(ROWS[:1]).items, ScoringSettings(), {}).frame
    assert frame["reason"].tolist() == ["too long"] * 3


@pytest.mark.real_data
def test_real_questions(data_root, tmp_path):
    tables = [benchmark.load(Files(data_root, tmp_path)) for benchmark in mt_bench.BENCHMARKS]
    assert [len(table.items) for table in tables] == [160, 80]
    with_references = {item.labels["category"] for item in tables[0].items if "reference_1" in item.labels}
    assert with_references == {"math", "reasoning", "coding"}
