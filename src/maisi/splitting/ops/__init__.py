"""The operations that a `SlabTensor` understands, by the names that torch gives them, a file a subject.

Each handler turns a call into a deferred `Node`, plainly; `fuse` then rewrites what was written down. Shapes and errors
come from running the call on meta tensors, so a mistake is reported as torch reports it. What cannot be done slab by
slab raises `UnsupportedOperationError`.
"""

from maisi.splitting.ops import elementwise, norms, products, reshaping, windows  # each fills HANDLERS
from maisi.splitting.ops.elementwise import ELEMENTWISE
from maisi.splitting.ops.handlers import HANDLERS, Deferred, mapped, refuse, walk

__all__ = [
    "ELEMENTWISE", "HANDLERS", "Deferred", "elementwise", "mapped", "norms", "products", "refuse", "reshaping", "walk",
    "windows",
]  # fmt: skip
