"""A gateway, a client and a server in network namespaces of this machine, to try things in."""
