"""Benchmarks: what a session and a transfer cost through the proxy, against the same path without it.

`python -m bench` builds client | gateway | server from network namespaces, compiles the load generator and the
server (`load.c`, `server.c`), starts the proxy on the gateway as an administrator would, and measures both ways in
turn.  docs/benchmarks.md says how to read the result.
"""
