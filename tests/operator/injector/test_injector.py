"""Which pods get a sidecar, and what is added to them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_operator.injector import INJECTED_ANNOTATION, PLACEHOLDER_KEY, Outcome, inject
from sluice_operator.injector_settings import InjectorSettings, SidecarSettings, WhenUnconfigured, quantity
from sluice_sidecar import settings as sidecar_settings

from . import pods

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "pod", "native"),
    [
        ("plain", pods.plain, True),
        ("plain-classic", pods.plain, False),
        ("rich", pods.rich, True),
        ("job", pods.job, True),
        ("job-classic", pods.job, False),
    ],
)
def test_patches_are_the_golden_ones(name: str, pod: Callable[[], pods.Pod], native: bool) -> None:
    """The operations and warnings for a pod are, to the byte, those that were reviewed."""
    injection = inject(pod(), pods.SETTINGS, native=native)
    found = json.loads(msgspec.json.encode({"patch": injection.patch, "warnings": injection.warnings}))
    path = GOLDEN / f"{name}.json"
    if os.environ.get("SLUICE_UPDATE_GOLDEN"):
        path.write_text(json.dumps(found, indent=2) + "\n")

    assert json.loads(path.read_text()) == found


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("pod", [pods.plain, pods.rich, pods.job])
def test_nothing_that_the_user_wrote_changes(pod: Callable[[], pods.Pod], native: bool) -> None:
    """Taking away what Sluice added gives back exactly the pod that came."""
    before = pod()
    after = pods.patched(before, inject(before, pods.SETTINGS, native=native))

    assert _stripped(after) == _stripped(before)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("pod", [pods.plain, pods.rich, pods.job])
def test_a_second_review_of_the_same_pod_adds_nothing(pod: Callable[[], pods.Pod], native: bool) -> None:
    """The injector run on its own result returns no operation."""
    after = pods.patched(pod(), inject(pod(), pods.SETTINGS, native=native))

    assert inject(after, pods.SETTINGS, native=native).patch == ()


def test_a_container_that_another_webhook_added_later_is_pointed_at_the_proxy() -> None:
    """On re-invocation only the new container's environment is added to."""
    pod = pods.patched(pods.plain(), inject(pods.plain(), pods.SETTINGS, native=True))
    pod["spec"]["containers"].append({"name": "late", "image": "late:1"})

    injection = inject(pod, pods.SETTINGS, native=True)

    assert injection.outcome is Outcome.COMPLETED
    assert [operation.path for operation in injection.patch] == ["/spec/containers/1/env"]


def test_the_sidecar_starts_first_and_never_ends() -> None:
    """The native sidecar is the first init container, so that the other init containers can call the API."""
    pod = pods.rich()
    after = pods.patched(pod, inject(pod, pods.SETTINGS, native=True))

    names = [item["name"] for item in after["spec"]["initContainers"]]
    assert names == ["sluice", "migrate", "log"]
    assert after["spec"]["initContainers"][0]["restartPolicy"] == "Always"


def test_the_base_url_comes_before_variables_that_may_refer_to_it() -> None:
    """`$(OPENAI_BASE_URL)` in a user's variable resolves, because ours stands before it."""
    pod = pods.rich()
    after = pods.patched(pod, inject(pod, pods.SETTINGS, native=True))

    env = after["spec"]["initContainers"][1]["env"]
    assert [entry["name"] for entry in env] == ["OPENAI_BASE_URL", "OPENAI_API_KEY", "A"]
    assert env[0]["value"] == "http://127.0.0.1:4141/v1"


@pytest.mark.parametrize(
    ("container", "added"),
    [
        ("app", {"OPENAI_BASE_URL": "http://127.0.0.1:4141/v1"}),
        ("direct", {"OPENAI_API_KEY": PLACEHOLDER_KEY}),
        ("from", {"OPENAI_BASE_URL": "http://127.0.0.1:4141/v1", "OPENAI_API_KEY": PLACEHOLDER_KEY}),
    ],
)
def test_a_variable_that_is_set_by_name_is_kept(container: str, added: dict[str, str]) -> None:
    """An `env` entry counts as set, by value or by reference; `envFrom` does not."""
    before = pods.rich()
    after = pods.patched(before, inject(before, pods.SETTINGS, native=True))

    old, new = (
        next(item for item in pod["spec"]["containers"] if item["name"] == container).get("env", [])
        for pod in (before, after)
    )
    assert {entry["name"]: entry["value"] for entry in new if entry not in old} == added


