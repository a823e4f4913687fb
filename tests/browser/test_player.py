"""The A/B player in the real page: what its canvas shows is the clip, the frame and the comparison that were chosen."""

import statistics
from pathlib import Path

import pytest

FRAMES, WIDTH, HEIGHT = 12, 96, 64
STRENGTHS = [-3, -1, 0, 2, 3]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def swept(strengths=STRENGTHS, frames=FRAMES):
    return {
        "1": node(
            "DiffLoraStrengthSweep",
            start=-3.0,
            stop=3.0,
            count=7,
            include_zero=False,
            strengths=", ".join(map(str, strengths)),
        ),
        "2": node("TestClip", strength=["1", 0], frames=frames, width=WIDTH, height=HEIGHT),
        "3": node("DiffLoraSweepGrid", images=["2", 0], arrange="grid", cell_size=384, fps=16.0, baseline=0.0, text=""),
    }


class Player:
    """The player on a node, handled as a person does."""

    def __init__(self, page, node_id="3"):
        self.page, self.id = page, node_id
        page.page.wait_for_function(
            """id => {
                const widget = app.graph.getNodeById(Number(id)).widgets?.find(w => w.name === 'difflora_player');
                const canvas = widget?.element.querySelector('canvas');
                return canvas && canvas.width > 2 && canvas.getContext('2d').getImageData(1, 1, 1, 1).data[3] === 255
                    && !widget.element.querySelector('.stage').hidden
                    && widget.element.querySelector('.count').textContent;
            }""",
            arg=node_id,
            timeout=20_000,
        )
        self.pause()

    @property
    def element(self):
        script = "id => app.graph.getNodeById(Number(id)).widgets.find(w => w.name === 'difflora_player').element"
        return self.page.page.evaluate_handle(script, self.id).as_element()

    def find(self, selector):
        found = self.element.query_selector(selector)
        assert found, f"the player has no {selector}"
        return found

    def pause(self):
        for _ in range(2):  # it begins to play by itself, a moment after it is there
            play = self.find(".play")
            if play.get_attribute("aria-label") == "Pause":
                play.click()
            self.page.settle()

    def press(self, *keys):
        self.find(".difflora-player").focus()
        for key in keys:
            self.page.page.keyboard.press(key)
        self.page.settle()

    def seek(self, frame):
        script = """async ([input, frame]) => { input.value = frame; input.dispatchEvent(new Event('input', { bubbles: true })); }"""
        self.page.page.evaluate(script, [self.find(".range.frame"), str(frame)])
        self.page.page.wait_for_timeout(250)

    def choose(self, place, which="clipShown"):
        """Move a scrubber, and return the picture's right half as it is in the same turn of the page's loop."""
        script = """([input, place, canvas]) => {
            input.value = place;
            input.dispatchEvent(new Event('input', { bubbles: true }));
            return canvas.getContext('2d').getImageData(Math.round(canvas.width * 0.75), Math.round(canvas.height * 0.8), 1, 1).data[0];
        }"""
        return self.page.page.evaluate(script, [self.find(f".range.{which}"), str(place), self.find("canvas")])

    def pixel(self, x, y=0.8):
        script = """([canvas, x, y]) => [...canvas.getContext('2d').getImageData(Math.round(canvas.width * x), Math.round(canvas.height * y), 1, 1).data]"""
        return self.page.page.evaluate(script, [self.find("canvas"), x, y])

    def text(self, selector):
        return self.find(selector).text_content()


def level(strength):
    return 128 + 20 * strength


@pytest.fixture(scope="module")
def sweep(comfy):
    """What a run of swept() says to the page."""
    comfy.forget()
    return comfy.run(swept()).messages


@pytest.fixture(params=(False, True), ids=("canvas", "vue"))
def player(page, sweep):
    page.load(swept())
    page.hear(sweep)
    page.fit()
    return Player(page)


def test_the_last_clip_is_shown_first_and_each_strength_at_once_when_chosen(player):
    assert player.text(".name.a") == "+3"
    assert player.pixel(0.75)[0] == pytest.approx(level(3), abs=3)
    for place, strength in enumerate(STRENGTHS):
        assert player.choose(place) == pytest.approx(level(strength), abs=3)
        assert player.text(".name.a").startswith({-3: "−3", -1: "−1", 0: "0 · baseline", 2: "+2", 3: "+3"}[strength])
    player.press("Home")
    player.press("ArrowLeft", "ArrowLeft")
    assert player.pixel(0.75)[0] == pytest.approx(level(0), abs=3)
    player.press("1")
    assert player.pixel(0.75)[0] == pytest.approx(level(-3), abs=3)


