"""The error of a broken contract."""


class ContractViolationError(Exception):
    """A value breaks a rule of the contract; the message names the field."""
