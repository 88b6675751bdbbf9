from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import RequestError
from fairsisa.sisa.condition import select_examples
from fairsisa.tables import Examples

SEX, AGE = [None, "Female", "Male", "it's"], [-1.0, 0.0, 0.1, 18.0, 60.0]
RISK = [None, 0.0, 0.25, 1.0]
CLASSES = ("fine", "toxic")
ROWS = st.tuples(st.sampled_from(SEX), st.sampled_from(AGE), st.sampled_from(RISK), st.sampled_from([0, 1]))


def table_of(rows) -> Examples:
    """Two more rows stand at the end, so that the train split has both classes; row i is of subject s<i mod 3>."""
    rows = [*rows, ("Male", 18.0, 0.25, 0), ("Female", 60.0, 0.25, 1)]
    frame = pd.DataFrame(
        {
            "example_id": [f"e{index}" for index in range(len(rows))],
            "subject_id": [f"s{index % 3}" for index in range(len(rows))],
            "label": pd.Series([row[3] for row in rows], dtype="int64"),
            "split": [*(["train", "calibration", "test"][index % 3] for index in range(len(rows) - 2)), *["train"] * 2],
            "feature:age": pd.Series([row[1] for row in rows], dtype="float32"),
            "feature:hours-per-week": pd.Series([row[1] / 2 for row in rows], dtype="float32"),
            "feature:class": pd.Series([row[1] for row in rows], dtype="float32"),
            "feature:region": pd.Series([row[1] for row in rows], dtype="float32"),
            "sensitive:sex": pd.Series([row[0] for row in rows], dtype=object),
            "sensitive:region": "north",
            "extra": pd.Series([None if row[2] is None else round(8 * row[2]) for row in rows], dtype="Int64"),
            "when": pd.Timestamp("2026-01-01"),
        }
    )
    if all(row[2] is not None for row in rows):
        frame["risk"] = [row[2] for row in rows]
    return Examples("people", frame, CLASSES)


# A condition is drawn as (text, function of a row giving True, False or None): SQL's logic, row by row.
def comparison(column, key, values, operators):
    order = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }
    mirror = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

    def made(operator, value, turned):
        text = f"{value!r} {mirror[operator]} {column}" if turned else f"{column} {operator} {value!r}"
        return text, lambda row: None if row[key] is None else order[operator](row[key], value)

    return st.builds(made, st.sampled_from(operators), st.sampled_from(values), st.booleans())


def membership(column, key, values):
    def made(wanted, negated):
        text = f"{column} {'not in' if negated else 'in'} {wanted!r}"
        return text, lambda row: None if row[key] is None else (row[key] in wanted) != negated

    return st.builds(made, st.lists(st.sampled_from(values), max_size=3), st.booleans())


def presence(column, key):
    return st.booleans().map(lambda no: (f"{column} is {'not ' * no}None", lambda row: (row[key] is None) != no))


def every(answers):
    return False if False in answers else None if None in answers else True


def joined(inner):
    def both(parts):
        return " and ".join(f"({text})" for text, _ in parts), lambda row: every([rule(row) for _, rule in parts])

    def either(parts):
        def rule(row):
            answers = [rule(row) for _, rule in parts]
            return True if True in answers else None if None in answers else False

        return " or ".join(f"({text})" for text, _ in parts), rule

    def negated(part):
        text, rule = part
        return f"not ({text})", lambda row: None if rule(row) is None else not rule(row)

    some = st.lists(inner, min_size=2, max_size=3)
    return some.map(both) | some.map(either) | inner.map(negated)


EQUAL, ALL = ["==", "!="], ["==", "!=", "<", "<=", ">", ">="]
LEAVES = (
    comparison("sex", "sex", SEX[1:], EQUAL)
    | comparison("`sensitive:sex`", "sex", SEX[1:], EQUAL)
    | comparison("age", "age", [*AGE, 0, 60], ALL)
    | comparison("`hours-per-week`", "hours", [0.05, 9, 30.0], ALL)
    | comparison("extra", "extra", [0, 2, 2.0, 8], ALL)
    | comparison("label", "label", CLASSES, EQUAL)
    | comparison("split", "split", ["train", "test"], EQUAL)
    | membership("sex", "sex", [*SEX[1:], "nobody"])
    | membership("age", "age", AGE)
    | membership("extra", "extra", [0, 2, 8, 2**70])
    | membership("label", "label", CLASSES)
    | presence("sex", "sex")
    | presence("extra", "extra")
)
CONDITIONS = st.recursive(LEAVES, joined, max_leaves=6)


