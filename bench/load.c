/* Complete FTP sessions against a server, many at a time: one process, one epoll.
 *
 *   load -a SERVER [-p PORT] [-s SOURCE[,SOURCE]] [-j CLIENTS] [-n SESSIONS | -t SECONDS] [-r TRANSFERS]
 *        [-g PATH -w OCTETS | -u OCTETS] [-e] [-c]
 *   load -a SERVER [-p PORT] [-s SOURCE[,SOURCE]] -i CONNECTIONS
 *
 * A session is: connect, 220, USER, PASS, PASV (-e, IPv6: EPSV), data connection, RETR (-g) or STOR (-u), the last three
 * TRANSFERS times (-r; once unless told), QUIT, and the server's end of file.  The data connection goes to the address that the control connection was made to, as
 * curl and ftplib do it.  What a download brought is counted (-w: and must be so much), what an upload sent must
 * stand in the 226.  Each client starts its next session when one has ended; after SESSIONS, or SECONDS, none is
 * started any more and those under way are finished.  One line of JSON on standard output says how it went.  Any
 * failure counts as an error, and the first is described on standard error; 100 errors or 20 s without an event end it.
 *
 * -i opens that many sessions up to the login, prints "ready" and holds them until standard input ends.
 * -c copies downloads into user space as an ordinary client does, else the kernel drops them.
 *
 * The server closes the control connection first, and the data connection of a download: no TIME_WAIT stays here
 * to use up the ephemeral ports.
 */
#include "common.h"

enum { PATIENCE_MS = 20000, MOST_ERRORS = 100 };

enum step { CONNECT, USER, PASS, SETUP, CALL, TRANSFER, QUIT };

struct client {
    int control, data;
    enum step step;              /* whose reply is awaited; CALL: our data connection */
    bool preliminary, final;     /* 150, 226 */
    uint32_t generation;         /* of the session: an event of an older one is stale */
    int64_t started, asked;      /* microseconds: connect; PASV, then RETR or STOR */
    uint64_t octets;             /* of this transfer */
    int transfers;               /* before it */
    size_t have;
    char in[1024];
};

static struct {
    struct sockaddr_storage server, source[16];
    socklen_t size;
    int sources, clients, idle, transfers;
    int64_t sessions, duration;
    const char *path;
    uint64_t wanted, upload;
    bool extended, copying;
} want = {.clients = 1, .transfers = 1};

static struct client *clients;
static int epoll_fd, pattern_fd;
static int64_t begun, started, ended, errors, ready, transfer_us;
static uint64_t octets;
static char seen_as[64], complaint[256];

struct times { /* microseconds */
    uint32_t *each;
    size_t count, room;
};

static struct times sessions, setups; /* connect to end of file; PASV to 227 */

static void begin(struct client *c);

static void note(struct times *times, int64_t microseconds)
{
    if (times->count == times->room) {
        times->room = times->room ? 2 * times->room : 4096;
        times->each = realloc(times->each, times->room * sizeof *times->each);
        if (!times->each)
            err(1, "realloc");
    }
    times->each[times->count++] = microseconds;
}

