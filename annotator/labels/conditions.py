"""Parse and apply a user's conditions on label columns: `status != ok`, `joint_std_mm < 10 and is_right`."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from annotator.errors import UserError, printable
from annotator.labels.schema import label_schema

#: A temporary column; no label column has this name.
_NUMBER = "number of the row"

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Condition:
    """A condition on a row; as in SQL, neither it nor its negation holds if a compared column is null."""

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        """Parse the condition.

        Args:
            text: comparisons with `==`, `!=`, `<`, `<=`, `>`, `>=`, `in [..]`, `is None`, joined by `and`, `or`,
                `not`; a word that is not a column is text, quoted or not.
            columns: names of the existing columns.

        Raises:
            UserError: the text is not a condition, has an unknown column, or compares incompatible types.
        """
        self.text = printable(text)
        self._known = columns
        self.columns: list[str] = []  # the columns in the condition
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an invalid escape within text is harmless
                tree = ast.parse(text.strip(), mode="eval").body
            self.expression = self._truth(tree)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            raise self._wrong() from None
        types = {field.name: field.type for field in label_schema(1)}
        if set(self.columns) <= set(types):  # columns passed through from a list may have any type
            self.filter(pa.schema({name: types[name] for name in self.columns}).empty_table())

    def filter(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that meet the condition.

        Raises:
            UserError: the condition compares incompatible types.
        """
        try:
            return table.filter(self.expression)
        except pa.ArrowException:
            types = ", ".join(f"{name} is {table.schema.field(name).type}" for name in self.columns)
            raise UserError(
                f"'{self.text}' compares incompatible types: {types}, and a word that is not a column is text"
            ) from None

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return which rows of a table meet the condition; raises as `filter` does."""
        numbers = pa.array(np.arange(len(table)))
        mask = np.zeros(len(table), bool)
        mask[self.filter(table.append_column(_NUMBER, numbers))[_NUMBER].to_numpy()] = True
        return mask

    def _wrong(self) -> UserError:
        return UserError(
            f'\'{self.text}\' is not a condition: write one like "status != ok" or "joint_std_mm < 10 and is_right"'
        )

    def _truth(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            how = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return _joined([self._truth(value) for value in node.values], how)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.Compare):
            parts = []
            left = node.left
            for compare, right in zip(node.ops, node.comparators, strict=True):
                parts.append(self._compared(left, compare, right))
                left = right
            return _joined(parts, operator.and_)
        raise self._wrong()

    def _compared(self, left: ast.expr, compare: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(compare, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)) or not right.elts:
                raise self._wrong()
            is_in = self._is_in(left, right.elts)
            return ~is_in if isinstance(compare, ast.NotIn) else is_in
        if not self._is_column(left) and not self._is_column(right):
            raise self._unknown(left.id) if isinstance(left, ast.Name) else self._wrong()
        if _is_none(right) and isinstance(compare, (ast.Is, ast.Eq)):
            return self._value(left).is_null()
        if _is_none(right) and isinstance(compare, (ast.IsNot, ast.NotEq)):
            return self._value(left).is_valid()
        if type(compare) not in _COMPARE:
            raise self._wrong()
        return _COMPARE[type(compare)](self._value(left), self._value(right))

    def _is_in(self, left: ast.expr, choices: Sequence[ast.expr]) -> Any:
        """Return the expression for `in`: equivalent to a comparison per choice, but faster for text."""
        values = [self._literal(choice) for choice in choices]
        if all(isinstance(value, str) for value in values):
            first = self._compared(left, ast.Eq(), ast.Constant(values[0]))  # null if the value is null
            return self._value(left).isin(values) | first
        return _joined([self._compared(left, ast.Eq(), choice) for choice in choices], operator.or_)

    def _is_column(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self._known

    def _value(self, node: ast.expr) -> Any:
        if self._is_column(node):
            assert isinstance(node, ast.Name)
            return self._column(node.id)
        return pc.scalar(self._literal(node))

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return {"true": True, "false": False}.get(node.id.lower(), node.id)
        value = ast.literal_eval(node)
        if not isinstance(value, (str, bool, int, float)):
            raise self._wrong()
        return value

    def _unknown(self, name: str) -> UserError:
        return UserError(
            f"there is no column '{printable(name)}'; the columns are {', '.join(map(printable, self._known))}"
        )

    def _column(self, name: str) -> Any:
        if name not in self._known:
            raise self._unknown(name)
        if name not in self.columns:
            self.columns.append(name)
        return pc.field(name)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _joined(parts: list[Any], how: Callable[[Any, Any], Any]) -> Any:
    """Combine expressions as a balanced tree: Arrow recurses into their depth."""
    while len(parts) > 1:
        pairs = [how(*parts[at : at + 2]) for at in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]
