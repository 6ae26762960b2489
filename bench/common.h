/* What the load generator and the server share: the headers, and how both begin. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PATTERN = 1 << 20, PIECE = 1 << 20, BATCH = 256 };

/* Microseconds since some moment, the same for all processes of this machine. */
static inline int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

/* Closing such a socket sends a reset and leaves no TIME_WAIT. */
static inline void reset_on_close(int fd)
{
    struct linger linger = {1, 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

/* End with our parent, survive broken connections, have many descriptors. */
static inline void settle(void)
{
    struct rlimit files;

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* A file in memory with one PATTERN of octets, to send from. */
static inline int pattern_file(void)
{
    static uint8_t octets[PATTERN];
    int fd = memfd_create("pattern", 0);

    for (uint32_t i = 0; i < PATTERN; i++)
        octets[i] = (i ^ i >> 8 ^ i >> 16) & 255;
    if (fd < 0 || write(fd, octets, PATTERN) != PATTERN)
        err(1, "memfd");
    return fd;
}
