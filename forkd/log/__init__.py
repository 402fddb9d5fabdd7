"""A log record, from the call that makes it to the descriptor that takes it.

journal  the systemd journal's native protocol
log      set-up, reopening, and reports of lost records
record   a record as text, as JSON and as a journal entry; all of it escaped
stdio    what an application prints, as records
write    writing to a descriptor that others share, without waiting for its reader
"""
