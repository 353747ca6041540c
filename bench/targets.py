"""What is measured: the upstream itself, the bare pass-through, Sluice without and with policy, and installed peers."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench.policy import LABELS, NAMESPACE, Mount, compiled, write_keys
from bench.processes import cpu_seconds, first_line, pinned, python, resident_mib, started, wait_until_ready

TOOLS = Path(__file__).parent.parent / ".tools"
DIRECT, PASSTHROUGH, BARE, GOVERNED = "direct", "pass-through", "sluice bare", "sluice governed"
ENVOY, LITELLM = "envoy", "litellm"


class Target:
    """One running thing to put load on. `pid` is 0 for the upstream itself."""

    def __init__(self, name: str, port: int, pid: int = 0, *, admin_port: int = 0, mount: Mount | None = None) -> None:
        self.name = name
        self.port = port
        self.pid = pid
        self.admin_port = admin_port
        self.mount = mount

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        return cpu_seconds(self.pid) if self.pid else 0.0

    def resident_mib(self) -> float:
        """Return the resident memory."""
        return resident_mib(self.pid) if self.pid else 0.0


class Cores(msgspec.Struct, frozen=True):
    """Where things run: what is measured on one core, load and upstream on another."""

    proxy: int | None
    load: int | None


def available_cores() -> Cores:
    """Return two cores that this process may use; none where there is only one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return Cores(cores[0], cores[1]) if len(cores) > 1 else Cores(None, None)


@contextmanager
def upstream(cores: Cores, *, events: int = 200, gap_seconds: float = 0.0) -> Iterator[int]:
    """Run the upstream; yield its port."""
    command = python("bench.upstream", "--events", str(events), "--gap", str(gap_seconds))
    with started(command, core=cores.load) as process:
        yield int(first_line(process))


@contextmanager
def passthrough(upstream_port: int, cores: Cores) -> Iterator[Target]:
    """Run the bare pass-through."""
    with started(python("bench.passthrough", f"http://127.0.0.1:{upstream_port}"), core=cores.proxy) as process:
        yield Target(PASSTHROUGH, int(first_line(process)), process.pid)


@contextmanager
def sluice(name: str, policy: str, upstream_port: int, cores: Cores) -> Iterator[Target]:
    """Run a sidecar on one of the policies. Its decision records go through a pipe to a reader, as in a container."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory, ExitStack() as stack:
        folder = Path(directory)
        snapshot = compiled(policy, f"http://127.0.0.1:{upstream_port}")
        mount = Mount(folder / "config")
        mount.write(snapshot)
        write_keys(folder / "credentials", snapshot)
        reader = stack.enter_context(_reader(cores))
        errors = stack.enter_context((folder / "errors.log").open("wb"))
        process = subprocess.Popen(
            [*pinned(cores.proxy), *python("sluice_sidecar")],
            stdout=reader,
            stderr=errors,
            env={**os.environ, **sidecar_environment(folder)},
        )
        stack.callback(_stop, process)
        try:
            ports = wait_for_ports(folder / "ports.json", process)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{(folder / 'errors.log').read_text()}") from None
        wait_until_ready(f"http://127.0.0.1:{ports['admin']}/readyz", process)
        yield Target(name, ports["proxy"], process.pid, admin_port=ports["admin"], mount=mount)


def sidecar_environment(folder: Path) -> dict[str, str]:
    """Return the settings of a sidecar whose mounts are in `folder`."""
    return {
        "SLUICE_LISTEN": "127.0.0.1:0",
        "SLUICE_ADMIN": "127.0.0.1:0",
        "SLUICE_CONFIG_DIR": str(folder / "config"),
        "SLUICE_CREDENTIALS_DIR": str(folder / "credentials"),
        "SLUICE_PORTS_FILE": str(folder / "ports.json"),
        "SLUICE_NAMESPACE": NAMESPACE,
        "SLUICE_POD_NAME": "bench-0",
        "SLUICE_SOLE": "true",
        "SLUICE_LABELS": ",".join(f"{name}={value}" for name, value in LABELS.items()),
    }


def wait_for_ports(file: Path, process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Return the ports that a sidecar listens on, as soon as it does."""
    while not file.exists():
        try:
            process.wait(timeout=0.002)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError("the sidecar ended before it listened")
    return msgspec.json.decode(file.read_bytes(), type=dict[str, int])


