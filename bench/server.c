/* A small FTP server for measurements: one process, one epoll, no disk.
 *
 *   server [-a ADDRESS] [-p PORT] [-l FIRST] [-n LISTENERS] [-c]
 *
 * Files are virtual: /1k, /64k, /1m, /1g or /N for N octets; octet i of every file is octet i % PATTERN of one
 * pattern (see common.h), sent with sendfile from memory.  STOR counts and discards; the count stands in the 226.
 * Anybody may log in, and the 230 names the address that the server saw, so that a measurement can prove which
 * way it went.  `-c` copies uploads into user space as an ordinary server does, else the kernel drops them.
 *
 * So that it is no bottleneck, passive listeners are made once (LISTENERS ports from FIRST, 0: anywhere) and lent
 * to sessions in turn; they stay in the epoll set.  All sockets are IPv6 sockets that take IPv4 as well.
 *
 * Deliberately left out: while a transfer runs, further commands wait (no ABOR), no REST, no LIST, and a client
 * that does not read its replies is disconnected.
 *
 * When it serves, it prints "listening on PORT" and a line feed; it ends with the process that started it.
 */
#include "common.h"

#include <ctype.h>
#include <stdarg.h>

enum kind { ACCEPTOR, LENDER, CONTROL, DATA };

/* What epoll hands back: which descriptor of whom. */
struct watch {
    enum kind kind;
    int fd;
    uint32_t events;         /* what epoll was asked for; 0: not registered */
    struct session *session; /* LENDER: who borrowed it, if anybody */
    unsigned port;           /* LENDER */
    struct watch *next;      /* LENDER: queue of the free ones */
};

struct session {
    struct watch control, data;
    struct watch *lent;                    /* the listener of a PASV or EPSV */
    struct sockaddr_in6 local, peer, call; /* call.sin6_port != 0: where PORT or EPRT sent us */
    enum { NOTHING, SENDING, RECEIVING } transfer;
    uint64_t octets, total;                /* carried so far; SENDING: to be carried */
    uint64_t slice;                        /* a transfer in slices: octets of one; 0: any other */
    size_t have;
    struct session *next_dead;
    char in[1024];
};

static int epoll_fd, pattern_fd;
static bool copying;
static struct watch *free_first, *free_last;
static struct session *dead; /* freed after the batch: later events of it may still point there */

static void interest(struct watch *w, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = w};

    if (w->events != events && epoll_ctl(epoll_fd, w->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, w->fd, &ev))
        err(1, "epoll_ctl");
    w->events = events;
}

static void shut(struct watch *w, bool reset)
{
    if (w->fd < 0)
        return;
    if (reset)
        reset_on_close(w->fd);
    close(w->fd); /* which also takes it out of the epoll set */
    w->fd = -1;
    w->events = 0;
}

