"""What went wrong is said on the node where it did, in the user's language; also on nodes that else have nothing to say."""

import pytest

from tests import small_models
from tests.comfy_server import ComfyError

PROMPT = {
    "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": small_models.DENSE, "ignore_unknown": False}},
    "2": {
        "class_type": "DiffLoraSelectBlocks",
        "inputs": {"lora": ["1", 0], "selection": "blocks 90", "rest": "leave out"},
    },
    "3": {
        "class_type": "DiffLoraSave",
        "inputs": {
            "lora": ["2", 0],
            "filename_prefix": "wrong",
            "dtype": "float32",
            "dialect": "native",
            "if_exists": "overwrite",
            "recommended_strength": "",
        },
    },
}
IMAGES = {
    "1": {"class_type": "DiffLoraImageFolder", "inputs": {"folder": "nowhere", "index": 0, "start": 0, "count": 1}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def problem(page, node_id, widget):
    """The text of the problem under a node."""
    script = """([id, name]) => {
        const element = app.graph.getNodeById(Number(id))?.widgets?.find(w => w.name === name)?.element;
        const line = element?.isConnected && element.querySelector('li.error');
        return line?.offsetParent && line.innerText;
    }"""
    return page.page.wait_for_function(script, arg=[node_id, widget], timeout=10_000).json_value()


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
@pytest.mark.parametrize(
    ("locale", "said"), (("ja-JP", "は何も選びません"), ("zh-CN", "没有选中任何模块"), ("en-US", "selects nothing"))
)
def test_an_error_of_a_run_is_said_in_the_users_language(page_in, locale, said, vue):
    page = page_in(locale)
    page.set_renderer(vue)
    page.load(PROMPT)
    page.fit()
    with pytest.raises(ComfyError, match="selects nothing"):
        page.queue()
    page.page.keyboard.press("Escape")
    shown = problem(page, "2", "difflora_grid")
    assert said in shown and '"blocks 90"' in shown and "blocks 0-" in shown


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_a_node_without_a_view_says_its_error_too(page_in, vue):
    page = page_in("ja-JP")
    page.set_renderer(vue)
    page.load(IMAGES)
    page.fit()
    before = page.prompt()
    with pytest.raises(ComfyError):
        page.queue()
    page.page.keyboard.press("Escape")
    assert "input/ か output/ で始めてください" in problem(page, "1", "difflora_report")
    assert page.prompt() == before
