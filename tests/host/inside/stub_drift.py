"""Prints, as a JSON list, where `tests/stubs` differ from the ComfyUI this runs in; exits 1 if they do.

Run with ComfyUI's interpreter in ComfyUI's folder, with `--cpu` where there is no GPU. Every module, class,
function, variable, enum value and io type of the stubs must exist in the host, every parameter too, and what a
stub lets callers leave out the host must let them leave out as well.
"""

import importlib
import importlib.util
import inspect
import json
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

STUBS = Path(__file__).parents[2] / "stubs"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_stub(path: Path) -> ModuleType:
    """A stub under a name of its own, beside the real module."""
    name = f"stub_{'_'.join(path.relative_to(STUBS).with_suffix('').parts)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def real_module(path: Path) -> Any:
    """What a stub stands for; not all that nodes import from `comfy_api.latest` are modules of that name."""
    name = ".".join(path.relative_to(STUBS).with_suffix("").parts).removesuffix(".__init__")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, last = name.rpartition(".")
        return getattr(importlib.import_module(parent), last)


def members(stub: Any) -> dict[str, Any]:
    """The classes and functions that a stub's module or class defines itself."""
    home = stub.__name__ if isinstance(stub, ModuleType) else stub.__module__
    return {
        name: value
        for name in vars(stub)
        if not name.startswith("__")
        # getattr, not vars: a classmethod is to be bound.
        and (inspect.isclass(value := getattr(stub, name)) or inspect.isroutine(value))
        and value.__module__ == home
    }


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def call_differences(stub: Any, real: Any, where: str) -> list[str]:
    """How calls that the stub takes could fail in the host."""
    ours, theirs = parameters(stub), parameters(real)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    found = []
    for name, parameter in ours.items():
        if parameter.kind not in NAMED:
            continue
        if name not in theirs:
            found += [] if takes_any else [f"{where}: the host has no parameter {name}"]
        elif parameter.default is not parameter.empty and theirs[name].default is theirs[name].empty:
            found.append(f"{where}: the host requires {name}")
    required = [n for n, p in theirs.items() if p.kind in NAMED and p.default is p.empty and n not in ours]
    return found + [f"{where}: the host requires {name}, the stub does not know it" for name in required]


def differences(stub: Any, real: Any, where: str) -> list[str]:
    """What a stub's module, class or function has that the host has not, all the way down."""
    if not isinstance(stub, ModuleType) and not inspect.isclass(stub):
        return call_differences(stub, real, where)
    found = []
    if isinstance(stub, ModuleType):
        found += [
            f"{where}.{name} is not in the host" for name in inspect.get_annotations(stub) if not hasattr(real, name)
        ]
    else:
        if issubclass(stub, Enum):
            ours, real_values = ({name: m.value for name, m in kind.__members__.items()} for kind in (stub, real))
            return [f"{where}.{n} is {real_values.get(n)!r}" for n, v in ours.items() if real_values.get(n) != v]
        # Inputs and outputs of the host take theirs from the type they belong to.
        theirs = getattr(getattr(real, "Parent", None) or real, "io_type", None)
        if getattr(stub, "io_type", theirs) != theirs:
            found.append(f"{where}.io_type is {theirs!r}")
        if not issubclass(stub, BaseException) and stub.__init__ is not object.__init__:
            found += call_differences(stub, real, where)
    for name, value in members(stub).items():
        if not hasattr(real, name):
            found.append(f"{where}.{name} is not in the host")
        else:
            found += differences(value, getattr(real, name), f"{where}.{name}")
    return found


def main() -> int:
    sys.path.insert(0, "")
    # Unless told so, the host reads no command line, and without `--cpu` asks for a GPU.
    import comfy.options

    comfy.options.enable_args_parsing()
    found = []
    for path in sorted(STUBS.rglob("*.py")):
        found += differences(load_stub(path), real_module(path), path.relative_to(STUBS).as_posix())
    print(json.dumps(found, indent=2))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
