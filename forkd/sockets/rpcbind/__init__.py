"""The machine's port mapper (rpcbind, RFC 1833): told about our services, and asked for others'.

lookup    an RPC program on a host to its address
protocol  the protocol as bytes, and the calls to make
registry  services registered, registered again after a restart of rpcbind, withdrawn
talk      a connection to the port mapper that nobody waits for
"""
