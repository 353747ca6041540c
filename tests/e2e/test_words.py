"""The words of the stories that need no cluster to be checked."""

from __future__ import annotations

import pytest

from .story import image_values

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("reference", "repository", "tag", "digest"),
    [
        ("sluice-operator:dev", "sluice-operator", "dev", ""),
        ("sluice-operator", "sluice-operator", "latest", ""),
        ("localhost:5000/sluice-operator", "localhost:5000/sluice-operator", "latest", ""),
        ("localhost:5000/team/sluice:1.2", "localhost:5000/team/sluice", "1.2", ""),
        (f"ghcr.io/a/sluice@{DIGEST}", "ghcr.io/a/sluice", "latest", DIGEST),
        (f"ghcr.io:443/a/sluice:1.2@{DIGEST}", "ghcr.io:443/a/sluice", "1.2", DIGEST),
    ],
)
def test_an_image_reference_becomes_values(reference: str, repository: str, tag: str, digest: str) -> None:
    """A registry's port is no tag, an image without a tag is the latest, and a digest stays one."""
    assert image_values(reference) == {"repository": repository, "tag": tag, "digest": digest}
