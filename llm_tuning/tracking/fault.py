"""What went wrong, in the few words that help: the innermost cause instead of three libraries' wrapping of it."""

from __future__ import annotations

from collections.abc import Iterator


def describe_fault(error: BaseException) -> str:
    """`connection refused`, `no answer in time`, or the error's own first words; may still hold credentials."""
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return "mlflow is not installed"
    chain = list(_causes(error))
    for cause in reversed(chain):
        if isinstance(cause, TimeoutError) or type(cause).__name__.endswith(("Timeout", "TimeoutError")):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    innermost = next((cause for cause in reversed(chain) if str(cause)), error)
    return str(innermost) or type(innermost).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the errors that urllib3 and requests carry as arguments or `reason`."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        pending += [cause for cause in inner if isinstance(cause, BaseException)]
