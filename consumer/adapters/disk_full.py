"""Which errors of the system say that a disk takes no more."""

import errno

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether it is for lack of room: on the disk, of the user's quota, or for a file of this size."""
    return error.errno in _FULL
