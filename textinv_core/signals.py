"""How a process is told from outside to end."""

import signal

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Of Ctrl-C, of systems that end what they run, and of terminals that are closed; Windows has not all of them."""
