"""The last message of each node, for a page that has not received it.

ComfyUI sends nothing for a cached node inside a graph: a reloaded page, or a second one, would show such nodes as if they
had never run. So messages are kept, keyed by everything that the node was given, and the page asks for those of a prompt's
nodes (`js/widgets/said.js`). Ids alone are not enough: they repeat from workflow to workflow.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

PROMPTS_KEPT = 64  # a long queue: the page asks about each prompt when it starts
MESSAGES_KEPT = 512
VALUES_KEPT = 1_000_000  # texts and numbers in all messages together, about 50 MB

Message = dict[str, Any]
Prompt = Mapping[str, Any]


class LastWords:
    """Messages by what the node was given: its class, values and fingerprint, and those of every node before it."""

    def __init__(self, messages: int = MESSAGES_KEPT, values: int = VALUES_KEPT) -> None:
        self._room = messages, values
        # The objects that ComfyUI itself runs: it writes each node's fingerprint into them.
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._messages: OrderedDict[str, Message] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def watch(self, prompt_id: str, prompt: Prompt) -> None:
        self._prompts[prompt_id] = prompt
        while len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)

    def keep(self, prompt_id: str, node: str, message: Message) -> str:
        """Keep a node's message and return its key; an empty key if the node is not in the prompt."""
        key = self._key(prompt_id, node)
        if key:
            self._messages.pop(key, None)
            self._messages[key] = message
            self._sizes[key] = sum(1 for _ in _values(message))
            most, room = self._room
            while len(self._messages) > most or (sum(self._sizes.values()) > room and len(self._messages) > 1):
                del self._sizes[self._messages.popitem(last=False)[0]]
        return key

    def find(self, prompt_id: str, had: Mapping[str, object]) -> dict[str, Message]:
        """The messages that the nodes of a prompt sent when they were last given the same, by node id.

        had     node -> key of the message that the page already has; it is not sent again
        """
        found = {}
        keys: dict[str, str] = {}
        for node, known in had.items():
            key = self._key(prompt_id, node, keys)
            if key and key != known and key in self._messages:
                self._messages.move_to_end(key)
                found[node] = self._messages[key]
        return found

    def _key(self, prompt_id: str, node: str, known: dict[str, str] | None = None) -> str:
        """known: keys of this prompt's nodes so far; more are added"""
        prompt = self._prompts.get(prompt_id, {})
        keys = {} if known is None else known
        waiting = [(node, False)]
        while waiting:  # not recursive: graphs are deep
            name, inputs_done = waiting.pop()
            if name in keys or name not in prompt:
                continue
            inputs = prompt[name].get("inputs", {})
            if not inputs_done:
                waiting += [(name, True), *((value[0], False) for value in inputs.values() if _is_link(value, prompt))]
                continue
            given = {
                key: [keys.get(value[0], ""), value[1]] if _is_link(value, prompt) else {"value": value}
                for key, value in inputs.items()
            }
            content = [prompt[name].get("class_type"), given, prompt[name].get("is_changed")]
            keys[name] = hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:32]
        return keys.get(node, "")


def _is_link(value: object, prompt: Prompt) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt


def _values(value: object) -> Iterator[object]:
    """The texts and numbers in a message, at any depth."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _values(part)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part)
    else:
        yield value
