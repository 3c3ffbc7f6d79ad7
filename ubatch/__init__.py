"""uBatch: micro-batching for Python web servers, at home in gevent."""

from ._batcher import UBatch
from ._decorator import ubatch_decorator
from ._errors import (
    BadBatchOutput,
    BadBatchOutputSize,
    BatcherClosed,
    DeadlineExceeded,
    HandlerAborted,
    HandlerAlreadySet,
    HandlerNotSet,
    NotProcessed,
    QueueClosed,
    ReentrantCall,
    RequestCancelled,
    ResultLost,
    UBatchError,
)
from ._request import Request

__all__ = [
    "BadBatchOutput",
    "BadBatchOutputSize",
    "BatcherClosed",
    "DeadlineExceeded",
    "HandlerAborted",
    "HandlerAlreadySet",
    "HandlerNotSet",
    "NotProcessed",
    "QueueClosed",
    "ReentrantCall",
    "Request",
    "RequestCancelled",
    "ResultLost",
    "UBatch",
    "UBatchError",
    "ubatch_decorator",
]

__version__ = "2.0.0"
