"""Every error a user of wamserve can meet.

WamError
├── CodecError        numbers that are not what they claim to be: NaN, a non-rotation, a wrong width
├── ContractError     an embodiment contract that is unknown, inconsistent, or differs between two ends
├── RequestError      an observation or request that does not fit the served contract
├── WireError         bytes that are not a message
├── CheckpointError   weights that are missing, damaged, of another model, or never trained for this
├── TaskError         a simulator task that cannot be run as asked
├── RunError          a run directory that is unfinished, unlike another, or empty
└── PolicyError       a policy that could not answer
    ├── PolicyLate        the request outlived its deadline
    ├── PolicyOverloaded  the queue is full
    └── PolicyUnavailable the engine is down, restarting or still loading
"""

from __future__ import annotations


class WamError(Exception):
    """An error that says what was seen, what was expected and what to type.

    WamError("camera 'wrist' is missing", seen="left, right", expected="wrist, left, right",
             fix="wam ls embodiment droid_lerobot") reads as
    "camera 'wrist' is missing; seen: left, right; expected: wrist, left, right; try: wam ls embodiment ..."
    """

    def __init__(
        self, what: str, *, seen: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        parts = [what]
        if seen is not None:
            parts.append(f"seen: {seen}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if fix is not None:
            parts.append(f"try: {fix}")
        super().__init__("; ".join(parts))


class CodecError(WamError, ValueError): ...


class ContractError(WamError, ValueError): ...


class RequestError(WamError, ValueError): ...


class WireError(WamError, ValueError): ...


class CheckpointError(WamError): ...


class TaskError(WamError): ...


class RunError(WamError): ...


class PolicyError(WamError): ...


class PolicyLate(PolicyError): ...


class PolicyOverloaded(PolicyError): ...


class PolicyUnavailable(PolicyError): ...
