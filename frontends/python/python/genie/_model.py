"""Language models on the server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from . import _native
from ._progress import Bar, Progress
from ._session import open_things
from .errors import BadInput, Error

if TYPE_CHECKING:
    from ._native import Tensor

Piece = TypeVar("Piece", str, int)


class Model:
    """A language model whose weights are on the server: `Session.load` brings it there.

    It has a session of its own. Should that be lost, what it held is built again by itself. One generation runs at a time.
    """

    def __init__(self, native: _native.Model) -> None:
        self._native = native
        open_things.add(self)

    @property
    def name(self) -> str:
        """What its files call it."""
        return self._native.name

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, as they are on the server."""
        return self._native.nbytes

    @property
    def max_positions(self) -> int:
        """How many tokens it sees at the most, new ones among them."""
        return self._native.max_positions

    @property
    def uploaded(self) -> tuple[int, int, int]:
        """Weights that the server had, weights that were sent, and the bytes of these."""
        return self._native.uploaded

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """The token ids of a text; with `chat`, laid out as a conversation by the model's own template."""
        return self._native.encode(text, chat)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids."""
        return self._native.decode(list(tokens))

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Iterable[int] | None = None,
        chat: bool = False,
    ) -> Generation[str]: ...
    @overload
    def generate(
        self,
        prompt: Iterable[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Iterable[int] | None = None,
        chat: bool = False,
    ) -> Generation[int]: ...
    def generate(
        self,
        prompt: str | Iterable[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Iterable[int] | None = None,
        chat: bool = False,
    ) -> Generation[str] | Generation[int]:
        """Goes on with a prompt, on the server; gives pieces of text as they come, or token ids for a prompt of these.

        Temperature 0 takes the likeliest token each time. The same `seed` gives the same tokens; without one, one is drawn. `stop` are the
        ids that end it: without them, those that end a text. A generation that is no longer referred to is stopped.
        """
        text = isinstance(prompt, str)
        if chat and not text:
            raise BadInput("chat= is for a prompt that is text")
        ids = self.encode(prompt, chat=chat) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise BadInput("the prompt is empty, and this model has no token to begin a text with")
        room = self.max_positions - len(ids)
        if room <= 0:
            raise BadInput(f"the prompt has {len(ids)} tokens, but the model sees {self.max_positions} at the most: shorten it")
        if max_new_tokens < 0:
            raise BadInput("max_new_tokens cannot be negative")
        seed = secrets.randbits(32) if seed is None else seed
        tokens = self._native.generate(
            ids,
            min(max_new_tokens, room),
            stop=self._native.end_ids if stop is None else list(stop),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            text=text,
            after=not chat,
        )
        return Generation[str](tokens, seed, True) if text else Generation[int](tokens, seed, False)

    def close(self, patience: float | None = None) -> None:
        """Ends its session, and a generation that is in progress. The server keeps the weights for others as long as it has room.

        A server that does not answer within `patience` seconds is left alone: the session ends with its lease.
        """
        open_things.discard(self)
        self._native.close(patience)

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, headers included."""
        return self._native.traffic()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Error:
            # What went wrong first says more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<genie.Model {self.name}>"


class Generation(Generic[Piece], Iterator[Piece]):
    """What a model says, as it comes."""

    def __init__(self, tokens: _native.Tokens, seed: int, text: bool) -> None:
        self._tokens = tokens
        self._text = text
        #: The seed that it was made with.
        self.seed = seed
        #: The token ids so far, those that end a text among them.
        self.tokens: list[int] = []
        #: Why it ended: `stop` or `length`; `None` while it goes on.
        self.finish: str | None = None

    def __next__(self) -> Piece:
        while self.finish is None:
            token, text, self.finish = self._tokens.next()
            if token is not None:
                self.tokens.append(token)
            piece = text if self._text else token
            if piece is not None:
                return piece  # type: ignore[return-value]
        raise StopIteration

    @property
    def is_text(self) -> bool:
        """Whether it gives pieces of text, or token ids."""
        return self._text

    def text(self) -> str:
        """The rest of it, joined."""
        if not self._text:
            raise BadInput("this generation gives token ids: prompt with text, or decode them")
        return "".join(str(piece) for piece in self)

    def stop(self) -> None:
        """Ends it; what came meanwhile can still be read."""
        self._tokens.stop()


def load(
    session: _native.Session, path: str | os.PathLike[str], device: int, dtype: str | None, progress: Progress
) -> Model | dict[str, Tensor]:
    """See `Session.load`."""
    name = os.fspath(path)
    if callable(progress):
        told = progress
        return _load(session, name, device, dtype, lambda _, done, total: told(done, total))
    from ._progress import LONG, shown

    if not shown(progress, LONG):
        return _load(session, name, device, dtype, None)
    with Bar("loading") as bar:
        return _load(session, name, device, dtype, bar.say)


def _load(
    session: _native.Session,
    path: str,
    device: int,
    dtype: str | None,
    tell: Callable[[str, int, int], object] | None,
) -> Model | dict[str, Tensor]:
    is_file = path.endswith(".safetensors") and not os.path.isdir(path)
    if not is_file or os.path.exists(os.path.join(os.path.dirname(path), "config.json")):
        model = _native.load_model(session, path, device=device, dtype=dtype, or_none=is_file, progress=tell)
        if model is not None:
            return Model(model)
    if dtype is not None:
        raise BadInput("dtype= is for models: tensors of a file are sent as they are")
    return _native.load_tensors(session, path, device=device, progress=tell)
