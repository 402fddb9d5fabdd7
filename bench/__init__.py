"""Compares forkd with other ways to write a TCP service: `make bench`, or `python -m bench`.

A *contender* is a server that answers lines (`contenders`). A *trial* measures several contenders in interleaved
rounds (`trials`: under load; `standing`: memory, idleness and starting). A *figure* is a promise about the outcome
(`figures`). `server` starts and ends contenders, `processes` reads their cost from /proc, `asking` runs the C client.
`rounds` plays the trials, `arithmetic` has the medians, `page` and `plots` show the outcome. The other servers are in
`peers/` and `c/`.
"""
