"""What passes between forkd's processes. The master and its workers know nothing else of each other.

brief           what a fork server needs to know when it starts
channel         messages between the master and a fork server
control_client  a command's end of the control socket
control_server  the master's end of the control socket
deadlines       how long a connection may take for each step
meter           counts into a worker's row, and reads its black box
order           the orders that a worker may get
scoreboard      shared rows of numbers, one writer per row: their layout and memory
worker_kinds    the kinds of worker, and what each can run
"""
