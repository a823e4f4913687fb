"""ComfyUI's page in a real chromium, for tests of what a person sees and does."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, ConsoleMessage, Page, ViewportSize, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.comfy_server import PACK_NAME, ComfyError, ComfyServer, Finished

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--blink-settings=v8CacheOptions=4",  # what is compiled is kept at once, so that the next page need not compile it
    # Nothing but our servers: fonts, news and telemetry are not what is tested. (Playwright's routes switch the cache off.)
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
VIEWPORT: ViewportSize = {"width": 1600, "height": 1000}
# A page draws sixty times a second, even if nothing changes: a tenth of a core for each page that is open. One that
# sleeps does not draw.
SLEEP = """(() => {
    const draw = window.requestAnimationFrame.bind(window), waiting = [];
    let asleep = false;
    window.requestAnimationFrame = callback => (asleep ? -waiting.push(callback) : draw(callback));
    window.testSleep = sleep => {
        asleep = sleep;
        if (!asleep) for (const callback of waiting.splice(0)) draw(callback);
    };
})()"""
# A first visitor is greeted with a tutorial and with news, over the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    # At each change of the queue, every open page fetches that many of the last runs, with all that their nodes have said.
    "Comfy.Queue.MaxHistoryItems": 2,
}
# Notes what becomes of a prompt that the page queues. ComfyUI says so to nobody but the page.
LISTEN = """() => {
    const api = (window.testApi = app.api ?? comfyAPI.api.api), queue = api.queuePrompt.bind(api);
    window.testRuns = { asked: [], ended: 0 };
    api.queuePrompt = (...prompt) => {
        const answer = queue(...prompt);
        testRuns.asked.push(answer.then(({ prompt_id }) => prompt_id, () => null));
        return answer;
    };
    // The last that is said of a run: no node is running.
    api.addEventListener('executing', ({ detail }) => { if (!detail || detail.node === null) testRuns.ended++; });
}"""
# Does what the Run button does, and waits for the end of the run. Returns the prompt's id, or null if it is refused.
# After the first second of a run, its progress is drawn twice a second: sixty times can be as much work as the run.
QUEUE = """async (seconds) => {
    const rest = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
    const first = testRuns.asked.length, ended = testRuns.ended, end = performance.now() + 1000 * seconds;
    const accepted = await app.queuePrompt(0, 1);
    // While the page still finishes the run before, it only puts the new one into a line of its own.
    for (let wait = 0; wait < 100 && accepted === false && testRuns.asked.length === first; wait++) await rest(50);
    const id = (await testRuns.asked[first]) ?? null;
    const begun = performance.now();
    let drawn = begun;
    while (id && testRuns.ended === ended && performance.now() < end) {
        await rest(20);
        const now = performance.now(), sleep = now > begun + 1000 && now < drawn + 500;
        testSleep(sleep);
        if (!sleep) drawn = now;
    }
    testSleep(false);
    return id;
}"""
# A step of the page: two drawn frames, and a moment for Vue's queue and for what waits until the page is idle. Two of them,
# and a third if something has changed in the second: a node that is new is shown, then seen, then drawn.
SETTLE = """async () => {
    const frame = () => new Promise(requestAnimationFrame);
    const rest = () => new Promise(r => requestIdleCallback(r, { timeout: 50 }));
    const drawn = () => [...document.querySelectorAll(".difflora-outer[aria-busy]")].every(element => {
        const box = element.getBoundingClientRect();
        return !box.width || box.bottom < 0 || box.right < 0 || box.top > innerHeight || box.left > innerWidth;
    });
    let changes = 0;
    const observer = new MutationObserver(() => { changes++; });
    observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    try {
        const end = performance.now() + 10_000;
        for (let step = 0; step < 3; step++) {
            const before = changes;
            await frame(); await frame(); await rest();
            while (!drawn()) {
                if (performance.now() > end) throw new Error("a widget that can be seen is not drawn");
                await frame();
            }
            if (step && changes === before) break;
        }
    } finally {
        observer.disconnect();
    }
}"""
# What the frontend logs at start-up by itself, with no pack there at all.
FRONTENDS_OWN = (
    # 1.32.9 sets a setting before it is registered.
    "TypeError: Cannot read properties of undefined (reading 'id')\n    at onChange",
    # 1.49.6 asks for the graph too early.
    "ComfyApp graph accessed before initialization",
)


class Browser:
    """One chromium, and the pages opened in it."""

    def __init__(self, chromium: str, server: ComfyServer):
        self._chromium = chromium
        self._server = server
        self._awake: ComfyPage | None = None

    def __enter__(self) -> Browser:
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=self._chromium, args=list(FLAGS))
        # One for all pages: they share what has been fetched and compiled.
        self._context = self._browser.new_context(viewport=VIEWPORT)
        self._context.add_init_script(SLEEP)
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def open(
        self,
        server: ComfyServer | None = None,
        vue: bool = False,
        settings: dict[str, Any] | None = None,
        locale: str = "en-US",
        viewport: ViewportSize = VIEWPORT,
    ) -> ComfyPage:
        """Open ComfyUI's page and wait until it can be used. What other pages keep in the browser is not there.

        vue: with the Vue renderer of nodes; otherwise they are drawn on the canvas.
        locale: the browser's language, and ComfyUI's.
        """
        server = server or self._server
        values = {
            **SETTINGS,
            "Comfy.Locale": locale.split("-")[0],
            "Comfy.VueNodes.Enabled": vue,
            **(settings or {}),
        }
        server._request("/settings", values)
        page = self._context.new_page()
        page.add_init_script("window.localStorage.clear()")
        page.set_viewport_size(viewport)
        devtools = self._context.new_cdp_session(page)
        agent = page.evaluate("() => navigator.userAgent")
        devtools.send("Emulation.setLocaleOverride", {"locale": locale})
        devtools.send("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": locale})
        opened = ComfyPage(page, devtools, server, self)
        self.wake(opened)
        return opened

    def wake(self, page: ComfyPage) -> None:
        """Let this page draw, and the one that did sleep."""
        if self._awake is not page:
            self.sleep()
            page.page.bring_to_front()  # the browser itself lets the others draw once a second
            page.page.evaluate("() => window.testSleep(false)")
            self._awake = page

    def sleep(self) -> None:
        """Let no page draw until one is woken."""
        if self._awake and not self._awake.page.is_closed():
            self._awake.page.evaluate("() => window.testSleep?.(true)")
        self._awake = None


class ComfyPage:
    """page: Playwright's. errors: what the page has logged as an error, or thrown, since the last clear()."""

    def __init__(self, page: Page, devtools: CDPSession, server: ComfyServer, browser: Browser):
        self.page = page
        self._devtools = devtools
        self.server = server
        self._browser = browser
        self.errors: list[str] = []
        self.errors_at_start: list[str] = []
        page.on("console", self._logged)
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error.stack or error}"))
        page.goto(server.url, timeout=120_000)
        ready = "() => window.app?.vueAppReady && window.app.canvas?.graph && window.app.extensionManager"
        page.wait_for_function(ready, timeout=120_000)
        page.wait_for_function("() => window.LiteGraph.registered_node_types.KSampler", timeout=60_000)
        page.evaluate(LISTEN)

    def close(self) -> None:
        self.page.close()

    def sleep(self) -> None:
        """Draw nothing until clear() or settle()."""
        self._browser.sleep()

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        url = message.location.get("url", "")
        # ComfyUI's page asks for files that a new user does not have, and for some on other servers.
        if message.text.startswith("Failed to load resource") and PACK_NAME not in url:
            return
        if message.text.startswith(FRONTENDS_OWN):
            return
        if "Content Security Policy" in message.text and self.server.url not in message.text:
            return
        self.errors.append(f"{message.text} ({url})")

    # The graph

    def run(self, script: str, argument: object = None) -> Any:
        """Evaluate JavaScript in the page; `app` is ComfyUI's."""
        return self.page.evaluate(script, argument)

    def clear(self) -> None:
        """An empty graph, no open dialog, no errors. Of several pages, this is the one that draws from now on."""
        self._browser.wake(self)
        # Of a run that failed over an infinite number, ComfyUI's own record is no JSON that a page can read.
        self.server.forget_runs()
        for _ in range(2):
            self.page.keyboard.press("Escape")
        # Ids go on from where they were: the page remembers values and outputs by them.
        self.run("""() => {
            const last = app.graph.last_node_id;
            app.graph.clear();
            app.graph.last_node_id = last;
            app.canvas.deselectAll?.();
            app.canvas.ds.reset();
        }""")
        self.errors.clear()

    def load(self, graph: dict[str, Any]) -> None:
        """Load a workflow (UI format) or a prompt (API format)."""
        if "nodes" in graph:
            self.run("async graph => { await app.loadGraphData(graph); }", graph)
        else:
            self.run("async prompt => { await app.loadApiJson(prompt, 'test'); }", graph)
        self.page.wait_for_function("() => app.graph._nodes.length > 0")
        self.settle()
        # ComfyUI's page checks what it loads, says what is wrong, and loads it all the same.
        invalid = self.page.get_by_text("Invalid workflow")
        assert invalid.count() == 0, invalid.first.evaluate("element => element.parentElement.innerText")

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as the page would queue it."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def workflow(self) -> dict[str, Any]:
        """The graph in UI format, as the page would save it."""
        # As text: Playwright hands `undefined` on as null, and ComfyUI's page calls a workflow with nulls invalid.
        return json.loads(self.run("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))

    def node_ids(self, type: str | None = None) -> list[str]:
        script = "type => app.graph._nodes.filter(n => !type || n.type === type).map(n => String(n.id))"
        return self.run(script, type)

    def value(self, node_id: str, widget: str) -> Any:
        """A widget's value."""
        script = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
        return self.run(script, [_id(node_id), widget])

    def set_value(self, node_id: str, widget: str, value: Any) -> None:
        """Set a widget as a person does, callback included."""
        script = """([id, name, value]) => {
            const node = app.graph.getNodeById(id);
            const widget = node.widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value, app.canvas, node, [0, 0], undefined);
        }"""
        self.run(script, [_id(node_id), widget, value])

    def undo(self) -> None:
        """One step of undo, by its keys."""
        tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
        before = self.run(f"() => {tracker}.undoQueue.length")
        # The page passes over the keys while it still restores the step before.
        undone = f"before => {tracker}.undoQueue.length !== before && !{tracker}._restoringState"
        for last in (False, False, False, True):
            self.run("() => document.activeElement?.blur()")
            self.page.keyboard.press("Control+z")
            try:
                self.page.wait_for_function(undone, arg=before, timeout=2000)
                break
            except PlaywrightError:
                if last:
                    raise
        self.settle()

    # What is seen

    def set_renderer(self, vue: bool) -> None:
        """Switch between Vue nodes and nodes drawn on the canvas, as the setting does."""
        switch = """async vue => {
            const { setting } = app.extensionManager, name = 'Comfy.VueNodes.Enabled';
            if (setting.get(name) === vue) return false;
            await setting.set(name, vue);
            return true;
        }"""
        if not self.run(switch, vue):
            return
        if vue and self.node_ids():
            self.page.wait_for_selector("[data-node-id]", timeout=15_000)
        self.settle()

    def settle(self) -> None:
        """Wait until nothing changes any more, and the pack's widgets that can be seen are drawn."""
        self._browser.wake(self)
        self.run(SETTLE)

    def fit(self) -> None:
        """Zoom so that the whole graph is seen, at once."""
        with contextlib.suppress(PlaywrightError):
            self.run("() => { app.canvas.fitViewToSelectionAnimated({ duration: 1 }); }")
        self.settle()

    def boxes(self) -> dict[str, list[float]]:
        """Left, top, width and height of every node's body by id, in the graph's pixels, as it is drawn now; titles are above."""
        return self.run("""() => Object.fromEntries(app.graph._nodes.map(node => {
            const element = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
            if (!element) return [node.id, [...node.pos, ...(node.flags.collapsed ? [node._collapsed_width ?? node.size[0], 0] : node.size)]];
            // Vue's own size of a node is not what it draws.
            const { scale, offset } = app.canvas.ds, place = app.canvas.canvas.getBoundingClientRect();
            const box = element.getBoundingClientRect();
            const bottom = (box.bottom - place.top) / scale - offset[1];
            return [node.id, [node.pos[0], node.pos[1], box.width / scale, bottom - node.pos[1]]];
        }))""")

    def screenshot(self, path: Path | str) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.settle()
        self.page.screenshot(path=str(path))
        return path

    def tap(self, x: float, y: float) -> None:
        """Touch the screen, which for that time is one that can be touched."""
        self._devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 1})
        for type, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            self._devtools.send("Input.dispatchTouchEvent", {"type": type, "touchPoints": points})
        self.settle()
        self._devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": False})

    # Running

    def hear(self, messages: list[tuple[str, dict[str, Any]]]) -> None:
        """Take up what nodes of this graph have said in a run elsewhere, as while it runs."""
        said = [data for kind, data in messages if kind == "executed"]
        self.run("said => { for (const each of said) testApi.dispatchCustomEvent('executed', each); }", said)
        self.settle()

    def queue(self, timeout: float = 300) -> Finished:
        """Do what the Run button does, and wait until the prompt is done. Raises what ComfyServer.wait raises."""
        prompt_id = self.run(QUEUE, timeout)
        if prompt_id is None:
            why = [self.run("() => JSON.stringify(app.lastNodeErrors ?? 'no node is to blame')"), *self.errors]
            raise ComfyError("the page could not queue the prompt: " + "; ".join(why))
        result = self.server.wait(prompt_id, timeout)
        self.settle()
        return result


def _id(node_id: str) -> int | str:
    """The page looks nodes up by number, where the id is one."""
    return int(node_id) if node_id.isdigit() else node_id
