"""What is said of a setting: once, beside its type, for flags and for the nodes' tooltips alike.

As in `steps: Annotated[int, Doc("...")] = 500`, after PEP 727: plain sentences, without markup.
"""

from typing import get_type_hints

from typing_extensions import Doc


def description(cls: type, name: str) -> str:
    """What is said of the setting `name` of a dataclass. Raises KeyError where there is none, ValueError where nothing
    is said."""
    hint = get_type_hints(cls, include_extras=True)[name]
    [text] = [each.documentation for each in getattr(hint, "__metadata__", ()) if isinstance(each, Doc)]
    return text
