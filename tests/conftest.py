"""Shared fixtures: a real ComfyUI and a real browser, and what happens where one is missing.

A missing part (ComfyUI, chromium) is a skip with its reason; with DIFFLORA_REQUIRE_ALL set, as in CI, it is a failure.
WanVideoWrapper is the exception: it is on no package index, so its tests always skip if there is none.

COMFYUI_DIR          a ComfyUI (`python bootstrap.py test` sets it to the one it keeps in the cache)
COMFYUI_PYTHON       the Python to run that ComfyUI with, if it needs other packages than the tests' own
WANVIDEO_WRAPPER_DIR a checkout of ComfyUI-WanVideoWrapper
COMFYUI_DISTRIBUTED_DIR a checkout of ComfyUI-Distributed
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

MARKERS = {
    "comfy": "needs a ComfyUI",
    "browser": "needs chromium",
    "wrapper": "needs WanVideoWrapper",
    "slow": "takes more than ten seconds",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--second-chance",
        action="store_true",
        help="run a test with a real server or browser once more when it fails: a busy machine can be too slow for it",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")

    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Workers are started after this, and find there what tests/warm_start.py shares between them.
        os.environ["DIFFLORA_NURSERY"] = folder = tempfile.mkdtemp(prefix="nursery-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))

    settings.register_profile("any machine", deadline=None)  # a busy one makes the first example slow
    settings.load_profile("any machine")

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # So that `timeout` and the like leave no server behind.
    signal.signal(signal.SIGTERM, stop)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark tests by the fixtures they use, so that `-m "not browser"` and the like work.

    pytest-randomly shuffles during the `yield`. Tests that share a server keep the order of their file and run last, and
    only they get a second chance.
    """
    needs = {"start_comfy": "comfy", "comfy": "comfy", "open_page": "browser", "wrapper": "wrapper"}
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in needs:
                item.add_marker(needs[fixture])
    real = [item for item in items if any(item.get_closest_marker(mark) for mark in ("comfy", "browser", "wrapper"))]
    # Within a file, first all tests on the canvas: the page switches its renderer once.
    files = list(dict.fromkeys(item.path for item in real))
    real.sort(key=lambda item: (files.index(item.path), draws_with_vue(item)))
    for item in real:
        if config.getoption("second_chance"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    yield
    last = {item: number for number, item in enumerate(real)}
    items.sort(key=lambda item: last.get(item, -1))


def pytest_collection_finish() -> None:
    """No garbage collection has to look at torch and five thousand tests again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What went wrong before a second chance: it may be a fault that shows itself once in a hundred runs."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"before the second chance: {report.nodeid}", sep="_", red=True)
        terminalreporter.line(report.longreprtext)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With several workers: all of tests/browser on one of them, each file of tests/e2e and tests/readers on one, all other
    tests anywhere.

    A file shares a server or a library whose import takes seconds. Pages on every worker would take more than they bring: one
    that is open follows all runs of its server, and draws.

    (`--dist loadgroup` would do, but pytest-xdist 3.8 changes test ids in a way that pytest 9.2 does not notice.)
    """
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByServer(config, log)


def scope_of(nodeid: str) -> str:
    """Tests of one scope run on one worker."""
    file = nodeid.partition("::")[0]
    folder = file.rpartition("/")[0]
    return {"tests/browser": folder, "tests/e2e": file, "tests/readers": file}.get(folder, nodeid)


def draws_with_vue(item: pytest.Item) -> bool:
    """Whether the test's parameters say `vue`: it is about the Vue renderer of nodes."""
    return "vue" in item.name.partition("[")[2].rstrip("]").split("-")


def absent(reason: str) -> NoReturn:
    """Skip for a missing part, or fail for it where everything is required."""
    if os.environ.get("DIFFLORA_REQUIRE_ALL"):
        pytest.fail(f"{reason} (DIFFLORA_REQUIRE_ALL is set)", pytrace=False)
    pytest.skip(reason)


def wrapper_folder() -> Path | None:
    folder = os.environ.get("WANVIDEO_WRAPPER_DIR")
    return Path(folder).resolve() if folder else None


@pytest.fixture(scope="session")
def wrapper() -> Path:
    """The checkout of WanVideoWrapper. The `comfy` server has its nodes too, then."""
    folder = wrapper_folder()
    if folder is None:
        pytest.skip("WANVIDEO_WRAPPER_DIR does not say where a WanVideoWrapper is")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with everything tests.small_models can write. Shared: do not change what is in it."""
    from tests import small_models

    folder = tmp_path_factory.mktemp("models")
    small_models.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def start_comfy(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Callable[..., object]]:
    """Starts further servers, with flags of their own: `start_comfy("--cache-none", helper_nodes=False)`.

    They end with the session; a test that is done with one earlier calls its `stop()`.
    """
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        absent("COMFYUI_DIR does not say where a ComfyUI is; python bootstrap.py test brings one")
    from tests.comfy_server import ComfyServer

    servers: list[ComfyServer] = []

    def start(*flags: str, **options: object) -> ComfyServer:
        base = tmp_path_factory.mktemp("comfyui")
        # Hard links: every server has all models, and a test may put its own files beside them.
        shutil.copytree(models, base / "models", copy_function=_link_or_copy)
        options = {
            "wrapper": wrapper_folder(),
            "python": os.environ.get("COMFYUI_PYTHON", sys.executable),
            "comfyui": Path(folder).resolve(),
            "warm": True,
            **options,
        }
        server = ComfyServer(base, flags=flags, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def comfy(start_comfy: Callable[..., object]) -> object:
    """The ComfyUI (a ComfyServer) that tests share. Its caches hold what earlier tests ran: a test that
    needs them empty calls `comfy.forget()`, and one that changes the server for good starts its own with `start_comfy`."""
    return start_comfy()


@pytest.fixture(autouse=True)
def _second_chance_from_the_start(request: pytest.FixtureRequest) -> None:
    """What the first attempt left on the shared server (cached results, finished clips) is not there for the second."""
    if getattr(request.node, "execution_count", 1) > 1 and "comfy" in request.fixturenames:
        server = request.getfixturevalue("comfy")
        server.forget_clips()
        server.forget()


@pytest.fixture(scope="session")
def open_page(comfy: object) -> Iterator[Callable[..., object]]:
    """Opens pages in one chromium: `open_page(server=other, locale="ja-JP", viewport=…)`. They end with the session."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        absent("chromium is not installed")
    from tests.comfy_page import Browser

    with Browser(chromium, comfy) as browser:
        yield browser.open


@pytest.fixture(scope="session")
def shared_page(open_page: Callable[..., object]) -> object:
    page = open_page()
    page.page.wait_for_timeout(2000)
    page.errors_at_start = [*page.errors]
    return page


@pytest.fixture(scope="session")
def page_in(open_page: Callable[..., object], shared_page: object) -> Callable[[str], object]:
    """`page_in("ja-JP")`: a page in this language with an empty graph, and no errors. Loading one takes 15 s of CPU time.

    They stay open and are shared: set the renderer that the test needs, and close nothing.
    """
    pages = {"en-US": shared_page}

    def page(locale: str) -> object:
        if locale not in pages:
            pages[locale] = open_page(locale=locale)
        pages[locale].clear()
        return pages[locale]

    return page


@pytest.fixture
def page(shared_page: object, request: pytest.FixtureRequest) -> object:
    """ComfyUI's page (a ComfyPage) with an empty graph. The test fails if the page logs an error meanwhile.

    Nodes are drawn by Vue for a test whose parameters say `vue`, otherwise on the canvas.
    """
    shared_page.clear()
    shared_page.set_renderer(draws_with_vue(request.node))
    yield shared_page
    shared_page.sleep()
    assert not shared_page.errors, "the page has logged errors:\n" + "\n".join(shared_page.errors)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