static void give_back(struct session *s)
{
    struct watch *w = s->lent;
    int stale;

    if (!w)
        return;
    if (s->data.fd < 0) /* nobody called, or somebody did and we do not know it yet */
        while ((stale = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0)
            close(stale);
    w->session = NULL;
    w->next = NULL;
    free_last = free_first ? (free_last->next = w) : (free_first = w);
    s->lent = NULL;
}

static void forget_path(struct session *s)
{
    give_back(s);
    shut(&s->data, true);
    s->call.sin6_port = 0;
}

static void end(struct session *s)
{
    if (s->control.fd < 0)
        return;
    forget_path(s);
    shut(&s->control, false);
    s->next_dead = dead;
    dead = s;
}

__attribute__((format(printf, 2, 3))) static void reply(struct session *s, const char *format, ...)
{
    char line[256];
    va_list arguments;
    int length;

    if (s->control.fd < 0)
        return;
    va_start(arguments, format);
    length = vsnprintf(line, sizeof line - 2, format, arguments);
    va_end(arguments);
    memcpy(line + length, "\r\n", 2);
    if (send(s->control.fd, line, length + 2, MSG_NOSIGNAL) != length + 2)
        end(s);
}

static void finished(struct session *s, bool well)
{
    bool sent = s->transfer == SENDING;
    unsigned long long octets = s->octets;

    s->transfer = NOTHING;
    if (well)
        shut(&s->data, false);
    forget_path(s);
    if (!well)
        reply(s, "426 Data connection broken.");
    else
        reply(s, "226 %s %llu octets.", sent ? "Sent" : "Received", octets);
}

/* A slice each time the client sends an octet, or an octet for each slice that it sends, until the end of file. */
static void pump_slices(struct session *s)
{
    static char buffer[PIECE];
    uint64_t at = s->octets % s->slice;
    ssize_t n;
    int one = 1;

    if (!s->octets)
        setsockopt(s->data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (;;) {
        if (s->transfer == SENDING && s->octets < s->total) {
            off_t where = s->octets % PATTERN;
            uint64_t left = s->total - s->octets, piece = PATTERN - where;

            n = sendfile(s->data.fd, pattern_fd, &where, left < piece ? left : piece);
        } else if (s->transfer == SENDING) {
            n = recv(s->data.fd, buffer, 1, 0);
            if (n > 0) {
                s->total += s->slice;
                continue;
            }
        } else {
            uint64_t left = s->slice - at;

            n = recv(s->data.fd, buffer, left < sizeof buffer ? left : sizeof buffer, copying ? 0 : MSG_TRUNC);
            if (n > 0 && (at = (at + n) % s->slice) == 0 && send(s->data.fd, "", 1, MSG_NOSIGNAL) != 1)
                n = -1;
        }
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            finished(s, n == 0);
            return;
        }
        s->octets += n;
    }
    interest(&s->data, s->transfer == SENDING && s->octets < s->total ? EPOLLOUT : EPOLLIN);
}

/* Carry what can be carried now, at most a few pieces so that the others get their turn. */
static void pump(struct session *s)
{
    static char buffer[PIECE];

    if (s->slice) {
        pump_slices(s);
        return;
    }
    for (int pieces = 0; pieces < 4; pieces++) {
        off_t at = s->octets % PATTERN;
        uint64_t left = s->total - s->octets, piece = PATTERN - at;
        ssize_t n;

        if (s->transfer == RECEIVING)
            n = recv(s->data.fd, buffer, sizeof buffer, copying ? 0 : MSG_TRUNC);
        else
            n = left ? sendfile(s->data.fd, pattern_fd, &at, left < piece ? left : piece) : 0;
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN))
            break;
        if (n <= 0) {
            finished(s, n == 0);
            return;
        }
        s->octets += n;
    }
    interest(&s->data, s->transfer == SENDING ? EPOLLOUT : EPOLLIN);
}

static void called(struct watch *lender)
{
    struct session *s = lender->session;
    struct sockaddr_in6 from;
    socklen_t size = sizeof from;
    int fd = accept4(lender->fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK);

    if (fd < 0)
        return;
    if (!s || s->data.fd >= 0 || memcmp(&from.sin6_addr, &s->peer.sin6_addr, sizeof from.sin6_addr)) {
        close(fd);
        return;
    }
    s->data.fd = fd;
    give_back(s);
    if (s->transfer)
        pump(s);
}

static void call(struct session *s)
{
    struct sockaddr_in6 from = s->local;

    s->data.fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    from.sin6_port = 0;
    if (s->data.fd < 0 || bind(s->data.fd, (struct sockaddr *)&from, sizeof from) ||
        (connect(s->data.fd, (struct sockaddr *)&s->call, sizeof s->call) && errno != EINPROGRESS))
        finished(s, false);
    else
        interest(&s->data, s->transfer == SENDING ? EPOLLOUT : EPOLLIN);
}

static void start(struct session *s, int transfer, uint64_t total, uint64_t slice)
{
    if (s->data.fd < 0 && !s->lent && !s->call.sin6_port) {
        reply(s, "425 Say PASV, EPSV, PORT or EPRT first.");
        return;
    }
    reply(s, "150 Here it comes.");
    if (s->control.fd < 0)
        return;
    s->transfer = transfer;
    s->octets = 0;
    s->total = total;
    s->slice = slice;
    if (s->data.fd >= 0)
        pump(s);
    else if (!s->lent)
        call(s);
}

/* Which data connection is open: our end of it, and the other as we see it. */
static void ends(struct session *s)
{
    struct sockaddr_in6 name[2];
    socklen_t size = sizeof *name;
    char host[2][INET6_ADDRSTRLEN];

    if (s->data.fd < 0 && s->lent)
        called(s->lent);
    if (s->data.fd < 0 || getsockname(s->data.fd, (struct sockaddr *)&name[0], &size) ||
        getpeername(s->data.fd, (struct sockaddr *)&name[1], &size)) {
        reply(s, "211 No data connection.");
        return;
    }
    for (int i = 0; i < 2; i++)
        inet_ntop(AF_INET6, &name[i].sin6_addr, host[i], sizeof host[i]);
    reply(s, "211 From %s %u to %s %u", host[0], ntohs(name[0].sin6_port), host[1], ntohs(name[1].sin6_port));
}

