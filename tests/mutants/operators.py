"""All operators, in the order in which they are applied: of two that make the same of a node the first one counts."""

from __future__ import annotations

from mutants import expressions, lifecycle, statements
from mutants.walk import Operator

OPERATORS: tuple[Operator, ...] = (
    expressions.comparison,
    expressions.boundary,
    expressions.boolean,
    expressions.arithmetic,
    expressions.constant,
    expressions.element,
    lifecycle.dropped_action,
    lifecycle.swapped_action,
    lifecycle.swapped_phase,
    lifecycle.swapped_member,
    lifecycle.dropped_field,
    statements.dropped_statement,
    statements.dropped_case,
    statements.early_return,
)
