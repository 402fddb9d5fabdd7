"""The key-value example: its framing by itself, its commands through a conversation, its stores across processes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forkd
from examples.keyvalue import COMMANDS, INLINE_LIMIT, Close, File, Malformed, Memory, Resp, Store, keyvalue, split_words
from forkd.conversation import End
from forkd.testing import Client, connect

NOW = 1_000_000_000_000


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


# Requests


def cut(pieces: list[bytes], limit: int = 200) -> tuple[list[object], str, int]:
    """The requests, how it ended, and the bytes that were held at the end."""
    framing = Resp(limit)
    requests: list[object] = []
    try:
        for piece in pieces:
            requests += framing.feed(piece)
            assert framing.pending >= 0
        pending = framing.pending
        requests += framing.end()
    except forkd.FramingError as error:
        return requests + list(error.requests), f"{type(error).__name__}: {error}", 0
    return requests, "", pending
