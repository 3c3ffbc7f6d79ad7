"""The name that this module had in uBatch 1.x: `from ubatch.ubatch import UBatch`. The package itself has the same."""

from ._batcher import UBatch
from ._errors import BadBatchOutputSize, HandlerAlreadySet, HandlerNotSet

__all__ = ["BadBatchOutputSize", "HandlerAlreadySet", "HandlerNotSet", "UBatch"]