static bool lend(struct session *s)
{
    forget_path(s);
    if (!free_first) {
        reply(s, "425 No port is free.");
        return false;
    }
    s->lent = free_first;
    free_first = free_first->next;
    s->lent->session = s;
    return true;
}

/* An IPv4 address becomes the IPv4-mapped one. */
static bool parse_address(const char *text, struct in6_addr *address)
{
    char mapped[64];

    snprintf(mapped, sizeof mapped, "%s%s", strchr(text, ':') ? "" : "::ffff:", text);
    return inet_pton(AF_INET6, mapped, address) == 1;
}

/* Where PORT (RFC 959) or EPRT (RFC 2428) wants us to call; only the client's own address is taken. */
static bool parse_call(struct session *s, const char *argument, bool extended)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6};
    char host[46], rest;
    unsigned a, b, c, d, high, low = 0, port;

    if (extended) {
        if (sscanf(argument, "|%*1[12]|%45[0-9a-fA-F.:]|%u|%c", host, &port, &rest) != 2)
            return false;
    } else {
        if (sscanf(argument, "%u,%u,%u,%u,%u,%u%c", &a, &b, &c, &d, &high, &low, &rest) != 6)
            return false;
        snprintf(host, sizeof host, "%u.%u.%u.%u", a, b, c, d);
        port = high * 256 + low;
    }
    if (low > 255 || !port || port > 65535 || !parse_address(host, &to.sin6_addr) ||
        memcmp(&to.sin6_addr, &s->peer.sin6_addr, sizeof to.sin6_addr))
        return false;
    to.sin6_port = htons(port);
    forget_path(s);
    s->call = to;
    return true;
}

static bool size_of(const char *path, uint64_t *size)
{
    char *tail;

    path += *path == '/';
    if (!isdigit((unsigned char)*path))
        return false;
    *size = strtoull(path, &tail, 10);
    switch (tolower((unsigned char)*tail)) {
    case 'g': *size <<= 10; /* fall through */
    case 'm': *size <<= 10; /* fall through */
    case 'k': *size <<= 10; tail++;
    }
    return !*tail;
}

/* "slices-of-1048576": a file without an end, of which each slice is asked for, or acknowledged, with one octet. */
static bool slice_of(const char *path, uint64_t *size)
{
    static const char name[] = "slices-of-";

    return !strncmp(path, name, sizeof name - 1) && size_of(path + sizeof name - 1, size) && *size;
}

static void command(struct session *s, char *line)
{
    const char *argument = strchr(line, ' ');
    char verb[5] = "", host[INET6_ADDRSTRLEN];
    uint64_t size;
    const uint8_t *at = s->local.sin6_addr.s6_addr + 12;

    for (int i = 0; i < 4 && isalpha((unsigned char)line[i]); i++)
        verb[i] = toupper((unsigned char)line[i]);
    argument = argument ? argument + 1 : "";

#define IS(word) (!strcmp(verb, word))
    if (IS("USER")) {
        reply(s, "331 Any password will do.");
    } else if (IS("PASS")) {
        inet_ntop(AF_INET6, &s->peer.sin6_addr, host, sizeof host);
        reply(s, "230 Hello, %s", IN6_IS_ADDR_V4MAPPED(&s->peer.sin6_addr) ? host + 7 : host);
    } else if (IS("PASV")) {
        if (lend(s))
            reply(s, "227 Entering Passive Mode (%u,%u,%u,%u,%u,%u)", at[0], at[1], at[2], at[3],
                  s->lent->port >> 8, s->lent->port & 255);
    } else if (IS("EPSV")) {
        if (lend(s))
            reply(s, "229 Entering Extended Passive Mode (|||%u|)", s->lent->port);
    } else if (IS("PORT") || IS("EPRT")) {
        reply(s, parse_call(s, argument, verb[0] == 'E') ? "200 I shall call." : "501 That is no address of yours.");
    } else if (IS("RETR")) {
        if (size_of(argument, &size))
            start(s, SENDING, size, 0);
        else if (slice_of(argument, &size))
            start(s, SENDING, 0, size);
        else
            reply(s, "550 Files are named by their size: /1k, /1g, /12345.");
    } else if (IS("STOR")) {
        start(s, RECEIVING, 0, slice_of(argument, &size) ? size : 0);
    } else if (IS("STAT")) {
        ends(s);
    } else if (IS("QUIT")) {
        reply(s, "221 Goodbye.");
        end(s);
    } else if (IS("FEAT")) {
        reply(s, "211-Extensions\r\n EPRT\r\n EPSV\r\n211 End");
    } else if (IS("SYST")) {
        reply(s, "215 UNIX Type: L8");
    } else if (IS("TYPE") || IS("NOOP")) {
        reply(s, "200 Fine.");
    } else {
        reply(s, "502 Not here.");
    }
#undef IS
}

