"""The error of a bundle repository."""


class BundleError(Exception):
    """A bundle that can't be had; `type` is a stable name, as the runner's error types are."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type

    def __reduce__(self) -> tuple[type["BundleError"], tuple[str, str]]:
        return BundleError, (self.type, str(self))
