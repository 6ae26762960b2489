/* The same thing by several ways, in turn: one process, one control connection for each way that stays open.
 *
 *   turns -r ROUNDS -g OCTETS | -u OCTETS  [-c]  SOURCE,SERVER[,PORT] ...
 *   turns -r ROUNDS -f PACKETS | -b PACKETS,NAMESPACE | -d PACKETS,NAMESPACE  SOURCE,SERVER[,PORT] ...
 *
 * In each round every way has its turn.  The order is another one in each round, drawn by lot (the same in each run),
 * so whatever drifts, and whatever one way leaves behind for the next, meets all alike.  No process starts or ends
 * between two turns.  One line of JSON on standard output has the times of each way in each round, in nanoseconds; any
 * failure ends the program.
 *
 * -g, -u: a transfer, RETR or STOR, with a PASV and a data connection of its own.  Its time is taken where the octets
 * arrive, from the first of them to the end of file: for RETR here, for STOR by the server, which tells it in its 226.
 * What the control connection takes is not part of it.  -c copies downloads into user space as an ordinary client
 * does, else the kernel drops them.
 *
 * -f, -b: so many of the smallest TCP segments on a data connection that is open meanwhile: acknowledgements of what was
 * acknowledged before, which neither end answers, from the client (-f) or from the server, whose network namespace must
 * be told (-b).  -d: so many of the smallest UDP datagrams from the client, which nobody takes off the server's socket.
 * They are sent from raw sockets by this process, one after the other, and all that becomes of a packet on these
 * virtual interfaces becomes of it while it is sent: the time is that of everything between the two sockets.
 */
#include "common.h"

#include <fcntl.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>

enum { WAYS = 8, PATIENCE = 20 };

struct way {
    struct sockaddr_in source, server;
    int control;
    char seen_as[64], in[1024];
    size_t have;
    uint64_t *took; /* nanoseconds, of each round */
    int flood;      /* the socket of -f, -b and -d, and what it sends */
    struct packet {
        struct iphdr ip;
        struct tcphdr tcp;
    } __attribute__((packed)) packet;
};

static struct way ways[WAYS];
static int count, rounds, pattern_fd, home, far = -1;
static uint64_t download, upload, packets;
static char kind;
static bool copying;

static int dial(const struct way *w, unsigned port)
{
    struct sockaddr_in to = w->server;
    struct timeval patience = {.tv_sec = PATIENCE};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    to.sin_port = htons(port);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&w->source, sizeof w->source) ||
        connect(fd, (const struct sockaddr *)&to, sizeof to))
        err(1, "call to %s port %u", inet_ntoa(to.sin_addr), port);
    return fd;
}

/* Take one line with that code off the control connection. */
static void reply(struct way *w, int code, char line[static 1024])
{
    char *feed;
    ssize_t n;

    while (!(feed = memchr(w->in, '\n', w->have))) {
        n = recv(w->control, w->in + w->have, sizeof w->in - w->have, 0);
        if (n <= 0)
            err(1, "control connection");
        w->have += n;
    }
    *feed = 0;
    strcpy(line, w->in);
    w->have -= feed + 1 - w->in;
    memmove(w->in, feed + 1, w->have);
    if (atoi(line) != code)
        errx(1, "%s, not %d", line, code);
}

static void say(struct way *w, const char *line)
{
    size_t length = strlen(line);

    if (send(w->control, line, length, 0) != (ssize_t)length)
        err(1, "control connection");
}

static void login(struct way *w)
{
    char line[1024];

    w->control = dial(w, ntohs(w->server.sin_port));
    reply(w, 220, line);
    say(w, "USER bench\r\n");
    reply(w, 331, line);
    say(w, "PASS bench\r\n");
    reply(w, 230, line);
    if (sscanf(line, "230 Hello, %63[0-9.]", w->seen_as) != 1)
        errx(1, "%s", line);
}

static int64_t fetch(int fd)
{
    static char buffer[PIECE];
    uint64_t octets = 0;
    int64_t began = 0;
    ssize_t n;

    while ((n = recv(fd, buffer, sizeof buffer, copying ? 0 : MSG_TRUNC)) > 0) {
        if (!octets)
            began = now();
        octets += n;
    }
    if (n < 0 || octets != download)
        err(1, "%llu octets came instead of %llu", (unsigned long long)octets, (unsigned long long)download);
    return now() - began;
}

