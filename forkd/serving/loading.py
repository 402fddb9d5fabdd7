"""Finds a service by `module:name`; formats an application's traceback without forkd's own frames."""

from __future__ import annotations

import importlib
import sys
import traceback
from types import FunctionType, TracebackType
from typing import Any

from forkd.errors import BootError
from forkd.serving.service import Service


def load(app: str) -> Service[..., Any]:
    """Imports the module and returns the service that `module:name` names.

    Raises BootError, whose text says what is wrong and where. Anything that the application does wrong during its
    import, even SystemExit, is reported as its mistake, with a traceback that leaves out forkd's frames and the import
    system's.
    """
    module_name, _, name = app.partition(":")
    try:
        target: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise BootError(f"there is no module {error.name!r} (looked for in {_search_path()})") from None
        raise BootError(_failure("cannot be imported", error)) from None
    except (Exception, SystemExit) as error:
        raise BootError(_failure("cannot be imported", error)) from None
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
    """Formats the traceback of an application's error, without the frames of forkd and of the import system."""
    return "".join(traceback.format_exception(type(error), error, _own_frames(error.__traceback__))).rstrip()


def _own_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and (
        tb.tb_frame.f_globals.get("__name__", "").partition(".")[0] in {"forkd", "importlib", "contextlib"}
        or tb.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        tb = tb.tb_next
    return tb


def _failure(what: str, error: BaseException) -> str:
    summary = traceback.format_exception_only(type(error), error)[-1].strip()
    return f"{what}: {summary}\n{application_traceback(error)}"


def _search_path() -> str:
    return ", ".join(repr(entry) for entry in sys.path[:3]) + (" ..." if len(sys.path) > 3 else "")


def _services_of(module: object) -> str:
    names = sorted(name for name, value in getattr(module, "__dict__", {}).items() if isinstance(value, Service))
    return f"; it has the services {', '.join(names)}" if names else ""


def _kind(target: object) -> str:
    return "a plain function" if isinstance(target, FunctionType) else f"of type {type(target).__name__}"
