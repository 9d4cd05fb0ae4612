"""For every test of every package."""

from __future__ import annotations

import signal

# A shell that runs us in the background lets us ignore SIGINT, and what we start inherits that. Programs under test are told
# to stop by it, so they must get it as they would at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
