"""What a user writes, and finding it by `module:name`.

A `Service` is a handler with its framing and hooks. It knows nothing of workers, sockets or
buffers: `conversation` runs it, `forkserver` loads it.
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
from forkd.ipc.kinds import KINDS, those_that
from forkd.serving.connection import Connection
from forkd.serving.framing import Framing, is_quick

P = ParamSpec("P")
R = TypeVar("R")

Reply = bytes | Iterable[bytes] | None
"""What a handler gives: one reply, several that are sent as they come, or none."""

ConnectionHook = Callable[[Connection], Reply]
ErrorHook = Callable[[Exception, Connection], bytes | None]
Lifespan = Callable[[], Iterator[Any]] | Callable[[], AsyncIterator[Any]]


class Close(Exception):
    """Raised by a handler or hook: ends the connection, after `reply` where one is given."""

    def __init__(self, reply: bytes | None = None) -> None:
        self.reply = reply
        super().__init__(reply)


class Service(Generic[P, R]):
    """A handler made into a service; calling it calls the handler.

    `framing` is None for a stream, whose handler has the whole connection. The hooks are set by
    the decorators of the same names.
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
        """Whether the application has connections in hand before they are over, and may send or close when it likes."""
        return self.takes_connection or self.connect_hook is not None or self.error_hook is not None

    def on_connect(self, hook: Callable[[Connection], R]) -> Callable[[Connection], R]:
        """Decorator: `hook(connection)` speaks first; what it gives is sent like a reply."""
        self.connect_hook = hook  # type: ignore[assignment]  # any reply is checked when it is sent
        return hook

    def on_close(self, hook: Callable[[Connection], None]) -> Callable[[Connection], None]:
        """Decorator: `hook(connection)` runs last, when nothing can be sent any more."""
        self.close_hook = hook
        return hook

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Decorator: `hook(error, connection)` turns a handler's exception into a reply, or None for no reply.

        The connection goes on. The error is counted but not logged: what is worth a record, the hook
        has to log itself. A mistake of the handler's such as a reply that is no bytes comes here, too.
        """
        self.error_hook = hook
        return hook

    def lifespan(self, hook: Lifespan) -> Lifespan:
        """Decorator: a generator function, run once in each worker: what it yields is `connection.resources`.

        What stands before its `yield` runs after the fork and before the first connection, what
        stands after it when the worker leaves, gracefully or by an error.
        """
        if not is_generator(hook) and not (self.is_async and is_async_generator(hook)):
            raise TypeError(f"lifespan takes a generator function (one with a yield), not {hook!r}")
        self.lifespan_hook = hook
        return hook

    def suits(self, worker: str, threads: int) -> None:
        """Whether workers of this kind can run the handler; BootError tells why they can not, and which could."""
        kind = KINDS[worker]
        if self.is_async and not kind.runs_coroutines(threads):
            able = those_that(lambda each: each.runs_coroutines(0))
            raise BootError(f"{self.__name__} is an async def: it runs with {able}, without threads")
        if self.framing is None and not self.is_async and not kind.may_wait(threads):
            able = those_that(lambda each: each.one_at_a_time)
            raise BootError(
                f"{self.__name__} has a connection to itself, and would hold up all others of its worker: "
                f"give it {able}, threads, or make it an async def"
            )

    def alive(self) -> AbstractContextManager[Any]:
        """The lifespan as a context manager, giving the resources; nothing where it is to be awaited."""
        hook = self.lifespan_hook
        return nullcontext() if hook is None or is_async_generator(hook) else _alive(hook)  # type: ignore[arg-type]

    def alive_awaited(self) -> AbstractAsyncContextManager[Any] | None:
        """The lifespan where it is to be awaited; None where `alive` has it."""
        hook = self.lifespan_hook
        return asynccontextmanager(hook)() if is_async_generator(hook) else None


@contextmanager
def _alive(hook: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    # An error that ends the worker is not thrown into the hook: its clean-up runs, with or without a `finally`.
    with ExitStack() as stack:
        life = contextmanager(hook)()
        resources = life.__enter__()
        stack.callback(life.__exit__, None, None, None)
        yield resources


def service(framing: Framing[Any]) -> Callable[[Callable[P, R]], Service[P, R]]:
    """Decorator: makes a service of a handler of `(request)` or `(request, connection)`.

    `framing` cuts the stream into requests and dresses the replies. The handler gives `bytes` (one
    reply), an iterable of `bytes` (several) or None, may raise `Close`, and may stay ignorant of
    sockets altogether.
    """
    is_made = not isinstance(framing, type)  # a class has the methods too, and () is soon forgotten
    if not is_made or not all(callable(getattr(framing, each, None)) for each in ("feed", "encode", "end", "copy")):
        raise TypeError(f"service() takes a framing, as in @forkd.service(forkd.Lines()), not {framing!r}")

    def decorate(handler: Callable[P, R]) -> Service[P, R]:
        return Service(handler, framing)

    return decorate


def stream(session: Callable[P, R]) -> Service[P, R]:
    """Decorator: makes a service of `session(connection)`, which has the whole connection to itself."""
    return Service(session, None)


# inspect's constants of these names (Include/cpython/code.h of CPython).
_VARARGS: Final = 0x04
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ASYNC_GENERATOR: Final = 0x200


def takes_connection(handler: Callable[..., object]) -> bool:
    """Whether a handler takes (request, connection) and not just (request); TypeError when it takes neither."""
    plain = _code(handler)
    if plain is None:
        import inspect

        try:
            parameters = inspect.signature(handler).parameters.values()
        except (TypeError, ValueError):  # a built-in that tells nothing of itself
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
        raise TypeError(f"a handler takes (request) or (request, connection), unlike {handler!r}")
    return required == 2 or (len(names) >= 2 and names[1] == "connection")


def is_coroutine(handler: Callable[..., object]) -> bool:
    """Whether calling it gives something to await, or an asynchronous iterator of such."""
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
    """The code of a plain function; None for all else, also for one that says something else of itself (PEP 362)."""
    return function.__code__ if type(function) is FunctionType and not function.__dict__ else None
