"""forkd beside what else one would write a TCP service with: `make bench`, or `python -m bench`.

A *contender* is a server that answers lines (`contenders`), a *trial* what is asked of several of them in
interleaved rounds (`trials` for load, `standing` for memory, idleness and starting), a *figure* what is promised of
the outcome (`figures`). `server` starts and ends contenders, `processes` reads what they cost from /proc, `asking`
runs the C client; `rounds` plays the trials, `arithmetic` has the medians, `page` and `plots` tell.
The peers themselves are in `peers/` and `c/`.
"""