static void store(int fd)
{
    for (uint64_t octets = 0; octets < upload;) {
        off_t at = octets % PATTERN;
        uint64_t left = upload - octets, piece = PATTERN - at;
        ssize_t n = sendfile(fd, pattern_fd, &at, left < piece ? left : piece);

        if (n <= 0)
            err(1, "upload");
        octets += n;
    }
}

/* PASV and the data connection. */
static int set_up(struct way *w)
{
    unsigned high, low;
    char line[1024];

    say(w, "PASV\r\n");
    reply(w, 227, line);
    if (sscanf(line, "227 %*[^(](%*u,%*u,%*u,%*u,%u,%u)", &high, &low) != 2)
        errx(1, "%s", line);
    return dial(w, high * 256 + low);
}

static uint64_t transfer(struct way *w)
{
    unsigned long long counted, took;
    char line[1024];
    int64_t data = 0;
    int fd = set_up(w);

    snprintf(line, sizeof line, download ? "RETR /%llu\r\n" : "STOR upload\r\n", (unsigned long long)download);
    say(w, line);
    reply(w, 150, line);
    if (download)
        data = fetch(fd);
    else
        store(fd);
    close(fd);
    reply(w, 226, line);
    if (!download) {
        if (sscanf(line, "226 Received %llu octets in %llu us", &counted, &took) != 2 || counted != upload)
            errx(1, "%s", line);
        data = took;
    }
    return data * 1000;
}

static uint32_t sequence(int fd, int queue)
{
    uint32_t number;
    socklen_t size = sizeof number;

    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof queue) ||
        getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &number, &size))
        err(1, "TCP_REPAIR");
    return number;
}

static uint32_t sum(const void *octets, size_t size)
{
    const uint16_t *words = octets;
    uint32_t total = 0;

    for (size_t i = 0; i < size / 2; i++)
        total += words[i];
    return total;
}

/* What -f, -b and -d send. */
static void forge(struct way *w)
{
    struct packet *p = &w->packet;
    struct sockaddr_in to = w->server;
    char line[1024], from_host[64], to_host[64];
    unsigned from_port, to_port;
    int fd, one = 1;
    uint32_t total, mine, theirs;

    if (kind == 'd') {
        setns(far, CLONE_NEWNET);
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(fd, (const struct sockaddr *)&to, sizeof to) && errno != EADDRINUSE)
            err(1, "UDP");
        setns(home, CLONE_NEWNET);
        w->flood = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(w->flood, (const struct sockaddr *)&w->source, sizeof w->source) ||
            connect(w->flood, (const struct sockaddr *)&to, sizeof to))
            err(1, "UDP");
        return;
    }
    fd = set_up(w);
    do {
        say(w, "STAT\r\n");
        reply(w, 211, line);
    } while (!strncmp(line, "211 No", 6));
    if (sscanf(line, "211 From ::ffff:%63[0-9.] %u to ::ffff:%63[0-9.] %u", from_host, &from_port, to_host, &to_port) != 4)
        errx(1, "%s", line);
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof one))
        err(1, "TCP_REPAIR");
    theirs = sequence(fd, 1);
    mine = sequence(fd, 2);
    one = -1; /* TCP_REPAIR_OFF_NO_WP: say nothing */
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof one))
        err(1, "TCP_REPAIR");
    p->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .frag_off = htons(IP_DF)};
    p->ip.tot_len = htons(sizeof *p);
    p->tcp = (struct tcphdr){.doff = 5, .ack = 1, .window = htons(1024)};
    if (kind == 'b') {
        p->ip.saddr = inet_addr(from_host);
        p->ip.daddr = inet_addr(to_host);
        p->tcp.source = htons(from_port);
        p->tcp.dest = htons(to_port);
        p->tcp.seq = htonl(theirs);
        p->tcp.ack_seq = htonl(mine);
        setns(far, CLONE_NEWNET);
    } else {
        struct sockaddr_in name;
        socklen_t size = sizeof name;

        getsockname(fd, (struct sockaddr *)&name, &size);
        p->ip.saddr = name.sin_addr.s_addr;
        p->tcp.source = name.sin_port;
        getpeername(fd, (struct sockaddr *)&name, &size);
        p->ip.daddr = name.sin_addr.s_addr;
        p->tcp.dest = name.sin_port;
        p->tcp.seq = htonl(mine);
        p->tcp.ack_seq = htonl(theirs);
    }
    total = sum(&p->ip.saddr, 8) + htons(IPPROTO_TCP) + htons(sizeof p->tcp) + sum(&p->tcp, sizeof p->tcp);
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    p->tcp.check = ~total;
    to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = p->ip.daddr};
    w->flood = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (w->flood < 0 || connect(w->flood, (const struct sockaddr *)&to, sizeof to))
        err(1, "raw socket");
    if (kind == 'b')
        setns(home, CLONE_NEWNET);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t flood(struct way *w)
{
    uint64_t began = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    size_t size = kind == 'd' ? 1 : sizeof w->packet;

    for (uint64_t i = 0; i < packets; i++)
        if (send(w->flood, &w->packet, size, 0) != (ssize_t)size)
            err(1, "send");
    return nanoseconds(CLOCK_THREAD_CPUTIME_ID) - began;
}

