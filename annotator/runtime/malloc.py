"""Keep the C library from returning the network's working memory after every layer."""

from __future__ import annotations

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; false where the C library is another.

    A layer's output is tens of megabytes, which glibc takes from the system and gives back each time; the system
    then zeroes it page by page. Kept, the default network is a third faster on a CPU. For processes of our own only:
    their memory stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
