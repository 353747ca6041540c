"""The admin port: metrics, probes and a status for people and for `sluice status`. Nothing secret is on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from aiohttp import web

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def admin_application(
    *,
    ready: Callable[[], str],
    book: Callable[[], None],
    status: Callable[[], dict[str, Any]],
    metrics: Callable[[], bytes],
) -> web.Application:
    """Return the application of the admin port.

    `ready` returns why the sidecar is not ready, or nothing if it is; `book` is called before `status` and `metrics`,
    so that they tell of all calls that are over; `metrics` is called in a thread.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = ready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

    async def show_status(_request: web.Request) -> web.Response:
        book()
        return web.Response(body=msgspec.json.encode(status()), content_type="application/json")

    async def show_metrics(_request: web.Request) -> web.Response:
        book()
        body = await asyncio.get_running_loop().run_in_executor(thread, metrics)
        return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})

    async def stop_thread(_application: web.Application) -> None:
        thread.shutdown(wait=False)

    application = web.Application(client_max_size=1024)
    application.router.add_get("/livez", livez)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/status", show_status)
    application.router.add_get("/metrics", show_metrics)
    application.on_cleanup.append(stop_thread)
    return application
