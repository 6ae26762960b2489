"""The control socket: how an administrator asks a running process what it does, and tells it what to do.

    ftpproxy COMMAND --- caller ---> unix socket ---> hall ---> desk ---> Server

A stream of lines, each a JSON object.  A request has `command` and what that needs; each gets one line back, `result`
or `error` (a sentence) with `code` (sysexits(3): what the command line exits with):

    {"command": "kill", "session": 17}
    {"result": {"session": 17}}
    {"error": "no session 18", "code": 1}

`trace` is answered as well, and from then on the connection carries records (`ftpproxy.tap`) until either side closes.

Who asks is what the kernel says (SO_PEERCRED), not what he says: root and the daemon's own user may do everything,
members of the socket's group may look.  Nobody can hurt: lines are bounded, connections are few and fewer for each user
but root, whoever does not read or does not speak is dropped, and what is no request gets an error.

    caller        the asking side: what `ftpproxy status` and the others use
    address       the socket in the file system
    credentials   who is at the other end
    hall          the guests, and their lines
    desk          the commands
"""
