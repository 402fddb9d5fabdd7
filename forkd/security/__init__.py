"""Who may run as which user, read what and change what.

identity    the user and group each service runs as
paths       an application's files, and every folder and link on the path to a file
privileges  dropping privileges for good
reach       what a service's user must be able to read, and what prevents it
trust       refuses files that root would obey or run but other users can change
"""