def test_frames_can_be_stepped_and_looped_exactly_and_stay_in_step(player):
    for frame in (0, 5, FRAMES - 1):
        player.seek(frame)
        assert player.text(".transport .count") == f"{frame + 1}/{FRAMES}"
        for place in (0, 3):
            player.choose(place)
            assert player.pixel(0.25)[0] == pytest.approx(20 + 10 * frame, abs=3)
    player.press(".")
    player.page.page.wait_for_timeout(250)
    assert player.pixel(0.25)[0] == pytest.approx(20, abs=3)  # behind the last comes the first
    player.press(",")
    player.page.page.wait_for_timeout(250)
    assert player.pixel(0.25)[0] == pytest.approx(20 + 10 * (FRAMES - 1), abs=3)


def test_a_wipe_divides_two_strengths_where_it_is_dragged(player):
    player.press("w")
    player.choose(0)
    player.choose(4, "clipCompared")
    stage = player.find(".stage").bounding_box()
    mouse = player.page.page.mouse
    y = stage["y"] + stage["height"] * 0.6
    mouse.move(stage["x"] + stage["width"] * 0.5, y)
    mouse.down()
    mouse.move(stage["x"] + stage["width"] * 0.8, y, steps=4)
    mouse.up()
    player.page.settle()
    assert player.pixel(0.7)[0] == pytest.approx(level(-3), abs=3)
    assert player.pixel(0.9)[0] == pytest.approx(level(3), abs=3)
    assert player.pixel(0.8)[0] > 240
    assert (player.text(".name.a"), player.text(".name.b")) == ("−3", "+3")
    player.press("x")
    assert player.pixel(0.7)[0] == pytest.approx(level(3), abs=3)


def test_a_difference_is_enlarged_and_black_where_both_are_equal(player):
    player.press("d")
    player.choose(2)
    player.choose(1, "clipCompared")
    assert player.pixel(0.25)[0] <= 4
    assert player.pixel(0.75)[0] == pytest.approx(4 * 20, abs=12)
    player.find("select[aria-label^='How many']").select_option("8")
    player.page.settle()
    assert player.pixel(0.75)[0] == pytest.approx(8 * 20, abs=24)
    assert player.text(".name.a") == "|0 · baseline − −1|"


def test_all_clips_side_by_side_and_a_click_chooses_one(player):
    player.press("g")
    assert player.find("canvas").evaluate("canvas => canvas.width") > WIDTH
    box = player.find("canvas").bounding_box()
    player.page.page.mouse.click(box["x"] + 8, box["y"] + 8)
    player.press("o")
    assert player.text(".name.a") == "−3"


def test_blind_hides_which_is_which_until_a_choice_is_made(player):
    player.press("b")
    shown = {player.choose(place) for place in range(len(STRENGTHS))}
    assert len(shown) == len(STRENGTHS)  # everyone is there
    whole = player.find(".difflora-player").inner_text()
    assert not any(label in whole for label in ("−3", "−1", "+2", "+3", "baseline"))
    assert player.text(".name.a") == "E"
    value = player.choose(1)
    player.press("Enter")
    strength = round((value - 128) / 20)
    label = "0" if strength == 0 else f"{strength:+d}".replace("-", "−")
    assert player.text(".verdict") == f"You chose B: {label}"
    assert label in player.text(".name.a")
    player.press("b")
    assert player.text(".name.a") == "+3"


def test_it_plays_at_the_speed_chosen(player):
    player.seek(0)
    player.find("select[aria-label='Speed']").select_option("0.5")
    player.press(" ")
    script = """async canvas => {
        const seen = new Set();
        const end = performance.now() + 2500;
        while (performance.now() < end) {
            seen.add(canvas.getContext('2d').getImageData(10, 40, 1, 1).data[0]);
            await new Promise(requestAnimationFrame);
        }
        return [...seen];
    }"""
    seen = player.page.page.evaluate(script, player.find("canvas"))
    assert len(seen) > FRAMES / 2
    assert player.page.page.evaluate("() => document.activeElement.className").startswith("difflora")


def test_keys_stay_in_the_player_and_the_node_lives(player):
    player.press("Delete", "Backspace")
    assert player.page.node_ids("DiffLoraSweepGrid") == ["3"]