static void hang_up(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void next(struct client *c)
{
    if (c->control >= 0) /* only after an error */
        reset_on_close(c->control);
    if (c->data >= 0)
        reset_on_close(c->data);
    hang_up(&c->control);
    hang_up(&c->data);
    c->generation++;
    ended++;
    if (errors < MOST_ERRORS && (want.duration ? now() - begun < want.duration : started < want.sessions))
        begin(c);
}

static void fail(struct client *c, const char *what)
{
    static const char *const steps[] = {"connect", "USER", "PASS", "PASV", "data connection", "transfer", "QUIT"};

    if (!errors++)
        snprintf(complaint, sizeof complaint, "%s: %.200s", steps[c->step], what);
    next(c);
}

static void succeed(struct client *c)
{
    note(&sessions, now() - c->started);
    hang_up(&c->control);
    next(c);
}

static int dial(struct client *c, const struct sockaddr_storage *to, uint32_t events, bool data)
{
    struct epoll_event ev = {.events = events};
    int fd = socket(to->ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;

    ev.data.u64 = (uint64_t)c->generation << 32 | (uint64_t)(c - clients) << 1 | data;
    if (fd < 0)
        err(1, "socket");
    if (want.sources) {
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (const struct sockaddr *)&want.source[(c - clients) % want.sources], want.size))
            err(1, "bind to the source address");
    }
    if (connect(fd, (const struct sockaddr *)to, want.size) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        err(1, "epoll_ctl");
    return fd;
}

static void begin(struct client *c)
{
    started++;
    c->step = CONNECT;
    c->have = c->transfers = 0;
    c->final = false;
    c->started = now();
    c->data = -1;
    c->control = dial(c, &want.server, EPOLLIN, false);
    if (c->control < 0)
        fail(c, strerror(errno));
}

static bool say(struct client *c, enum step step, const char *line)
{
    size_t length = strlen(line);

    c->step = step;
    if (send(c->control, line, length, MSG_NOSIGNAL) == (ssize_t)length)
        return true;
    fail(c, "the command could not be sent");
    return false;
}

static void set_up(struct client *c)
{
    c->octets = 0;
    c->preliminary = c->final = false;
    c->asked = now();
    say(c, SETUP, want.extended ? "EPSV\r\n" : "PASV\r\n");
}

static void transferred(struct client *c)
{
    if (c->data >= 0 || !c->final)
        return;
    transfer_us += now() - c->asked;
    octets += c->octets;
    if (want.path && want.wanted != UINT64_MAX && c->octets != want.wanted)
        fail(c, "a file of another size came");
    else if (++c->transfers < want.transfers)
        set_up(c);
    else
        say(c, QUIT, "QUIT\r\n");
}

/* The data connection can be read or written; edge triggered, so until it cannot. */
static void carry(struct client *c)
{
    static char buffer[PIECE];
    ssize_t n;

    if (c->step == CALL) {
        char line[300];
        int problem;
        socklen_t size = sizeof problem;

        getsockopt(c->data, SOL_SOCKET, SO_ERROR, &problem, &size);
        if (problem) {
            fail(c, strerror(problem));
            return;
        }
        c->asked = now();
        snprintf(line, sizeof line, "%s %s\r\n", want.path ? "RETR" : "STOR", want.path ? want.path : "upload");
        if (!say(c, TRANSFER, line))
            return;
    }
    for (;;) {
        if (want.path) {
            n = recv(c->data, buffer, sizeof buffer, want.copying ? 0 : MSG_TRUNC);
        } else {
            off_t at = c->octets % PATTERN;
            uint64_t left = want.upload - c->octets, piece = PATTERN - at;

            n = left ? sendfile(c->data, pattern_fd, &at, left < piece ? left : piece) : 0;
        }
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            fail(c, strerror(errno));
            return;
        }
        if (n == 0)
            break;
        c->octets += n;
    }
    hang_up(&c->data);
    transferred(c);
}

/* Dial the port of a 227 or 229 at the address of the control connection. */
static void call(struct client *c, const char *line)
{
    struct sockaddr_storage to = want.server;
    const char *open = strchr(line, '(');
    unsigned high = 0, low = 0;

    if (!open || (want.extended ? sscanf(open, "(|||%u|)", &low) != 1
                                : sscanf(open, "(%*u,%*u,%*u,%*u,%u,%u)", &high, &low) != 2)) {
        fail(c, line);
        return;
    }
    if (to.ss_family == AF_INET)
        ((struct sockaddr_in *)&to)->sin_port = htons(high * 256 + low);
    else
        ((struct sockaddr_in6 *)&to)->sin6_port = htons(high * 256 + low);
    c->step = CALL;
    c->data = dial(c, &to, EPOLLIN | EPOLLOUT | EPOLLET, true);
    if (c->data < 0)
        fail(c, strerror(errno));
}

static void replied(struct client *c, char *line)
{
    static const int codes[] = {220, 331, 230, 227, 0, 226, 221};
    int code = atoi(line);

    if (c->step == TRANSFER && !c->preliminary && (code == 150 || code == 125)) {
        c->preliminary = true;
        return;
    }
    if (code != (c->step == SETUP && want.extended ? 229 : codes[c->step]) || c->final != (c->step == QUIT)) {
        fail(c, line);
        return;
    }
    switch (c->step) {
    case CONNECT: say(c, USER, "USER bench\r\n"); break;
    case USER: say(c, PASS, "PASS bench\r\n"); break;
    case PASS:
        if (!*seen_as)
            sscanf(line, "230 Hello, %63s", seen_as);
        ready++;
        if (!want.idle)
            set_up(c);
        break;
    case SETUP:
        note(&setups, now() - c->asked);
        call(c, line);
        break;
    case TRANSFER: {
        unsigned long long counted;

        if (!want.path && (sscanf(line, "226 Received %llu", &counted) != 1 || counted != want.upload)) {
            fail(c, line);
            return;
        }
        c->final = true;
        transferred(c);
        break;
    }
    default: break; /* QUIT: the end of file follows */
    }
}

