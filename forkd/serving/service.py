"""What the author of a service writes: a handler with its framing and hooks.

A `Service` knows nothing of workers, sockets or buffers: `loading` finds it, `conversation` runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from types import CodeType, FunctionType
from typing import Any, Final, Generic, ParamSpec, TypeGuard, TypeVar

from forkd.errors import BootError
from forkd.ipc.worker_kinds import KINDS, those_that
from forkd.serving.connection import Connection
from forkd.serving.framing import Framing, is_quick

P = ParamSpec("P")
R = TypeVar("R")

Reply = bytes | Iterable[bytes] | None
"""What a handler returns: one reply, several that are sent as they come, or none."""

ConnectionHook = Callable[[Connection], Reply]
ErrorHook = Callable[[Exception, Connection], bytes | None]
Lifespan = Callable[[], Iterator[Any]] | Callable[[], AsyncIterator[Any]]


class Close(Exception):
    """Raise it in a handler or hook to end the connection.

    If `reply` is given, it is sent first, encoded like any other reply. The client then reads the end of the stream.

        @forkd.service(forkd.Lines())
        def talk(line: bytes) -> bytes:
            if line == b"quit":
                raise forkd.Close(b"bye")
            return line
    """

    def __init__(self, reply: bytes | None = None) -> None:
        self.reply = reply
        super().__init__(reply)


class Service(Generic[P, R]):
    """A service: a handler, its framing and its hooks. The decorators `service` and `stream` make one.

    Calling a service calls its handler, so that tests can use it as a function. Its methods `on_connect`, `on_close`,
    `on_error` and `lifespan` are decorators for hooks; each may be used once, and a second use replaces the first hook.
    For an `async def` handler the hooks may be `async def` as well, and get an `AsyncConnection`.

    `handler` is the function, `framing` the framing that was given, or None for a stream.
    """

    def __init__(self, handler: Callable[P, R], framing: Framing[Any] | None) -> None:
        self.handler = handler
        self.framing = framing
        self.__doc__ = handler.__doc__
        self.__name__ = getattr(handler, "__name__", type(handler).__name__)
        self.__module__ = getattr(handler, "__module__", None) or type(handler).__module__
        self.__wrapped__ = handler
        self.is_quick = is_quick(framing)
        self.takes_connection = framing is not None and takes_connection(handler)
        self.is_async = is_coroutine(handler)
        self.connect_hook: ConnectionHook | None = None
        self.close_hook: Callable[[Connection], object] | None = None
        self.error_hook: ErrorHook | None = None
        self.lifespan_hook: Lifespan | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.handler(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<forkd service {self.__module__}:{self.__name__}>"

    @property
    def shows_connections(self) -> bool:
        """Whether the application can hold a connection before its end, and so may send or close at any time."""
        return self.takes_connection or self.connect_hook is not None or self.error_hook is not None

    def on_connect(self, hook: Callable[[Connection], R]) -> Callable[[Connection], R]:
        """Decorator: `hook(connection)` runs when a client has connected, before its first request.

        What the hook returns is sent as a reply: `bytes`, an iterable of `bytes`, or None for nothing. It may raise
        `Close` to turn the client away.

            @greet.on_connect
            def banner(connection: forkd.Connection) -> bytes:
                return b"220 ready"
        """
        self.connect_hook = hook  # type: ignore[assignment]  # any reply is checked when it is sent
        return hook

    def on_close(self, hook: Callable[[Connection], None]) -> Callable[[Connection], None]:
        """Decorator: `hook(connection)` runs last, when the connection has ended and nothing can be sent.

        It runs however the connection ended. An exception in the hook is logged as a handler's error.
        """
        self.close_hook = hook
        return hook

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Decorator: `hook(error, connection)` turns an exception of the handler into a reply, or None for no reply.

        The connection continues. The error is counted but not logged; a hook that wants a log record writes its own.
        The hook is also called for a wrong return value, such as a reply that is not bytes. It is not called for
        `Close`, DeadlineError and PeerGone, which end the connection, nor for SystemExit. If the hook itself raises,
        the connection ends with a handler error.

            @shout.on_error
            def apologize(error: Exception, connection: forkd.Connection) -> bytes:
                return b"500 internal error"
        """
        self.error_hook = hook
        return hook

    def lifespan(self, hook: Lifespan) -> Lifespan:
        """Decorator: a generator function that runs once in each worker. What it yields is `connection.resources`.

        The code before its `yield` runs after the fork and before the first connection; the code after it runs when the
        worker leaves, with or without an error. An exception before the `yield` keeps the worker from starting. If the
        handler is an `async def`, the hook may be an asynchronous generator function.

        Raises TypeError if the hook is not a generator function.

            @lookup.lifespan
            def database() -> Iterator[sqlite3.Connection]:
                connection = sqlite3.connect("names.db")
                yield connection
                connection.close()
        """
        if not is_generator(hook) and not (self.is_async and is_async_generator(hook)):
            raise TypeError(f"lifespan takes a generator function (one with a yield), not {hook!r}")
        self.lifespan_hook = hook
        return hook

    def suits(self, worker: str, threads: int) -> None:
        """Raises BootError if workers of this kind cannot run the handler; its text names those that can."""
        kind = KINDS[worker]
        if self.is_async and not kind.runs_coroutines(threads):
            able = those_that(lambda each: each.runs_coroutines(0))
            raise BootError(f"{self.__name__} is an async def: it runs with {able}, without threads")
        if self.framing is None and not self.is_async and not kind.may_wait(threads):
            able = those_that(lambda each: each.one_at_a_time)
            raise BootError(
                f"{self.__name__} has a connection to itself and would hold up all others of its worker: "
                f"use {able} or threads, or make it an async def"
            )

    def alive(self) -> AbstractContextManager[Any]:
        """Returns the lifespan as a context manager that yields the resources; one that yields None if it must be
        awaited.
        """
        hook = self.lifespan_hook
        return nullcontext() if hook is None or is_async_generator(hook) else _alive(hook)  # type: ignore[arg-type]

    def alive_awaited(self) -> AbstractAsyncContextManager[Any] | None:
        """Returns the lifespan as an asynchronous context manager; None if `alive` covers it."""
        hook = self.lifespan_hook
        return asynccontextmanager(hook)() if is_async_generator(hook) else None


