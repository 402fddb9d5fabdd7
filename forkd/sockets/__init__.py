"""Listening and calling.

dial      an address to a connected socket
explain   what an errno means when connecting, in words
listener  listening sockets: opened, described, closed
rpcbind   the machine's port mapper
"""
