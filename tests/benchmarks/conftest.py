"""Benchmarks are scripts: they import one another from their own folder."""

import sys

from tests.rig import PACK

sys.path += [str(PACK / "benchmarks"), str(PACK / "benchmarks" / "toyworld")]
