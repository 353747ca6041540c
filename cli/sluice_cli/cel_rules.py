"""Evaluates the CEL rules of the CRDs, with the functions that Kubernetes adds to the language."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import cel

from sluice_core.api.validation import RuleError


def evaluate(rule: str, value: Any) -> bool:
    """Tell whether a rule holds for `self`.

    Raises:
        RuleError: the rule cannot be evaluated, which is a mistake in the rule.
    """
    context = cel.Context(variables={"self": value})
    context.add_function("sum", sum)
    context.add_function("isSorted", _is_sorted)
    try:
        return bool(_compiled(rule).execute(context))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise RuleError(str(error)) from error


@lru_cache(maxsize=256)
def _compiled(rule: str) -> cel.Program:
    return cel.compile(rule)


def _is_sorted(values: list[Any]) -> bool:
    return all(one <= other for one, other in pairwise(values))