/* Whole lines, one after the other, as long as no transfer runs. */
static void commands(struct session *s)
{
    char *feed;

    while (s->control.fd >= 0 && !s->transfer && (feed = memchr(s->in, '\n', s->have))) {
        size_t length = feed - s->in + 1;

        *feed = 0;
        if (feed > s->in && feed[-1] == '\r')
            feed[-1] = 0;
        command(s, s->in);
        memmove(s->in, s->in + length, s->have -= length);
    }
}

static void heard(struct session *s)
{
    ssize_t n = recv(s->control.fd, s->in + s->have, sizeof s->in - s->have, 0);

    if (n > 0) {
        s->have += n;
        commands(s);
    } else if (n == 0 || errno != EAGAIN) {
        end(s); /* also where the buffer is full: then nothing was asked for, and n is 0 */
    }
}

static void welcome(struct watch *acceptor)
{
    struct session *s;
    socklen_t size = sizeof s->peer;
    int fd, one = 1;
    struct sockaddr_in6 peer;

    for (int i = 0; i < 16; i++) {
        fd = accept4(acceptor->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK);
        if (fd < 0)
            return;
        s = calloc(1, sizeof *s);
        if (!s)
            err(1, "calloc");
        s->control = (struct watch){.kind = CONTROL, .fd = fd, .session = s};
        s->data = (struct watch){.kind = DATA, .fd = -1, .session = s};
        s->peer = peer;
        getsockname(fd, (struct sockaddr *)&s->local, &size);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        interest(&s->control, EPOLLIN);
        reply(s, "220 Ready.");
    }
}

static int listener(const struct in6_addr *at, unsigned port, int backlog, unsigned *bound)
{
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = *at, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, zero = 0;
    socklen_t size = sizeof name;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero) ||
        bind(fd, (struct sockaddr *)&name, size) || listen(fd, backlog) ||
        getsockname(fd, (struct sockaddr *)&name, &size))
        err(1, "listen at port %u", port);
    *bound = ntohs(name.sin6_port);
    return fd;
}

int main(int argc, char **argv)
{
    struct watch acceptor = {.kind = ACCEPTOR}, *lenders;
    struct in6_addr at = IN6ADDR_ANY_INIT;
    unsigned port = 0, first = 0, count = 512;
    int option;

    settle();
    while ((option = getopt(argc, argv, "a:p:l:n:c")) != -1) {
        switch (option) {
        case 'a':
            if (!parse_address(optarg, &at))
                errx(64, "%s is not an address", optarg);
            break;
        case 'p': port = atoi(optarg); break;
        case 'l': first = atoi(optarg); break;
        case 'n': count = atoi(optarg); break;
        case 'c': copying = true; break;
        default: errx(64, "usage: server [-a ADDRESS] [-p PORT] [-l FIRST] [-n LISTENERS] [-c]");
        }
    }
    pattern_fd = pattern_file();
    epoll_fd = epoll_create1(0);
    acceptor.fd = listener(&at, port, 4096, &acceptor.port);
    interest(&acceptor, EPOLLIN);
    lenders = calloc(count, sizeof *lenders);
    if (epoll_fd < 0 || !lenders)
        err(1, "start");
    for (unsigned i = 0; i < count; i++) {
        lenders[i] = (struct watch){.kind = LENDER, .next = i + 1 < count ? &lenders[i + 1] : NULL};
        lenders[i].fd = listener(&at, first ? first + i : 0, 16, &lenders[i].port);
        interest(&lenders[i], EPOLLIN);
    }
    free_first = lenders;
    free_last = &lenders[count - 1];
    printf("listening on %u\n", acceptor.port);
    fflush(stdout);

    for (;;) {
        struct epoll_event batch[BATCH];
        int n = epoll_wait(epoll_fd, batch, BATCH, -1);

        for (int i = 0; i < n; i++) {
            struct watch *w = batch[i].data.ptr;
            struct session *s = w->session;

            if (w->fd < 0)
                continue; /* closed by an earlier event of this batch */
            if (w->kind == ACCEPTOR)
                welcome(w);
            else if (w->kind == LENDER)
                called(w);
            else if (w->kind == CONTROL)
                heard(s);
            else if (s->transfer && batch[i].events & EPOLLERR)
                finished(s, false);
            else if (s->transfer)
                pump(s);
            if (s) /* a transfer may have ended: what waited behind it */
                commands(s);
        }
        for (struct session *next; dead; dead = next) {
            next = dead->next_dead;
            free(dead);
        }
    }
}
