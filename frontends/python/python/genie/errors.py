"""What can go wrong. All exceptions of this package are a `genie.Error`; each message says what to do."""

from __future__ import annotations


class Error(Exception):
    """Everything that this package raises."""


class BadInput(Error, ValueError):
    """An argument that cannot be used. Nothing was sent."""


class ConnectError(Error, ConnectionError):
    """The server cannot be reached, or the connection broke and was not to be had again."""


class AuthError(Error, PermissionError):
    """Who this is, or who the server is, is not proven; or this one may not do that."""


class ProtocolError(Error):
    """The server does not follow the protocol, or bytes were corrupted on the way again and again."""


class SessionLost(Error):
    """What the session held on the server is gone: it restarted, the lease ran out, or the session was closed."""


class OutOfMemory(Error, MemoryError):
    """No memory: on this machine, or on the server (then it is a `RemoteOutOfMemory`)."""


class RemoteError(Error):
    """The server refused or failed a request.

    `code` is the protocol's name for the reason, `took_effect` whether anything changed there: `None` where nobody knows.
    """

    code: str
    took_effect: bool | None

    def __init__(self, message: str, code: str = "Internal", took_effect: bool | None = False) -> None:
        super().__init__(message)
        self.code = code
        self.took_effect = took_effect

    def __reduce__(self) -> tuple[type[RemoteError], tuple[object, ...]]:
        return (type(self), (self.args[0], self.code, self.took_effect))


class NotFound(RemoteError, LookupError):
    """No tensor has this name."""


class UnsupportedOp(RemoteError, NotImplementedError):
    """The device lacks an op of the graph, which the message names."""


class RemoteOutOfMemory(RemoteError, OutOfMemory):
    """The server's device, or the session's quota, has no room. Nothing changed there."""
