"""From the source of the core to its mutants: where operators may act, and how a mutant is named.

Three rules:

1. A mutant is one node of a syntax tree put in place of another one, and the imports that it needs. All that an
   operator changes compiles and can run; a mutant that dies of a NameError proves nothing.
2. Its name is made of words of the source, `module:function:operator: before → after`, and not of lines, so that a
   list of survivors outlives edits elsewhere.
3. What is written for people is no behaviour. Left out are f-strings, docstrings, `__str__`, whatever is assigned or
   passed as `words`, `why` or the like, and a choice between two texts. That there *is* a new reason is behaviour:
   `reason=` may be dropped. Left out too are annotations, assertions that narrow a type, and the declarations of
   settings in `spec`: their defaults and ranges are no decision, and `tests/test_config_example.py` compares each of
   them with models.toml.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mutants.vocabulary import Vocabulary, read

PACKAGE = "modelsupd.core"

#: Names whose values are words for people.
WORDS = frozenset({"words", "why", "reason", "hint", "near", "last", "pids", "complaint", "evidence", "detail", "doc"})

#: Names of `spec` that only shape what `config` reads; the same goes for `field(...)` and `_limit(...)` anywhere.
SETTINGS = frozenset({"_STRICT", "NAME", "_limit", "limit", "Argument", "__all__", "__pydantic_config__"})
_DECLARES = frozenset({"field", "_limit", "limit"})

_NO_BEHAVIOUR = frozenset({"decorator_list", "annotation", "returns", "bases", "keywords of a class", "ctx"})

_KEPT_CHARS, _SHARED_CHARS, _SHORT_CHARS = 28, 40, 80


@dataclass(frozen=True)
class Place:
    """A node and what stands around it, outermost first."""

    node: ast.AST
    parents: tuple[ast.AST, ...]
    module: str
    known: Vocabulary
    imported: frozenset[str]

    @property
    def parent(self) -> ast.AST:
        """Return the node that holds this one."""
        return self.parents[-1]

    @property
    def function(self) -> ast.FunctionDef | None:
        """Return the innermost function around the node."""
        return next((node for node in reversed(self.parents) if isinstance(node, ast.FunctionDef)), None)

    def has(self, name: str) -> bool:
        """Tell whether the module knows a name of the core, or can without importing what imports it."""
        home = self.known.home.get(name)
        return home is not None and (home == self.module or home in self.imported)


@dataclass(frozen=True)
class Change:
    """What an operator makes of a node; `shown` is before and after in words, where the nodes' own are too long."""

    operator: str
    node: ast.AST
    shown: tuple[str, str] | None = None


Operator = Callable[[Place], Iterator[Change]]
Path_ = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Mutant:
    """One change of one module, by a name that survives edits elsewhere."""

    name: str
    module: str
    operator: str
    line: int
    path: Path_
    node: ast.AST

    def __str__(self) -> str:
        """Return the name."""
        return self.name


def modules(folder: Path) -> dict[str, ast.Module]:
    """Return the syntax trees of a package's modules, by name."""
    paths = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    return {path.stem: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in paths}


def mutants(trees: Mapping[str, ast.Module], operators: tuple[Operator, ...]) -> list[Mutant]:
    """Return every mutant that the operators make of the modules, in the order of the source."""
    known, found, names = read(trees), [], Counter[str]()
    tested = _tested_unions(trees, known)
    for module, tree in trees.items():
        for place, path in _places(tree, module, known, tested):
            seen: set[str] = set()
            for change in itertools.chain.from_iterable(operator(place) for operator in operators):
                after = ast.unparse(ast.fix_missing_locations(change.node))
                seen = seen or {ast.unparse(place.node)}
                if after not in seen:
                    seen.add(after)
                    name = f"{module}:{_function_name(place)}:{change.operator}: {' → '.join(_shown(place, change))}"
                    names[name] += 1
                    if names[name] > 1:
                        name += f" #{names[name]}"
                    line = getattr(place.node, "lineno", getattr(place.parent, "lineno", 0))
                    found.append(Mutant(name, module, change.operator, line, path, change.node))
    return found


def applied(tree: ast.Module, mutant: Mutant) -> ast.Module:
    """Return the module with the mutant in it."""
    result = copy.deepcopy(tree)
    *above, (field, index) = mutant.path
    node: ast.AST = result
    for name, at in above:
        node = getattr(node, name) if at is None else getattr(node, name)[at]
    if index is None:
        setattr(node, field, mutant.node)
    else:
        getattr(node, field)[index] = mutant.node
    missing = _missing_imports(result, mutant.node)
    after_future = 1 + max((at for at, node in enumerate(result.body) if _is_future(node)), default=-1)
    result.body[after_future:after_future] = missing
    return ast.fix_missing_locations(result)


