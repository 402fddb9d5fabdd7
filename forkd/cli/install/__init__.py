"""forkd install: units and settings put in their places, and taken away again.

command       the options of forkd install
installation  what goes where on a machine with systemd
place         writes and removes the files
plan          decides what to do about each file
shipped       finds the files that come with the code
"""
