"""The operator's process: `sluice-operator` or `python -m sluice_operator`. Settings come from the environment."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
from kubernetes.aio.config import ConfigException

from sluice_operator import logs
from sluice_operator.app import Operator
from sluice_operator.connection import load_configuration
from sluice_operator.settings import Settings, SettingsError, load


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    configuration = await load_configuration()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    await Operator(settings, configuration).run(stop)


def main() -> None:
    """Start the operator; exit with 2 when it cannot be started as it is set up."""
    logs.configure("info")
    try:
        settings = load()
        logs.configure(settings.log_level)
        asyncio.run(run(settings))
    except (SettingsError, ConfigException) as error:
        structlog.get_logger().error("operator_not_started", error=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
