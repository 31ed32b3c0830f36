"""Schemas of nodes: inputs, outputs and the values nodes return."""

from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any


@dataclass
class Input:
    id: str
    _: KW_ONLY
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    advanced: bool | None = None


@dataclass
class WidgetInput(Input):
    default: Any = None
    socketless: bool | None = None


@dataclass
class Output:
    id: str | None = None
    _: KW_ONLY
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False


class ComfyTypeIO:
    io_type: str

    class Input(Input): ...

    class Output(Output): ...

    def __init_subclass__(cls):
        for name in ("Input", "Output"):
            setattr(cls, name, type(name, (getattr(cls, name),), {"io_type": cls.io_type}))


def Custom(io_type: str) -> type[ComfyTypeIO]:
    return type("CustomComfyType", (ComfyTypeIO,), {"io_type": io_type})


class Image(ComfyTypeIO):
    io_type = "IMAGE"


class Mask(ComfyTypeIO):
    io_type = "MASK"


class Model(ComfyTypeIO):
    io_type = "MODEL"


class ClipVision(ComfyTypeIO):
    io_type = "CLIP_VISION"


class Clip(ComfyTypeIO):
    io_type = "CLIP"


class Vae(ComfyTypeIO):
    io_type = "VAE"


class LossMap(ComfyTypeIO):
    io_type = "LOSS_MAP"


class Boolean(ComfyTypeIO):
    io_type = "BOOLEAN"

    @dataclass
    class Input(WidgetInput):
        label_on: str | None = None
        label_off: str | None = None
        force_input: bool | None = None


class ControlAfterGenerate(str, Enum):
    fixed = "fixed"


class Int(ComfyTypeIO):
    io_type = "INT"

    @dataclass
    class Input(WidgetInput):
        min: int | None = None
        max: int | None = None
        step: int | None = None
        control_after_generate: bool | ControlAfterGenerate | None = None
        force_input: bool | None = None


class Float(ComfyTypeIO):
    io_type = "FLOAT"

    @dataclass
    class Input(WidgetInput):
        min: float | None = None
        max: float | None = None
        step: float | None = None
        round: float | None = None
        force_input: bool | None = None


class String(ComfyTypeIO):
    io_type = "STRING"

    @dataclass
    class Input(WidgetInput):
        multiline: bool = False
        placeholder: str | None = None
        dynamic_prompts: bool | None = None
        force_input: bool | None = None


class Combo(ComfyTypeIO):
    io_type = "COMBO"

    @dataclass
    class Input(WidgetInput):
        options: list[str] | None = None
        control_after_generate: bool | None = None


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class HiddenHolder:
    unique_id: str | None
    prompt: Any
    extra_pnginfo: Any


@dataclass
class Schema:
    node_id: str
    _: KW_ONLY
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None):
        self.args = args
        self.ui = ui

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    hidden: HiddenHolder

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, *args: Any, **kwargs: Any) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, *args: Any, **kwargs: Any) -> bool | str:
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
