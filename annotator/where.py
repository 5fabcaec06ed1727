"""Conditions on the columns of labels, as a user types them: `status != ok`, `joint_std_mm < 10 and is_right`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from annotator.errors import UserError

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Condition:
    """A condition on a row."""

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        """Read it.

        Args:
            text: comparisons with `==`, `!=`, `<`, `<=`, `>`, `>=`, `in [..]`, joined by `and`, `or`, `not`; a word
                that is no column is text, quoted or not.
            columns: those there are.

        Raises:
            UserError: it is none, or names no column.
        """
        self.text = text
        self._known = columns
        self.columns: list[str] = []  # those it needs
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise self._wrong() from None
        self.expression = self._truth(tree)
        if not self.columns:
            raise UserError(f"'{text}' names no column; there are {', '.join(columns)}")

    def _wrong(self) -> UserError:
        return UserError(
            f'\'{self.text}\' is no condition: write one like "status != ok" or "joint_std_mm < 10 and is_right"'
        )

    def _truth(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(value) for value in node.values]
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part if isinstance(node.op, ast.And) else whole | part
            return whole
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
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part
            return whole
        raise self._wrong()

    def _compared(self, left: ast.expr, compare: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(compare, (ast.In, ast.NotIn)) and isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            found = self._value(left).isin([self._literal(part) for part in right.elts])
            return ~found if isinstance(compare, ast.NotIn) else found
        if type(compare) not in _COMPARE:
            raise self._wrong()
        return _COMPARE[type(compare)](self._value(left), self._value(right))

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in self._known:
            return self._column(node.id)
        return pc.scalar(self._literal(node))

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return {"true": True, "false": False}.get(node.id.lower(), node.id)
        try:
            return ast.literal_eval(node)
        except (ValueError, SyntaxError):
            raise self._wrong() from None

    def _column(self, name: str) -> Any:
        if name not in self._known:
            raise UserError(f"there is no column '{name}'; there are {', '.join(self._known)}")
        if name not in self.columns:
            self.columns.append(name)
        return pc.field(name)