def test_another_strength_is_seen_within_a_frame_of_the_screen(player):
    """The time from the scrubber's event to the drawn canvas."""
    script = """([input, canvas]) => {
        const times = [];
        for (let round = 0; round < 40; round++) {
            const start = performance.now();
            input.value = round % 5;
            input.dispatchEvent(new Event('input', { bubbles: true }));
            canvas.getContext('2d').getImageData(0, 0, 1, 1);
            times.push(performance.now() - start);
        }
        return times;
    }"""
    times = player.page.page.evaluate(script, [player.find(".range.clipShown"), player.find("canvas")])
    print(f"switching takes {statistics.median(times):.1f} ms in the middle, {max(times):.1f} ms at most")
    assert statistics.median(times) < 1000 / 16


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_clips_of_another_share_appear_by_themselves_and_what_was_chosen_stays(page, comfy, vue, tmp_path):
    prompt = swept(frames=FRAMES + 1 + vue)
    prompt["1"]["inputs"]["share"] = "1 of 2"
    page.set_renderer(False)
    page.load(prompt)
    page.set_renderer(vue)
    page.queue()
    page.fit()
    player = Player(page)
    shown = "([element]) => [...element.querySelectorAll('.ticks button')].map(button => button.textContent).join()"
    assert page.run(shown, [player.element]) == "−3,0,+3"
    report = "([element]) => element.parentElement.querySelector('.difflora-report').innerText"
    assert "from other shares: −1, +2. They appear here as they arrive" in page.run(
        report, [player.find(".difflora-player")]
    )
    player.choose(1)
    player.seek(4)
    prompt["1"]["inputs"]["share"] = "2 of 2"
    comfy.run(prompt)
    whole = "([element, shown]) => [...element.querySelectorAll('.ticks button')].map(button => button.textContent).join() === shown"
    page.page.wait_for_function(whole, arg=[player.element, "−3,−1,0,+2,+3"], timeout=40_000)
    page.page.wait_for_timeout(500)
    assert "5 of 5 strengths are there" in page.run(report, [player.find(".difflora-player")])
    assert player.text(".name.a") == "0 · baseline" and player.text(".transport .count").startswith("5/")
    assert player.pixel(0.25)[0] == pytest.approx(20 + 10 * 4, abs=3) and player.pixel(0.75)[0] == pytest.approx(
        level(0), abs=3
    )
    assert player.choose(3) == pytest.approx(level(2), abs=3)
    page.screenshot(tmp_path / "share.png")


def test_a_compared_pair_plays_too(page, comfy):
    from PIL import Image

    for name, value in (("one.png", 60), ("two.png", 90)):
        Image.new("RGB", (64, 48), (value,) * 3).save(Path(comfy.base) / "input" / name)
    page.load(
        {
            "1": node("LoadImage", image="one.png"),
            "2": node("LoadImage", image="two.png"),
            "3": node(
                "DiffLoraABCompare",
                a=["1", 0],
                b=["2", 0],
                mode="wipe",
                amplify=4.0,
                fps=16.0,
                label_a="old",
                label_b="new",
            ),
        }
    )
    page.queue()
    page.fit()
    player = Player(page)
    player.press("w")
    assert player.pixel(0.2)[0] == pytest.approx(60, abs=3) and player.pixel(0.9)[0] == pytest.approx(90, abs=3)
    assert (player.text(".name.a"), player.text(".name.b")) == ("old", "new")


# What becomes of a clip


SLIDER = """([sweep, title]) => {
    const target = LiteGraph.createNode('PrimitiveFloat');
    target.title = title;
    target.pos = [900, 40];
    app.graph.add(target);
    app.graph.getNodeById(Number(sweep)).connect(0, target, target.inputs.findIndex(i => i.name === 'value'));
    return String(target.id);
}"""
WIRED = (
    "id => { const node = app.graph.getNodeById(Number(id)); return node.inputs.filter(i => i.link != null).length; }"
)
MODE = "id => app.graph.getNodeById(Number(id)).mode"


def test_a_strength_goes_to_what_the_sweep_feeds_and_undo_brings_the_wire_back(player):
    page = player.page
    page.page.wait_for_timeout(700)  # the node has grown with its clips: no step of its own any more
    slider = page.run(SLIDER, ["1", "<img src=x onerror=window.hacked=1>"])
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.settle()
    player.press("2")
    stage = player.find(".stage").bounding_box()
    page.page.mouse.click(stage["x"] + 30, stage["y"] + stage["height"] / 2, button="right")
    menu = page.page.locator(".difflora-menu")
    assert menu.get_by_role("menuitem").first.inner_text() == "Use strength −1"
    page.page.keyboard.press("Escape")
    assert menu.count() == 0
    player.find(".use").click()
    page.settle()
    assert page.value(slider, "value") == -1
    assert page.run(WIRED, slider) == 0
    assert page.run(MODE, "3") == 2, "a grid without a sweep would end the next run"
    verdict = player.text(".verdict")
    assert "−1" in verdict and "wire" in verdict and "<img" in verdict
    assert page.run("() => window.hacked") is None
    assert "3" not in page.prompt()
    page.undo()
    assert page.run(WIRED, slider) == 1
    assert page.run(MODE, "3") == 0
    player = Player(page)
    assert player.text(".name.a") == "+3", "the clips are there again"


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_the_clips_of_a_run_that_took_its_time_are_there_after_an_undo(page, vue):
    """ComfyUI itself keeps what nodes have said for an undo, but a sweep's under the ids of the nodes it was expanded into."""
    page.load(swept(strengths=[-2.25 - vue, 0, 2.25], frames=9 + vue))
    page.queue()
    page.fit()
    player = Player(page)
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.set_value("3", "cell_size", 256)
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.undo()
    assert page.value("3", "cell_size") == 384
    player = Player(page)
    assert player.text(".name.a") == "+2.25"


