"""A small disk that can be filled: a tmpfs in the mount namespace of the process that writes to it."""

import errno
import os
from pathlib import Path

from tests.chaos.harness.namespaces import Room

SIZE_BYTES = 512 * 1024 * 1024
"""A broker writes about 100 MB in a long run. The kernel holds no more than what is written."""
_BALLAST = "ballast"


class SmallDisk:
    """Mounted over the folder `path`, as the processes in `room` see it.

    Raises:
        NotPossible: mounts are not allowed.
    """

    def __init__(self, room: Room, path: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        room.run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", str(path))
        self._folder = room.outside(path)

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    @property
    def used_bytes(self) -> int:
        """What is written, ballast and all."""
        found = os.statvfs(self._folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self) -> None:
        """Nothing can be written any more, until somebody frees something: call it again then."""
        file = os.open(self._folder / _BALLAST, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            while free_bytes := self.free_bytes:
                try:
                    os.posix_fallocate(file, os.fstat(file).st_size, free_bytes)
                except OSError as error:  # somebody else wrote meanwhile
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.close(file)

    def clear(self) -> None:
        """No ballast."""
        (self._folder / _BALLAST).unlink(missing_ok=True)