def plain_rows(examples):
    frame = examples.frame
    columns = {"sex": "sensitive:sex", "age": "feature:age", "hours": "feature:hours-per-week", "extra": "extra"}
    for _, row in frame.iterrows():
        values = {key: None if pd.isna(row[name]) else row[name] for key, name in columns.items()}
        for key in ("age", "hours"):
            values[key] = float(str(np.float32(values[key])))  # the shortest decimal that names the float32
        yield values | {"label": CLASSES[row["label"]], "split": row["split"]}


@given(st.lists(ROWS, max_size=6), CONDITIONS)
def test_rows_picked_are_those_of_row_by_row_logic(rows, condition):
    examples, (text, rule) = table_of(rows), condition
    expected = [rule(row) is True for row in plain_rows(examples)]
    found = select_examples(examples, text)
    assert found.dtype == bool
    assert found.tolist() == expected


@given(st.lists(ROWS, max_size=6), CONDITIONS)
def test_a_condition_and_its_negation_leave_out_only_the_unknown(rows, condition):
    examples, (text, rule) = table_of(rows), condition
    picked, rest = select_examples(examples, text), select_examples(examples, f"not ({text})")
    assert not (picked & rest).any()
    assert (~(picked | rest)).tolist() == [rule(row) is None for row in plain_rows(examples)]


PANDAS = [
    ("age >= 60 or subject_id in ['s0', 's1']", "`feature:age` >= 60 or subject_id in ['s0', 's1']"),
    ("18 <= age < 60", "18 <= `feature:age` < 60"),
    ("age > -1 and not split == 'test'", "`feature:age` > -1 and not split == 'test'"),
    ("label == 'toxic' and sex == 'Female'", "label == 1 and `sensitive:sex` == 'Female'"),
    ("label == 1", "label == 1"),
    ("label in (0, 'toxic')", "label in (0, 1)"),
    ("`hours-per-week` == 0.05", "`feature:hours-per-week` == 0.05"),
    ("`class` > 0 and `feature:region` > 0", "`feature:class` > 0 and `feature:region` > 0"),
    ("risk > 0.2 and age not in [18]", "risk > 0.2 and `feature:age` not in [18]"),
]


@pytest.mark.parametrize(("ours", "theirs"), PANDAS)
def test_rows_picked_are_those_of_pandas(ours, theirs):
    rows = [(sex, age, risk, label) for sex in SEX[1:] for age in AGE for risk in RISK[1:] for label in (0, 1)]
    examples = table_of(rows)
    expected = examples.frame.index.isin(examples.frame.query(theirs).index)
    assert expected.sum() > 0
    assert select_examples(examples, ours).tolist() == expected.tolist()


def test_backquotes_inside_text_are_text():
    examples = table_of([("it's", 0.0, 0.0, 0)])
    assert select_examples(examples, 'sex == "it\'s" and not sex == "`age`" and `age` < 1').tolist()[0]
    assert select_examples(examples, "column_0 == 0 or age == 0".replace("column_0", "`age`")).tolist()[0]
    assert not select_examples(examples, r"sex == 'it\'s' and sex != 'it\'s'").any()


def test_float32_overflows_and_huge_whole_numbers_compare():
    examples = table_of([])
    assert select_examples(examples, "age < 1e300 and extra < 99999999999999999999999999").all()
    assert not select_examples(examples, "age == 1e300").any()