def _is_future(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__")


def _missing_imports(tree: ast.Module, node: ast.AST) -> list[ast.stmt]:
    # Only names that a change brought in carry their home, see `named`.
    homes = {item.id: item.home for item in ast.walk(node) if isinstance(item, ast.Name) and hasattr(item, "home")}
    bound = {alias.name for item in tree.body if isinstance(item, ast.ImportFrom) for alias in item.names}
    bound |= {item.name for item in tree.body if isinstance(item, ast.ClassDef)}
    return [
        ast.ImportFrom(f"{PACKAGE}.{home}", [ast.alias(name)], 0) for name, home in homes.items() if name not in bound
    ]


def named(place: Place, name: str) -> ast.Name:
    """Return a name of the core that the module may have to import first."""
    node = ast.Name(name, ast.Load())
    node.home = place.known.home.get(name, place.module)  # type: ignore[attr-defined]  # a mark of ours, for the imports
    return node


# Where operators may act


def _tested_unions(trees: Mapping[str, ast.Module], known: Vocabulary) -> set[str]:
    """Return the unions that some `isinstance` asks for; the others are for type checkers."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    asked = [node.args[1] for node in nodes if isinstance(node, ast.Call) and is_isinstance(node)]
    names = {item.id for union in asked for item in ast.walk(union) if isinstance(item, ast.Name)}
    return names & set(known.unions)


def is_isinstance(node: ast.AST) -> bool:
    """Tell whether a node is `isinstance(…)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def _places(tree: ast.Module, module: str, known: Vocabulary, tested: set[str]) -> Iterator[tuple[Place, Path_]]:
    imports = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    imported = frozenset(name.removeprefix(f"{PACKAGE}.") for name in imports)

    def visit(node: ast.AST, parents: tuple[ast.AST, ...], path: Path_) -> Iterator[tuple[Place, Path_]]:
        if _is_left_out(node, tested, known):
            return
        if parents:
            yield Place(node, parents, module, known, imported), path
        for field, value in ast.iter_fields(node):
            if field in _NO_BEHAVIOUR:
                continue
            if isinstance(value, ast.AST):
                yield from visit(value, (*parents, node), (*path, (field, None)))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.AST):
                        yield from visit(item, (*parents, node), (*path, (field, index)))

    yield from visit(tree, (), ())


def _is_left_out(node: ast.AST, tested: set[str], known: Vocabulary) -> bool:  # noqa: PLR0911 - one case a kind of node
    match node:
        case ast.FunctionDef(name=name):
            return name == "__str__" or name in SETTINGS
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=value)
        ):
            is_type = isinstance(value, ast.Subscript) and name[0].isupper()
            return is_type or name in WORDS | SETTINGS or (name in known.unions and name not in tested)
        case ast.keyword(arg=name):
            return name in WORDS
        case ast.IfExp(body=one, orelse=other):
            return _is_text(one) and _is_text(other)
        case ast.Call(func=ast.Name(id=name)):
            return name in _DECLARES
        case ast.Expr(value=value):
            return _is_text(value)
        case _:
            return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


# Names


def _function_name(place: Place) -> str:
    inside = (*place.parents, place.node)
    names = [node.name for node in inside if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if not names:
        targets = [node.targets[0] for node in inside if isinstance(node, ast.Assign)]
        targets += [node.target for node in inside if isinstance(node, ast.AnnAssign)]
        names = [ast.unparse(target) for target in targets[:1]]
    return ".".join(names) or "module"


def _shown(place: Place, change: Change) -> tuple[str, str]:
    if change.shown is not None:
        return change.shown
    before, after = place.node, change.node
    if isinstance(before, ast.Constant | ast.Name | ast.Attribute) and _is_short(place.parent):
        # A lone `1` or `Want.UP` says nothing; what holds it does.
        around = copy.copy(place.parent)
        for field, value in ast.iter_fields(place.parent):
            if value is before:
                setattr(around, field, after)
            elif isinstance(value, list):
                setattr(around, field, [after if item is before else item for item in value])
        before, after = place.parent, around
    return _trimmed(_line(before), _line(after))


def _is_short(node: ast.AST) -> bool:
    holds = isinstance(node, ast.expr | ast.keyword | ast.pattern | ast.Assign | ast.AnnAssign)
    return holds and not isinstance(node, ast.Tuple | ast.Set | ast.Dict) and len(_line(node)) <= _SHORT_CHARS


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())


def _trimmed(before: str, after: str) -> tuple[str, str]:
    """Return two texts without most of what they share at both ends."""
    shorter = min(len(before), len(after))
    head = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    tail = next((at for at in range(shorter - head) if before[-1 - at] != after[-1 - at]), shorter - head)
    cut, rest = (max(0, shared - _KEPT_CHARS) if shared > _SHARED_CHARS else 0 for shared in (head, tail))

    def part(text: str) -> str:
        return ("…" if cut else "") + text[cut : len(text) - rest] + ("…" if rest else "")

    return part(before), part(after)
