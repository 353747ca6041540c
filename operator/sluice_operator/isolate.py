"""Compiles so that a resource which the compiler stumbles over costs nobody else his policy.

The compiler answers what is wrong with problems, never with exceptions. Should it have a fault of its own all the same,
the resource that brings it out is left out and says so, instead of stopping the policy of a whole cluster.
"""

from __future__ import annotations

import structlog

from sluice_core.compile import (
    AnyResource,
    Compiled,
    Problem,
    Reason,
    ResourceId,
    Severity,
    compile_namespaces,
)
from sluice_operator.gather import Inputs

_log = structlog.get_logger()


def compile_isolated(inputs: Inputs) -> tuple[Compiled, dict[ResourceId, Problem]]:
    """Return what came of the resources, and a problem for each one that had to be left out."""
    try:
        return compile_namespaces(inputs.resources, inputs.namespaces, inputs.pods), {}
    except Exception as error:  # noqa: BLE001 -- any fault at all: the search below finds whose it is
        _log.error("compiler_fault", error=type(error).__name__, exc_info=True)
    sound: list[AnyResource] = []
    faulty: dict[ResourceId, Problem] = {}
    for resource in inputs.resources:
        try:
            compile_namespaces([*sound, resource], inputs.namespaces, inputs.pods)
        except Exception as error:  # noqa: BLE001 -- the same
            key = ResourceId(type(resource).__name__, resource.key)
            faulty[key] = _problem(type(error).__name__)
        else:
            sound.append(resource)
    return compile_namespaces(sound, inputs.namespaces, inputs.pods), faulty


def _problem(fault: str) -> Problem:
    return Problem(
        severity=Severity.ERROR,
        reason=Reason.INVALID,
        path="",
        message=f"Sluice cannot compile this resource ({fault}) and leaves it out; this is a fault of Sluice's: please "
        "report it, and simplify the resource meanwhile",
    )