REFUSED = [
    ("", "cannot be read"),
    ("   ", "cannot be read"),
    ("sex = 'Female'", "cannot be read"),
    ("sex == 'Female", "cannot be read"),
    ("sex == 'Female' and", "cannot be read"),
    ("`age > 3", "cannot be read"),
    (r"sex == '\d'", "cannot be read"),
    ("sex == 'a'\nsex == 'b'", "cannot be read"),
    ("age == " + "9" * 5000, "cannot be read"),
    ("age == " + "9" * 400, "too large for any float"),
    ("sex == 'a\0'", "cannot be read"),
    ("(" * 500 + "age == 1" + ")" * 500, "cannot be read|too deep"),
    ("not " * 20000 + "age == 1", "cannot be read|too deep"),
    ("age == 1 or " * 100_000 + "age == 1", "at most 1,000,000 letters"),
    ("sex", "Expected a comparison, got a column"),
    ("True", "Expected a comparison, got bool"),
    ("'x'", "Expected a comparison, got text"),
    ("(sex == 'a', sex == 'b')", "Expected a comparison, got a list"),
    ("__import__('os').system('true')", "Expected a comparison, got something else"),
    ("age == __import__('os')", "holds number, got something else"),
    ("age.real == 3", r"Expected a column, got something else \(Attribute\)|on one side"),
    ("age[0] == 3", "on one side"),
    ("age + 1 == 3", "on one side"),
    ("age == 1 + 1", "something else"),
    ("(lambda: age)() == 3", "on one side"),
    ("f'{age}' == age", "something else"),
    ("[a for a in age] == age", "something else"),
    ("(age := 3) == 3", "on one side"),
    ("1 == 1", "a column on one side, got a number and a number"),
    ("age == age", "a column on one side, got a column and a column"),
    ("age == risk", "a column on one side"),
    ("'a' in sex", "Expected the column before"),
    ("sex in 'Female'", "Expected a list after 'in'"),
    ("sex in ['a', age]", "holds text, got a column"),
    ("sex in ['a', ['b']]", "holds text, got a list"),
    ("sex in ['a', None]", "write 'is None'"),
    ("sex == None", "write 'is None'"),
    ("age == -None", "holds number"),
    ("age == -'1'", "holds number"),
    ("age == -True", "holds number"),
    ("age == True", "holds number, got bool"),
    ("age == 1j", "holds number, got complex"),
    ("age == b'1'", "holds number, got bytes"),
    ("age == ...", "holds number, got ellipsis"),
    ("age is 3", "is None"),
    ("age is not sex", "on one side"),
    ("age == '60'", "'feature:age' holds number, got text; write the value as a number"),
    ("subject_id == 12", "'subject_id' holds text, got a number; write the value in quotes"),
    ("sex < 'Male'", "text, which has no order"),
    ("label > 'fine'", "text, which has no order"),
    ("label == 2", "class index from 0 to 1 for 'label', got 2"),
    ("label == -1", "class index from 0 to 1"),
    ("label == 1.0", "'label' holds text"),
    ("label == 'toxik'", "never holds 'toxik'. Did you mean 'toxic'"),
    ("not split == 'tets'", "never holds 'tets'. Did you mean 'test'"),
    ("region == 'north'", "may be 'sensitive:region' or 'feature:region'"),
    ("sexx == 'Female'", "people has no column 'sexx'. Did you mean 'sex'"),
    ("`hours per week` > 3", "Did you mean 'hours-per-week'"),
    ("when == 'now'", "Expected text or numbers in column 'when'"),
]


@pytest.mark.parametrize(("condition", "message"), REFUSED, ids=[repr(each[0][:40]) for each in REFUSED])
def test_other_conditions_are_refused(condition, message):
    with pytest.raises(RequestError, match=message):
        select_examples(table_of([]), condition)


@given(st.text("age=<> notidr1'`()[],.-+:\\", max_size=30) | st.text(max_size=12))
def test_any_text_is_read_or_refused(condition):
    examples = table_of([])
    try:
        found = select_examples(examples, condition)
    except RequestError:
        return
    assert found.shape == (len(examples),)


def test_texts_of_a_refused_condition_are_not_repeated():
    with pytest.raises(RequestError, match="cannot be read") as caught:
        select_examples(table_of([]), "subject_id == 'Jane Doe' and")
    assert "Jane" not in str(caught.value)
    with pytest.raises(RequestError, match="holds number") as caught:
        select_examples(table_of([]), "age == 'Jane Doe'")
    assert "Jane" not in str(caught.value)