static void parse(struct way *w, char *text)
{
    char *source = strtok(text, ","), *server = strtok(NULL, ","), *port = strtok(NULL, ",");

    w->source.sin_family = w->server.sin_family = AF_INET;
    w->server.sin_port = htons(port ? atoi(port) : 21);
    if (!server || !inet_aton(source, &w->source.sin_addr) || !inet_aton(server, &w->server.sin_addr))
        errx(64, "%s: SOURCE,SERVER[,PORT]", text);
}

int main(int argc, char **argv)
{
    int option, order[WAYS];
    char line[1024];

    settle();
    while ((option = getopt(argc, argv, "g:u:f:b:d:r:c")) != -1)
        switch (option) {
        case 'b':
        case 'd':
            far = open(strchr(optarg, ',') + 1, O_RDONLY);
            home = open("/proc/self/ns/net", O_RDONLY);
            // fall through
        case 'f': kind = option; packets = strtoull(optarg, NULL, 10); break;
        case 'g': download = strtoull(optarg, NULL, 10); break;
        case 'u': upload = strtoull(optarg, NULL, 10); break;
        case 'r': rounds = atoi(optarg); break;
        case 'c': copying = true; break;
        default: rounds = 0; optind = argc;
        }
    if (rounds < 1 || !download + !upload + !packets != 2 || optind == argc || argc - optind > WAYS)
        errx(64, "usage: turns -r ROUNDS -g OCTETS | -u OCTETS | -f PACKETS | -b PACKETS,NAMESPACE | -d PACKETS,NAMESPACE  [-c]"
                 "  SOURCE,SERVER[,PORT] ...");
    pattern_fd = pattern_file();
    for (; optind < argc; optind++) {
        struct way *w = &ways[count];

        order[count] = count;
        count++;
        parse(w, argv[optind]);
        w->took = calloc(rounds, sizeof *w->took);
        if (!w->took)
            err(1, "calloc");
        login(w);
        if (packets)
            forge(w);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = count - 1; i > 0; i--) {
            int j = random() % (i + 1), other = order[i];

            order[i] = order[j];
            order[j] = other;
        }
        for (int i = 0; i < count; i++)
            ways[order[i]].took[round] = (packets ? flood : transfer)(&ways[order[i]]);
    }
    printf("[");
    for (int i = 0; i < count; i++) {
        say(&ways[i], "QUIT\r\n");
        reply(&ways[i], 221, line);
        printf("%s{\"seen_as\": \"%s\", \"took_ns\": [", i ? ", " : "", ways[i].seen_as);
        for (int round = 0; round < rounds; round++)
            printf("%s%llu", round ? ", " : "", (unsigned long long)ways[i].took[round]);
        printf("]}");
    }
    printf("]\n");
}
