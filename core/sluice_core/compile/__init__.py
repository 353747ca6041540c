"""The compiler: resources in, one immutable snapshot per namespace out, with the problems of each resource.

It is a pure function of its input, whatever the order of it. What is wrong is left out in the smallest unit that can
stand alone (see `Reason`), is said in the problems of its own resource, and never changes what others get.

Precedence of routes that select one pod: the one with more selector requirements first, then by name. Where two
resources claim the same thing (an upstream's quota, a rule's split) the older one has it, then the first by name.
"""

from sluice_core.api.manifests import AnyResource
from sluice_core.compile.compiler import Compiled, compile_namespaces
from sluice_core.limits.accounts import UNALLOCATED
from sluice_core.problems import Problem, Reason, ResourceId, Severity

__all__ = [
    "UNALLOCATED",
    "AnyResource",
    "Compiled",
    "Problem",
    "Reason",
    "ResourceId",
    "Severity",
    "compile_namespaces",
]
