"""Clips of a sweep that other servers have finished: the page asks for them, and no run waits."""

from __future__ import annotations

import asyncio

from aiohttp import web
from server import PromptServer

from ...difflora.errors import DiffLoraError
from .running import SWEEPS


def answer_news() -> None:
    """Register the route. Called while ComfyUI loads the pack."""
    PromptServer.instance.routes.get("/differential_lora/sweep")(_answer)


async def _answer(request: web.Request) -> web.Response:
    """waiting: what the grid's last message has under this name."""
    token, _, version = request.query.get("waiting", "").partition(" ")
    try:
        news = await asyncio.to_thread(SWEEPS.news, token, version)
    except DiffLoraError as error:
        return web.json_response({"error": str(error)}, status=422)
    if news is None:
        return web.json_response({"error": "This server has not run that sweep since it started."}, status=404)
    return web.json_response(news)
