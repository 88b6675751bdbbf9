from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import bbq
from fairsisa.bias.benchmarks.bbq_fillings import Vocabulary, fillings, generate, has_lists, word_lists
from fairsisa.bias.benchmarks.bbq_templates import Filling, Person, answer_groups, filled, four_questions
from fairsisa.errors import DataError

TEMPLATE_DIGESTS = {
    "Age": "bf7b0d47514ddf4df73ccfc7598499887d74ab15565e0526ab9030b5defedaa5",
    "Disability_status": "db1c4251f71a2ec68516f59b12c5db8a6677c762813c6a4d79aac42d665163aa",
    "Nationality": "56cf260c15bc36e4627857c4379dacdbe4432eaeed5bd98e7c84646675656289",
    "Physical_appearance": "9110eedc41f63639e79604c9a3f48f12361de0b58c7be5a19d854c9683192397",
    "Religion": "0b5091c3f2da84028bb676aacb36fb90de2f334fd5cfc7581ac99029730ef314",
    "Sexual_orientation": "c10bb25d2162b65f551e04a563971cc41418f3837a556cf482c594ef23836f84",
}
ORDER, TEXTS = (0, 1, 2), ("context", "question")
QUESTION = {
    "Q_id": "1",
    "version": "a",
    "Ambiguous_Context": "I met a {{NAME1}} and a {{NAME2}} at the {{WORD1}}. ",
    "Disambiguating_Context": "The {{NAME2}} lost a key.",
    "Names": "NAME1: [baker, actor]; NAME2: [potter, weaver, usher]",
    "Lexical_diversity": "WORD1: [fair, market]",
    "Question_negative_stereotype": "Who lost a key?",
    "Question_non_negative": "Who lost nothing?",
    "Answer_negative": "The {{NAME2}}",
    "Answer_non_negative": "The {{NAME1}}",
    "Known_stereotyped_groups": '["clay"]',
    "NAME1_info": "flour",
    "NAME2_info": "clay",
    "Notes": "made up",
}
NOBODY = Vocabulary((), ())


def _replayed(template: dict[str, str], category: str, group: list[dict[str, Any]], vocabulary: Vocabulary) -> Any:
    """Return what our generator makes of the choices that lead to four published questions, None if none do."""
    unknown = next(word for word, told in group[0]["answer_info"].values() if told == "unknown")
    for filling in _candidates(template, category, group[0], vocabulary):
        if filled(template["Ambiguous_Context"], filling).strip() != group[0]["context"]:
            continue
        start = group[0]["example_id"]
        plain = list(four_questions(category, template, filling, unknown=unknown, order=ORDER, start=start))
        texts, published = ([each[f"ans{place}"] for place in ORDER] for each in (plain[0], group[0]))
        pairs = list(zip(plain, group, strict=True))
        if set(texts) != set(published) or any(ours[name] != theirs[name] for ours, theirs in pairs for name in TEXTS):
            continue
        order = [texts.index(text) for text in published]
        return list(four_questions(category, template, filling, unknown=unknown, order=order, start=start))
    return None


def _candidates(template: dict[str, str], category: str, question: dict[str, Any], vocabulary: Vocabulary) -> Any:
    """Yield every filling that could have led to a question: all listed words, or the two words it tells."""
    if has_lists(category, template):
        firsts, seconds = word_lists(template["Names"])
        pairs = [(Person(first), Person(second)) for first in firsts for second in seconds]
    else:
        told = {row["Name"]: row["Info"] for row in vocabulary.of_category(category)}
        people = [Person(word, told[word]) for word, group in question["answer_info"].values() if group != "unknown"]
        pairs = [(people[0], people[1]), (people[1], people[0])]
    words = [each or [""] for each in word_lists(template["Lexical_diversity"])]
    return (Filling(*pair, one, two) for pair in pairs for one in words[0] for two in words[1])


