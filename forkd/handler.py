"""What a user writes, and finding it by `module:name`.

A `Service` is a handler with its framing and hooks. It knows nothing of workers, sockets or
buffers: `conversation` runs it, `forkserver` loads it.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from types import FunctionType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from forkd import signature
from forkd.connection import Connection
from forkd.errors import BootError
from forkd.framing import Framing, is_quick

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
        self.takes_connection = framing is not None and signature.takes_connection(handler)
        self.is_async = signature.is_coroutine(handler)
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
        if not signature.is_generator(hook) and not (self.is_async and signature.is_async_generator(hook)):
            raise TypeError(f"lifespan takes a generator function (one with a yield), not {hook!r}")
        self.lifespan_hook = hook
        return hook

    def suits(self, worker: str, threads: int) -> None:
        """Whether workers of this kind can run the handler; BootError tells why they can not, and which could."""
        if self.is_async and (worker == "sync" or threads):
            raise BootError(f'{self.__name__} is an async def: it runs with worker = "event", without threads')
        if self.framing is None and not self.is_async and worker == "event" and not threads:
            raise BootError(
                f"{self.__name__} has a connection to itself, and would hold up all others of its worker: "
                'give it worker = "sync", threads, or make it an async def'
            )

    def alive(self) -> AbstractContextManager[Any]:
        """The lifespan as a context manager, giving the resources; nothing where it is to be awaited."""
        hook = self.lifespan_hook
        return nullcontext() if hook is None or signature.is_async_generator(hook) else _alive(hook)  # type: ignore[arg-type]

    def alive_awaited(self) -> AbstractAsyncContextManager[Any] | None:
        """The lifespan where it is to be awaited; None where `alive` has it."""
        hook = self.lifespan_hook
        return asynccontextmanager(hook)() if signature.is_async_generator(hook) else None


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


def load(app: str) -> Service[..., Any]:
    """The service that `module:name` names; BootError tells what is wrong with it, and where.

    Everything the application can do wrong while it is imported, SystemExit included, is its own
    mistake and told as such, with its traceback less forkd's and the import system's frames.
    """
    module_name, _, name = app.partition(":")
    try:
        target: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise BootError(f"there is no module {error.name!r} (looked for in {_search_path()})") from None
        raise BootError(_told("cannot be imported", error)) from None
    except (Exception, SystemExit) as error:
        raise BootError(_told("cannot be imported", error)) from None
    if not name:
        raise BootError(f"{app!r} names no service: write {module_name}:NAME{_services_of(target)}")
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise BootError(f"module {module_name!r} has no {name!r}{_services_of(target)}") from None
    if not isinstance(target, Service):
        raise BootError(
            f"{app!r} is {_kind(target)}, not a service: put @forkd.service(...) or @forkd.stream on a function"
        )
    return target


def application_traceback(error: BaseException) -> str:
    """The traceback of an application's error, without the frames of forkd and of the import system."""
    return "".join(traceback.format_exception(type(error), error, _own_frames(error.__traceback__))).rstrip()


def _own_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and (
        tb.tb_frame.f_globals.get("__name__", "").partition(".")[0] in {"forkd", "importlib", "contextlib"}
        or tb.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        tb = tb.tb_next
    return tb


def _told(what: str, error: BaseException) -> str:
    summary = traceback.format_exception_only(type(error), error)[-1].strip()
    return f"{what}: {summary}\n{application_traceback(error)}"


def _search_path() -> str:
    return ", ".join(repr(entry) for entry in sys.path[:3]) + (" ..." if len(sys.path) > 3 else "")


def _services_of(module: object) -> str:
    names = sorted(name for name, value in getattr(module, "__dict__", {}).items() if isinstance(value, Service))
    return f"; it has the services {', '.join(names)}" if names else ""


def _kind(target: object) -> str:
    return "a plain function" if isinstance(target, FunctionType) else f"of type {type(target).__name__}"
