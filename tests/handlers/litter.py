"""An application whose import leaves two programs running, one of them in a session of its own."""

import subprocess

import forkd

LEFT = [subprocess.Popen(["sleep", "1000"], start_new_session=daemon) for daemon in (False, True)]


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()