@pytest.mark.parametrize("format", ["png", "mp4", "webp", "gif"])
def test_what_is_shown_is_saved(player, format, tmp_path):
    from PIL import Image

    from difflora.clips.video import read_video

    page = player.page
    player.press("w")
    player.choose(0)
    player.choose(4, "clipCompared")
    player.seek(5)
    player.find(".saveAs").click()
    with page.page.expect_download(timeout=30_000) as saved:
        page.page.locator(".difflora-menu").get_by_role("menuitem").filter(has_text=format).click()
    name = saved.value.suggested_filename
    frame = "_frame6" if format == "png" else ""
    assert name == f"slider_-3_+3_wipe{frame}.{format}"
    path = tmp_path / name
    saved.value.save_as(path)
    if format == "mp4":
        frames = list(read_video(path))
    else:
        with Image.open(path) as picture:
            frames = []
            for number in range(getattr(picture, "n_frames", 1)):
                picture.seek(number)
                frames.append(picture.convert("RGB").copy())
    assert len(frames) == (1 if format == "png" else FRAMES)
    import numpy as np

    shown = np.asarray(frames[0 if format == "png" else 5])
    assert shown.shape[:2] == (HEIGHT, WIDTH)
    row = round(HEIGHT * 0.8)
    for x in (0.3, 0.9):
        assert shown[row, round(WIDTH * x), 0] == pytest.approx(player.pixel(x)[0], abs=12), x
    assert name in player.text(".verdict")


def test_a_frame_is_copied(player):
    page = player.page
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    player.press("c")
    copied = """async () => {
        const [item] = await navigator.clipboard.read();
        const picture = await createImageBitmap(await item.getType('image/png'));
        return [picture.width, picture.height];
    }"""
    page.page.wait_for_function(
        "e => e.querySelector('.verdict').textContent.includes('clipboard')", arg=player.element
    )
    assert page.run(copied) == [WIDTH, HEIGHT]


def test_export_answers_nothing_but_the_players_own(comfy):
    def ask(**changes):
        clip = {"key": None, "video": "../../secret.mp4", "box": [0, 0, 8, 8], "label": "0"} | changes.pop("clip", {})
        body = {"format": "png", "view": "one", "fps": 16, "frame": 0, "clips": [clip]} | changes
        code, answer = comfy._request("/differential_lora/export", body)
        return code, answer.decode("utf-8", "replace")

    for changes in (
        {},
        {"clip": {"key": "../../x"}},
        {"format": "exe"},
        {"view": "all the files"},
        {"clips": []},
        {"view": "wipe"},
        {"fps": 0},
        {"fps": float("nan")},
        {"frame": "x"},
    ):
        code, answer = ask(**changes)
        assert code in (400, 422) and str(comfy.base) not in answer, changes


# The plot of Sweep Response


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_the_plot_opens_over_the_whole_page_and_closes_by_key_and_click(page, vue):
    page.load(
        swept()
        | {
            "4": node(
                "DiffLoraSliderResponse",
                sweep=["3", 1],
                target="brightness",
                colour_limit=5.0,
                brightness_limit=10.0,
                saturation_limit=10.0,
                moments=12,
            )
        }
    )
    page.run("() => app.graph._nodes.forEach((node, at) => { node.pos = [700 * at, 0]; })")
    page.queue()
    page.fit()
    enlarge = page.page.locator(".difflora-report").get_by_role("button", name="Enlarge")
    dialog = page.page.locator("dialog.difflora-large")
    for close in (lambda: page.page.keyboard.press("Escape"), lambda: dialog.click()):
        enlarge.click()
        page.page.wait_for_function("() => document.querySelector('dialog.difflora-large img')?.naturalWidth > 0")
        box, window = dialog.bounding_box(), page.page.viewport_size
        assert box["width"] > 0.9 * window["width"] and box["height"] > 0.9 * window["height"]
        close()
        page.page.wait_for_function("() => !document.querySelector('dialog.difflora-large')")
    assert page.node_ids("DiffLoraSliderResponse") == ["4"], "keys did not reach the canvas"
