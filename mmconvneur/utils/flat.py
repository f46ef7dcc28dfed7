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
        return ast.Dict(
            [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords],
            [keyword.value for keyword in node.keywords],
        )


def literal(node: ast.AST) -> object:
    """The value of an expression of constants, lists, dicts and ``dict(...)``; it runs no code."""
    return ast.literal_eval(_Dicts().visit(node))


def read_flat(text: str) -> dict:
    """The values of ``Config.pretty_text``: ``name = value`` with literals and ``dict(...)`` alone.

    Raises:
        UsageError: If it holds anything else, which only running it could read.
    """
    values = {}
    try:
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = literal(value)
                case _:
                    raise ValueError(f'line {statement.lineno}')
        return values
    except (RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(
            f'the config in the checkpoint holds more than plain values ({error}): '
            'it could run any code, so it is not read'
        ) from error
