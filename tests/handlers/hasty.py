"""An application whose import gives all new sockets of Python a timeout of a microsecond."""

import socket

from small import shout
from waiting import nap

__all__ = ["nap", "shout"]

socket.setdefaulttimeout(1e-6)
