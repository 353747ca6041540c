"""One installation for all stories, one namespace for each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from .story import Cluster, Story


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: set KUBECONFIG, and run with -n 0 (hack/kind.sh brings one up)")
    found = Cluster()
    found.install()
    return found


@pytest.fixture
def story(cluster: Cluster) -> Iterator[Story]:
    """A fresh namespace under the restricted profile, opted in, with mock, policy and application running."""
    namespace = f"story-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl(
        "label", "namespace", namespace, "sluice.dev/inject=true", "pod-security.kubernetes.io/enforce=restricted"
    )
    telling = Story(cluster, namespace)
    telling.apply("mock").rolled_out("mock-openai")
    telling.apply("policy").ready("upstream", "openai")
    telling.apply("chat").rolled_out("chat").ready("modelroute", "chat")
    yield telling
    cluster.kubectl("delete", "namespace", namespace, "--timeout", "120s")
