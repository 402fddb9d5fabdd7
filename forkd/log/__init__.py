"""A log record, from the call that makes it to the descriptor it is written to.

journal  the systemd journal's native protocol
log      setting up the log, opening it, reporting lost records
record   a record as text, as JSON and as a journal entry, all escaped
stdio    makes records of what an application prints
write    writes to a descriptor that others share, without waiting for its reader
"""
