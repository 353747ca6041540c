"""One installation for all stories, one namespace for each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from .story import Cluster, Story

_OPTED_IN = ("sluice.dev/inject=true", "pod-security.kubernetes.io/enforce=restricted")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster with the release in it. At the end, all namespaces of the stories must be gone."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: set KUBECONFIG, and run with -n 0 (hack/kind.sh brings one up)")
    found = Cluster()
    found.install()
    yield found
    found.kubectl("wait", "--for=delete", "namespace", "--selector", "sluice-story", "--timeout=120s", check=False)
    assert not found.get("namespaces", "--selector", "sluice-story")["items"], "a namespace hangs"


@pytest.fixture
def policed(cluster: Cluster) -> Iterator[Story]:
    """A fresh namespace under the restricted profile, opted in, with a mock of the API and a policy for `app: chat`."""
    namespace = f"story-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("label", "namespace", namespace, "sluice-story=", *_OPTED_IN)
    telling = Story(cluster, namespace)
    telling.apply("mock").rolled_out("mock-openai")
    telling.apply("policy").ready("upstream", "openai")
    yield telling
    cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture
def story(policed: Story) -> Story:
    """The same with the application in it: two pods that call when they are asked to."""
    return policed.apply("chat").rolled_out("chat").ready("modelroute", "chat")
