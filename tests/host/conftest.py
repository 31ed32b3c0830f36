"""Tests against a real ComfyUI (see `tests/rig.py`): small checkpoints, a server that has them, scripts run inside it.

Where there is no ComfyUI, every test in this folder is skipped.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest

from tests.rig import Server, find_host, link, make_base, run_inside, version

HERE = Path(__file__).absolute().parent


def pytest_collection_modifyitems(items):
    if not find_host():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no ComfyUI found: set COMFYUI_PATH"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    result = yield  # so that this comes after pytest's own summary
    host = find_host()
    terminalreporter.write_line(
        f"tests/host: ran against ComfyUI {version(host)} in {host}"
        if host
        else "tests/host: SKIPPED, no ComfyUI found. COMFYUI_PATH names its folder, COMFYUI_PYTHON its interpreter."
    )
    return result


@pytest.fixture(scope="session")
def host() -> Path:
    """ComfyUI's folder."""
    return find_host()


@pytest.fixture(scope="session")
def checkpoints(host) -> Path:
    """A folder with sd15, sd15_inpaint, sd2v and sdxl `.safetensors`; made once (3.5 GB), found again by later runs."""
    maker = (HERE / "inside" / "make_checkpoints.py").read_bytes()
    key = hashlib.sha256(maker + version(host).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"textinv-checkpoints-{key}")
    folder.mkdir(exist_ok=True)
    run_inside(host, "make_checkpoints.py", folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, checkpoints) -> Path:
    """A base directory for ComfyUI, with the pack, checkpoints and the toy world's loader in their places."""
    base = make_base(tmp_path_factory.mktemp("comfyui"))
    link(checkpoints, base / "models" / "checkpoints")
    link(HERE / "toyworld", base / "custom_nodes" / "toyworld")
    return base


@pytest.fixture(scope="session")
def server(host, base):
    server = Server(host, base)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def inside(host, base):
    """`inside(script, *args)`: what a script in `inside/` prints last, parsed. It shares `base` with the server."""

    def run(script: str, *args, timeout: float = 600):
        output = run_inside(host, script, *args, base=base, timeout=timeout)
        return json.loads(output.splitlines()[-1])

    return run
