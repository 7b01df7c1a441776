"""`python -m consumer.demo.tether PARENT_PID PROGRAM ARG...` becomes that program, and ends when its parent does.

The demo may be killed in a way that leaves it no last word (-9, out of memory). On Linux the kernel then kills what it
started as well; elsewhere there is no such thing and this only starts the program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives execve


def main() -> None:
    """Tie this process to its parent, then become the program."""
    parent, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit(f"process {parent}, which started this one, is gone")
    os.execv(program, [program, *arguments])  # noqa: S606  (no shell is the point)


if __name__ == "__main__":
    main()
