"""The error of a bundle repository."""


class BundleError(Exception):
    """A bundle that can't be had; `type` is a stable name, as the runner's error types are.

    `retryable` is true where the same call may succeed later.
    """

    def __init__(self, type: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.type = type
        self.retryable = retryable

    def __reduce__(self) -> tuple[type["BundleError"], tuple[str, str, bool]]:
        return BundleError, (self.type, str(self), self.retryable)
