"""What each published table holds: its files, columns, categories, label, sensitive features."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fairsisa.data.columns import DEFAULT_FRACTIONS
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.errors import DataError

Categories = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class TableFile:
    """One CSV file of a corpus: where it is, how its rows are named and dealt to train, calibration and test.

    `fractions` are the expected shares of the three splits, dealt by a keyed hash of the subject id; an official test
    file has (0, 0, 1). `part` enters the example ids. `skip_lines` lines come before the table.
    """

    source: SourceFile
    part: str = ""
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    skip_lines: int = 0


@dataclass(frozen=True)
class SensitiveColumn:
    """How a sensitive feature is read off a column: raw values renamed, or numbers cut into bands, or neither."""

    column: str
    names: Mapping[str, str] = field(default_factory=dict)
    cuts: tuple[float, ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """A published table; everything is stated here and nothing is learnt from the data.

    `header` names the columns of a file without header line. `labels` maps raw label values to a class index.
    `columns` not listed as `numeric` or `categorical` are no features. `keep` selects the rows of the usual analysis.
    `num_examples` is the number of rows then left.
    """

    name: str
    files: tuple[TableFile, ...]
    numeric: tuple[str, ...]
    categorical: Categories
    label: str
    labels: Mapping[str, int]
    classes: tuple[str, str]
    sensitive: Mapping[str, SensitiveColumn]
    num_examples: int
    header: tuple[str, ...] = ()
    subject: str | None = None
    keep: Callable[[pd.DataFrame], np.ndarray] | None = None


_FAIRNESS_SURVEY = ("tailequy/fairness_dataset", "abb5a18b822ba56a221c5311082e192e85000b95")
_UNKNOWN = ("unknown",)
_NO_YES = ("no", "yes")


def _digits(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(code) for code in range(first, last + 1))


def _survey_file(folder: str, file_name: str, sha256: str) -> tuple[TableFile]:
    url = github_url(*_FAIRNESS_SURVEY, f"experiments/data/{file_name}")
    return (TableFile(SourceFile(f"{folder}/{file_name}.gz", url, f"sha256:{sha256}")),)


def _adult_file(file_name: str, sha256: str) -> SourceFile:
    commit = "d96e8d0ec5b23bb06fc8b09724ccfa5a924a6ffb"
    url = github_url("algofairness/fairness-comparison", commit, f"data/{file_name}")
    return SourceFile(f"adult/{file_name}.gz", url, f"sha256:{sha256}")


# `fnlwgt` is a row's weight in the survey and describes nobody; `education` says `education-num` in words.
ADULT = TableSpec(
    name="adult",
    files=(
        TableFile(
            _adult_file("adult.data", "fa21ffb923810bfc9b4ec4e21750d9f3543dd0c25d49027e581837dafffe981b"),
            part="train",
            fractions=(0.8, 0.2, 0.0),
        ),
        TableFile(
            _adult_file("adult.test", "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"),
            part="test",
            fractions=(0.0, 0.0, 1.0),
            skip_lines=1,
        ),
    ),
    header=(
        "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
        "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
    ),
    numeric=("age", "education-num", "capital-gain", "capital-loss", "hours-per-week"),
    categorical={
        "workclass": (
            "Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov", "Without-pay",
            "Never-worked", "?",
        ),
        "marital-status": (
            "Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed", "Married-spouse-absent",
            "Married-AF-spouse",
        ),
        "occupation": (
            "Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial", "Prof-specialty",
            "Handlers-cleaners", "Machine-op-inspct", "Adm-clerical", "Farming-fishing", "Transport-moving",
            "Priv-house-serv", "Protective-serv", "Armed-Forces", "?",
        ),
        "relationship": ("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"),
        "race": ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black"),
        "sex": ("Female", "Male"),
        "native-country": (
            "United-States", "Cambodia", "England", "Puerto-Rico", "Canada", "Germany", "Outlying-US(Guam-USVI-etc)",
            "India", "Japan", "Greece", "South", "China", "Cuba", "Iran", "Honduras", "Philippines", "Italy", "Poland",
            "Jamaica", "Vietnam", "Mexico", "Portugal", "Ireland", "France", "Dominican-Republic", "Laos", "Ecuador",
            "Taiwan", "Haiti", "Columbia", "Hungary", "Guatemala", "Nicaragua", "Scotland", "Thailand", "Yugoslavia",
            "El-Salvador", "Trinadad&Tobago", "Peru", "Hong", "Holand-Netherlands", "?",
        ),
    },
    label="income",
    labels={"<=50K": 0, "<=50K.": 0, ">50K": 1, ">50K.": 1},
    classes=("<=50K", ">50K"),
    sensitive={
        "sex": SensitiveColumn("sex"),
        "race": SensitiveColumn("race"),
        "race_binary": SensitiveColumn(
            "race",
            {
                "White": "White",
                "Black": "not White",
                "Asian-Pac-Islander": "not White",
                "Amer-Indian-Eskimo": "not White",
                "Other": "not White",
            },
        ),
    },
    num_examples=48_842,
)  # fmt: skip

_IDENTIFYING = ("name", "first", "last", "dob", "c_case_number", "r_case_number", "vr_case_number")


def drop_identifying_columns(content: bytes) -> bytes:
    """Return a CSV without names, dates of birth and case numbers, everything else unchanged.

    Raises:
        DataError: when the content is no CSV table.
    """
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"compas: the file is no CSV table ({error}). Replace it by a fresh copy.") from error
    kept = [index for index, column in enumerate(rows[0] if rows else []) if column not in _IDENTIFYING]
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([[row[i] for i in kept if i < len(row)] for row in rows])
    return out.getvalue().encode()


def usual_compas_rows(frame: pd.DataFrame) -> np.ndarray:
    """Return which rows ProPublica's analysis keeps: charged within 30 days of the screening, ordinary, scored."""
    days = pd.to_numeric(frame["days_b_screening_arrest"], errors="coerce")
    ordinary = (frame["is_recid"] != "-1") & (frame["c_charge_degree"] != "O")
    scored = frame["score_text"] != "N/A"
    return (days.between(-30, 30) & ordinary & scored).to_numpy(dtype=bool)