@contextmanager
def _alive(hook: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    # An error that ends the worker is not raised inside the hook: its clean-up runs even without a `finally`.
    with ExitStack() as stack:
        life = contextmanager(hook)()
        resources = life.__enter__()
        stack.callback(life.__exit__, None, None, None)
        yield resources


def service(framing: Framing[Any]) -> Callable[[Callable[P, R]], Service[P, R]]:
    """Decorator: makes a service of a handler for requests, `(request)` or `(request, connection)`.

    `framing` cuts the stream into requests and encodes the replies. The handler gets the second argument if it requires
    two, or if its second one is named `connection`. It returns `bytes` (one reply), an iterable of `bytes` (several,
    each sent as it comes) or None (no reply), and may raise `Close`. It may be an `async def`; its connection is then
    an `AsyncConnection`, and it may also return an asynchronous iterable. Requests of one connection are answered in
    order, one at a time.

    Any other exception goes to `on_error`, or, without that hook, ends the connection and is logged.

    Raises TypeError if `framing` is not a framing, or if the handler takes other arguments.

        @forkd.service(forkd.Lines())
        def shout(line: bytes) -> bytes:
            return line.upper()
    """
    is_made = not isinstance(framing, type)  # a class has these methods as well, and () is easily forgotten
    if not is_made or not all(callable(getattr(framing, each, None)) for each in ("feed", "encode", "end", "copy")):
        raise TypeError(f"service() takes a framing, as in @forkd.service(forkd.Lines()), not {framing!r}")

    def decorate(handler: Callable[P, R]) -> Service[P, R]:
        return Service(handler, framing)

    return decorate


def stream(session: Callable[P, R]) -> Service[P, R]:
    r"""Decorator: makes a service of `session(connection)`, which has the whole connection to itself.

    For protocols that are not request and reply. The connection ends when the function returns. In a worker of kind
    `event` it needs threads, or must be an `async def`.

        @forkd.stream
        def daytime(connection: forkd.Connection) -> None:
            connection.send(time.ctime().encode() + b"\r\n")
    """
    return Service(session, None)


# The constants of these names in inspect, which is a large module (Include/cpython/code.h in CPython).
_VARARGS: Final = 0x04
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ASYNC_GENERATOR: Final = 0x200


def takes_connection(handler: Callable[..., object]) -> bool:
    """Whether a handler takes `(request, connection)` and not just `(request)`; TypeError if neither."""
    plain = _code(handler)
    if plain is None:
        import inspect

        try:
            parameters = inspect.signature(handler).parameters.values()
        except (TypeError, ValueError):  # a built-in without a signature
            return False
        takes_all = any(each.kind is each.VAR_POSITIONAL for each in parameters)
        positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        names = [each.name for each in positional]
        required = sum(each.default is each.empty for each in positional)
    else:
        takes_all = bool(plain.co_flags & _VARARGS)
        names = list(plain.co_varnames[: plain.co_argcount])
        required = len(names) - len(getattr(handler, "__defaults__", None) or ())
    if takes_all:
        return True
    if not names or required > 2:
        raise TypeError(f"a handler takes (request) or (request, connection); {handler!r} does not")
    return required == 2 or (len(names) >= 2 and names[1] == "connection")


def is_coroutine(handler: Callable[..., object]) -> bool:
    """Whether calling it returns an awaitable or an asynchronous iterator."""
    plain = _code(handler)
    if plain is not None:
        return bool(plain.co_flags & (_COROUTINE | _ASYNC_GENERATOR))
    import inspect

    return inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)


def is_generator(hook: Callable[..., object]) -> bool:
    """Whether it is a generator function."""
    return _is(hook, _GENERATOR)


def is_async_generator(hook: object) -> TypeGuard[Callable[..., AsyncIterator[Any]]]:
    """Whether it is an asynchronous generator function."""
    return _is(hook, _ASYNC_GENERATOR)


def _is(hook: object, flag: int) -> bool:
    plain = _code(hook)
    if plain is not None:
        return bool(plain.co_flags & flag)
    import inspect

    return inspect.isgeneratorfunction(hook) if flag == _GENERATOR else inspect.isasyncgenfunction(hook)


def _code(function: object) -> CodeType | None:
    """Returns the code of a plain function; None for anything else, and for one that claims another signature (PEP
    362).
    """
    return function.__code__ if type(function) is FunctionType and not function.__dict__ else None
