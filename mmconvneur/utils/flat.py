"""Flat configs, as MMEngine keeps them in checkpoints, read without running them."""

from __future__ import annotations

import ast

from ..errors import UsageError


class _Dicts(ast.NodeTransformer):
    """``dict(a=1)`` becomes ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            return node
        keys = [keyword.arg and ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def read_flat(text: str) -> dict:
    """The values of ``Config.pretty_text``: ``name = value`` with literals and ``dict(...)`` alone.

    Raises:
        UsageError: If it holds anything else, which only running it could read.
    """
    try:
        return {
            statement.targets[0].id: ast.literal_eval(_Dicts().visit(statement.value))
            for statement in ast.parse(text).body
        }
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(
            f'the config in the checkpoint holds more than plain values ({error}): '
            'it could run any code, so it is not read'
        ) from error
