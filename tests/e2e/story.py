"""The words that stories are told in: given a cluster, when something happens, then something is seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SYSTEM = "sluice-system"
T = TypeVar("T")
Json = dict[str, Any]


def image_values(reference: str) -> dict[str, str]:
    """Return an image reference as the chart's values. A colon before the last slash is a registry's port, no tag."""
    name, _, digest = reference.partition("@")
    directory, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return {"repository": f"{directory}{slash}{last}", "tag": tag or "latest", "digest": digest}


class Cluster:
    """A cluster, by its KUBECONFIG, and one release of the chart in it."""

    def __init__(self) -> None:
        self.operator_image = os.environ.get("SLUICE_OPERATOR_IMAGE", "sluice-operator:dev")
        self.sidecar_image = os.environ.get("SLUICE_SIDECAR_IMAGE", "sluice-sidecar:dev")
        self.mock_image = os.environ.get("SLUICE_MOCK_IMAGE", self.sidecar_image)
        self.app_image = os.environ.get("SLUICE_APP_IMAGE", self.sidecar_image)
        self.pull_policy = os.environ.get("SLUICE_PULL_POLICY", "IfNotPresent")

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """Run kubectl and return what it prints."""
        done = self.run(*arguments, given=given)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        command = [_tool("kubectl"), *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)

    def get(self, *arguments: str) -> Json:
        """Return an object or a list."""
        found: Json = json.loads(self.kubectl("get", *arguments, "--output", "json"))
        return found

    def install(self, *settings: str) -> None:
        """Install the chart, or upgrade it, and wait until all of it is ready."""
        values: list[str] = []
        for part, image in (("operator", self.operator_image), ("sidecar", self.sidecar_image)):
            values += [f"{part}.image.{name}={value}" for name, value in image_values(image).items()]
            values += [f"{part}.image.pullPolicy={self.pull_policy}"]
        chart = str(ROOT / "charts" / "sluice")
        sets = [word for value in (*values, *settings) for word in ("--set", value)]
        wait = ["--wait", "--timeout", "5m", "--create-namespace", "--namespace", SYSTEM]
        self.helm("upgrade", "--install", "sluice", chart, *wait, *sets)

    def system(self, *arguments: str, check: bool = True) -> str:
        """Run kubectl in the namespace of the release."""
        return self.kubectl("--namespace", SYSTEM, *arguments, check=check)

    def leader(self) -> str:
        """Return the pod of the operator that leads, empty if none does."""
        lease = self.get("--namespace", SYSTEM, "lease", "sluice-operator")
        return str(lease["spec"].get("holderIdentity") or "").split("_")[0]

    def kill(self, pod: str) -> None:
        """Kill a pod of the release without a warning."""
        self.system("delete", "pod", pod, "--grace-period=0", "--force", check=False)

    def scale(self, *names: str, replicas: int) -> None:
        """Give deployments of the release this many pods, and wait until it is so."""
        for name in names:
            self.system("scale", "deployment", name, f"--replicas={replicas}")
        for name in names:
            self.system("rollout", "status", f"deployment/{name}", "--timeout=180s")
            if replicas == 0:
                part = name.removeprefix("sluice-")
                label = f"app.kubernetes.io/name=sluice,app.kubernetes.io/component={part}"
                self.system("wait", "--for=delete", "pod", "--selector", label, "--timeout=90s")

    def helm(self, *arguments: str) -> str:
        """Run helm and return what it prints."""
        done = subprocess.run([_tool("helm"), *arguments], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"helm {arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout


class Story:
    """One namespace in which a story happens. Every step returns the story, so that it reads as a sentence."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """Run kubectl in the story's namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, given=given, check=check)

    def get(self, *arguments: str) -> Json:
        """Return an object or a list of the story's namespace."""
        return self.cluster.get("--namespace", self.namespace, *arguments)

    def apply(self, name: str, **replaced: str) -> Story:
        """Apply a manifest of this folder, with words in it replaced."""
        self.kubectl("apply", "--filename", "-", given=self.manifest(name, **replaced))
        return self

    def manifest(self, name: str, **replaced: str) -> str:
        """Return a manifest of this folder, with words in it replaced."""
        text = (HERE / "manifests" / f"{name}.yaml").read_text()
        words = {
            "MOCK_IMAGE": self.cluster.mock_image,
            "APP_IMAGE": self.cluster.app_image,
            "PULL_POLICY": self.cluster.pull_policy,
            "[python, -c, CALL]": json.dumps(["python", "-c", (HERE / "call.py").read_text()]),
            "[python, -c, TRAFFIC]": json.dumps(["python", "-c", (HERE / "traffic.py").read_text()]),
        }
        for word, value in (words | replaced).items():
            text = text.replace(word, value)
        return text

    def rolled_out(self, name: str) -> Story:
        """Wait until a deployment is ready."""
        self.kubectl("rollout", "status", f"deployment/{name}", "--timeout", "180s")
        return self

    def try_pod(self, name: str, *, labels: Json | None = None, host_network: bool = False) -> tuple[bool, str]:
        """Create a pod on its own; return whether there is one now, and what kubectl had to say besides."""
        words = {"POD_NAME": name, "POD_LABELS": json.dumps(labels or {}), "HOST_NETWORK": str(host_network).lower()}
        done = self.cluster.run("--namespace", self.namespace, "create", "-f", "-", given=self.manifest("pod", **words))
        return done.returncode == 0, done.stderr

    def start_pod(self, name: str, inject: bool) -> float:
        """Start a pod on its own and return how many seconds it took until it was ready."""
        began_at = time.monotonic()
        created, said = self.try_pod(name, labels={"app": "chat", "sluice.dev/inject": str(inject).lower()})
        assert created, said
        self.ready("pod", name)
        return time.monotonic() - began_at

    def synced(self, kind: str, name: str) -> bool:
        """Tell whether every pod reports that it runs a resource as it is now."""
        running, _, wanted = self.get(kind, name)["status"]["syncedPods"].partition("/")
        return bool(running == wanted != "0")

    def ready(self, kind: str, name: str) -> Story:
        """Wait for a resource's Ready condition, as any user would."""
        self.kubectl("wait", "--for", "condition=Ready", f"{kind}/{name}", "--timeout", "60s")
        return self

    def pods(self, label: str = "app=chat") -> list[Json]:
        """Return the living pods with a label."""
        items: list[Json] = self.get("pods", "--selector", label)["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def calls(self, *users: str, pod: str | None = None) -> list[Json]:
        """Make one call for each user from the application's container; return what the application saw."""
        place = pod or self.pods()[0]["metadata"]["name"]
        script = (HERE / "call.py").read_text()
        output = self.kubectl("exec", place, "--container", "app", "--", "python", "-c", script, json.dumps(users))
        return [json.loads(line) for line in output.splitlines()]

    def traffic(self, *, pods: int, calls_per_second: float) -> Story:
        """Start applications that call without end, each with `calls_per_second`."""
        self.apply("traffic", REPLICAS=str(pods), PACE=str(calls_per_second))
        return self.rolled_out("traffic")

    def diary(self, since: float = 0.0) -> list[Json]:
        """Return the calls that the traffic's pods have made since a time of theirs, in order of time."""
        options = ["--container", "app", "--tail", "-1", "--max-log-requests", "100"]
        lines = self.kubectl("logs", "--selector", "role=traffic", *options).splitlines()
        calls: list[Json] = [json.loads(line) for line in lines if line.startswith("{")]
        return sorted((call for call in calls if call["at"] >= since), key=lambda call: call["at"])

    def last_call_at(self) -> float:
        """Return the time of the traffic's newest call: now, by the clock of the node."""
        eventually(lambda: self.diary() != [], 30, "the first call")
        return float(self.diary()[-1]["at"])

    def clock_offset(self) -> float:
        """Return how many seconds the clock of the traffic's node is ahead of this machine's."""
        asked_at = time.time()
        script = "import time; print(time.time())"
        told = float(self.kubectl("exec", "deployment/traffic", "--container", "app", "--", "python", "-c", script))
        # The answer was made somewhere between question and end; most of the way there is kubectl's own start.
        return 0.0 if asked_at <= told <= time.time() else told - time.time()

    def order_fault(self, **fault: object) -> None:
        """Order a fault of the mock, in force from the moment this returns."""
        script = (
            "import sys, urllib.request as r\n"
            "r.urlopen(r.Request('http://127.0.0.1:8080/mock/faults', sys.argv[1].encode(), method='POST')).read()"
        )
        self.kubectl("exec", "deployment/mock-openai", "--", "python", "-c", script, json.dumps(fault))

    def ledger(self) -> list[Json]:
        """Return the mock's own book of the calls it has served."""
        script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/mock/ledger').read().decode())"
        book = json.loads(self.kubectl("exec", "deployment/mock-openai", "--", "python", "-c", script))
        entries: list[Json] = book["entries"] if "entries" in book else book["calls"]
        return entries


def eventually(probe: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first truthy answer of a probe; fail with a sentence when there is none in time."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            last = probe()
            if last:
                return last
        except AssertionError as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {last}")


def _tool(name: str) -> str:
    fetched = ROOT / ".tools" / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    assert found, f"{name} is needed: run hack/tools.py"
    return found