@pytest.fixture(scope="module")
def files(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(data_root, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def vocabulary(files: Files) -> Vocabulary:
    return Vocabulary(tuple(files.rows(bbq.WORD_FILE)), tuple(files.rows(bbq.NAME_FILE)))


@pytest.mark.real_data
@pytest.mark.parametrize("category", list(TEMPLATE_DIGESTS))
def test_generator_gives_every_published_question_and_as_many_a_template(
    category: str, files: Files, vocabulary: Vocabulary
) -> None:
    source = bbq.template_source(bbq.template_name(category), TEMPLATE_DIGESTS[category])
    templates = {(row["Q_id"], row.get("version", "None")): row for row in files.rows(source)}
    published = files.objects(bbq.PUBLISHED_FILES[category])

    def template_of(question: dict[str, Any]) -> tuple[str, str]:
        return question["question_index"], question["additional_metadata"]["version"]

    generated = generate(category, list(templates.values()), vocabulary)
    assert Counter(map(template_of, generated)) == Counter(map(template_of, published))
    differing = []
    for start in range(0, len(published), 4):
        group = published[start : start + 4]
        ours = _replayed(templates[template_of(group[0])], category, group, vocabulary)
        assert ours is not None, group[0]
        differing += [theirs["example_id"] for mine, theirs in zip(ours, group, strict=True) if mine != theirs]
    # In four questions the published answer_info says "other employee" where the template says "employee".
    assert differing == ([656, 657, 658, 659] if category == "Physical_appearance" else [])


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_generation_is_a_pure_function_of_the_seed_and_asks_all_listed_pairs(seed: int) -> None:
    made = generate("Age", [QUESTION], NOBODY, seed=seed)
    assert made == generate("Age", [QUESTION], NOBODY, seed=seed)
    assert len(made) == 4 * 2 * 3
    assert [each["example_id"] for each in made] == list(range(24))
    for each in made:
        places = {group: place for place, (_, group) in enumerate(each["answer_info"].values())}
        right = "unknown" if each["context_condition"] == "ambig" else "clay"
        if each["context_condition"] == "disambig" and each["question_polarity"] == "nonneg":
            right = "flour"
        assert each["label"] == places[right]


def test_questions_of_a_filling_are_these() -> None:
    filling = Filling(Person("actor"), Person("potter"), "fair")
    first, second, third, fourth = four_questions("Age", QUESTION, filling, unknown="Not known", order=(2, 1, 0))
    # "a" before a filled-in vowel turns to "an", and, as published, so does no other "a".
    assert first["context"] == third["context"] == "I met an actor and a potter at the fair."
    assert second["context"] == fourth["context"] == "I met an actor and a potter at the fair. The potter lost a key."
    assert [each["label"] for each in (first, second, third, fourth)] == [0, 2, 0, 1]
    assert [first[f"ans{place}"] for place in range(3)] == ["Not known", "The actor", "The potter"]
    assert first["answer_info"]["ans2"] == ["potter", "clay"]
    assert fourth["question"] == "Who lost nothing?"


def test_group_follows_the_slot_where_one_name_is_part_of_the_other() -> None:
    filling = Filling(Person("north coast", "n"), Person("coast", "c"))
    template = {**QUESTION, "NAME1_info": "", "NAME2_info": ""}
    assert answer_groups(template, filling) == [["coast", "c"], ["north coast", "n"]]


def test_answers_that_name_one_slot_twice_are_an_error() -> None:
    template = {**QUESTION, "Answer_negative": "The {{NAME1}}"}
    with pytest.raises(DataError, match="answers of template 1 to name one slot each"):
        answer_groups(template, Filling(Person("a"), Person("b")))


def test_second_list_that_comes_first_gives_no_question() -> None:
    assert word_lists("{{NAME1}}: [a, b c]; {{NAME2}}: [d]") == (["a", "b c"], ["d"])
    assert word_lists("NAME2: [d]; NAME1: [a]") == (["a"], [])
    assert not list(fillings("Age", {**QUESTION, "Names": "NAME2: [d]; NAME1: [a]"}, NOBODY, np.random.default_rng(0)))
    assert not list(fillings("Age", {**QUESTION, "Ambiguous_Context": ""}, NOBODY, np.random.default_rng(0)))


def test_language_is_corrected() -> None:
    filling = Filling(Person("European", second="woman"), Person("Latino", second="woman"))
    text = filled("There was a {{NAME1}} {{GEN1}} and a {{NAME2}} {{GEN2}}", filling)
    assert text == "There was a European woman and a Latina woman"