def test_the_account_token_of_the_application_stays_out_of_the_sidecar() -> None:
    """Something of ours is mounted where the API server would otherwise mount the account's token."""
    injection = inject(pods.plain(), pods.SETTINGS, native=True)
    mounts = {mount["mountPath"]: mount["name"] for mount in _sidecar(injection)["volumeMounts"]}

    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "sluice-pod"
    assert "kube-api-access-x" not in mounts.values()


@pytest.mark.parametrize("native", [True, False])
def test_the_sidecar_meets_the_restricted_pod_security_profile(native: bool) -> None:
    """Each control of the restricted profile that a container can break is kept by the sidecar."""
    sidecar = _sidecar(inject(pods.plain(), pods.SETTINGS, native=native))
    context = sidecar["securityContext"]
    volumes = inject(pods.plain(), pods.SETTINGS, native=native).patch

    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] != 0
    assert context["allowPrivilegeEscalation"] is False
    assert context["privileged"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all("hostPort" not in port for port in sidecar["ports"])
    assert not any("hostPath" in operation.value for operation in volumes if operation.path == "/spec/volumes/-")


def test_the_sidecar_reads_the_environment_that_it_is_given() -> None:
    """The sidecar's own settings module accepts the injected environment and takes every value from it."""
    env = {
        entry["name"]: entry.get("value", "x")
        for entry in _sidecar(inject(pods.plain(), pods.SETTINGS, native=True))["env"]
    }

    settings = sidecar_settings.load(env)

    assert settings.grace_seconds == 58
    assert str(settings.config_dir) == "/etc/sluice/config"
    assert str(settings.sync_ca_file) == "/etc/sluice/config/ca.crt"
    assert settings.sync_url == "https://sluice-operator.sluice-system.svc:8443"
    assert settings.when_unconfigured.value == "Hold"


@pytest.mark.parametrize(("host", "listens"), [("0.0.0.0", "0.0.0.0"), ("::", "::")])
def test_the_admin_port_can_listen_on_either_family(host: str, listens: str) -> None:
    """An IPv6 address is written so that the sidecar reads it back."""
    changed = msgspec.structs.replace(pods.SETTINGS.sidecar, admin_host=host)
    injection = inject(pods.plain(), msgspec.structs.replace(pods.SETTINGS, sidecar=changed), native=True)
    env = {entry["name"]: entry.get("value", "x") for entry in _sidecar(injection)["env"]}

    assert sidecar_settings.load(env).admin == sidecar_settings.Address(host=listens, port=4142)


@pytest.mark.parametrize(("pod_seconds", "grace"), [(None, "28"), (0, "1"), (1, "1"), (600, "598")])
def test_the_sidecar_drains_within_the_pods_own_grace_period(pod_seconds: int | None, grace: str) -> None:
    """What is left of the pod's grace period after draining is enough to flush."""
    pod = pods.plain()
    pod["spec"]["terminationGracePeriodSeconds"] = pod_seconds
    env = {entry["name"]: entry.get("value") for entry in _sidecar(inject(pod, pods.SETTINGS, native=True))["env"]}

    assert env["SLUICE_GRACE_SECONDS"] == grace


@pytest.mark.parametrize(
    ("annotations", "resources", "warned"),
    [
        ({}, {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}, None),
        (
            {"cpu-request": "2", "memory-request": "128Mi"},
            {"requests": {"cpu": "2", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}},
            "raised to 2",
        ),
        (
            {"cpu-limit": "lots"},
            {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
            "not a quantity",
        ),
        (
            {"memory-limit": "1.5Gi"},
            {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1.5Gi"}},
            None,
        ),
    ],
)
def test_annotations_set_the_sidecars_resources(
    annotations: dict[str, str], resources: dict[str, Any], warned: str | None
) -> None:
    """A pod may ask for resources; what the API server would refuse the pod for is mended and said."""
    pod = pods.plain()
    pod["metadata"]["annotations"] = {f"sluice.dev/sidecar-{name}": value for name, value in annotations.items()}

    injection = inject(pod, pods.SETTINGS, native=True)

    assert _sidecar(injection)["resources"] == resources
    assert ([warned] if warned else []) == [warned for text in injection.warnings if warned and warned in text]


@pytest.mark.parametrize(
    ("annotation", "namespace", "expected"),
    [
        (None, None, "Hold"),
        (None, WhenUnconfigured.PASS_THROUGH, "PassThrough"),
        ("Hold", WhenUnconfigured.PASS_THROUGH, "Hold"),
        ("PassThrough", None, "PassThrough"),
        ("Maybe", WhenUnconfigured.PASS_THROUGH, "PassThrough"),
    ],
)
def test_the_pod_overrides_its_namespace_on_what_happens_without_a_policy(
    annotation: str | None, namespace: WhenUnconfigured | None, expected: str
) -> None:
    """Pod annotation, then namespace, then installation; a wrong word counts as none."""
    pod = pods.plain()
    pod["metadata"]["annotations"] = {"sluice.dev/when-unconfigured": annotation} if annotation else {}
    injection = inject(pod, pods.SETTINGS, native=True, when_unconfigured=namespace)
    env = {entry["name"]: entry.get("value") for entry in _sidecar(injection)["env"]}

    assert env["SLUICE_WHEN_UNCONFIGURED"] == expected


def _opted_out(pod: pods.Pod) -> None:
    pod["metadata"]["labels"]["sluice.dev/inject"] = "false"


def _host_network(pod: pods.Pod) -> None:
    pod["spec"]["hostNetwork"] = True


def _windows(pod: pods.Pod) -> None:
    pod["spec"]["os"] = {"name": "windows"}


def _windows_nodes(pod: pods.Pod) -> None:
    pod["spec"]["nodeSelector"] = {"kubernetes.io/os": "windows"}


def _mirror(pod: pods.Pod) -> None:
    pod["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}


def _same_name(pod: pods.Pod) -> None:
    pod["spec"]["containers"].append({"name": "sluice", "image": "theirs"})


@pytest.mark.parametrize(
    ("change", "outcome", "warning"),
    [
        (_opted_out, Outcome.OPTED_OUT, None),
        (_host_network, Outcome.UNSUPPORTED, "host's network"),
        (_windows, Outcome.UNSUPPORTED, "Windows"),
        (_windows_nodes, Outcome.UNSUPPORTED, "Windows"),
        (_mirror, Outcome.UNSUPPORTED, "static pod"),
        (_same_name, Outcome.UNSUPPORTED, 'called "sluice"'),
    ],
)
def test_some_pods_are_left_alone(change: Callable[[pods.Pod], None], outcome: Outcome, warning: str | None) -> None:
    """A pod that opted out is left alone silently, one that cannot have a sidecar with the reason."""
    pod = pods.plain()
    change(pod)

    injection = inject(pod, pods.SETTINGS, native=True)

    assert injection.outcome is outcome
    assert injection.patch == ()
    assert bool(injection.warnings) == (warning is not None)
    assert warning is None or warning in injection.warnings[0]


@pytest.mark.parametrize(
    ("env", "warned"),
    [
        ([{"name": "HTTP_PROXY", "value": "http://proxy"}], True),
        ([{"name": "http_proxy", "value": "http://proxy"}, {"name": "no_proxy", "value": ".svc,127.0.0.1"}], False),
        ([{"name": "HTTPS_PROXY", "value": "http://proxy"}], False),
    ],
)
def test_a_proxy_that_would_swallow_the_calls_is_named(env: list[dict[str, str]], warned: bool) -> None:
    """An HTTP proxy in the environment would take the calls to the sidecar away; the user is told the mend."""
    pod = pods.plain()
    pod["spec"]["containers"][0]["env"] = env

    warnings = inject(pod, pods.SETTINGS, native=True).warnings

    assert any("NO_PROXY" in warning for warning in warnings) == warned


def test_a_port_of_the_sidecar_that_the_pod_uses_too_is_named() -> None:
    """Two listeners on one port in one pod cannot both start."""
    pod = pods.plain()
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 4142}]

    assert any("port 4142" in warning for warning in inject(pod, pods.SETTINGS, native=True).warnings)


def test_additions_of_the_installation_cannot_override_the_contract() -> None:
    """Extra variables reach the sidecar; those that Sluice sets itself are not replaced."""
    sidecar = SidecarSettings(image="i", environment={"SLUICE_LISTEN": "0.0.0.0:1", "UV_THREADPOOL_SIZE": "2"})
    injection = inject(pods.plain(), InjectorSettings(version="1", sidecar=sidecar), native=True)
    env = {entry["name"]: entry.get("value") for entry in _sidecar(injection)["env"]}

    assert env["SLUICE_LISTEN"] == "127.0.0.1:4141"
    assert env["UV_THREADPOOL_SIZE"] == "2"


_names = st.sampled_from(["OPENAI_BASE_URL", "OPENAI_API_KEY", "A", "B"])
_env = st.none() | st.lists(st.builds(lambda name: {"name": name, "value": "x"}, _names), max_size=4)


@st.composite
def _pods(draw: st.DrawFn) -> pods.Pod:
    def containers(prefix: str, least: int) -> list[dict[str, Any]]:
        environments = draw(st.lists(_env, min_size=least, max_size=3))
        return [
            {"name": f"{prefix}{index}", **({"env": env} if env is not None else {})}
            for index, env in enumerate(environments)
        ]

    spec: dict[str, Any] = {"containers": containers("c", 1)}
    if draw(st.booleans()):
        spec["initContainers"] = containers("i", 0)
    if draw(st.booleans()):
        spec["volumes"] = draw(st.sampled_from([[], [{"name": "own"}], [{"name": "sluice-policy"}]]))
    metadata: dict[str, Any] = {"labels": {"sluice.dev/inject": "true"}}
    if draw(st.booleans()):
        metadata["annotations"] = draw(st.sampled_from([{}, {"a": "b"}]))
    return {"metadata": metadata, "spec": spec}


@given(pod=_pods(), native=st.booleans())
def test_any_pod_is_patched_once_and_completely(pod: pods.Pod, native: bool) -> None:
    """For any shape of pod the patch applies, adds only, is idempotent, and leaves no container unset."""
    after = pods.patched(pod, inject(pod, pods.SETTINGS, native=native))

    assert inject(after, pods.SETTINGS, native=native).patch == ()
    assert _stripped(after) == _stripped(pod)
    for item in [*after["spec"].get("initContainers", []), *after["spec"]["containers"]]:
        names = [entry["name"] for entry in item["env"]]
        assert item["name"] == "sluice" or {"OPENAI_BASE_URL", "OPENAI_API_KEY"} <= set(names)


@pytest.mark.parametrize(("text", "value"), [("250m", "0.25"), ("64Mi", "67108864"), ("1.5", "1.5"), ("2k", "2000")])
def test_quantities_have_the_values_that_kubernetes_gives_them(text: str, value: str) -> None:
    """Decimal and binary suffixes are understood."""
    assert str(quantity(text)) == value or quantity(text) == quantity(value)


@pytest.mark.parametrize("text", ["", "-1", "1 Gi", "1e3", "lots", "0x10", "1\n"])
def test_other_texts_are_no_quantities(text: str) -> None:
    """What is not understood is not passed on to the API server."""
    assert quantity(text) is None


def _sidecar(injection: Any) -> dict[str, Any]:
    for operation in injection.patch:
        for value in operation.value if isinstance(operation.value, list) else [operation.value]:
            if isinstance(value, dict) and value.get("name") == "sluice":
                found: dict[str, Any] = value
                return found
    raise AssertionError("no sidecar was added")


def _stripped(pod: pods.Pod) -> pods.Pod:
    """Return a pod without all that Sluice adds, and with empty collections left out."""
    result = copy.deepcopy(pod)
    spec = result["spec"]
    for field in ("initContainers", "containers"):
        kept = [item for item in spec.get(field, []) if item["name"] != "sluice"]
        for item in kept:
            ours = {"OPENAI_BASE_URL": "http://127.0.0.1:4141/v1", "OPENAI_API_KEY": PLACEHOLDER_KEY}
            item["env"] = [entry for entry in item.get("env", []) if ours.get(entry["name"]) != entry.get("value", "")]
        spec[field] = kept
    names = {"sluice-policy", "sluice-credentials", "sluice-pod"}
    spec["volumes"] = [volume for volume in spec.get("volumes", []) if volume["name"] not in names]
    annotations = result["metadata"].get("annotations", {})
    result["metadata"]["annotations"] = {k: v for k, v in annotations.items() if k != INJECTED_ANNOTATION}
    return result
