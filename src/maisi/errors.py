"""Every exception that maisi raises on purpose.

The command line exits with 2 on an `InvalidRequestError` (something the caller can change) and with 1 on a `RunError`
(something that went wrong while a valid request was carried out).
"""


class MaisiError(Exception):
    """The root of the tree: catch it to catch all that maisi raises on purpose."""


class InvalidRequestError(MaisiError, ValueError):
    """What was asked cannot be done; the message says what would be accepted."""


class InvalidVolumeError(InvalidRequestError):
    """An image that is not a readable 3-D CT or MR volume."""


class InvalidLabelsError(InvalidRequestError):
    """A label map with unknown ids, fractional values or another grid than its volume."""


class InvalidAnatomyError(InvalidRequestError):
    """Anatomy that no body has, or that a label map cannot be changed into."""


class InvalidGridError(InvalidRequestError):
    """A size, spacing or affine that is impossible here."""


class InvalidBundleError(InvalidRequestError):
    """A bundle or checkpoint that is unknown, incomplete, altered or of another architecture."""


class InvalidConfigError(InvalidRequestError):
    """A setting that does not exist or has an impossible value."""


class UnsupportedOperationError(InvalidRequestError):
    """An operation that a `SlabTensor` cannot carry out slab by slab."""


class InvalidPlanError(InvalidRequestError):
    """A split or a memory budget that cannot be met; the message gives the nearest that can.

    `least_bytes` is the least budget that would do, where one was asked for.
    """

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class RunError(MaisiError, RuntimeError):
    """A valid request that failed while running."""


class NotDrawnError(RunError):
    """A label map that a network drew without what was asked for; another draw may have it."""


class StorageError(RunError):
    """A disk that is full or not writable."""


class RankError(RunError):
    """Another rank of a distributed run failed."""


class UnknownJobError(InvalidRequestError):
    """A job that the service does not have, or has no more."""


class JobConflictError(InvalidRequestError):
    """A job that is in another state than what is asked of it needs, or a key that stands for another request."""


class QueueFullError(RunError):
    """More jobs wait than the service takes; `seconds` is after how long it is worth to ask again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class QuotaError(StorageError):
    """The results that the service keeps take all the room that they may."""


class ClaimLostError(RunError):
    """A job that its worker does not have any more."""


class TooLargeError(InvalidRequestError):
    """An upload, or what it unpacks to, beyond what the service takes."""


class UnknownUploadError(InvalidRequestError):
    """An upload that the service does not have, or has no more."""


class CancelledError(MaisiError):
    """A run that was asked to stop; no `RunError`, so that nobody takes it for one item of many that failed."""


class StoppedError(MaisiError):
    """Work that was left unfinished because its process is to end: a job is taken up again, a request asked again."""


class LostProcessError(MaisiError):
    """The process that carried out a job elsewhere is gone; another may take the job up."""
