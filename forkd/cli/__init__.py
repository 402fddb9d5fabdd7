"""Words on a command line, turned into one call; errors turned into exit statuses.

check           forkd check: imports applications on trial, and warns
client          forkd call: sends requests, prints replies
detach          becomes a daemon, while the command that started it waits until it serves
install         forkd install
launch          what comes before a master: reads settings, refuses bad ones, decides where to find the master
load            forkd load
main            the commands
options         options that several commands share, and shell completion
paths           where a control socket is if the settings do not name one
running_master  finds the master that already runs, stops it, waits for it
start           forkd start, stop and restart
table           the status document on a terminal
trial           imports one application in a throw-away fork server
"""
