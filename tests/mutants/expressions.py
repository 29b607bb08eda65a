"""Operators on expressions: comparison, boundary, boolean, arithmetic, constant, element."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutants.walk import Change, Place, is_isinstance

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
}  # fmt: skip
_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip
_OTHER_CALL = {"min": "max", "max": "min", "any": "all", "all": "any"}

#: Calls whose text arguments are names of something and not words.
_TAKES_A_NAME = frozenset({"pop", "get", "getattr", "rpartition"})


def comparison(place: Place) -> Iterator[Change]:
    """Turn `==` into `!=`, `is` into `is not`, `in` into `not in`, `<` into `>=`, and back; negate `isinstance`."""
    node = place.node
    if _is_negated(place):
        return
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield Change("comparison", ast.Compare(node.left, [_OPPOSITE[type(node.ops[0])]()], node.comparators))
    elif is_isinstance(node):
        assert isinstance(node, ast.expr)
        yield Change("comparison", ast.UnaryOp(ast.Not(), node))


def boundary(place: Place) -> Iterator[Change]:
    """Turn `<` into `<=`, `>` into `>=`, and back."""
    node = place.node
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _BOUNDARY:
        yield Change("boundary", ast.Compare(node.left, [_BOUNDARY[type(node.ops[0])]()], node.comparators))


def boolean(place: Place) -> Iterator[Change]:
    """Turn `and` into `or`, True into False, any into all; leave out an operand or a `not`; force a condition."""
    node = place.node
    match node:
        case ast.BoolOp(op=op, values=values):
            yield Change("boolean", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))
            for index in range(len(values)):
                rest = values[:index] + values[index + 1 :]
                yield Change("boolean", rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield Change("boolean", operand)
        case ast.Constant(value=bool(value)):
            yield Change("boolean", ast.Constant(not value))
        case ast.Call(func=ast.Name(id="any" | "all" as name), args=args):
            yield Change("boolean", ast.Call(ast.Name(_OTHER_CALL[name], ast.Load()), args, []))
        case ast.comprehension(ifs=[_, *_]):
            for forced in (True, False):
                new = ast.comprehension(node.target, node.iter, [ast.Constant(forced)], node.is_async)
                yield Change("boolean", new, (f"if {ast.unparse(node.ifs[0])}", f"if {forced}"))
        case _:
            yield from _forced(place)


def _forced(place: Place) -> Iterator[Change]:
    """Force the condition of an `if`, in a statement or an expression."""
    node = place.node
    if isinstance(node, ast.IfExp):
        for kept in (node.body, node.orelse):
            yield Change("boolean", kept)
    elif isinstance(node, ast.If):
        for forced in (True, False):
            new = ast.If(ast.Constant(forced), node.body, node.orelse)
            yield Change("boolean", new, (f"if {ast.unparse(node.test)}", f"if {forced}"))


def arithmetic(place: Place) -> Iterator[Change]:
    """Turn `+` into `-`, `*` into `/`, min into max; leave out the right operand, or all arguments but one."""
    node = place.node
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC and not _joins_actions(node):
            yield Change("arithmetic", ast.BinOp(left, _ARITHMETIC[type(op)](), right))
            yield Change("arithmetic", left)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right) if isinstance(left, ast.SetComp | ast.Set):
            yield Change("element", left)
            yield Change("element", right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _ARITHMETIC and _is_number(value):
            yield Change("arithmetic", ast.AugAssign(target, _ARITHMETIC[type(op)](), value))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]):
            yield Change("arithmetic", ast.Call(ast.Name(_OTHER_CALL[name], ast.Load()), args, []))
            if len(args) > 1:
                for arg in args:
                    yield Change("arithmetic", arg)


def constant(place: Place) -> Iterator[Change]:
    """Make a number one more, one less and zero; change a text that is compared, looked up or kept."""
    node = place.node
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return
    value = node.value
    if isinstance(value, int | float):
        others = dict.fromkeys(type(value)(other) for other in (value + 1, value - 1, 0))
        yield from (Change("constant", ast.Constant(other)) for other in others if other != value)
    elif isinstance(value, str) and _is_a_name(place):
        yield Change("constant", ast.Constant(f"{value}_"))


def element(place: Place) -> Iterator[Change]:
    """Leave out an element of a set, of a table, or of a tuple at the top of a module."""
    node = place.node
    match node:
        case ast.Set(elts=elts) if len(elts) > 1:
            for index, item in enumerate(elts):
                yield Change("element", ast.Set(elts[:index] + elts[index + 1 :]), (ast.unparse(item), "left out"))
        case ast.Tuple(elts=elts) if place.function is None and len(elts) > 1:
            for index, item in enumerate(elts):
                new: ast.expr = ast.Tuple(elts[:index] + elts[index + 1 :], ast.Load())
                yield Change("element", new, (ast.unparse(item), "left out"))
        case ast.Dict(keys=keys, values=values) if len(keys) > 1:
            for index, key in enumerate(keys):
                new = ast.Dict(keys[:index] + keys[index + 1 :], values[:index] + values[index + 1 :])
                yield Change("element", new, (ast.unparse(key) if key else "**", "left out"))


def _is_negated(place: Place) -> bool:
    return isinstance(place.parent, ast.UnaryOp) and isinstance(place.parent.op, ast.Not)


def _is_number(node: ast.expr) -> bool:
    return not isinstance(node, ast.List | ast.ListComp | ast.Tuple)


def _joins_actions(node: ast.BinOp) -> bool:
    return isinstance(node.right, ast.Name) and node.right.id == "actions"


def _is_a_name(place: Place) -> bool:
    """Tell whether a text is one by which something is found again, here or in the journal."""
    parent = place.parent
    match parent:
        case ast.Subscript() | ast.Compare() | ast.Set():
            return True
        case ast.Dict(keys=keys):
            return place.node in keys
        case ast.Tuple():
            return place.function is None
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name in _TAKES_A_NAME
        case ast.Assign():
            holder = place.parents[-2]
            return isinstance(holder, ast.ClassDef) and holder.name in place.known.enums
        case _:
            return False
