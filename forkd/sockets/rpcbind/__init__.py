"""The machine's port mapper (rpcbind, RFC 1833): registers our services, and looks up those of others.

lookup    finds the address of an RPC program on a host
protocol  the protocol as bytes, and the sequences of calls
registry  registers services, again after a restart of rpcbind, and withdraws them
talk      a connection to the port mapper that never waits
"""
