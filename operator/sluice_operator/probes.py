"""Liveness, readiness and metrics, on one port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from sluice_operator.metrics import Metrics

STALLED_SECONDS: Final = 90.0


def application(
    metrics: Metrics, *, finished_at: Callable[[], float], ready: Callable[[], bool], clock: Callable[[], float]
) -> web.Application:
    """Return the application.

    Args:
        metrics: what /metrics shows.
        finished_at: when the loop last ended a round, on `clock`; an old one means that it is stuck.
        ready: whether the cluster has been seen whole. A standby is ready too, or no rollout would ever end.
        clock: monotonic seconds.
    """

    async def livez(_: web.Request) -> web.Response:
        age = clock() - finished_at()
        if age > STALLED_SECONDS:
            return web.Response(status=503, text=f"no round for {age:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if ready() else web.Response(status=503, text="still listing\n")

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    return app
