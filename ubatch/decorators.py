"""The name that this module had in uBatch 1.x: `from ubatch.decorators import ubatch_decorator`."""

from ._decorator import ubatch_decorator

__all__ = ["ubatch_decorator"]
