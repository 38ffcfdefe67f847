"""Reaching a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict

from . import _autoload
from ._session import Session
from .errors import BadInput

if TYPE_CHECKING:
    from typing_extensions import Unpack


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


#: The session that `connect` opened last: where `remote_accelerator` has its tensors.
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
    session = opened(
        uri,
        token=token,
        token_file=token_file,
        ca=ca,
        cert=cert,
        key=key,
        link=link,
        device=device,
        lease=lease,
        quota=quota,
        timeout=timeout,
        reconnect=reconnect,
    )
    remember(session)
    return session


def remember(session: Session) -> None:
    """Makes it the current one, which tensors of `remote_accelerator` live in."""
    _last[:] = [session]
    _autoload.connected()


def opened(uri: str | None = None, **options: Unpack[Options]) -> Session:
    """The same, which does not become the current one."""
    if uri is None:
        uri = os.environ.get("GENIE_SERVER")
        if not uri:
            raise BadInput("no server: give connect an address, genie://HOST:PORT, or set GENIE_SERVER")
    device = options.pop("device", 0)
    if options.get("token") is None and options.get("token_file") is None:
        options["token_file"] = os.environ.get("GENIE_TOKEN_FILE") or None
    if options.get("ca") is None:
        options["ca"] = os.environ.get("GENIE_CA") or None
    if options.get("cert") is None and options.get("key") is None:
        options["cert"] = os.environ.get("GENIE_TLS_CERT") or None
        options["key"] = os.environ.get("GENIE_TLS_KEY") or None
    session = Session(uri, **options)
    session.device = device
    return session