static void heard(struct client *c)
{
    uint32_t generation = c->generation;
    ssize_t n = recv(c->control, c->in + c->have, sizeof c->in - 1 - c->have, 0);
    char *feed;

    if (n < 0 && errno == EAGAIN)
        return;
    if (n == 0 && c->step == QUIT && !c->have) {
        succeed(c);
    } else if (n <= 0) {
        fail(c, n ? strerror(errno) : "the control connection ended");
    } else {
        c->have += n;
        while (c->generation == generation && (feed = memchr(c->in, '\n', c->have))) {
            size_t length = feed - c->in + 1;
            char line[sizeof c->in];

            memcpy(line, c->in, length);
            line[length - 1] = 0;
            memmove(c->in, c->in + length, c->have -= length);
            replied(c, line);
        }
    }
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* The value below which `part` of sorted `times` are, in milliseconds. */
static double quantile(const struct times *times, double part)
{
    return times->count ? times->each[(size_t)(part * (times->count - 1) + 0.5)] / 1000.0 : 0;
}

static void report(void)
{
    double seconds = (now() - begun) / 1e6;
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    qsort(sessions.each, sessions.count, sizeof *sessions.each, ascending);
    qsort(setups.each, setups.count, sizeof *setups.each, ascending);
    printf("{\"sessions\": %zu, \"errors\": %lld, \"seconds\": %.6f, \"rate\": %.3f, \"octets\": %llu, "
           "\"transfer_seconds\": %.6f, \"latency_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}, "
           "\"setup_ms\": {\"count\": %zu, \"p50\": %.3f, \"p90\": %.3f}, "
           "\"cpu_seconds\": %.6f, \"seen_as\": \"%s\"}\n",
           sessions.count, (long long)errors, seconds, sessions.count / seconds, (unsigned long long)octets,
           transfer_us / 1e6, quantile(&sessions, 0.5), quantile(&sessions, 0.99), quantile(&sessions, 1), setups.count,
           quantile(&setups, 0.5), quantile(&setups, 0.9),
           used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6, seen_as);
    if (errors)
        fprintf(stderr, "load: %lld errors, the first: %s\n", (long long)errors, complaint);
}

static void parse_address(const char *text, unsigned port, struct sockaddr_storage *to)
{
    struct sockaddr_in *four = (void *)to;
    struct sockaddr_in6 *six = (void *)to;

    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        want.size = sizeof *four;
    } else if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        want.size = sizeof *six;
        want.extended = true;
    } else {
        errx(64, "%s is not an address", text);
    }
}

static void options(int argc, char **argv)
{
    const char *server = NULL;
    char *sources = NULL;
    unsigned port = 21;
    int option;

    want.wanted = UINT64_MAX;
    while ((option = getopt(argc, argv, "a:p:s:j:n:t:r:g:w:u:i:ec")) != -1)
        switch (option) {
        case 'a': server = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 's': sources = optarg; break;
        case 'j': want.clients = atoi(optarg); break;
        case 'n': want.sessions = atoll(optarg); break;
        case 't': want.duration = atof(optarg) * 1e6; break;
        case 'r': want.transfers = atoi(optarg); break;
        case 'g': want.path = optarg; break;
        case 'w': want.wanted = strtoull(optarg, NULL, 10); break;
        case 'u': want.upload = strtoull(optarg, NULL, 10); break;
        case 'i': want.clients = want.sessions = want.idle = atoi(optarg); break;
        case 'e': want.extended = true; break;
        case 'c': want.copying = true; break;
        default: server = NULL; optind = argc; argc = 0;
        }
    if (!server || want.clients < 1 || want.transfers < 1 || (!want.sessions && !want.duration))
        errx(64, "usage: load -a SERVER [-p PORT] [-s SOURCE,...] [-j CLIENTS] -n SESSIONS | -t SECONDS | -i CONNECTIONS\n"
                 "            -g PATH [-w OCTETS] | -u OCTETS  [-r TRANSFERS] [-e] [-c]");
    if (want.sessions && want.clients > want.sessions)
        want.clients = want.sessions;
    parse_address(server, port, &want.server);
    for (char *one = sources ? strtok(sources, ",") : NULL; one && want.sources < 16; one = strtok(NULL, ","))
        parse_address(one, 0, &want.source[want.sources++]);
}

int main(int argc, char **argv)
{
    char nothing[64];

    settle();
    options(argc, argv);
    pattern_fd = pattern_file();
    epoll_fd = epoll_create1(0);
    clients = calloc(want.clients, sizeof *clients);
    if (epoll_fd < 0 || !clients)
        err(1, "start");

    begun = now();
    for (int i = 0; i < want.clients; i++)
        begin(&clients[i]);
    while (want.idle ? ready + ended < want.idle : ended < started) {
        struct epoll_event batch[BATCH];
        int n = epoll_wait(epoll_fd, batch, BATCH, PATIENCE_MS);

        if (!n)
            errx(1, "nothing happens any more: %lld sessions begun, %lld ended, one is at step %d (of connect 0, USER, "
                    "PASS, PASV, data connection, transfer, QUIT 6)", (long long)started, (long long)ended, clients[0].step);
        for (int i = 0; i < n; i++) {
            struct client *c = &clients[(uint32_t)batch[i].data.u64 >> 1];
            bool data = batch[i].data.u64 & 1;

            if (c->generation != batch[i].data.u64 >> 32 || (data ? c->data : c->control) < 0)
                continue; /* of a session that ended earlier in this batch */
            if (data)
                carry(c);
            else
                heard(c);
        }
    }
    if (want.idle && !errors) {
        printf("ready\n");
        fflush(stdout);
        while (read(0, nothing, sizeof nothing) > 0)
            ;
        return 0;
    }
    report();
    return errors != 0;
}
