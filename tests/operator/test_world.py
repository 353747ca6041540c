"""What is known of the cluster: order of arrival, lost deletions, unreadable objects; and who gets a policy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_operator.gather import gather
from sluice_operator.kinds import MODEL_ROUTES, NAMESPACES, OBSERVED, PODS
from sluice_operator.world import Namespace, Pod, World, wants_injection


def thing(name: str = "chat", version: int = 1, namespace: str = "team", **content: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"u-{name}",
        "resourceVersion": str(version),
        "generation": 1,
        **content.pop("metadata", {}),
    }
    return {"metadata": metadata, **content}


SPEC = {"rules": [{"name": "default", "targets": [{"upstreamRef": {"name": "openai"}}]}]}


def test_a_late_event_does_not_undo_a_newer_state():
    """Versions decide, not the order of arrival."""
    world = World()
    world.put(MODEL_ROUTES, thing(version=10, spec=SPEC, metadata={"generation": 2}), 1.0)
    assert not world.put(MODEL_ROUTES, thing(version=9, spec=SPEC), 2.0)
    assert not world.remove(MODEL_ROUTES, thing(version=9), 3.0)
    assert world.held()[0].metadata.generation == 2


def test_only_what_matters_wakes_the_loop():
    """A changed status is no reason for a round: the loop's own writes would feed it."""
    world = World()
    assert world.put(MODEL_ROUTES, thing(version=1, spec=SPEC), 1.0)
    assert not world.put(MODEL_ROUTES, thing(version=2, spec=SPEC, status={"pods": 3}), 2.0)
    assert world.put(MODEL_ROUTES, thing(version=3, spec=SPEC, metadata={"generation": 2}), 3.0)
    assert world.put(
        MODEL_ROUTES, thing(version=4, spec=SPEC, metadata={"generation": 2, "annotations": {"a": "b"}}), 4.0
    )
    assert world.remove(MODEL_ROUTES, thing(version=5), 5.0)


def test_a_pods_heartbeat_does_not_wake_the_loop():
    """Kubelets write pod statuses all the time; only labels, sidecar, start and end of life matter."""
    world = World()
    pod = {"spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "sluice"}]}}
    assert world.put(PODS, thing(version=1, status={"phase": "Running"}, **pod), 1.0)
    assert not world.put(PODS, thing(version=2, status={"phase": "Running", "podIP": "10.0.0.1"}, **pod), 2.0)
    assert world.put(PODS, thing(version=3, status={"phase": "Succeeded"}, **pod), 3.0)


def test_a_listing_forgets_what_a_cut_watch_missed():
    """What the listing lacks is gone; what an event brought after the listing was asked for stays."""
    world = World()
    world.put(MODEL_ROUTES, thing("old", 1, spec=SPEC), 1.0)
    world.put(MODEL_ROUTES, thing("fresh", 9, spec=SPEC), 5.0)
    assert world.replace(MODEL_ROUTES, [thing("listed", 3, spec=SPEC)], asked_at=4.0)
    assert {held.metadata.name for held in world.held()} == {"fresh", "listed"}


def test_a_listing_does_not_bring_back_what_was_deleted_since():
    """An object that an event removed while the listing was under way does not return with it."""
    world = World()
    world.put(MODEL_ROUTES, thing(version=3, spec=SPEC), 1.0)
    world.remove(MODEL_ROUTES, thing(version=4), 5.0)
    world.replace(MODEL_ROUTES, [thing(version=3, spec=SPEC)], asked_at=4.0)
    assert world.held() == ()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.booleans()),
        max_size=30,
        unique_by=lambda each: each[1],
    )
)
def test_any_order_of_events_ends_in_the_newest_state(events):
    """Whatever the order, the last version of each object that still exists is what is known."""
    world = World()
    for name, version, _ in events:
        world.put(MODEL_ROUTES, thing(name, version, spec=SPEC), float(version))
    newest = {}
    for name, version, _ in events:
        newest[name] = max(version, newest.get(name, 0))
    assert {held.metadata.name: int(held.metadata.resource_version) for held in world.held()} == newest


def test_absence_means_nothing_before_everything_was_listed():
    """One type that could not be listed keeps the view incomplete."""
    world = World()
    for type_ in OBSERVED[:-1]:
        world.replace(type_, [], 1.0)
    assert not world.complete
    world.replace(OBSERVED[-1], [], 1.0)
    assert world.complete


@pytest.mark.parametrize(
    ("own", "of_namespace", "expected"),
    [
        (None, None, False),
        (None, "true", True),
        ("true", None, True),
        ("false", "true", False),
        ("yes", "true", False),
        (None, "false", False),
    ],
)
def test_who_wants_a_sidecar(own: str | None, of_namespace: str | None, expected: bool):
    """The pod's own label decides, else its namespace's."""
    labels = {} if own is None else {"sluice.dev/inject": own}
    namespace_labels = {} if of_namespace is None else {"sluice.dev/inject": of_namespace}
    pod = Pod(namespace="team", name="p", uid="u", resource_version="1", labels=labels)
    assert wants_injection(pod, Namespace(name="team", resource_version="1", labels=namespace_labels)) is expected


def test_only_namespaces_that_exist_get_a_policy():
    """A route whose namespace is not known yet waits for it."""
    world = World()
    world.put(MODEL_ROUTES, thing(spec=SPEC), 1.0)
    assert gather(world).namespaces == {}
    world.put(NAMESPACES, {"metadata": {"name": "team", "resourceVersion": "2", "labels": {"a": "b"}}}, 2.0)
    assert gather(world).namespaces == {"team": {"a": "b"}}


def test_a_pod_that_never_started_is_not_waited_for():
    """It counts for sizing shares, and not among those that should run the present policy."""
    world = World()
    world.put(NAMESPACES, {"metadata": {"name": "team", "resourceVersion": "1"}}, 1.0)
    for number, phase in enumerate(("Running", "Pending", "Failed")):
        spec = {"containers": [{"name": "sluice"}]}
        world.put(PODS, thing(f"p{number}", spec=spec, status={"phase": phase}), 1.0)
    inputs = gather(world)
    assert (len(inputs.pods["team"]), inputs.running) == (2, {"team": 1})
