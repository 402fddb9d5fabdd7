"""Listening and calling.

dial      connects to an address
explain   puts the errno of a failed connection into words
listener  opens, describes and closes listening sockets
rpcbind   the machine's port mapper
"""
