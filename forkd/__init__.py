"""forkd turns a Python function into a TCP service with preforked workers."""

__version__ = "0.1.0"
