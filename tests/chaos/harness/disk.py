"""A small disk that can be filled: a tmpfs in the mount namespace of the process that writes to it."""

import contextlib
import os
from pathlib import Path

from tests.chaos.harness.namespaces import NotPossible, Room

SIZE_BYTES = 512 * 1024 * 1024
"""Many times what a broker writes (8 MB for 3,000 messages). The kernel holds no more than what is written."""


class SmallDisk:
    """Mounted over the folder `path`, as the processes in `room` see it.

    Raises:
        NotPossible: mounts are not allowed.
    """

    def __init__(self, room: Room, path: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        self._room = room
        self._path = str(path)
        self._size_bytes = size_bytes
        room.run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", self._path)
        self._folder = room.outside(path)

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    @property
    def used_bytes(self) -> int:
        """What is written."""
        found = os.statvfs(self._folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self) -> None:
        """Takes what is free away, by making the disk no larger than what is on it. Call it again while it shall be
        full: what the process deletes would be room, and a write may come between."""
        if self.free_bytes:
            with contextlib.suppress(NotPossible):  # more is on it by now
                self._resize(max(1, self.used_bytes))

    def clear(self) -> None:
        """There is room again."""
        self._resize(self._size_bytes)

    def _resize(self, size_bytes: int) -> None:
        self._room.run("mount", "-o", f"remount,size={size_bytes}", self._path)
