"""What every kind shares: naming, metadata, references, selectors, conditions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

GROUP = "sluice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_ACRONYMS = {"url": "URL", "usd": "USD", "api": "API"}


def wire_name(attribute: str) -> str:
    """Return the camelCase JSON name of a snake_case attribute: `daily_usd` is written `dailyUSD`."""
    first, *rest = attribute.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=wire_name):
    """Base of all wire values: immutable, camelCase on the wire, defaults left out.

    Unknown fields are ignored on decoding, so that an older reader survives a newer writer; the API server and
    `sluice validate` are the places that refuse them.
    """


def rules(*expressions: tuple[str, str]) -> dict[str, Any]:
    """Return CEL validation rules, given as (expression, message), for `Meta(extra_json_schema=...)`."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in expressions]}


def keyed_by(*keys: str) -> dict[str, Any]:
    """Mark a list as a map with these keys: server-side apply merges it, and duplicates are refused."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
HTTP_URL = r"^https?://[^/?#\s@]+(/[^?#\s]*)?$"
USD = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"


class SecretKeyRef(Value, frozen=True, kw_only=True):
    """One key of a Secret in the same namespace."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Name of the Secret.")]
    key: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=253,
            pattern=r"^[-._a-zA-Z0-9]+$",
            description="Key within the Secret's data.",
        ),
    ]


class UpstreamRef(Value, frozen=True, kw_only=True):
    """Reference to an Upstream, by default in the same namespace."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Name of the Upstream.")]
    namespace: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=63,
                description="Namespace of the Upstream, if another one; it must allow this one in allowedNamespaces.",
            ),
        ]
        | None
    ) = None


class SelectorOperator(StrEnum):
    """How a match expression compares a label with its values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class MatchExpression(Value, frozen=True, kw_only=True):
    """One requirement on a label."""

    key: Annotated[str, Meta(min_length=1, max_length=317, description="Label key.")]
    operator: Annotated[SelectorOperator, Meta(description="How the label is compared with the values.")]
    values: Annotated[
        tuple[Annotated[str, Meta(max_length=63)], ...],
        Meta(
            max_length=32,
            description="Values for In and NotIn; empty for Exists and DoesNotExist.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()


EXPRESSION_RULES = rules(
    (
        "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
        "!has(self.values) || size(self.values) == 0",
        "In and NotIn need values; Exists and DoesNotExist take none",
    ),
)


class LabelSelector(Value, frozen=True, kw_only=True):
    """Selects pods or namespaces by label; an empty selector selects all."""

    match_labels: Annotated[
        dict[str, Annotated[str, Meta(max_length=63)]],
        Meta(max_length=16, description="Labels that must all be present with these values."),
    ] = {}
    match_expressions: Annotated[
        tuple[Annotated[MatchExpression, Meta(extra_json_schema=EXPRESSION_RULES)], ...],
        Meta(
            max_length=16,
            description="Further requirements, all of which must hold.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Tell whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(expression, labels) for expression in self.match_expressions)


def _holds(expression: MatchExpression, labels: dict[str, str]) -> bool:
    present = expression.key in labels
    match expression.operator:
        case SelectorOperator.IN:
            return present and labels[expression.key] in expression.values
        case SelectorOperator.NOT_IN:  # as in Kubernetes: an absent label is not in any set
            return not present or labels[expression.key] not in expression.values
        case SelectorOperator.EXISTS:
            return present
        case SelectorOperator.DOES_NOT_EXIST:
            return not present


class BodyField(StrEnum):
    """Fields of an OpenAI request that can name the user."""

    USER = "user"
    SAFETY_IDENTIFIER = "safety_identifier"
    PROMPT_CACHE_KEY = "prompt_cache_key"


class KeySource(Value, frozen=True, kw_only=True):
    """Where a user's key is read from: exactly one of a request header or a body field."""

    header: (
        Annotated[
            str,
            Meta(min_length=1, max_length=128, pattern=HEADER_NAME, description="Request header to read."),
        ]
        | None
    ) = None
    body: Annotated[BodyField, Meta(description="Field of the request body to read.")] | None = None


ONE_KEY_SOURCE = rules(("has(self.header) != has(self.body)", "set exactly one of header and body"))

key_source = Annotated[
    KeySource,
    Meta(
        description="Where the key that names the user is read from: one header or one body field.",
        extra_json_schema=ONE_KEY_SOURCE,
    ),
]


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Value, frozen=True, kw_only=True, omit_defaults=False):
    """One observation about a resource, in the shape of `metav1.Condition`."""

    type: Annotated[str, Meta(min_length=1, max_length=316, description="What is observed, in CamelCase.")]
    status: Annotated[ConditionStatus, Meta(description="True, False or Unknown.")]
    reason: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Why, as one CamelCase word for programs.",
        ),
    ]
    message: Annotated[str, Meta(max_length=4096, description="Why, as a sentence for people, with the mend.")]
    last_transition_time: Annotated[
        str,
        Meta(
            max_length=40,
            description="When the status last changed.",
            extra_json_schema={"format": "date-time"},
        ),
    ]
    observed_generation: Annotated[int, Meta(ge=0, description="The metadata.generation that was observed.")] = 0


conditions_field = Annotated[
    tuple[Condition, ...],
    Meta(max_length=24, description="Observations about this resource.", extra_json_schema=keyed_by("type")),
]

observed_generation_field = Annotated[
    int, Meta(ge=0, description="The metadata.generation that this status was computed from.")
]


class Status(Value, frozen=True, kw_only=True):
    """What every kind's status begins with; kstatus, Helm and Flux read these two."""

    conditions: conditions_field = ()
    observed_generation: observed_generation_field = 0


class ObjectMeta(Value, frozen=True, kw_only=True):
    """The part of Kubernetes metadata that Sluice reads."""

    name: str = ""
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resource(Value, frozen=True, kw_only=True):
    """Base of the four kinds."""

    metadata: ObjectMeta
    api_version: str = field(name="apiVersion", default=API_VERSION)

    @property
    def key(self) -> str:
        """Return the resource's name within its kind, `namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
