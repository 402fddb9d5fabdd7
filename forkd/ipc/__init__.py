"""What passes between forkd's processes. The master and its workers know nothing else of each other.

brief           what a fork server is told when it starts
channel         messages between the master and a fork server
control_client  a command's end of the control socket
control_server  the master's end of the control socket
deadlines       how long a connection may take over what
kinds           the kinds of worker, and what each can run
meter           counting requests into a worker's row, and reading its black box
order           what a worker may be ordered to do
scoreboard      shared rows of numbers, one writer a row
"""
