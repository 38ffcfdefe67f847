"""A GPU on another machine, as if it were local.

>>> import genie
>>> with genie.connect("genie://gpu-host:7070") as session:      # doctest: +SKIP
...     x = session.put(array)
...     y = session.get(x)
"""

from . import aio
from ._array import Array, asarray
from ._connect import connect, current_session
from ._meaning import annotate, explain, phase
from ._model import Generation, Model
from ._native import Binding, Cache, Graph, Node, Program, Tensor, __version__, dump
from ._session import Device, Session
from .errors import (
    AuthError,
    BadInput,
    ConnectError,
    Error,
    NotFound,
    OutOfMemory,
    ProtocolError,
    RemoteError,
    RemoteOutOfMemory,
    SessionLost,
    UnsupportedOp,
)

__all__ = [
    "Array",
    "AuthError",
    "BadInput",
    "Binding",
    "Cache",
    "ConnectError",
    "Device",
    "Error",
    "Generation",
    "Graph",
    "Model",
    "Node",
    "NotFound",
    "OutOfMemory",
    "Program",
    "ProtocolError",
    "RemoteError",
    "RemoteOutOfMemory",
    "Session",
    "SessionLost",
    "Tensor",
    "UnsupportedOp",
    "__version__",
    "aio",
    "annotate",
    "asarray",
    "connect",
    "current_session",
    "dump",
    "explain",
    "phase",
]
