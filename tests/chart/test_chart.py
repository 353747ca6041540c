"""The chart, rendered by the real helm: what a release consists of, and that every value does what it says."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import cel
import msgspec
import pytest
import yaml

from sluice_operator import injector_permissions, permissions, settings
from sluice_operator.injector_main import read_environment
from sluice_operator.injector_settings import InjectorSettings, decode
from sluice_operator.kinds import RELEASE_LABELS, SPEND_CONFIG_MAPS

from .rendering import CHART, NAMESPACE, ROOT, Json, Schema, find, helm, pod_specs, render, require_tools

MINIMAL: Json = {}
ZONES = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
WHOLE = frozenset({"resources", "podSecurityContext", "containerSecurityContext", "labels"})
"""Values that are handed on as they are, whatever is in them."""
EVERYTHING: Json = {
    "imagePullSecrets": ["registry"],
    "commonLabels": {"cost-center": "ai"},
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "operator": {
        "image": {"digest": "sha256:" + "a" * 64},
        "replicas": 3,
        "podAnnotations": {"example.com/a": "b"},
        "podLabels": {"team": "platform"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [ZONES],
        "priorityClassName": "system-cluster-critical",
        "environment": {"HTTPS_PROXY": "http://proxy:3128"},
    },
    "injector": {
        "failurePolicy": "Fail",
        "nativeSidecar": "Never",
        "excludedNamespaces": ["kube-system", NAMESPACE],
        "podLabels": {"team": "platform"},
        "podAnnotations": {"example.com/a": "b"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [ZONES],
        "priorityClassName": "system-cluster-critical",
        "environment": {"HTTPS_PROXY": "http://proxy:3128"},
    },
    "sidecar": {"runAsUser": None, "adminHost": "::", "environment": {"A": "b"}, "whenUnconfigured": "PassThrough"},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "dailyTokens": 5_000_000},
        "dashboard": {"enabled": True, "annotations": {"folder": "platform"}},
    },
    "networkPolicy": {
        "enabled": True,
        "webhookSources": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "metricsSources": [{"namespaceSelector": {}}],
    },
}
CERT_MANAGER: Json = {"certificates": {"issuer": "CertManager"}}
OWN_ISSUER: Json = {
    "certificates": {
        "issuer": "CertManager",
        "certManager": {"issuerRef": {"name": "corp", "kind": "ClusterIssuer", "group": "cert-manager.io"}},
    }
}
LEAN: Json = {"sync": {"enabled": False}, "crds": {"install": False}, "injector": {"replicas": 1}}
VALUE_SETS = {
    "minimal": MINIMAL,
    "everything": EVERYTHING,
    "cert-manager": CERT_MANAGER,
    "own-issuer": OWN_ISSUER,
    "lean": LEAN,
}
every_value_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())


@pytest.fixture(scope="module")
def schema() -> Schema:
    require_tools()
    return Schema(ROOT / ".tools" / "schemas")


@every_value_set
def test_lint_finds_nothing(values: Json) -> None:
    """`helm lint --strict` is content with every set of values."""
    done = helm("lint", str(CHART), "--strict", "--namespace", NAMESPACE, values=values)

    assert done.returncode == 0, done.stdout + done.stderr


@every_value_set
def test_every_object_is_one_that_the_api_server_takes(values: Json, schema: Schema) -> None:
    """No unknown field, wrong type or missing field in any built-in kind."""
    for item in render(values):
        if item["apiVersion"].split("/")[0] not in ("cert-manager.io", "monitoring.coreos.com"):
            assert schema.faults(item) == []


def test_the_schema_check_sees_faults(schema: Schema) -> None:
    """The checker itself tells a misspelt field, a wrong type and a missing field."""
    policy: Json = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "a"}}
    service: Json = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": "80"}]}}

    assert schema.faults(policy | {"spec": {"maxUnavailible": 1}})
    assert schema.faults(service)
    assert schema.faults({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {}})
    assert not schema.faults(policy | {"spec": {"maxUnavailable": 1}})


@every_value_set
def test_everything_belongs_to_the_release(values: Json) -> None:
    """Every object carries the common labels, and the release's namespace where it has one."""
    for item in render(values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "sluice"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert item["metadata"].get("namespace", NAMESPACE) == NAMESPACE


@pytest.mark.parametrize(("kind", "name"), [("Secret", "sluice-certificates"), ("Lease", "sluice-operator")])
def test_what_is_made_anew_is_labelled_as_the_release_labels_it(kind: str, name: str) -> None:
    """An object of the release that a program makes anew after a deletion is no conflict at the next upgrade."""
    labels = find(render({}), kind, name)["metadata"]["labels"]

    assert labels.items() >= RELEASE_LABELS.items()


def test_no_two_objects_have_one_name() -> None:
    """An object that appears twice would overwrite itself."""
    places = [(item["kind"], item["metadata"]["name"]) for item in render(EVERYTHING)]

    assert len(places) == len(set(places))


def test_the_custom_resources_are_the_generated_ones() -> None:
    """The chart's copies are equal to crds/, and are rendered with nothing but labels and annotations added."""
    rendered = {item["metadata"]["name"]: item for item in render() if item["kind"] == "CustomResourceDefinition"}
    generated = sorted((ROOT / "crds").glob("*.yaml"))
    assert [path.name for path in generated] == [path.name for path in sorted((CHART / "files" / "crds").iterdir())]
    assert len(generated) == len(rendered)
    for path in generated:
        assert (CHART / "files" / "crds" / path.name).read_text() == path.read_text()
        source = yaml.safe_load(path.read_text())
        assert rendered[source["metadata"]["name"]]["spec"] == source["spec"]


@pytest.mark.parametrize(("keep", "policy"), [(True, "keep"), (False, None)])
def test_custom_resources_stay_only_if_they_shall(keep: bool, policy: str | None) -> None:
    """`crds.keep` decides whether uninstalling deletes users' resources."""
    crds = [item for item in render({"crds": {"keep": keep}}) if item["kind"] == "CustomResourceDefinition"]

    assert {item["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for item in crds} == {policy}


@pytest.mark.parametrize(("keep", "policy"), [(True, "keep"), (False, None)])
def test_spend_stays_only_if_it_shall(keep: bool, policy: str | None) -> None:
    """The operator's ConfigMaps are the release's and go with it, unless `operator.keepSpend`; the chart fills none."""
    spend = [item for item in render({"operator": {"keepSpend": keep}}) if "spend" in item["metadata"]["name"]]

    assert [item["metadata"]["name"] for item in spend] == list(SPEND_CONFIG_MAPS)
    assert {item["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for item in spend} == {policy}
    assert not any(item.keys() & {"data", "binaryData"} for item in spend)


def test_custom_resources_can_be_installed_by_others() -> None:
    """`crds.install` false leaves them out."""
    assert not [item for item in render(LEAN) if item["kind"] == "CustomResourceDefinition"]


def _rules(rules: Any) -> list[Json]:
    return sorted(
        ({name: sorted(values) for name, values in rule.items()} for rule in rules),
        key=lambda rule: sorted(rule.items()),
    )


@pytest.mark.parametrize(
    ("kind", "declared"), [("ClusterRole", permissions.CLUSTER_RULES), ("Role", permissions.NAMESPACE_RULES)]
)
def test_the_operator_may_do_exactly_what_it_declares(kind: str, declared: Any) -> None:
    """The chart's rules are those that the operator's code lists, no more and no less."""
    assert _rules(find(render(), kind, "sluice-operator")["rules"]) == _rules(declared)


@pytest.mark.parametrize(
    ("kube_version", "declared"),
    [
        ("1.36.0", injector_permissions.CLUSTER_RULES),
        ("1.30.0", injector_permissions.CLUSTER_RULES + injector_permissions.NODE_RULES),
    ],
)
def test_the_injector_may_do_exactly_what_it_declares(kube_version: str, declared: Any) -> None:
    """As for the operator; nodes are seen only where they may be too old."""
    objects = render(kube_version=kube_version)

    assert _rules(find(objects, "ClusterRole", "sluice-injector")["rules"]) == _rules(declared)
    assert _rules(find(objects, "Role", "sluice-injector")["rules"]) == _rules(injector_permissions.NAMESPACE_RULES)


@every_value_set
def test_nobody_may_do_anything_to_everything(values: Json) -> None:
    """No wildcard, no escalation, no workload and no webhook but our own in any role."""
    for item in render(values):
        for rule in item.get("rules", []) if item["kind"] in ("Role", "ClusterRole") else []:
            flat = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in flat
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(flat)
            assert not {"deployments", "roles", "clusterroles", "pods/exec", "serviceaccounts/token"} & set(flat)
            if "mutatingwebhookconfigurations" in flat:
                assert rule["resourceNames"] == ["sluice-injector"]


def test_with_cert_manager_nobody_writes_certificates() -> None:
    """Permissions to write Secret and webhook configuration are gone where somebody else issues."""
    for item in render(CERT_MANAGER):
        if item["kind"] == "Role" or (item["kind"] == "ClusterRole" and "injector" in item["metadata"]["name"]):
            for rule in item["rules"]:
                if {"secrets", "mutatingwebhookconfigurations"} & set(rule["resources"]):
                    assert set(rule["verbs"]) <= {"get"}


@pytest.mark.parametrize(
    ("setting", "kube_version", "resolved"),
    [
        ("Auto", "1.36.0", "Always"),
        ("Auto", "1.32.1", "Always"),
        ("Auto", "1.31.9", "Auto"),
        ("Never", "1.36.0", "Never"),
        ("Always", "1.29.0", "Always"),
    ],
)
def test_nodes_are_listed_only_where_old_ones_are_possible(setting: str, kube_version: str, resolved: str) -> None:
    """From 1.32 on no supported kubelet is too old, and the permission is not asked for."""
    objects = render({"injector": {"nativeSidecar": setting}}, kube_version=kube_version)
    rules = find(objects, "ClusterRole", "sluice-injector")["rules"]

    assert _injector_settings(objects).native_sidecar.value == resolved
    assert any("nodes" in rule["resources"] for rule in rules) == (resolved == "Auto")


def _injector_settings(objects: list[Json]) -> InjectorSettings:
    return decode(find(objects, "ConfigMap", "sluice-injector")["data"]["injector.json"].encode())


def test_the_injector_reads_the_settings_that_the_chart_writes() -> None:
    """Every value of the sidecar arrives in the injector's own type, which refuses what it does not know."""
    found = _injector_settings(render(EVERYTHING))

    assert found.version == "0.1.0"
    assert found.sidecar.image == "ghcr.io/sluice-dev/sluice-sidecar:0.1.0"
    assert found.sidecar.run_as_user is None
    assert found.sidecar.admin_host == "::"
    assert found.sidecar.environment == {"A": "b"}
    assert found.sidecar.when_unconfigured.value == "PassThrough"
    assert found.sidecar.sync_url == "https://sluice-operator.sluice-system.svc:8443"


def test_the_charts_defaults_are_the_codes_defaults() -> None:
    """A default stands in one place only in effect: chart and code agree."""
    found = _injector_settings(render())
    default = msgspec.structs.replace(
        found.sidecar, **{name: value for name, value in _defaults() if name not in ("image", "sync_url")}
    )

    assert found.sidecar == default


def _defaults() -> list[tuple[str, Any]]:
    fields = msgspec.structs.fields(type(_injector_settings(render()).sidecar))
    return [(field.name, field.default if field.default is not msgspec.NODEFAULT else {}) for field in fields]


def test_the_processes_accept_their_environment(tmp_path: Path) -> None:
    """Operator and injector start from the environment that the chart gives them."""
    objects = render()
    config = tmp_path / "injector.json"
    config.write_text(find(objects, "ConfigMap", "sluice-injector")["data"]["injector.json"])
    operator = settings.load(_environment(objects, "sluice-operator"))
    injector = read_environment(_environment(objects, "sluice-injector") | {"SLUICE_INJECTOR_CONFIG": str(config)})

    names = ("sluice-injector.sluice-system.svc", "sluice-operator.sluice-system.svc")
    assert operator.dns_names == injector.names == names
    assert operator.exempt_namespaces == _unseen(objects)
    assert operator.certificate_secret == injector.secret == "sluice-certificates"
    assert operator.lease_name == find(objects, "Lease", "sluice-operator")["metadata"]["name"]
    assert injector.webhook == find(objects, "MutatingWebhookConfiguration", "sluice-injector")["metadata"]["name"]


@pytest.mark.parametrize("excluded", [[], ["vault"], ["kube-system", "a", "b"]])
def test_operator_and_webhook_leave_out_the_same_namespaces(excluded: list[str]) -> None:
    """One value says where no sidecar is added; the operator then misses none there and writes no policy for it."""
    objects = render({"injector": {"excludedNamespaces": excluded}})
    operator = settings.load(_environment(objects, "sluice-operator"))

    assert operator.exempt_namespaces == _unseen(objects) == {NAMESPACE, *excluded}


def _unseen(objects: list[Json]) -> set[str]:
    """Return the namespaces that no entry of the webhook configuration matches."""
    entries = find(objects, "MutatingWebhookConfiguration", "sluice-injector")["webhooks"]
    named = [set(each["namespaceSelector"]["matchExpressions"][0]["values"]) for each in entries]
    assert all(each == named[0] for each in named)
    return named[0]


def _environment(objects: list[Json], deployment: str) -> dict[str, str]:
    container = find(objects, "Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", NAMESPACE) for entry in container["env"]}


@every_value_set
def test_every_pod_meets_the_restricted_profile(values: Json) -> None:
    """Control plane and test run as nobody, without privileges, on a read-only root, with resources declared."""
    for name, spec in pod_specs(render(values)):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "projected"}


@pytest.mark.parametrize("name", ["operator", "injector"])
def test_what_a_platform_sets_for_a_workload_arrives_in_its_pods(name: str) -> None:
    """Labels, annotations, place, priority, variables and pull secrets, each where it belongs, and defaults stay."""
    template = find(render(EVERYTHING), "Deployment", f"sluice-{name}")["spec"]["template"]
    spec, given = template["spec"], EVERYTHING[name]
    constraint = spec["topologySpreadConstraints"][0]

    assert template["metadata"]["labels"].items() >= {**given["podLabels"], **EVERYTHING["commonLabels"]}.items()
    assert template["metadata"]["annotations"].items() >= given["podAnnotations"].items()
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec[field] == given[field]
    assert constraint.items() >= ZONES.items()
    assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == name
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in spec["containers"][0]["env"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_the_platform_may_choose_the_users() -> None:
    """`null` takes fixed ids out of every pod, for platforms that assign them; the rest of the profile stays."""
    for name, spec in pod_specs(render(EVERYTHING)):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, name
    for _, spec in pod_specs(render()):
        assert {spec["securityContext"][field] for field in ("runAsUser", "runAsGroup", "fsGroup")} == {65532}


def test_the_installations_test_goes_where_the_operator_may_go() -> None:
    """On nodes with taints the test must not wait for ever."""
    spec = dict(pod_specs(render(EVERYTHING)))["sluice-test"]

    assert spec["tolerations"] == EVERYTHING["operator"]["tolerations"]
    assert spec["nodeSelector"] == EVERYTHING["operator"]["nodeSelector"]


@pytest.mark.parametrize("name", ["sluice-operator", "sluice-injector"])
def test_two_replicas_survive_the_loss_of_one(name: str) -> None:
    """Two by default, apart from each other, not drained together, updated one by one."""
    objects = render()
    deployment = find(objects, "Deployment", name)["spec"]
    budget = find(objects, "PodDisruptionBudget", name)["spec"]

    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "podAntiAffinity" in deployment["template"]["spec"]["affinity"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == deployment["selector"]["matchLabels"]


@every_value_set
def test_selectors_select_what_they_shall(values: Json) -> None:
    """Each service and deployment selects its own component's pods, and ports are found by name."""
    objects = render(values)
    for name in ("sluice-operator", "sluice-injector"):
        template = find(objects, "Deployment", name)["spec"]["template"]
        labels = template["metadata"]["labels"]
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        service = find(objects, "Service", name)["spec"]
        assert service["selector"].items() <= labels.items()
        assert find(objects, "Deployment", name)["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert {port["targetPort"] for port in service["ports"]} <= ports
        other = "injector" if name.endswith("operator") else "operator"
        assert service["selector"]["app.kubernetes.io/component"] != other


def test_the_selector_does_not_change_with_the_version() -> None:
    """A selector is immutable: an upgrade that changed it would fail."""
    selector = find(render(), "Deployment", "sluice-operator")["spec"]["selector"]["matchLabels"]

    assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}


def test_the_webhook_is_the_one_that_was_designed() -> None:
    """CREATE of pods only, opt-in, own and system namespaces left out, without side effects, re-invoked if needed."""
    for webhook in find(render(), "MutatingWebhookConfiguration", "sluice-injector")["webhooks"]:
        assert webhook["rules"] == [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ]
        assert webhook["failurePolicy"] == "Ignore"
        assert webhook["reinvocationPolicy"] == "IfNeeded"
        assert webhook["sideEffects"] == "None"
        assert webhook["matchPolicy"] == "Equivalent"
        assert webhook["timeoutSeconds"] == 5
        assert webhook["admissionReviewVersions"] == ["v1"]
        assert "caBundle" not in webhook["clientConfig"]
        excluded = webhook["namespaceSelector"]["matchExpressions"][0]
        assert excluded["operator"] == "NotIn"
        assert {"kube-system", "kube-public", "kube-node-lease", NAMESPACE} <= set(excluded["values"])


@pytest.mark.parametrize(
    ("namespace", "pod", "entry"),
    [
        (None, None, None),
        ("true", None, "namespace.inject.sluice.dev"),
        (None, "true", "pod.inject.sluice.dev"),
        ("true", "true", "pod.inject.sluice.dev"),
        ("true", "false", None),
        ("false", "true", "pod.inject.sluice.dev"),
        ("false", None, None),
        ("true", "yes", None),
    ],
)
def test_the_pods_label_wins_over_its_namespaces(namespace: str | None, pod: str | None, entry: str | None) -> None:
    """For every combination of labels exactly one entry matches, or none."""
    webhooks = find(render(), "MutatingWebhookConfiguration", "sluice-injector")["webhooks"]
    labels = {"kubernetes.io/metadata.name": "shop"} | ({"sluice.dev/inject": namespace} if namespace else {})
    pod_labels = {"app": "chat"} | ({"sluice.dev/inject": pod} if pod else {})
    matching = [
        webhook["name"]
        for webhook in webhooks
        if _selects(webhook["namespaceSelector"], labels) and _selects(webhook["objectSelector"], pod_labels)
    ]

    assert matching == ([entry] if entry else [])


def _selects(selector: Json, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] in ("NotIn", "DoesNotExist")
        if labels.get(expression["key"]) in expression.get("values", [*labels.values()]):
            return False
    return True


@pytest.mark.parametrize(
    ("metadata", "matches"),
    [
        ({"name": "a"}, True),
        ({"name": "a", "annotations": {"b": "c"}}, True),
        ({"name": "a", "annotations": {"kubernetes.io/config.mirror": "hash"}}, False),
    ],
)
def test_static_pods_never_reach_the_webhook(metadata: Json, matches: bool) -> None:
    """The match condition, evaluated as the API server evaluates it, leaves out mirrors of static pods."""
    for webhook in find(render(), "MutatingWebhookConfiguration", "sluice-injector")["webhooks"]:
        (condition,) = webhook["matchConditions"]
        assert cel.evaluate(condition["expression"], {"object": {"metadata": metadata}}) is matches


def test_cert_manager_issues_for_the_names_that_are_used() -> None:
    """The certificate holds the services' names, lands in the Secret that is read, and is trusted by the webhook."""
    objects = render(CERT_MANAGER)
    certificate = find(objects, "Certificate", "sluice-certificates")["spec"]
    webhook = find(objects, "MutatingWebhookConfiguration", "sluice-injector")["metadata"]

    assert certificate["dnsNames"] == _environment(objects, "sluice-injector")["SLUICE_CERTIFICATE_NAMES"].split(",")
    assert certificate["secretName"] == "sluice-certificates"
    assert webhook["annotations"]["cert-manager.io/inject-ca-from"] == "sluice-system/sluice-certificates"
    assert not [item for item in objects if item["kind"] == "Secret"]


def test_an_issuer_of_ones_own_is_used() -> None:
    """With `issuerRef` no authority is made."""
    objects = render(OWN_ISSUER)

    assert find(objects, "Certificate", "sluice-certificates")["spec"]["issuerRef"]["name"] == "corp"
    assert not [item for item in objects if item["kind"] == "Issuer"]


def test_new_settings_restart_the_injector_and_nothing_else_does() -> None:
    """The pods' annotation follows the settings file."""

    def mark(values: Json) -> str:
        template = find(render(values), "Deployment", "sluice-injector")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["sluice.dev/settings"]
        return found

    assert mark({}) == mark({"operator": {"replicas": 3}})
    assert mark({}) != mark({"sidecar": {"proxyPort": 5151}})


def test_the_secret_of_the_certificates_is_left_alone_by_upgrades() -> None:
    """The chart names no content, so it owns none."""
    assert "data" not in find(render(), "Secret", "sluice-certificates")


def _families() -> dict[str, set[str]]:
    """Return all metrics of the generated reference, with the labels of each."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    found: dict[str, set[str]] = {}
    for name, type_, labels in re.findall(r"^\| `(sluice_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE):
        own = set(re.findall(r"`(\w+)`", labels))
        found[name] = own
        if type_ in ("histogram", "summary"):
            found |= {f"{name}_sum": own, f"{name}_count": own}
        if type_ == "histogram":
            found[f"{name}_bucket"] = own | {"le"}
    return found


def _expressions() -> list[tuple[str, str]]:
    """Return every query that the product ships, with where it stands."""
    objects = render(EVERYTHING)
    rules = [rule for group in find(objects, "PrometheusRule", "sluice")["spec"]["groups"] for rule in group["rules"]]
    board = json.loads(find(objects, "ConfigMap", "sluice-dashboard")["data"]["sluice.json"])
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    table = re.findall(r"^\| ([^|]+) \| (`.*`) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return [
        *((rule["alert"], rule["expr"]) for rule in rules),
        *((panel["title"], target["expr"]) for panel in panels for target in panel["targets"]),
        *table,
    ]


def test_queries_ask_for_metrics_and_labels_that_exist() -> None:
    """Alerts, dashboard and documentation name metrics as they are scraped, and only labels that these have."""
    families, asked = _families(), _expressions()
    assert len(asked) > 40
    for where, expression in asked:
        names = set(re.findall(r"\bsluice_\w+", expression))
        labels = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        labels |= {label for group in re.findall(r"{([^}]*)}", expression) for label in re.findall(r"(\w+)[!=]", group)}
        assert names, where
        assert names <= set(families), (where, names - set(families))
        assert labels <= {"le"}.union(*(families[name] for name in names)), (where, expression)


def test_the_dashboard_can_be_found_and_imported() -> None:
    """It has the label that Grafana looks for, one id for each panel, and no two panels in one place."""
    stored = find(render(EVERYTHING), "ConfigMap", "sluice-dashboard")
    panels = json.loads(stored["data"]["sluice.json"])["panels"]

    assert stored["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert stored["metadata"]["annotations"] == {"folder": "platform"}
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert not [item for item in render() if item["metadata"]["name"] == "sluice-dashboard"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"injector": {"failurePolicy": "Sometimes"}}, "failurePolicy"),
        ({"operator": {"replica": 3}}, "replica"),
        ({"sidecar": {"proxyPort": 80}}, "proxyPort"),
        ({"sidecar": {"resources": {"cpuRequest": "much"}}}, "cpuRequest"),
        ({"metrics": {"prometheusRule": {"errorPercent": 0}}}, "errorPercent"),
        ({"certificates": {"issuer": "Vault"}}, "issuer"),
        ({"operator": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "app.kubernetes.io/name"),
        ({"operator": {"environment": {"not-a-name": "x"}}}, "not-a-name"),
        ({"operator": {"topologySpreadConstraints": [{"maxSkew": 1}]}}, "topologySpreadConstraints"),
    ],
)
def test_wrong_values_are_refused_by_name(values: Json, named: str) -> None:
    """The values' schema names the wrong value before anything is installed."""
    done = helm("template", "sluice", str(CHART), values=values)

    assert done.returncode != 0
    assert named in done.stderr


def test_every_value_is_used() -> None:
    """A value that no template reads would promise what it does not do."""
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    assert [path for path in _leaves(defaults) if not _used(path, templates)] == []


def _leaves(values: Json, *before: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in values.items():
        inner = isinstance(value, dict) and value and name not in WHOLE
        found += _leaves(value, *before, name) if inner else [(*before, name)]
    return found


def _used(path: tuple[str, ...], templates: str) -> bool:
    # Placement and images are handed to a template as a whole, monitors are opened by `with`.
    return any(re.search(rf"\.{re.escape(path[-1])}\b", part) for part in [templates])


def test_every_value_has_a_schema_and_a_line_of_documentation() -> None:
    """Values, their schema and their table in the documentation list the same names."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())
    documentation = (ROOT / "docs" / "install.md").read_text()
    for path in _leaves(defaults):
        node = schema
        for name in path:
            node = node["properties"][name]
        assert f"`{'.'.join(path)}`" in documentation, ".".join(path)


def test_the_notes_tell_the_next_step() -> None:
    """What helm prints names the commands that come next; each is one that works with this chart's names."""
    done = helm("install", "sluice", str(CHART), "--dry-run=client", "--namespace", NAMESPACE)

    assert done.returncode == 0, done.stderr
    assert "helm test sluice --namespace sluice-system" in done.stdout
    assert "sluice.dev/inject=true" in done.stdout


def test_the_release_fits_into_the_secret_that_helm_keeps_it_in() -> None:
    """Helm stores the release compressed in a Secret of at most 1 MiB; the resources' schemas are most of it."""
    import gzip

    rendered = helm("template", "sluice", str(CHART)).stdout
    files = b"".join(path.read_bytes() for path in sorted(CHART.rglob("*")) if path.is_file())

    assert len(base64.b64encode(gzip.compress(rendered.encode() + base64.b64encode(files)))) < 700_000
