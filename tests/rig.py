"""A real ComfyUI for tests: where it is, its server, and scripts run inside it.

ComfyUI is `COMFYUI_PATH`, else `~/ComfyUI`, else `~/comfy/ComfyUI`, else the checkout whose `custom_nodes` holds this
pack; its interpreter is `COMFYUI_PYTHON`, else the virtual environment in that folder, else the one running pytest.
Only the standard library is used to talk to it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

TESTS = Path(__file__).absolute().parent  # not resolved: the pack may be a link in a custom_nodes folder
PACK = TESTS.parent


def find_host() -> Path | None:
    if path := os.environ.get("COMFYUI_PATH"):
        if not Path(path, "main.py").is_file():
            raise pytest.UsageError(f"COMFYUI_PATH={path}: there is no ComfyUI (no main.py) in that folder")
        return Path(path).absolute()
    places = [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    if PACK.parent.name == "custom_nodes":
        places.append(PACK.parents[1])
    return next((place for place in places if (place / "main.py").is_file()), None)


def interpreter(host: Path) -> str:
    if python := os.environ.get("COMFYUI_PYTHON"):
        return python
    inside = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    places = [host / ".venv" / inside, host / "venv" / inside]
    return next((str(place) for place in places if place.is_file()), sys.executable)


def version(host: Path) -> str:
    return re.search(r'__version__ = "(.+?)"', (host / "comfyui_version.py").read_text())[1]


def host_env(**more: str) -> dict[str, str]:
    """Waiting threads sleep rather than spin: on a machine with other work on it that is several times quicker."""
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more}


class GraphError(Exception):
    """A graph was refused, or failed: the message is what the server said, and of which node."""


class Server:
    """A ComfyUI server of the test session's own: `base` holds its models, input, output and custom_nodes."""

    Error = GraphError  # for tests: pytest.raises(server.Error, match=...)

    def __init__(self, host: Path, base: Path):
        self.base = base
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = base / "server.log"
        command = [interpreter(host), "main.py", "--cpu", "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--disable-api-nodes", "--disable-auto-launch"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=host, env=host_env(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until_up(self, timeout: float = 300):
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            try:
                self.get("/object_info")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no answer from ComfyUI after {timeout} s:\n{self._log_tail()}") from None
                time.sleep(0.2)
        if "IMPORT FAILED" in self.log_text():
            raise RuntimeError(f"ComfyUI could not import the pack:\n{self._log_tail()}")

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def get(self, path: str):
        """What is at `path`: parsed where it is JSON, bytes where it is not."""
        return self._request(path)

    def post(self, graph: dict, workflow: dict | None = None) -> str:
        """Queues a graph in API format, returns its prompt id. Raises GraphError where validation finds fault.

        workflow: the same in the page's format, which the page sends along.
        """
        extra = {} if workflow is None else {"extra_data": {"extra_pnginfo": {"workflow": workflow}}}
        try:
            answer = self._request("/prompt", {"prompt": graph, **extra})
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        # A graph of which only some outputs are valid is queued all the same, with the errors beside.
        if answer.get("error") or answer.get("node_errors"):
            raise GraphError(_refusal(answer))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict:
        """The prompt's history entry, once it is done, failed or interrupted."""
        deadline = time.monotonic() + timeout
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            self._check_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt not done after {timeout} s:\n{self._log_tail()}")
            time.sleep(0.05)
        return history[prompt_id]

    def run(self, graph: dict, timeout: float = 300, workflow: dict | None = None) -> dict:
        """Posts a graph and waits. Returns `{node id: what it shows}`; raises GraphError where it did not succeed."""
        entry = self.wait(self.post(graph, workflow), timeout)
        if entry["status"]["status_str"] != "success":
            raise GraphError(_failure(entry["status"]["messages"]))
        return entry["outputs"]

    def interrupt(self):
        self._request("/interrupt", {})

    def forget(self):
        """Have it drop what nodes gave, and the models, before the next graph."""
        self._request("/free", {"unload_models": True, "free_memory": True})

    def file(self, reference: dict) -> Path:
        """The file behind `{"filename", "subfolder", "type"}`, as outputs name theirs."""
        return self.base / reference["type"] / reference["subfolder"] / reference["filename"]

    def log_text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _request(self, path, body=None):
        request = urllib.request.Request(self.url + path)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is for other machines
        with direct.open(request, timeout=60) as answer:
            content = answer.read()
            return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def _check_alive(self):
        if self._process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {self._process.returncode}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-60:])


def _refusal(answer: dict) -> str:
    error = answer.get("error", {})
    lines = [f"{error.get('message')}: {error.get('details')}"] if error else []
    for node, report in answer.get("node_errors", {}).items():
        lines += [f"{report['class_type']} ({node}): {e['message']}: {e['details']}" for e in report["errors"]]
    return "\n".join(lines)


def _failure(messages: list) -> str:
    for kind, what in messages:
        if kind == "execution_error":
            return f"{what['node_type']} ({what['node_id']}): {what['exception_type']}: {what['exception_message']}"
        if kind == "execution_interrupted":
            return f"{what['node_type']} ({what['node_id']}): interrupted"
    return str(messages)


def run_inside(host: Path, script: str, *args, base: Path | None = None, timeout: float = 600) -> str:
    """Standard output of a script in `inside/`, run with ComfyUI's interpreter in ComfyUI's folder."""
    env = host_env(TEXTINV_PACK=str(PACK), **({"TEXTINV_BASE": str(base)} if base else {}))
    command = [interpreter(host), str(TESTS / "host" / "inside" / script), *map(str, args), "--cpu"]
    done = subprocess.run(command, cwd=host, env=env, capture_output=True, timeout=timeout, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n" + "\n".join(done.stderr.splitlines()[-40:]))
    return done.stdout


def link(source: Path, target: Path):
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:  # Windows, without the right to make links
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def make_base(base: Path) -> Path:
    """Make `base` a base directory for ComfyUI: the pack is in its place, all else is empty."""
    for folder in ("custom_nodes", "input", "output", "models/embeddings", "models/loras"):
        (base / folder).mkdir(parents=True)
    link(PACK, base / "custom_nodes" / "textinv")
    return base