# The scores that COMPAS gave are what the table is used to judge, so they are no features.
COMPAS = TableSpec(
    name="compas",
    files=(
        TableFile(
            SourceFile(
                "compas/compas-scores-two-years.csv.gz",
                github_url(
                    "propublica/compas-analysis",
                    "bafff5da3f2e45eca6c2d5055faad269defd135a",
                    "compas-scores-two-years.csv",
                ),
                "sha256:a5e5c34bfd2d1f065bb12a44c0323421baf74b98b97d585915a0c2e1513ecaba",
                prepare=drop_identifying_columns,
            )
        ),
    ),
    numeric=("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"),
    categorical={
        "c_charge_degree": ("F", "M"),
        "sex": ("Female", "Male"),
        "age_cat": ("Less than 25", "25 - 45", "Greater than 45"),
        "race": ("African-American", "Asian", "Caucasian", "Hispanic", "Native American", "Other"),
    },
    label="two_year_recid",
    labels={"0": 0, "1": 1},
    classes=("no recidivism", "recidivism"),
    sensitive={
        "race": SensitiveColumn(
            "race",
            {
                "African-American": "African-American",
                "Caucasian": "Caucasian",
                "Hispanic": "Hispanic",
                "Asian": "Other",
                "Native American": "Other",
                "Other": "Other",
            },
        ),
        "sex": SensitiveColumn("sex"),
        "age_cat": SensitiveColumn("age_cat"),
    },
    num_examples=6_172,
    subject="id",
    keep=usual_compas_rows,
)

# Categories as documented by UCI, including two that no row has (A47 vacation, A95 female single).
GERMAN_CREDIT = TableSpec(
    name="german_credit",
    files=(
        TableFile(
            SourceFile(
                "german_credit/german.csv",
                github_url(
                    "algofairness/fairness-comparison",
                    "80b34d25bb9b0387691c6cb8651f0e40edd262c8",
                    "fairness/data/raw/german.csv",
                ),
                "sha256:532082711a8ec4df65cf60775eb7d59d3a5e3458c5a88695630beffd96dfff86",
            )
        ),
    ),
    numeric=(
        "month", "credit_amount", "investment_as_income_percentage", "residence_since", "age", "number_of_credits",
        "people_liable_for",
    ),
    categorical={
        "status": ("A11", "A12", "A13", "A14"),
        "credit_history": ("A30", "A31", "A32", "A33", "A34"),
        "purpose": ("A40", "A41", "A42", "A43", "A44", "A45", "A46", "A47", "A48", "A49", "A410"),
        "savings": ("A61", "A62", "A63", "A64", "A65"),
        "employment": ("A71", "A72", "A73", "A74", "A75"),
        "personal_status": ("A91", "A92", "A93", "A94", "A95"),
        "other_debtors": ("A101", "A102", "A103"),
        "property": ("A121", "A122", "A123", "A124"),
        "installment_plans": ("A141", "A142", "A143"),
        "housing": ("A151", "A152", "A153"),
        "skill_level": ("A171", "A172", "A173", "A174"),
        "telephone": ("A191", "A192"),
        "foreign_worker": ("A201", "A202"),
    },
    label="credit",
    labels={"2": 0, "1": 1},
    classes=("bad", "good"),
    sensitive={
        "sex": SensitiveColumn(
            "personal_status", {"A91": "male", "A92": "female", "A93": "male", "A94": "male", "A95": "female"}
        ),
        "age": SensitiveColumn("age", cuts=(25,)),
    },
    num_examples=1_000,
)  # fmt: skip

