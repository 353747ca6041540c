"""What can be said about label selectors without looking at pods: how specific they are, and which implies which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sluice_core.api.base import LabelSelector, SelectorOperator

Requirement = tuple[str, SelectorOperator, tuple[str, ...]]


def requirements(selector: LabelSelector) -> frozenset[Requirement]:
    """Return the selector as a set of requirements in one spelling: a match label is an In with one value."""
    labels = ((key, SelectorOperator.IN, (value,)) for key, value in selector.match_labels.items())
    expressions = ((each.key, each.operator, tuple(sorted(set(each.values)))) for each in selector.match_expressions)
    return frozenset((*labels, *expressions))


def specificity(selector: LabelSelector) -> int:
    """Return how many different requirements the selector makes."""
    return len(requirements(selector))


def implies(narrow: LabelSelector, wide: LabelSelector) -> bool:
    """Tell whether it is certain that whatever `narrow` selects, `wide` selects too. False means "not certain"."""
    return requirements(wide) <= requirements(narrow)


def selects_any(selector: LabelSelector, pods: Iterable[Mapping[str, str]]) -> bool:
    """Tell whether one of the pods, given by labels, is selected."""
    return any(selector.matches(dict(labels)) for labels in pods)


def overlap(one: LabelSelector, other: LabelSelector, pods: Sequence[Mapping[str, str]] | None) -> bool:
    """Tell whether both certainly select a same pod: they ask the same, or a pod at hand is selected by both."""
    if requirements(one) == requirements(other):
        return True
    return pods is not None and any(one.matches(dict(labels)) and other.matches(dict(labels)) for labels in pods)
