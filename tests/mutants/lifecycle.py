"""Operators on what a supervisor is made of: phases, actions, members of enums, fields of what it knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeVar

from mutants.vocabulary import Vocabulary, union_members, union_of
from mutants.walk import Change, Place, is_isinstance, named

_Item = TypeVar("_Item")

#: Functions of `moves` that return an action.
_MAKES_AN_ACTION = frozenset({"probe", "clear"})

#: Fields of two phases that mean the same: an instant at which it goes on.
_SAME_FIELD = {"retry_at": "until", "until": "retry_at"}


def dropped_action(place: Place) -> Iterator[Change]:
    """Leave out one of the actions that a move returns, or all of them."""
    node, actions = place.node, set(place.known.actions)
    match node:
        case ast.Tuple(elts=elts) if elts and all(_makes_one_of(item, actions) for item in elts):
            for index in range(len(elts)):
                yield Change("dropped action", ast.Tuple(_without(elts, index), ast.Load()))
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Name(id="actions") as right):
            yield Change("dropped action", left)
            yield Change("dropped action", right)
        case ast.Return(value=ast.Tuple(elts=[after, done])) if _returns(place, "Step") and not _is_nothing(done):
            if not (isinstance(done, ast.Tuple) and len(done.elts) == 1):
                nothing = ast.Tuple([], ast.Load())
                yield Change("dropped action", ast.Return(ast.Tuple([after, nothing], ast.Load())))


def swapped_action(place: Place) -> Iterator[Change]:
    """Put an action in place of another one that takes the same."""
    node, known = place.node, place.known
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known.actions:
        name = node.func.id
        alike = [other for other in _after(name, known.actions) if known.fields[other] == known.fields[name]]
        for other in [item for item in alike if place.has(item)][:1]:
            yield Change("swapped action", ast.Call(named(place, other), node.args, node.keywords))


def swapped_phase(place: Place) -> Iterator[Change]:
    """Put a phase in place of another one, wherever one is entered or asked for; or do not ask for one."""
    node, known = place.node, place.known
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in known.phases:
            for other in known.phases:
                arguments = _for_another(node, name, other, known)
                if other != name and arguments is not None and place.has(other):
                    yield _swapped(ast.Call(named(place, other), [], arguments))
        case ast.Call(args=[what, asked]) if is_isinstance(node):
            for names in _other_unions(place, list(union_members(asked))):
                yield _swapped(ast.Call(ast.Name("isinstance", ast.Load()), [what, names], []))
        case ast.BinOp() if isinstance(place.parent, ast.Assign) and place.function is None:
            members = list(union_members(node))
            yield from (_swapped(union_of(_without(members, index))) for index in range(len(members)))
        case ast.MatchClass() | ast.MatchOr():
            yield from _other_patterns(place, node)


def _swapped(node: ast.AST) -> Change:
    return Change("swapped phase", node)


def _without(items: list[_Item], index: int) -> list[_Item]:
    return items[:index] + items[index + 1 :]


def _other_patterns(place: Place, node: ast.MatchClass | ast.MatchOr) -> Iterator[Change]:
    if isinstance(node, ast.MatchOr):
        for index in range(len(node.patterns)):
            rest = _without(node.patterns, index)
            yield _swapped(rest[0] if len(rest) == 1 else ast.MatchOr(rest))
    elif isinstance(node.cls, ast.Name) and node.cls.id in place.known.phases:
        others = [item for item in _after(node.cls.id, place.known.phases) if place.has(item)]
        for other in others[:1]:
            yield _swapped(ast.MatchClass(named(place, other), node.patterns, node.kwd_attrs, node.kwd_patterns))
        for index, pattern in enumerate(node.kwd_patterns):
            # What only captures a field is used; what asks for a value can be left out.
            if isinstance(pattern, ast.MatchSingleton | ast.MatchValue):
                names, patterns = _without(node.kwd_attrs, index), _without(node.kwd_patterns, index)
                yield _swapped(ast.MatchClass(node.cls, node.patterns, names, patterns))


def swapped_member(place: Place) -> Iterator[Change]:
    """Put the next member of an enum in place of one: another want, cause, halt, outcome, probe or failure."""
    match place.node:
        case ast.Attribute(value=ast.Name(id=enum) as base, attr=member) if enum in place.known.enums:
            members = place.known.enums[enum]
            if member in members:
                yield Change("swapped member", ast.Attribute(base, _after(member, members)[0], ast.Load()))


def dropped_field(place: Place) -> Iterator[Change]:
    """Leave out a field that `replace` would have changed, or that has a default."""
    node, known = place.node, place.known
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return
    name, optional = node.func.id, known.optional.get(node.func.id, frozenset())
    for index, item in enumerate(node.keywords):
        rest = _without(node.keywords, index)
        shown = f"{name}({ast.unparse(item)})", "left out"
        if name == "replace" and len(node.args) == 1 and item.arg:
            yield Change("dropped field", ast.Call(node.func, node.args, rest) if rest else node.args[0], shown)
        elif item.arg in optional:
            yield Change("dropped field", ast.Call(node.func, node.args, rest), shown)
    fields = known.fields.get(name, ())
    if node.args and len(node.args) <= len(fields) and fields[len(node.args) - 1] in optional:
        shown = f"{name}({fields[len(node.args) - 1]})", "left out"
        yield Change("dropped field", ast.Call(node.func, node.args[:-1], node.keywords), shown)


def _other_unions(place: Place, asked: list[str]) -> Iterator[ast.expr]:
    """Yield what `isinstance` could ask for instead: one phase less, or one that comes next in its place."""
    known = place.known
    if not asked or not set(asked) <= {*known.phases, *known.unions}:
        return
    whole = [name for item in asked for name in known.unions.get(item, (item,))]
    for index, name in enumerate(whole):
        rest = _without(whole, index)
        if rest and all(place.has(item) for item in rest):
            yield _named_union(place, rest)
        others = [item for item in _after(name, known.phases) if item not in whole and place.has(item)]
        # A union such as `Live` is swapped member by member at its declaration; here it only loses some.
        if others and len(asked) == len(whole):
            yield _named_union(place, [*whole[:index], others[0], *whole[index + 1 :]])


def _named_union(place: Place, names: list[str]) -> ast.expr:
    union = union_of(names)
    for item in ast.walk(union):
        if isinstance(item, ast.Name):
            item.home = named(place, item.id).home  # type: ignore[attr-defined]  # a mark of ours, for the imports
    return union


def _for_another(node: ast.Call, name: str, other: str, known: Vocabulary) -> list[ast.keyword] | None:
    """Return the arguments for another phase, out of those of this one; None if they do not suffice."""
    given = dict(zip(known.fields[name], node.args, strict=False))
    given |= {item.arg: item.value for item in node.keywords if item.arg}
    taken = {}
    for field in known.fields[other]:
        value = given.get(field) or given.get(_SAME_FIELD.get(field, ""))
        if value is not None:
            taken[field] = value
    if not known.required(other) <= set(taken):
        return None
    return [ast.keyword(field, value) for field, value in taken.items()]


def _after(name: str, names: tuple[str, ...]) -> list[str]:
    """Return the other names, beginning with the next one."""
    at = names.index(name)
    return [*names[at + 1 :], *names[:at]]


def _makes_one_of(node: ast.expr, actions: set[str]) -> bool:
    named_so = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
    return bool(named_so) and named_so in actions | _MAKES_AN_ACTION


def _is_nothing(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "NOTHING") or (isinstance(node, ast.Tuple) and not node.elts)


def _returns(place: Place, what: str) -> bool:
    function = place.function
    return function is not None and function.returns is not None and ast.unparse(function.returns) == what
