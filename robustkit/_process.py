"""What robustkit sets for the whole process: on import, where a user's own setting wins, and before it proves."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``, from its ``malloc.h``."""


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait; read once, when torch is loaded.

    Threads that spin make small operations up to twenty times slower on a machine that does anything else.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Let the C library keep what is freed rather than hand every large tensor back to the system.

    Bounds make and drop many tensors of some megabytes. Fetching fresh pages for each took more than half of the time
    of alpha-CROWN and of symbolic bounds on two CPU cores. Does nothing where the library is not glibc.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, ctypes.c_int(2**30))
        mallopt(M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))
        mallopt(M_TOP_PAD, ctypes.c_int(2**26))


def use_full_precision() -> None:
    """Keep CUDA from rounding the inputs of convolutions and products to the 10-bit mantissa of TF32.

    Torch does so for convolutions by default. A bound or a replay computed that way is off by a thousandth, and proves
    nothing: no setting of the user's wins here.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