# `duration` of the call is known only when its outcome is, so it is no feature (UCI's own advice).
BANK_MARKETING = TableSpec(
    name="bank_marketing",
    files=_survey_file(
        "bank_marketing", "bank-full.csv", "03e78e93396e664a079dff3e1df1b40b6359b1f9945adfb9a09ceabd0fb79193"
    ),
    numeric=("age", "balance", "day", "campaign", "pdays", "previous"),
    categorical={
        "job": (
            "admin.", "blue-collar", "entrepreneur", "housemaid", "management", "retired", "self-employed", "services",
            "student", "technician", "unemployed", *_UNKNOWN,
        ),
        "marital": ("married", "single"),
        "education": ("primary", "secondary", "tertiary", *_UNKNOWN),
        "default": _NO_YES,
        "housing": _NO_YES,
        "loan": _NO_YES,
        "contact": ("cellular", "telephone", *_UNKNOWN),
        "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
        "poutcome": ("failure", "other", "success", *_UNKNOWN),
    },
    label="y",
    labels={"no": 0, "yes": 1},
    classes=_NO_YES,
    sensitive={"marital": SensitiveColumn("marital"), "age": SensitiveColumn("age", cuts=(25, 60))},
    num_examples=40_004,
)  # fmt: skip

LAW_SCHOOL = TableSpec(
    name="law_school",
    files=_survey_file(
        "law_school", "law_school_clean.csv", "23c1b173f3480beb7afc4957b107a9917dfc4a8dc9d87ea6034ec35222152452"
    ),
    numeric=("decile1b", "decile3", "lsat", "ugpa", "zfygpa", "zgpa", "fam_inc", "tier"),
    categorical={"fulltime": ("1.0", "2.0"), "male": ("0.0", "1.0"), "race": ("Non-White", "White")},
    label="pass_bar",
    labels={"0.0": 0, "1.0": 1},
    classes=("failed", "passed"),
    sensitive={
        "race": SensitiveColumn("race"),
        "sex": SensitiveColumn("male", {"0.0": "female", "1.0": "male"}),
    },
    num_examples=20_798,
)

DUTCH_CENSUS = TableSpec(
    name="dutch_census",
    files=_survey_file(
        "dutch_census", "dutch.csv", "c0e1df7e2ca07fa84aa99b5565c7b782a381e2fab377648a6d920174d04ce090"
    ),
    numeric=("age",),
    categorical={
        "sex": ("female", "male"),
        "household_position": ("1110", "1121", "1122", "1131", "1132", "1140", "1210", "1220"),
        "household_size": ("111", "112", "113", "114", "125", "126"),
        "prev_residence_place": _digits(1, 2),
        "citizenship": _digits(1, 3),
        "country_birth": _digits(1, 3),
        "edu_level": _digits(0, 5),
        "economic_status": ("111", "112", "120"),
        "cur_eco_activity": (
            "111", "122", "124", "131", "132", "133", "134", "135", "136", "137", "138", "139",
        ),
        "marital_status": _digits(1, 4),
    },
    label="occupation",
    labels={"0": 0, "1": 1},
    classes=("not high-level", "high-level"),
    sensitive={"sex": SensitiveColumn("sex")},
    num_examples=60_420,
)  # fmt: skip

_BILLS = tuple(f"BILL_AMT{month}" for month in range(1, 7))
_PAYMENTS = tuple(f"PAY_AMT{month}" for month in range(1, 7))

# EDUCATION 0, 5, 6 and MARRIAGE 0 occur without being documented: they count as other.
CREDIT_CARD_DEFAULT = TableSpec(
    name="credit_card_default",
    files=_survey_file(
        "credit_card_default",
        "credit-card-clients.csv",
        "7cfc3bb35b6986be40cccb5d490806f082b46f93afafdce27fd7f409eb5abb02",
    ),
    numeric=("LIMIT_BAL", "AGE", "PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6", *_BILLS, *_PAYMENTS),
    categorical={"SEX": _digits(1, 2), "EDUCATION": _digits(0, 6), "MARRIAGE": _digits(0, 3)},
    label="default payment",
    labels={"0": 0, "1": 1},
    classes=("no default", "default"),
    sensitive={
        "sex": SensitiveColumn("SEX", {"1": "male", "2": "female"}),
        "marriage": SensitiveColumn("MARRIAGE", {"1": "married", "2": "single", "3": "other", "0": "other"}),
        "education": SensitiveColumn(
            "EDUCATION",
            {
                "1": "graduate school",
                "2": "university",
                "3": "high school",
                "4": "other",
                "0": "other",
                "5": "other",
                "6": "other",
            },
        ),
    },
    num_examples=30_000,
)

SPECS = (ADULT, COMPAS, GERMAN_CREDIT, BANK_MARKETING, LAW_SCHOOL, DUTCH_CENSUS, CREDIT_CARD_DEFAULT)
