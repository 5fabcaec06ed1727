"""Conditions compared with SQL over the same rows, including its rule for null."""

from __future__ import annotations

import sys

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import UserError
from annotator.labels.conditions import Condition
from annotator.labels.schema import label_schema

COLUMNS = ["status", "reason", "hand_index", "is_right", "joint_std_mm"]
SCHEMA = pa.schema([label_schema(1).field(name) for name in COLUMNS])
VALUES = {
    "status": st.sampled_from(["ok", "failed", "no_hand"]),
    "reason": st.none() | st.sampled_from(["missing", "crashed", "ok"]),
    "hand_index": st.none() | st.integers(-1, 3),
    "is_right": st.none() | st.booleans(),
    "joint_std_mm": st.none() | st.sampled_from([0.0, -1.5, 2.25, 1e6]),
}
LITERALS = {
    "status": ["ok", "'failed'", '"x"'],
    "reason": ["missing", "'ok'", "nothing"],
    "hand_index": ["0", "-1", "300", "1.5"],
    "is_right": ["True", "false"],
    "joint_std_mm": ["0", "2.25", "-1.5", "1e300", "-7"],
}


def rows_meeting(text: str, table: pa.Table) -> list[int]:
    condition = Condition(text, table.column_names)
    numbered = table.append_column("number", pa.array(range(len(table))))
    return condition.filter(numbered)["number"].to_pylist()


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a comparison, and the same in SQL."""
    name = draw(st.sampled_from(COLUMNS))
    literals = st.sampled_from(LITERALS[name])

    def sql(literal: str) -> str:
        text = name in ("status", "reason")
        return "'" + literal.strip("'\"") + "'" if text else literal

    kind = draw(st.sampled_from(["compare", "in", "not in", "null", "twice", "truth", "reversed"]))
    one, other = draw(literals), draw(literals)
    if kind == "compare":
        sign = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
        return f"{name} {sign} {one}", f"{name} {sign} {sql(one)}"
    if kind in ("in", "not in"):
        left, right = draw(st.sampled_from(["[]", "()", "{}"]))
        return f"{name} {kind} {left}{one}, {other}{right}", f"{name} {kind} ({sql(one)}, {sql(other)})"
    if kind == "null":
        wanted, in_sql = draw(st.sampled_from([("is None", "is null"), ("== None", "is null"),
                                             ("is not None", "is not null"), ("!= None", "is not null")]))  # fmt: skip
        return f"{name} {wanted}", f"{name} {in_sql}"
    if kind == "truth":
        return "is_right", "is_right"
    if kind == "reversed":
        return f"{one} < {name}", f"{sql(one)} < {name}"
    return f"{one} <= {name} < {other}", f"({sql(one)} <= {name} and {name} < {sql(other)})"


def joined(children: st.SearchStrategy) -> st.SearchStrategy:
    both = st.tuples(children, st.sampled_from(["and", "or"]), children)
    return both.map(lambda c: tuple(f"({c[0][k]}) {c[1]} ({c[2][k]})" for k in (0, 1))) | children.map(
        lambda c: tuple(f"not ({part})" for part in c)
    )


ROWS = st.lists(st.fixed_dictionaries(VALUES), max_size=8)
DUCKDB = duckdb.connect()


@settings(deadline=None, max_examples=200)
@given(st.recursive(comparisons(), joined, max_leaves=5), ROWS)
def test_a_condition_finds_the_rows_that_sql_finds(texts, rows):
    condition, sql = texts
    table = pa.Table.from_pylist(rows, SCHEMA).append_column("n", pa.array(range(len(rows)), pa.int64()))
    DUCKDB.register("these", table)
    expected = DUCKDB.execute(f"select n from these where {sql} order by n").fetchall()
    assert rows_meeting(condition, table) == [n for (n,) in expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("joint_std < 10", "there is no column 'joint_std'; the columns are status"),
        ("joint_std < 10 and is_right", "there is no column 'joint_std'"),
        ("is_wrong", "there is no column 'is_wrong'"),
        ("'status' == ok", "is not a condition"),
        ("status is_right", "is not a condition"),
        *((text, "is not a condition") for text in (
            "", " ", "5 in [5]", "status = ok", "status ==", "True", "5", "status == [1]", "status in []",
            "status in ok", "status == a.jpg", "f(status)", "status == f()", "status == (lambda: 1)",
            "status if is_right else 1", "status == 1j", "status == ...", "status == b'x'", "status == {}",
            "hand_index == 10**9", "status\0",
            "hand_index == 1" + "0" * 400, "(" * 500 + "is_right" + ")" * 500, "not " * 20_000 + "is_right",
            "status == 'a' 'b", "[is_right for x in y]", "(is_right := 1)", "status[0] == 1", "is_right; is_right",
            "hand_index + 1 == 2", "status == f'{1}'", "\ud800", "status is ok", "1" * 10_000 + " == hand_index",
        )),
        ("status < 5", "compares incompatible types: status is string"),
        ("status and is_right", "compares incompatible types"),
        ("hand_index == ok", "compares incompatible types"),
        ("hand_index in [ok]", "compares incompatible types"),
        ("status in [1, ok]", "compares incompatible types"),
        ("is_right == right", "compares incompatible types"),
        ("status == reason == hand_index", "compares incompatible types"),
    ],
)  # fmt: skip
def test_an_invalid_condition_is_refused_in_one_line(text, words):
    with pytest.raises(UserError) as raised:
        Condition(text, COLUMNS)
    assert words in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 600


@given(st.text(st.sampled_from("is_right status<>=!()[]',.\"+-*/0159 andornt\n\\{}:@"), max_size=40))
@settings(deadline=None, max_examples=300)
def test_random_text_is_a_condition_or_refused_in_one_line(text):
    try:
        Condition(text, COLUMNS)
    except UserError as error:
        assert str(error).isprintable()


def test_no_code_runs():
    before = set(sys.modules)
    for code in (
        "__import__('antigravity')",
        "print(1)",
        "().__class__",
        "exit()",
        "is_right and breakpoint()",
    ):
        with pytest.raises(UserError):
            Condition(code, COLUMNS)
    assert "antigravity" not in set(sys.modules) - before


def test_types_of_passed_columns_are_checked_once_rows_exist():
    table = pa.table({"mine": ["1", "2"]})
    condition = Condition("mine < 2", ["mine"])
    with pytest.raises(UserError, match="mine is string"):
        condition.filter(table)
    assert rows_meeting("mine == '2'", table) == [1]


def test_any_number_of_choices():
    table = pa.table({"image_id": [f"{n}.jpg" for n in range(50)], "n": range(50)})
    many = ", ".join(f"'{n}.jpg'" for n in range(0, 100_000, 7))
    assert rows_meeting(f"image_id in [{many}]", table) == list(range(0, 50, 7))
    assert rows_meeting(f"n in [{', '.join(map(str, range(0, 9000, 7)))}]", table) == list(range(0, 50, 7))
    assert rows_meeting(" or ".join(f"n == {n}" for n in range(2000)), table) == list(range(50))


def test_the_columns_of_a_condition_are_listed_once():
    assert Condition("status != ok and not is_right or status == reason", COLUMNS).columns == [
        *("status", "is_right", "reason")
    ]
