"""Every text on the widgets can be read in ComfyUI's light and dark themes, in both renderers."""

import pytest

from tests.browser.scene import every_widget

# Colours as the page has computed them, the background's layers down to what is opaque: a node's own, or the canvas.
CONTRASTS = """() => {
    const one = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        one.clearRect(0, 0, 1, 1);
        one.fillStyle = colour;
        one.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = one.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((part, i) => part * a + under[i] * (1 - a));
    const behind = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const layer = rgba(getComputedStyle(at).backgroundColor);
            if (layer[3] > 0) layers.unshift(layer);
            if (layer[3] === 1) break;
            if (at.parentElement?.contains(app.canvas.canvas) || at === document.body) {
                const canvas = app.canvas.canvas;
                const [own, whole] = [element.getBoundingClientRect(), canvas.getBoundingClientRect()];
                const scale = canvas.width / whole.width;
                const pixel = canvas.getContext('2d').getImageData((own.left - whole.left - 3) * scale, (own.top - whole.top) * scale, 1, 1).data;
                layers.unshift([...pixel.slice(0, 3), 1]);
                break;
            }
        }
        return layers.reduce((under, layer) => over(layer, under), [0, 0, 0]);
    };
    const luminance = (rgb) => rgb.map(p => p / 255).map(p => p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4)
        .reduce((sum, p, i) => sum + p * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (const element of document.querySelectorAll('.difflora *')) {
        const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join('');
        if (!text || element.closest('[disabled], option, title') || !element.getClientRects().length) continue;
        const style = getComputedStyle(element);
        const ground = behind(element);
        const ink = over(rgba(element.closest('svg') ? style.fill : style.color), ground);
        const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
        const classes = element.getAttribute('class') ?? element.tagName;
        found.push([(high + 0.05) / (low + 0.05), `${classes} "${text.slice(0, 30)}": ${ink.map(Math.round)} on ${ground.map(Math.round)}`]);
    }
    return found;
}"""


@pytest.fixture(params=("light", "dark"))
def theme(page, request):
    choose = "async theme => { await app.extensionManager.setting.set('Comfy.ColorPalette', theme); }"
    page.run(choose, request.param)
    yield request.param
    page.run(choose, "dark")


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_every_text_stands_out_from_what_is_behind_it(page, theme, vue):
    every_widget(page)
    page.page.mouse.move(5, 5)  # nothing is hovered
    page.page.wait_for_timeout(300)
    contrasts = page.run(CONTRASTS)
    ground = {text.rsplit(" on ", 1)[1] for _, text in contrasts if text.startswith("note")}
    assert len(contrasts) > 200
    assert all((int(colour.split(",")[0]) > 200) == (theme == "light") for colour in ground), ground
    assert faint(contrasts) == []
    for kind in ('[aria-pressed="true"]', ':not([aria-pressed="true"])'):
        page.page.locator(f".difflora .chip{kind}:enabled:visible").first.hover()
        page.page.wait_for_timeout(300)
        assert faint(page.run(CONTRASTS)) == [], f"under the pointer: {kind}"


def faint(contrasts):
    return sorted(f"{contrast:.2f} {text}" for contrast, text in contrasts if contrast < 4.5)
