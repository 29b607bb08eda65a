"""What the core is made of, read from its syntax trees: phases, actions, enums, and the fields of its dataclasses.

The operators need to know which phase could stand in another one's place. Nothing of the core is imported for that, so
that the same process can later load it mutated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_DATACLASS, _ENUMS = "dataclass", {"StrEnum", "IntEnum", "Enum"}


@dataclass(frozen=True)
class Vocabulary:
    """Names, in the order in which the core declares them, and the module that each comes from.

    `fields`: class → its fields; `optional`: class → those that have a default; `unions`: name → the names that it
    stands for, such as `Live`.
    """

    home: dict[str, str] = field(default_factory=dict)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    optional: dict[str, frozenset[str]] = field(default_factory=dict)
    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unions: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def phases(self) -> tuple[str, ...]:
        """Return the names of the phases, in the order of a replica's life."""
        return self.unions.get("Phase", ())

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the names of the actions."""
        return self.unions.get("Action", ())

    def required(self, name: str) -> frozenset[str]:
        """Return the fields that a class has to be given."""
        return frozenset(self.fields[name]) - self.optional[name]


def read(trees: Mapping[str, ast.Module]) -> Vocabulary:
    """Return the vocabulary of modules, each by its name."""
    known = Vocabulary()
    for module, tree in trees.items():
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                known.home[statement.name] = module
                _read_class(known, statement)
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                members = tuple(union_members(statement.value))
                if len(members) > 1:
                    known.home[statement.targets[0].id] = module
                    known.unions[statement.targets[0].id] = members
    return known


def _read_class(known: Vocabulary, node: ast.ClassDef) -> None:
    if {base.id for base in node.bases if isinstance(base, ast.Name)} & _ENUMS:
        members = [item.targets[0] for item in node.body if isinstance(item, ast.Assign)]
        known.enums[node.name] = tuple(target.id for target in members if isinstance(target, ast.Name))
    elif any(_DATACLASS in ast.unparse(decorator) for decorator in node.decorator_list):
        declared = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        names = {item.target.id: item for item in declared if isinstance(item.target, ast.Name)}
        known.fields[node.name] = tuple(names)
        known.optional[node.name] = frozenset(name for name, item in names.items() if item.value is not None)


def union_members(node: ast.AST) -> Iterator[str]:
    """Yield the names of `A | B | C`, and of `A`; nothing for anything else."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = list(union_members(node.left)), list(union_members(node.right))
        if left and right:
            yield from left + right


def union_of(names: list[str]) -> ast.expr:
    """Return `A | B | C`."""
    result: ast.expr = ast.Name(names[0], ast.Load())
    for name in names[1:]:
        result = ast.BinOp(result, ast.BitOr(), ast.Name(name, ast.Load()))
    return result
