"""The workflow that makes a data set of pairs, from its first frame to the check, in the page."""

import io
import json

from PIL import Image

from tests.e2e.test_pairs import EDITOR, SIZE, WORKFLOW, files, names, said  # noqa: F401


def test_the_workflow_makes_checks_and_describes_a_dataset_in_the_page(comfy, names, page):  # noqa: F811
    """As it is, but for the models, which are too large: a blur takes the place of the editing model."""
    page.load(json.loads(WORKFLOW.read_text("utf-8")))
    api = page.prompt()
    assert {each["class_type"] for each in api.values()} >= EDITOR
    assert "DiffLoraCheckPairs" not in {each["class_type"] for each in api.values()}, "muted until all pairs are done"
    save = next(each for each in api.values() if each["class_type"] == "DiffLoraSavePair")["inputs"]
    scaled, edited = (api[save[name][0]]["class_type"] for name in ("image_a", "image_b"))
    assert (scaled, edited) == ("FluxKontextImageScale", "VAEDecode")
    page.run(
        """([editor, names]) => {
            const nodes = app.graph._nodes;
            const find = type => nodes.find(node => node.type === type);
            const [scale, save] = [find("FluxKontextImageScale"), find("DiffLoraSavePair")];
            nodes.filter(node => editor.includes(node.type)).forEach(node => app.graph.remove(node));
            const blur = LiteGraph.createNode("ImageBlur");
            app.graph.add(blur);
            scale.connect(0, blur, 0);
            blur.connect(0, save, save.findInputSlot("image_b"));
            blur.connect(0, nodes.find(node => node.title === "Its sparse twin"), 0);
            for (const node of nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in names) widget.value = names[widget.name];
        }""",
        [sorted(EDITOR), names],
    )
    for _ in range(3):
        page.queue()
    written = files(comfy, names)
    assert len(written) == 12
    sizes = {Image.open(io.BytesIO(content)).size for name, content in written.items() if name.endswith(".png")}
    assert len(sizes) == 1 and sizes != {SIZE}, "scaled once, and the scaled frame is side A"
    page.run(
        "() => app.graph._nodes.forEach(n => { if (n.type !== 'MarkdownNote') n.mode = n.mode === 2 ? 0 : 2; })",
    )
    result = page.queue()
    (check_node,) = page.node_ids("DiffLoraCheckPairs")
    assert said(result, check_node)[0].startswith("3 pairs")
    page.page.wait_for_function(
        "() => app.graph._nodes.find(n => n.type === 'DiffLoraCheckPairs').imgs?.length", timeout=10_000
    )
    assert "training/train_sparse.bat" in files(comfy, names)
    assert b"lion_pytorch.Lion --learning_rate 2e-05" in files(comfy, names)["training/train_sparse.sh"].replace(
        b" \\\n ", b""
    )
