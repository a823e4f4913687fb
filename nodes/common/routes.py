"""What the page asks the server for, outside a run."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import ExecutionContext, get_executing_context
from server import PromptServer

from ...difflora.errors import DiffLoraError
from .last_words import LastWords, Message

_last_words = LastWords()


def kept(message: Message) -> Message:
    """Keep the message of the node that is running, and give it the key that the page names it by."""
    context = get_executing_context()
    key = _last_words.keep(context.prompt_id, _shown_on(context), message) if context else ""
    if key:
        message["key"] = key
    return message


def _shown_on(context: ExecutionContext) -> str:
    """The node of the workflow that shows what the running node says.

    A sweep runs clones of the nodes inside it, under ids that no workflow has. A node of another pack may also expand into
    nodes of this one. ComfyUI would show their messages on that node, where they are out of place, so they keep their own id.
    """
    progress = get_progress_state()
    own = str(context.node_id)
    if progress.prompt_id != context.prompt_id:
        return own
    shown = str(progress.dynprompt.get_display_node_id(own))
    kinds = {progress.dynprompt.get_node(name)["class_type"] for name in (shown, own)}
    return shown if len(kinds) == 1 else own


def answer_last_words() -> None:
    """For every queued prompt, tell the page what its cached nodes said. Called while ComfyUI loads the pack."""

    def watch(request: dict[str, Any]) -> dict[str, Any]:
        if isinstance(request.get("prompt"), dict):
            # ComfyUI makes up an id where there is none, but only after this.
            _last_words.watch(str(request.setdefault("prompt_id", str(uuid.uuid4()))), request["prompt"])
        return request

    async def answer(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            prompt_id, had = str(asked["prompt_id"]), dict(asked["nodes"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "Send prompt_id, and nodes as an object of ids."}, status=400)
        return web.json_response(_last_words.find(prompt_id, had))

    PromptServer.instance.add_on_prompt_handler(watch)
    PromptServer.instance.routes.post("/differential_lora/last_words")(answer)


def answer_lora(describe: Callable[[str, bool], Message]) -> None:
    """Tell the page what is in a LoRA as soon as it is picked. Called while ComfyUI loads the pack.

    describe    name, whether unknown keys are left out -> message; reads a header, and nothing outside the loras folders
    """

    async def answer(request: web.Request) -> web.Response:
        name, ignore_unknown = request.query.get("name", ""), request.query.get("ignore_unknown") == "true"
        try:
            return web.json_response(await asyncio.to_thread(describe, name, ignore_unknown))
        except DiffLoraError as error:
            return web.json_response({"error": str(error)}, status=422)

    PromptServer.instance.routes.get("/differential_lora/lora")(answer)


def answer_pair(describe: Callable[[str, str, bool], Message]) -> None:
    """The same for the two LoRAs of a pair.

    describe    names of A and B, whether unknown keys are left out -> message
    """

    async def answer(request: web.Request) -> web.Response:
        a, b, ignore_unknown = (request.query.get(name, "") for name in ("a", "b", "ignore_unknown"))
        return web.json_response(await asyncio.to_thread(describe, a, b, ignore_unknown == "true"))

    PromptServer.instance.routes.get("/differential_lora/pair")(answer)


def answer_rack(describe: Callable[[list[str], str, bool], Message]) -> None:
    """The same for all LoRAs of a rack.

    describe    names, for which model of Wan2.2, whether unknown keys are left out -> what is known of each
    """

    async def answer(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            names, twin = [str(name) for name in asked["names"]], str(asked.get("twin", ""))
            ignore_unknown = asked.get("ignore_unknown") is True
        except (ValueError, KeyError, TypeError, AttributeError):
            return web.json_response({"error": "Send names, a list of files."}, status=400)
        return web.json_response(await asyncio.to_thread(describe, names, twin, ignore_unknown))

    PromptServer.instance.routes.post("/differential_lora/rack")(answer)
