"""The servers that forkd is measured beside, each as its own documentation would have it written."""
