"""ftpproxy: the FTP proxy of a NAT gateway.

The floors, lowest first (`docs/design.md` has the whole house):

0  `endpoints`, `routes`, `paths`   the words everybody uses
1  `wire/`                          octets <-> messages, pure functions
2  `pi/`                            the protocol interpreter, pure state
3  `dtp/`, `intercept/` and tools   hands: sockets, the kernel
4  `session`                        one control connection
5  `server`                         accept, limits, signals
6  `cli`, `config`                  the composition root
"""

__version__ = "0.1.0"