@contextmanager
def _reader(cores: Cores) -> Iterator[int]:
    """Run a process that reads and forgets; yield the end to write to."""
    process = subprocess.Popen(
        [*pinned(cores.load), "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    try:
        yield process.stdin.fileno()
    finally:
        process.stdin.close()
        process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_ENVOY_TYPES = "type.googleapis.com/envoy.extensions"
_ENVOY = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {types}.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: bench
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, route: {{cluster: upstream, timeout: 600s}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": {types}.filters.http.router.v3.Router}}
  clusters:
    - name: upstream
      type: STATIC
      load_assignment:
        cluster_name: upstream
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""


@contextmanager
def envoy(upstream_port: int, cores: Cores) -> Iterator[Target]:
    """Run Envoy with one worker, no access log and no filter but the router: it passes on and governs nothing."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        port, admin = free_port(), free_port()
        file = Path(directory, "envoy.yaml")
        file.write_text(_ENVOY.format(types=_ENVOY_TYPES, port=port, admin=admin, upstream=upstream_port))
        binary = str(TOOLS / "envoy" / "bin" / "envoy")
        command = [binary, "-c", str(file), "--concurrency", "1", "-l", "off", "--base-id", str(os.getpid() % 1000)]
        with started(command, core=cores.proxy) as process:
            wait_until_ready(f"http://127.0.0.1:{admin}/ready", process)
            yield Target(ENVOY, port, process.pid)


_LITELLM = """
model_list:
  - model_name: "*"
    litellm_params: {{model: "openai/*", api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-bench}}
litellm_settings: {{telemetry: false, num_retries: 0}}
general_settings: {{disable_spend_logs: true, master_key: sk-bench}}
"""


@contextmanager
def litellm(upstream_port: int, cores: Cores) -> Iterator[Target]:
    """Run LiteLLM's proxy with one worker, and neither database, cache nor callbacks."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        port = free_port()
        file = Path(directory, "config.yaml")
        file.write_text(_LITELLM.format(upstream=upstream_port))
        binary = str(TOOLS / "litellm" / "bin" / "litellm")
        command = [binary, "--config", str(file), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
        with started(command, core=cores.proxy, env=env, log=Path(directory, "log")) as process:
            wait_until_ready(f"http://127.0.0.1:{port}/health/liveliness", process, seconds=120)
            yield Target(LITELLM, port, process.pid)


def free_port() -> int:
    """Return a port that is free now, for programs that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


Start = Callable[[int, Cores], AbstractContextManager[Target]]

STARTS: dict[str, Start] = {
    PASSTHROUGH: passthrough,
    BARE: lambda port, cores: sluice(BARE, "bare", port, cores),
    GOVERNED: lambda port, cores: sluice(GOVERNED, "governed", port, cores),
    ENVOY: envoy,
    LITELLM: litellm,
}


def installed() -> list[str]:
    """Return the targets that can be started here, in the order of the table."""
    peers = [name for name in (ENVOY, LITELLM) if (TOOLS / name / "bin" / name).exists()]
    return [PASSTHROUGH, BARE, GOVERNED, *peers]


@contextmanager
def all_targets(upstream_port: int, cores: Cores, names: list[str]) -> Iterator[list[Target]]:
    """Run several targets on one upstream, the upstream itself first."""
    with ExitStack() as stack:
        running = [stack.enter_context(STARTS[name](upstream_port, cores)) for name in names]
        yield [Target(DIRECT, upstream_port), *running]
