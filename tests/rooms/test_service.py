"""Services: what a user writes, and the error messages if a service is not found."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

import forkd
from forkd.errors import BootError
from forkd.serving.connection import Connection
from forkd.serving.loading import load

Modules = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Modules]:
    """Writes modules, each under its own name: `modules(source)` returns the name."""
    before, known = sys.path[:], set(sys.modules)
    sys.path.insert(0, str(tmp_path))

    def write(source: str, name: str = "") -> str:
        name = name or f"forkd_test_app_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    sys.path[:] = before
    for name in set(sys.modules) - known:
        del sys.modules[name]


ECHO = """
import forkd
class Box: pass
@forkd.service(forkd.Lines())
def echo(request): return request
@forkd.stream
def session(connection): pass
def plain(request): return request
box = Box()
box.echo = echo
number = 5
"""
NO_SERVICE = ", not a service: put @forkd.service(...) or @forkd.stream on a function"


def failure(app: str) -> str:
    with pytest.raises(BootError) as raised:
        load(app)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return str(raised.value)


# Finding a service.


def test_a_service_is_found(modules: Modules) -> None:
    name = modules(ECHO)
    echo = load(f"{name}:echo")
    assert echo(b"hi") == b"hi"
    assert load(f"{name}:box.echo") is echo
    assert load(f"{name}:session").framing is None
    assert repr(echo) == f"<forkd service {name}:echo>"


def test_a_missing_module() -> None:
    assert failure("forkd_test_missing:echo").startswith("there is no module 'forkd_test_missing' (looked for in '")
    assert failure("forkd_test_missing.part:echo").startswith("there is no module 'forkd_test_missing' (")
    assert failure("forkd.missing:echo").startswith("there is no module 'forkd.missing' (")
    assert failure("forkd.errors.part:echo").startswith("there is no module 'forkd.errors.part' (")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ehco", "module '{module}' has no 'ehco'; it has the services echo, session"),
        ("", "'{module}:' names no service: write {module}:NAME; it has the services echo, session"),
        ("box.ehco", "module '{module}' has no 'box.ehco'; it has the services echo"),
        ("number.echo", "module '{module}' has no 'number.echo'"),
        ("plain", "'{module}:plain' is a plain function" + NO_SERVICE),
        ("number", "'{module}:number' is of type int" + NO_SERVICE),
    ],
)
def test_a_wrong_name(modules: Modules, name: str, what: str) -> None:
    module = modules(ECHO)
    assert failure(f"{module}:{name}") == what.format(module=module)


def test_a_module_without_services(modules: Modules) -> None:
    module = modules("")
    assert failure(f"{module}:echo") == f"module {module!r} has no 'echo'"


@pytest.mark.parametrize(
    ("source", "summary", "told"),
    [
        (
            "import forkd_test_dependency",
            "ModuleNotFoundError: No module named 'forkd_test_dependency'",
            "line 1, in <",
        ),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero", "line 2, in <module>\n    1 / 0"),
        ("def f():\n    return g()\ndef g():\n    return h\nf()", "NameError: name 'h' is not defined", "line 2, in f"),
        ("raise SystemExit('no licence')", "SystemExit: no licence", "line 1, in <module>"),
        ("import sys\nsys.exit()", "SystemExit", "line 2, in <module>"),
        ("def f(:", "SyntaxError: invalid syntax", "    def f(:"),
        ("x = '\\x00", "SyntaxError: unterminated string literal (detected at line 1)", "line 1"),
        ("f = lambda: f()\nf()", "RecursionError: maximum recursion depth exceeded", "line 1, in <lambda>"),
        ("import forkd\nforkd.service(5)", "TypeError: service() takes a framing", "    forkd.service(5)"),
        (
            "import forkd\n@forkd.service(forkd.Lines())\ndef f(): pass",
            "TypeError: a handler takes (request)",
            "line 2",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_a_module_that_cannot_be_imported(
    modules: Modules, tmp_path: Path, source: str, summary: str, told: str
) -> None:
    name = modules(source)
    text = failure(f"{name}:echo")
    assert text.startswith(f"cannot be imported: {summary}")
    assert told in text
    frames = [line.strip() for line in text.splitlines() if line.startswith("  File ")]
    assert frames[0].startswith(f'File "{tmp_path}/{name}.py", line ')
    assert not any("importlib" in frame for frame in frames)


def test_a_cyclic_import(modules: Modules) -> None:
    one, other = (f"forkd_test_cycle_{next(_numbers)}" for _ in range(2))
    modules(f"from {other} import b\na = 1", one)
    modules(f"from {one} import a\nb = 1", other)
    text = failure(f"{one}:echo")
    assert text.startswith("cannot be imported: ImportError: cannot import name 'a' from partially initialized module")
    assert f"from {one} import a" in text


def test_a_dependency_missing_in_a_package_is_told_with_its_place(modules: Modules, tmp_path: Path) -> None:
    package = f"forkd_test_package_{next(_numbers)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"import {package}.missing")
    importlib.invalidate_caches()
    text = failure(f"{package}.part:echo")
    assert f"{package}.missing" in text


def test_a_keyboard_interrupt_is_the_users_own(modules: Modules) -> None:
    name = modules("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(f"{name}:echo")


# Making a service.


def with_both(request: bytes, connection: Connection) -> bytes:
    return request


def prefixed(prefix: bytes, request: bytes) -> bytes:
    return prefix + request


class Asked:
    def __call__(self, request: bytes, encoding: str = "ascii") -> bytes:
        return request


async def awaited(request: bytes) -> bytes:
    return request


async def awaited_one_by_one(request: bytes) -> AsyncIterator[bytes]:
    yield request


@pytest.mark.parametrize(
    ("handler", "is_async"),
    [
        (with_both, False),
        (awaited, True),
        (awaited_one_by_one, True),
        (partial(awaited), True),
        (wraps(awaited)(lambda request: awaited(request)), False),
        (Asked(), False),
    ],
)
def test_whether_a_handler_is_awaited(handler: Callable[..., Any], is_async: bool) -> None:
    assert forkd.service(forkd.Lines())(handler).is_async is is_async


@pytest.mark.parametrize(
    ("handler", "takes_connection"),
    [
        (lambda request: request, False),
        (with_both, True),
        (lambda request, other: request, True),
        (lambda request, connection=None: request, True),
        (lambda request, encoding="ascii": request, False),
        (lambda *both: both[0], True),
        (lambda request, *, flag=False: request, False),
        (partial(prefixed, b">"), False),
        (partial(prefixed), True),
        (wraps(with_both)(lambda *everything: with_both(*everything)), True),
        (Asked(), False),
        (bytes.upper, False),
        ({}.get, False),
    ],
    ids=[
        "one",
        "both",
        "two",
        "an optional one",
        "an option",
        "*",
        "a keyword",
        "partial",
        "partial of both",
        "wrapped",
        "an object",
        "a method",
        "a bound one",
    ],
)
def test_what_a_handler_takes(handler: Callable[..., bytes], takes_connection: bool) -> None:
    assert forkd.service(forkd.Lines())(handler).takes_connection is takes_connection


@pytest.mark.parametrize("handler", [lambda: b"", lambda a, b, c: b"", lambda *, request: b""])
def test_a_handler_that_takes_something_else(handler: Callable[..., bytes]) -> None:
    with pytest.raises(TypeError, match=r"takes \(request\) or \(request, connection\)"):
        forkd.service(forkd.Lines())(handler)


@pytest.mark.parametrize("framing", [forkd.Lines, "lines", None, lambda request: request])
def test_what_is_no_framing(framing: Any) -> None:
    with pytest.raises(TypeError, match="takes a framing"):
        forkd.service(framing)(lambda request: request)


def test_a_service_looks_like_its_function() -> None:
    @forkd.service(forkd.Lines())
    def shout(request: bytes, times: int = 1) -> bytes:
        """Shouts."""
        return request.upper() * times

    assert (shout.__name__, shout.__doc__, shout.__module__) == ("shout", "Shouts.", __name__)
    assert shout(b"a", times=2) == b"AA"
    assert shout(request=b"a") == b"A"


def test_hooks_stay_ordinary_functions() -> None:
    @forkd.service(forkd.Lines())
    def shout(request: bytes) -> bytes:
        return request

    @shout.on_connect
    def banner(connection: Connection) -> bytes:
        return b"hello"

    @shout.on_close
    def last(connection: Connection) -> None: ...

    @shout.on_error
    def sorry(error: Exception, connection: Connection) -> bytes:
        return b"sorry"

    @shout.lifespan
    def database() -> Iterator[int]:
        yield 5

    assert (shout.connect_hook, shout.close_hook, shout.error_hook, shout.lifespan_hook) == (
        banner,
        last,
        sorry,
        database,
    )


# The lifespan.


def lifespan(hook: Callable[[], Iterator[object]]) -> forkd.Service[[bytes], bytes]:
    service = forkd.service(forkd.Lines())(lambda request: request)
    service.lifespan(hook)
    return service


def test_without_a_lifespan_there_are_no_resources() -> None:
    with forkd.service(forkd.Lines())(lambda request: request).alive() as resources:
        assert resources is None


@pytest.mark.parametrize("error", [None, ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_clean_up_runs_however_the_worker_leaves(error: BaseException | None) -> None:
    said = []

    def hook() -> Iterator[str]:
        said.append("set up")
        yield "resources"
        said.append("cleaned up")

    with suppress(ValueError, SystemExit, KeyboardInterrupt), lifespan(hook).alive() as resources:
        said.append(resources)
        if error is not None:
            raise error
    assert said == ["set up", "resources", "cleaned up"]


def test_an_error_of_the_worker_is_not_swallowed() -> None:
    def hook() -> Iterator[None]:
        with suppress(ValueError):
            yield

    with pytest.raises(ValueError, match="x"), lifespan(hook).alive():
        raise ValueError("x")


def test_a_set_up_that_fails() -> None:
    def hook() -> Iterator[None]:
        raise ConnectionRefusedError("no database")
        yield

    with pytest.raises(ConnectionRefusedError, match="no database"):
        lifespan(hook).alive().__enter__()


def test_a_lifespan_yields_once() -> None:
    def never() -> Iterator[None]:
        yield from ()

    def twice() -> Iterator[None]:
        yield
        yield

    with pytest.raises(RuntimeError, match="didn't yield"):
        lifespan(never).alive().__enter__()
    with pytest.raises(RuntimeError, match="didn't stop"), lifespan(twice).alive():
        pass


def test_a_lifespan_is_a_generator_function() -> None:
    with pytest.raises(TypeError, match="takes a generator function"):
        lifespan(lambda: iter([1]))
