"""The reference pages of docs/, made from the code, so that they cannot say anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from reference import commands, dashboard, environment, faults, metrics, records, resources, tables
from sluice_core.api import crd

PAGES: Mapping[str, Callable[[], str]] = {
    **{f"docs/reference/{kind.name.lower()}.md": partial(resources.page, kind) for kind in crd.KINDS},
    "docs/reference/cli.md": commands.page,
    "docs/reference/decision-record.md": records.page,
    "docs/reference/environment.md": environment.page,
    "docs/reference/errors.md": tables.errors_page,
    "docs/reference/metrics.md": metrics.page,
    "docs/reference/mock-faults.md": faults.page,
    "docs/reference/presets.md": tables.presets_page,
    "docs/reference/prices.md": tables.prices_page,
    "docs/reference/reasons.md": tables.reasons_page,
    "docs/reference/states.md": tables.states_page,
    # beside the pages: helm packages nothing from outside of the chart
    "charts/sluice/files/dashboards/sluice.json": dashboard.text,
}
"""Path within the repository, and the function that makes the page's text."""
