"""The error tree of this room.

    DatapathError
    ├── KernelError            the kernel refused: a system call's name and errno, or the verifier's log
    │   └── FeatureUnsupported this kernel lacks something; names it and the first kernel that has it
    ├── LayoutMismatch         a pinned map or a compiled object does not fit this version's ABI
    └── NotRoot                the caller lacks the privilege
"""


class DatapathError(Exception):
    """Base of what this room raises about the world. A row that fails is no exception: it is its status."""


class KernelError(DatapathError):
    """A system call failed. `errno` is 0 where there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class FeatureUnsupported(KernelError):
    """The running kernel lacks `feature`; the first to have it is `minimum` (such as "6.6")."""

    def __init__(self, feature: str, minimum: str) -> None:
        super().__init__(f"this kernel has no {feature}; the first that has it is Linux {minimum}")
        self.feature = feature
        self.minimum = minimum


class LayoutMismatch(DatapathError):
    """A pinned map has another layout than this version of the programs."""


class NotRoot(DatapathError):
    """The operation needs root (CAP_BPF, CAP_NET_ADMIN)."""
