"""uBatch: micro-batching for Python web servers, made for gevent."""

from ._batcher import UBatch
from ._core.batch import Batch
from ._core.request import Request
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
from ._instrument import BatcherView, Instrument, native_lock
from ._registry import called_batchers
from ._statistics import Cost, Histogram, Statistics

__all__ = [
    "BadBatchOutput",
    "BadBatchOutputSize",
    "Batch",
    "BatcherClosed",
    "BatcherView",
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
    "called_batchers",
    "deadline",
    "native_lock",
    "ubatch_decorator",
]

__version__ = "2.0.0"
