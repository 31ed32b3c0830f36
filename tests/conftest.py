"""The pack as ComfyUI loads it, against stubs of ComfyUI's API, for tests of nodes."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Before anything imports torch: its threads sleep while they wait, as in the command; see benchmarks/RESULTS.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parents[1]


class RootIsNoPackage:
    """Keeps pytest from importing the root's `__init__.py`: only ComfyUI, and `pack`, load it as a package."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config):
    # A conftest's own hooks are only asked about what lies below it; those of a plugin about everything.
    config.pluginmanager.register(RootIsNoPackage())


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The repository's root as the package `textinv_pack`, loaded by path as ComfyUI does."""
    sys.path.insert(0, str(ROOT / "tests" / "stubs"))
    spec = importlib.util.spec_from_file_location(
        "textinv_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def node_classes(pack) -> dict[str, type]:
    """Node id -> node class, for every node of the pack."""

    async def node_list():
        extension = await pack.comfy_entrypoint()
        return await extension.get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(node_list())}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each of several processes has, and recordings had: sums come out the same to the bit only then."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def input_directory(pack, tmp_path, monkeypatch) -> Path:
    """An empty folder that nodes take for ComfyUI's input directory."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    return tmp_path / "input"
