"""Tests of the pack in ComfyUI's page: its real frontend, served by a real ComfyUI, in a headless Chromium.

ComfyUI is found as `tests/rig.py` says. Chromium is `CHROMIUM_PATH`, else playwright's own, else the system's. Where
one of them is missing, every test in this folder is skipped. No model is needed: files of their names are enough.
"""

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.rig import PACK, Server, find_host, link, make_base, version

HERE = Path(__file__).absolute().parent
EXAMPLES = ("train_fast_sd15", "train_fast_style_sd15", "train_style_sd15", "train_subject_sd15", "train_subject_sdxl")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SETTINGS = {"Comfy.TutorialCompleted": True}  # else the page opens with the template browser


@cache
def find_chromium() -> str | None:
    if path := os.environ.get("CHROMIUM_PATH"):
        return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else next(filter(None, map(shutil.which, CHROMIUMS)), None)


def missing() -> str | None:
    """What these tests need and there is not."""
    if not find_host():
        return "no ComfyUI found: set COMFYUI_PATH"
    if not find_spec("playwright"):
        return "no playwright: python -m pip install playwright"
    return None if find_chromium() else "no Chromium found: set CHROMIUM_PATH, or run playwright install chromium"


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if HERE in item.path.parents]
    config.textinv_page_missing = reason = missing() if ours else None
    if reason:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    result = yield  # so that this comes after pytest's own summary
    reason = getattr(config, "textinv_page_missing", None)
    terminalreporter.write_line(
        f"tests/page: SKIPPED, {reason}" if reason else f"tests/page: ran against ComfyUI {version(find_host())}"
    )
    return result


def api_graph(example: str) -> dict:
    """The example graph in API format, as the host's tests run it."""
    path = HERE.parent / "host" / "graphs" / f"{example}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def workflow(example: str) -> dict:
    """The example graph in the page's format."""
    path = PACK / "example_workflows" / f"{example}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("page"))
    link(HERE.parent / "host" / "toyworld", base / "custom_nodes" / "toyworld")
    for folder in ("my_style", "my_subject"):
        (base / "input" / folder).mkdir()
    (base / "models" / "checkpoints").mkdir()
    for node in (node for example in EXAMPLES for node in api_graph(example).values()):
        if node["class_type"] == "CheckpointLoaderSimple":
            (base / "models" / "checkpoints" / node["inputs"]["ckpt_name"]).touch()
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    server = Server(find_host(), base)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def our_nodes(server) -> dict[str, dict]:
    """Node id -> what /object_info says of it."""
    return {k: v for k, v in server.get("/object_info").items() if v["python_module"] == "custom_nodes.textinv"}


@pytest.fixture(scope="module")
def browser():
    """For one module: while playwright runs, so does its event loop, and nobody else can run one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser, server):
    """`open_page(locale)`: the page, loaded, with all nodes known; `page.errors` is what its scripts threw."""

    def open_page(locale: str = "en-US"):
        page = browser.new_page(locale=locale, viewport={"width": 1600, "height": 1000})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.url, wait_until="domcontentloaded")
        known = "!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types.TextInvTrainEmbedding)"
        page.wait_for_function(known, timeout=120_000)
        return page

    return open_page


@pytest.fixture(scope="module")
def english_page(open_page):
    return open_page()


@pytest.fixture
def page(english_page):
    """The page, which must not throw. One for all tests, as loading it is what takes long."""
    english_page.errors.clear()
    yield english_page
    assert english_page.errors == []


@pytest.fixture(params=["classic", "nodes_2"])
def either_nodes(request, page) -> str:
    """How nodes are drawn: on the canvas, or as elements of the page."""
    set_nodes_2(page, request.param == "nodes_2")
    yield request.param
    set_nodes_2(page, False)


def set_nodes_2(page, on: bool):
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)
