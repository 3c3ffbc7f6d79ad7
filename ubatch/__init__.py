"""uBatch: micro-batching for Python web servers, at home in gevent."""

from ._batcher import UBatch
from ._deadline import deadline
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
    QueueFull,
    QueueTimeout,
    ReentrantCall,
    RequestCancelled,
    ResultLost,
    ResultTimeout,
    UBatchError,
)
from ._instrument import Instrument
from ._request import Batch, Request
from ._statistics import Cost, Histogram, Statistics

__all__ = [
    "BadBatchOutput",
    "BadBatchOutputSize",
    "Batch",
    "BatcherClosed",
    "Cost",
    "DeadlineExceeded",
    "HandlerAborted",
    "HandlerAlreadySet",
    "HandlerNotSet",
    "Histogram",
    "Instrument",
    "NotProcessed",
    "QueueClosed",
    "QueueFull",
    "QueueTimeout",
    "ReentrantCall",
    "Request",
    "RequestCancelled",
    "ResultLost",
    "ResultTimeout",
    "Statistics",
    "UBatch",
    "UBatchError",
    "deadline",
    "ubatch_decorator",
]

__version__ = "2.0.0"
