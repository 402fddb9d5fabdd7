"""An application that sets up its own logging, and prints."""

import logging
import sys

import forkd

logging.basicConfig(force=True)
logging.getLogger().addHandler(logging.StreamHandler())


@forkd.service(forkd.Lines())
def remark(request: bytes) -> bytes:
    print("printed", request.decode())
    logging.getLogger("shop").warning("remarked %s", request.decode())
    sys.stderr.write(f"begun {request.decode()}")
    return b"logged"
