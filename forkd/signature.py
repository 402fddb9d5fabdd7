"""What a callable takes, and of which kind it is, read from its code.

inspect(3) knows it of everything, but is a large module that would be in every worker's memory; it is asked about
what is no plain function: a partial, a method, an object that can be called, something wrapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import CodeType, FunctionType
from typing import Any, Final, TypeGuard

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
