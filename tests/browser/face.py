"""Handling the pack's widgets in the page as a person does: by pointer and by keys."""

from __future__ import annotations

import json
from typing import Any

from tests.comfy_page import ComfyPage

VIEWS = {
    "DiffLoraSelectBlocks": "difflora_grid",
    "DiffLoraRerank": "difflora_spectrum",
    "DiffLoraSliderMap": "difflora_map",
    "DiffLoraSliderModel": "difflora_strength",
    "DiffLoraSliderWanVideo": "difflora_strength",
    "DiffLoraMappedSliderWanVideo": "difflora_strength",
    "DiffLoraSliderRack": "difflora_rack",
    "DiffLoraSliderRackWanVideo": "difflora_rack",
    "DiffLoraBlockToggle": "difflora_blocks",
    "DiffLoraBlockToggleWanVideo": "difflora_blocks",
    "DiffLoraLoad": "difflora_report",
    "DiffLoraLoadPair": "difflora_pair",
    "DiffLoraSubtract": "difflora_report",
    "DiffLoraSave": "difflora_report",
    "DiffLoraSweepGrid": "difflora_player",
}

WAN_COLUMNS = [f"{part}_attn.{name}" for part in ("self", "cross") for name in "qkvo"] + ["ffn.0", "ffn.2"]


def wan_names(blocks: int = 40) -> list[str]:
    return [f"blocks.{block}.{column}" for block in range(blocks) for column in WAN_COLUMNS]


def wire_text(page: ComfyPage, node_id: str, widget: str, text: str) -> None:
    """A text from another node instead of the widget."""
    script = """([id, name, text]) => {
        const source = LiteGraph.createNode('PrimitiveString');
        source.pos = [500, 600];
        app.graph.add(source);
        source.widgets[0].value = text;
        const node = app.graph.getNodeById(Number(id));
        source.connect(0, node, node.inputs.findIndex(i => i.widget?.name === name));
    }"""
    page.run(script, [node_id, widget, text])
    page.settle()


class Face:
    """One node of the pack in the page, and the widget on it."""

    def __init__(self, page: ComfyPage, type: str, at: tuple[int, int] = (120, 80), node_id: str | None = None):
        self.page = page
        self.type = type
        self.id = node_id or page.run(
            """([type, at]) => {
                const node = LiteGraph.createNode(type);
                node.pos = at;
                app.graph.add(node);
                return String(node.id);
            }""",
            [type, list(at)],
        )
        page.settle()

    @property
    def element(self):
        """The widget's element, wherever the renderer has put it now, once it is drawn."""
        script = """([id, name]) => {
            const element = app.graph.getNodeById(Number(id))?.widgets.find(w => w.name === name).element;
            return element?.isConnected && !element.hasAttribute("aria-busy") && element;
        }"""
        return self.page.page.wait_for_function(script, arg=[self.id, VIEWS[self.type]], timeout=10_000).as_element()

    def find(self, selector: str):
        found = self.element.query_selector(selector)
        assert found, f"{self.type} shows no {selector}"
        return found

    def text(self, selector: str) -> str:
        return self.find(selector).inner_text()

    def value(self, widget: str) -> Any:
        return self.page.value(self.id, widget)

    def set(self, widget: str, value: Any) -> None:
        self.page.set_value(self.id, widget, value)
        self.page.settle()

    def sent(self, name: str) -> Any:
        """The value that the page would send to the server."""
        return self.page.prompt()[self.id]["inputs"][name]

    def told(self, message: dict[str, Any]) -> None:
        """Receive a message as after a run."""
        script = """([id, message]) => {
            const output = { difflora: [message] };
            app.nodeOutputs[id] = output;
            app.graph.getNodeById(Number(id)).onExecuted?.(output);
        }"""
        self.page.run(script, [self.id, json.dumps(message)])
        self.page.settle()

    # The grid

    def cell(self, row: int, column: int):
        return self.find(f'[data-row="{row}"][data-column="{column}"]')

    def middle(self, row: int, column: int) -> tuple[float, float]:
        box = self.cell(row, column).bounding_box()
        assert box, "the cell cannot be seen"
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def chosen(self) -> set[str]:
        """The cells that are shown as selected."""
        script = "e => [...e.querySelectorAll('[role=gridcell][aria-selected=true]')].map(c => c.getAttribute('aria-label').split(', ')[0])"
        return set(self.element.evaluate(script))

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 8) -> None:
        mouse = self.page.page.mouse
        mouse.move(*self.middle(*start))
        mouse.down()
        mouse.move(*self.middle(*end), steps=steps)
        mouse.up()
        self.page.settle()

    def click(self, row: int, column: int, *modifiers: str) -> None:
        for key in modifiers:
            self.page.page.keyboard.down(key)
        self.page.page.mouse.click(*self.middle(row, column))
        for key in modifiers:
            self.page.page.keyboard.up(key)
        self.page.settle()
