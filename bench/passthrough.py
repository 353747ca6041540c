"""The simplest honest proxy on aiohttp: what a sidecar costs before it governs anything. The baseline of the ratios."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length"})


async def relay(request: web.Request) -> web.StreamResponse:
    """Send the request on and the answer back."""
    fields = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
    session = request.app[SESSION]
    async with session.request(
        request.method, request.app[UPSTREAM] + request.path_qs, headers=fields, data=await request.read()
    ) as answer:
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
        if "Content-Length" in answer.headers:
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)
UPSTREAM: web.AppKey[str] = web.AppKey("upstream", str)


async def main(upstream: str) -> None:
    """Serve until cancelled; print the port."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app[UPSTREAM] = upstream
    app[SESSION] = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1000), auto_decompress=False, timeout=aiohttp.ClientTimeout(total=600)
    )
    app.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import asyncio

    uvloop.run(main(sys.argv[1]))
