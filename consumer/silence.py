"""Ends a process in which no Python thread can run.

Code that never returns and holds the interpreter's lock, as a decoder in a loop may, stops every other thread with it:
also those that watch it and answer probes. The kernel goes on counting its CPU time.
"""

import signal


class SilenceLimit:
    """SIGPROF, whose default is to end the process, once it has used so much CPU time since the last `heard`.

    CPU time, and not the clock's: a process that was stopped for a while has done nothing wrong.
    """

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s

    def heard(self) -> None:
        """A Python thread runs; from now on the time counts again. Any thread; about a microsecond."""
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s)

    def over(self) -> None:
        """Nothing is watched any more."""
        signal.setitimer(signal.ITIMER_PROF, 0)
