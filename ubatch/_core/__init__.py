"""The path of a request, and nothing else.

Data goes one way: `UBatch.ubatch` makes a `Request`; the collector admits it to the pending ones; the policy says when
a batch is due; the batch goes to the executor, which runs the handler; each request gets its outcome, and its caller
wakes. The path is cut by the collector's lock:

| module | what it holds |
| --- | --- |
| `state` | what the lock guards: decides, with time as an argument, and returns actions as data |
| `collector` | the lock, the executor, the wakeup: asks the state under the lock, and acts outside it |
| `pending`, `policy` | the requests that no batch has taken; when a batch is due, and what goes into it |
| `request`, `batch` | one call and its caller; the requests of one handler call |
| `handler`, `isolation` | the one call for many and the check of its outputs; the search for items that make it fail |
| `reentrancy`, `stall` | who comes in the midst of a section of its own thread; a handler that does not come back |
| `options` | what a batcher was made with, checked |

Arrows go down: the face (`_batcher`, `_decorator`) uses this, this uses `_runtime`, and nothing looks back.
"""
