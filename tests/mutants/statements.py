"""Operators on statements: one dropped, a `case` dropped, a guard forced, a function that returns at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutants.walk import Change, Place


def dropped_statement(place: Place) -> Iterator[Change]:
    """Leave out a statement, where what follows can still run."""
    node = place.node
    if place.function is None or not isinstance(node, ast.stmt) or not _can_go(node, place):
        return
    yield Change("dropped statement", ast.Pass(), (" ".join(ast.unparse(node).split())[:70], "nothing"))


def _can_go(node: ast.stmt, place: Place) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return _is_bound_before(name, node, place)
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]) | ast.AugAssign() | ast.For():
            return True
        case ast.Expr(value=ast.Call()):
            return True
        case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
            # Alone under its condition it goes with the condition, and at the end of a function it has to be.
            holder = place.parent
            alone = isinstance(holder, ast.If) and holder.body == [node]
            return not alone and isinstance(holder, ast.If | ast.For) and node in holder.body and _goes_on(place)
        case _:
            return False


def _goes_on(place: Place) -> bool:
    function = place.function
    assert function is not None
    last = function.body[-1]
    return last not in (*place.parents, place.node)


def _is_bound_before(name: str, node: ast.stmt, place: Place) -> bool:
    function = place.function
    assert function is not None
    arguments = {item.arg for item in (*function.args.args, *function.args.kwonlyargs)}
    earlier = {
        item.id
        for item in ast.walk(function)
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store) and item.lineno < node.lineno
    }
    return name in arguments | earlier


def dropped_case(place: Place) -> Iterator[Change]:
    """Leave out a `case`, or its guard."""
    node = place.node
    if isinstance(node, ast.Match):
        for index, case in enumerate(node.cases):
            if len(node.cases) > 1 and not _is_any(case.pattern):
                new = ast.Match(node.subject, node.cases[:index] + node.cases[index + 1 :])
                yield Change("dropped case", new, (_head(case), "no such case"))
    elif isinstance(node, ast.match_case) and node.guard is not None:
        new_case = ast.match_case(node.pattern, None, node.body)
        yield Change("dropped case", new_case, (_head(node), _head(new_case)))


def _is_any(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _head(case: ast.match_case) -> str:
    guard = f" if {ast.unparse(case.guard)}" if case.guard else ""
    return f"case {ast.unparse(case.pattern)}{guard}"


def early_return(place: Place) -> Iterator[Change]:
    """Return at once: what was given and nothing to do, None, or True and False."""
    node = place.node
    if not isinstance(node, ast.FunctionDef) or node.returns is None:
        return
    first = node.args.args[0] if node.args.args else None
    returns = ast.unparse(node.returns)
    given = ast.Name(first.arg, ast.Load()) if first else None
    values: list[ast.expr] = []
    if returns == "Step" and given:
        values = [ast.Tuple([given, ast.Tuple([], ast.Load())], ast.Load())]
    elif returns == "bool":
        values = [ast.Constant(True), ast.Constant(False)]
    elif returns.endswith("| None"):
        values = [ast.Constant(None)]
    elif given and first and first.annotation and ast.unparse(first.annotation) == returns:
        values = [given]
    for value in values:
        new = ast.FunctionDef(node.name, node.args, [ast.Return(value)], node.decorator_list, node.returns)
        yield Change("early return", new, ("its body", f"return {ast.unparse(value)}"))
