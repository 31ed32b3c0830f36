"""The kinds of picture files that some installations of pillow open and others do not."""

from importlib.util import find_spec

from PIL import features


def _further_kinds() -> dict[str, str]:
    kinds = {}
    if "avif" in features.modules and features.check("avif"):  # from pillow 11.3
        kinds[".avif"] = "AVIF"
    if find_spec("pillow_jxl"):
        try:
            import pillow_jxl  # type: ignore  # noqa: F401  (makes pillow know JXL)
        except ImportError:  # there, but not for this system
            return kinds
        kinds[".jxl"] = "JXL"
    return kinds


# Suffix -> what pillow calls it; without those that cannot be opened here.
FURTHER_KINDS = _further_kinds()
