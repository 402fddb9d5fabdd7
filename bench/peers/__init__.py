"""The servers that forkd is compared with, each written as its own documentation recommends."""
