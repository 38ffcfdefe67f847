"""Reaching a server."""

from __future__ import annotations

import os
from typing import TypedDict

from . import _autoload
from ._session import Session
from .errors import BadInput


class Options(TypedDict, total=False):
    """What `connect` takes beside the address."""

    token: str | None
    token_file: str | os.PathLike[str] | None
    ca: str | os.PathLike[str] | None
    cert: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None
    link: str | None
    device: int
    lease: float
    quota: int
    timeout: float
    reconnect: float


#: The session that was opened last: where `remote_accelerator` has its tensors.
_last: list[Session] = []


def current_session() -> Session | None:
    """The session that `connect` opened last, if it is open."""
    return _last[0] if _last and not _last[0].closed else None


def connect(
    uri: str | None = None,
    *,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    ca: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    link: str | None = None,
    device: int = 0,
    lease: float = 600.0,
    quota: int = 0,
    timeout: float = 0.0,
    reconnect: float = 15.0,
) -> Session:
    """Opens a session on a server.

    `uri` is `genie://HOST:PORT`, or a link's own address; without it, `GENIE_SERVER` of the environment. What else is not given comes
    from there, too: `GENIE_TOKEN_FILE`, `GENIE_CA`, `GENIE_TLS_CERT` and `GENIE_TLS_KEY`.

    `token` is a line of a token file (`NAME SECRET`), `token_file` a file with one; `ca`, `cert` and `key` are PEM files. `link` insists
    on one link of `genie://`: tcp, tcps or shm. `device` is where tensors go unless a call says otherwise. The session outlives a lost
    connection by `lease` seconds. `quota` bytes are what it may hold (0: as the server has it). A server that is not there yet is waited for
    `timeout` seconds, one that goes away in the middle `reconnect` seconds.
    """
    if uri is None:
        uri = os.environ.get("GENIE_SERVER")
        if not uri:
            raise BadInput("no server: give connect an address, genie://HOST:PORT, or set GENIE_SERVER")
    if token is None and token_file is None:
        token_file = os.environ.get("GENIE_TOKEN_FILE") or None
    if ca is None:
        ca = os.environ.get("GENIE_CA") or None
    if cert is None and key is None:
        cert = os.environ.get("GENIE_TLS_CERT") or None
        key = os.environ.get("GENIE_TLS_KEY") or None
    session = Session(
        uri,
        token=token,
        token_file=token_file,
        ca=ca,
        cert=cert,
        key=key,
        link=link,
        lease=lease,
        quota=quota,
        timeout=timeout,
        reconnect=reconnect,
    )
    session.device = device
    _last[:] = [session]
    _autoload.connected()
    return session
