"""Resources as the API server would show them: with kind, defaults at every depth, and the table of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from sluice_cli.tables import table
from sluice_core.api.base import API_VERSION, Resource
from sluice_core.api.crd import BY_NAME, Kind, schema
from sluice_core.api.schema import Schema, with_defaults

Document = dict[str, Any]


@lru_cache(maxsize=len(BY_NAME))
def _schema(kind: str) -> Schema:
    return schema(BY_NAME[kind])


def document(resource: Resource) -> Document:
    """Return a resource as `kubectl get -o json` would."""
    kind = type(resource).__name__
    written = {"apiVersion": API_VERSION, "kind": kind, "status": {}, **msgspec.to_builtins(resource)}
    completed: Document = with_defaults(_schema(kind), written)
    return completed


def kind_table(
    kind: Kind, documents: Iterable[Document], now: datetime, *, wide: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of `kubectl get` for resources of one kind."""
    columns = [
        {"name": each.name, "jsonPath": each.path, "type": each.type, "priority": each.priority}
        for each in kind.columns
    ]
    return table(columns, list(documents), now, wide=wide)
