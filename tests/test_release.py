"""What the registry is told of the pack, what its release holds, and what is built to be installed."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import textinv_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RAW = "https://raw.githubusercontent.com/textinv/textinv/main/"
# All that comfy-cli knows; others fail its check.
ENVIRONMENTS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}


def git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone of the repository")
    listed = subprocess.run(["git", "ls-files", "-z", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def released() -> list[str]:
    """The paths in a release of the work tree as it is: all but what .gitignore and .comfyignore leave out."""
    tracked_or_new = ("--cached", "--others")
    left_out = git(*tracked_or_new, "--ignored", "--exclude-from=.comfyignore")
    paths = {*git(*tracked_or_new, "--exclude-standard")} - {*left_out}
    return sorted(path for path in paths if (ROOT / path).exists())


def test_the_registry_takes_the_classifiers_and_the_version():
    environments = [c for c in PROJECT["project"]["classifiers"] if c.startswith("Environment ::")]
    assert {c.removeprefix("Environment :: ") for c in environments} <= ENVIRONMENTS
    assert re.fullmatch(r">=\d+\.\d+\.\d+", PROJECT["tool"]["comfy"]["requires-comfyui"])


@pytest.mark.parametrize(("picture", "proportions"), [("Icon", (1, 1)), ("Banner", (21, 9))])
def test_icon_and_banner(picture, proportions):
    url = PROJECT["tool"]["comfy"][picture]
    assert url.startswith(RAW)
    with Image.open(ROOT / url.removeprefix(RAW)) as image:
        width, height = image.size
    assert width * proportions[1] == height * proportions[0]
    assert picture == "Banner" or width <= 400


def test_a_release_has_what_people_use_and_no_more(released):
    assert {path.split("/")[0] for path in released if "/" in path} == {
        "docs",
        "example_workflows",
        "locales",
        "nodes",
        "textinv_core",
        "web",
    }
    assert {"pyproject.toml", "README.md", "LICENSE", "docs/shuffling.md", "docs/shuffling.png"} <= {*released}
    assert sum((ROOT / path).stat().st_size for path in released) < 2_000_000


def test_what_comfyui_looks_for_are_files(released):
    """A link would be an empty folder in the archive, and a text file on Windows."""
    links = [line for line in git("--stage") if line.startswith("120000")]
    assert not [link for link in links if link.split("\t")[1] in released]
    assert len([path for path in released if path.startswith("example_workflows/") and path.endswith(".json")]) >= 3


def test_a_release_loads_in_comfyui_with_all_nodes(released, node_classes, tmp_path, monkeypatch):
    for path in released:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    spec = importlib.util.spec_from_file_location(
        "released_pack", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    async def node_list():
        return await (await module.comfy_entrypoint()).get_node_list()

    assert {node.__name__ for node in asyncio.run(node_list())} == {node.__name__ for node in node_classes.values()}
    assert (tmp_path / module.WEB_DIRECTORY / "docs" / "TextInvTrainEmbedding.md").is_file()


def test_there_is_one_version():
    assert textinv_core.__version__ == PROJECT["project"]["version"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[list[str], set[str], set[str]]:
    """What is said while distributions are built, and the files in the source distribution and in the wheel."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("clone")
    for path in _files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist'); build_meta.build_wheel('dist')"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", build], cwd=folder, env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(*folder.glob("dist/*.tar.gz")) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(*folder.glob("dist/*.whl")) as archive:
        return (done.stdout + done.stderr).splitlines(), source, {*archive.namelist()}


def _files() -> set[str]:
    return {path for path in git("--cached", "--others", "--exclude-standard") if (ROOT / path).is_file()}


def test_nothing_warns_while_it_is_built(built):
    said, _, _ = built
    assert [line for line in said if "warning" in line.lower() and "byte-compiling" not in line] == []


def test_the_source_distribution_is_whole(built):
    _, source, _ = built
    assert _files() - source == set()


def test_what_is_installed_is_the_core_with_its_licence(built):
    _, _, installed = built
    metadata = f"textinv-{textinv_core.__version__}.dist-info/"
    assert {path for path in installed if not path.startswith(metadata)} == {
        path for path in _files() if path.startswith("textinv_core/")
    }
    assert metadata + "licenses/LICENSE" in installed


def test_build_and_demo_leave_nothing_for_git(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for path in ("build/lib/a.py", "dist/textinv.whl", "textinv-demo/demo.png", "textinv.egg-info/PKG-INFO"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    told = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["??", ".gitignore"]
