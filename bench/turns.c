/* The same thing by several ways, in turn: one process, one control connection for each way that stays open.
 *
 *   turns -r ROUNDS -k TIMES  -g OCTETS | -u OCTETS  [-c] [-p CORE]  SOURCE,SERVER[,PORT] ...
 *   turns -r ROUNDS -k TIMES  -f PACKETS | -b PACKETS | -d PACKETS  [-n NAMESPACE] [-p CORE]
 *         SOURCE,SERVER[,PORT] ...
 *
 * Every way has its turn, TIMES in each round, and the order is another one each time, drawn by lot (the same in each
 * run), so whatever drifts, and whatever one way leaves behind for the next, meets all alike.  A turn takes about a
 * millisecond.  No process starts or ends between two of them.  One line of JSON on standard output has the time of
 * each turn in nanoseconds, as a list of rounds for each way, with the address that the server saw and the last port that
 * was announced; any failure ends the program.
 *
 * -g, -u: a turn is a slice of a transfer, RETR or STOR, from asking for it with one octet to its last octet, or from
 * its first octet to the server's one octet for all of it.  In each round all ways have a transfer under way, by a
 * PASV and data connection of its own; its first WARMING slices (slow start, buffers that grow) are not counted.  -c
 * copies downloads into user space as an ordinary client does, else the kernel drops them.
 *
 * -f, -b, -d: a turn is so many of the smallest packets.  -f, -b: TCP segments of a data connection, acknowledgements of
 * what was acknowledged before, which no end answers, from the client (-f) or from the server (-b).  -d: UDP
 * datagrams from the client, of a flow that has been answered, which nobody takes off the server's socket.  They are
 * sent by this process, with -b from a raw socket in the server's NAMESPACE (a file), one after the other, and all that
 * becomes of a packet on virtual interfaces becomes of it while it is sent: so this is the time of everything between
 * the two sockets, on one processor.
 *
 * -p: stay on this core, and at real-time priority where that is allowed.
 */
#include "common.h"

#include <fcntl.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>

enum { WAYS = 8, PATIENCE = 20, WARMING = 16 };

struct way {
    struct sockaddr_in source, server;
    int control;
    unsigned port; /* of the last 227 */
    char seen_as[64], in[1024];
    size_t have;
    uint64_t *took; /* nanoseconds */
    int data;       /* the data connection */
    int flood;      /* of -f, -b and -d, and what it sends */
    struct packet {
        struct iphdr ip;
        struct tcphdr tcp;
    } __attribute__((packed)) packet;
};

static struct way ways[WAYS];
static int count, order[WAYS], rounds, times = 1, pattern_fd, home, far = -1, sink = -1;
static size_t amount; /* octets of a slice; packets */
static char kind;     /* the option that said it */
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

/* PASV and the data connection. */
static int set_up(struct way *w)
{
    unsigned high, low;
    char line[1024];

    say(w, "PASV\r\n");
    reply(w, 227, line);
    if (sscanf(line, "227 %*[^(](%*u,%*u,%*u,%*u,%u,%u)", &high, &low) != 2)
        errx(1, "%s", line);
    w->port = high * 256 + low;
    return dial(w, w->port);
}

/* Begin or end a transfer in slices. */
static void open_file(struct way *w)
{
    char line[1024];

    int one = 1;

    w->data = set_up(w);
    setsockopt(w->data, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    snprintf(line, sizeof line, "%s slices-of-%zu\r\n", kind == 'g' ? "RETR" : "STOR", amount);
    say(w, line);
    reply(w, 150, line);
}

static void close_file(struct way *w)
{
    char line[1024];
    unsigned long long octets;

    close(w->data);
    reply(w, 226, line);
    if (sscanf(line, "226 %*s %llu octets", &octets) != 1 || octets != (times + WARMING) * amount)
        errx(1, "%s", line);
}

static void slice(struct way *w)
{
    static char buffer[PIECE];
    ssize_t n = 1;

    if (kind == 'g') {
        if (send(w->data, "", 1, 0) != 1)
            err(1, "download");
        for (size_t left = amount; left; left -= n)
            if ((n = recv(w->data, buffer, left < sizeof buffer ? left : sizeof buffer, copying ? 0 : MSG_TRUNC)) <= 0)
                err(1, "download");
        return;
    }
    for (size_t left = amount; left; left -= n) {
        off_t at = (amount - left) % PATTERN;
        size_t piece = PATTERN - at;

        if ((n = sendfile(w->data, pattern_fd, &at, left < piece ? left : piece)) <= 0)
            err(1, "upload");
    }
    if (recv(w->data, buffer, sizeof buffer, 0) != 1)
        err(1, "upload");
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

/* Two UDP sockets that have heard of each other: what is sent behind that is part of a flow that was answered. */
static void datagrams(struct way *w)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = w->server.sin_port}, from;
    socklen_t size = sizeof from;
    char octet = 0;

    if (sink < 0) {
        setns(far, CLONE_NEWNET);
        sink = socket(AF_INET, SOCK_DGRAM, 0);
        setns(home, CLONE_NEWNET);
        if (bind(sink, (const struct sockaddr *)&any, sizeof any))
            err(1, "UDP");
    }
    w->flood = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(w->flood, (const struct sockaddr *)&w->source, sizeof w->source) ||
        connect(w->flood, (const struct sockaddr *)&w->server, sizeof w->server) || send(w->flood, &octet, 1, 0) != 1 ||
        recvfrom(sink, &octet, 1, 0, (struct sockaddr *)&from, &size) != 1 ||
        sendto(sink, &octet, 1, 0, (struct sockaddr *)&from, size) != 1 || recv(w->flood, &octet, 1, 0) != 1)
        err(1, "UDP");
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
        datagrams(w);
        w->data = -1;
        return;
    }
    fd = w->data = set_up(w);
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

static void forget(struct way *w)
{
    char octet;

    close(w->flood);
    if (w->data >= 0) {
        reset_on_close(w->data);
        close(w->data);
    }
    while (recv(sink, &octet, 1, MSG_DONTWAIT) >= 0)
        ;
}

static void flood(struct way *w)
{
    size_t size = kind == 'd' ? 1 : sizeof w->packet;

    for (size_t i = 0; i < amount; i++)
        if (send(w->flood, &w->packet, size, 0) != (ssize_t)size)
            err(1, "send");
}

static uint64_t nanoseconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Another order. */
static void shuffle(void)
{
    for (int i = count - 1; i > 0; i--) {
        int j = random() % (i + 1), other = order[i];

        order[i] = order[j];
        order[j] = other;
    }
}

/* One slice, or one flood, by each way. */
static void turn(int number)
{
    shuffle();
    for (int i = 0; i < count; i++) {
        struct way *w = &ways[order[i]];
        uint64_t began = nanoseconds();

        (kind == 'g' || kind == 'u' ? slice : flood)(w);
        if (number >= 0)
            w->took[number] = nanoseconds() - began;
    }
}

static void measure(void)
{
    bool files = kind == 'g' || kind == 'u';

    for (int round = 0; round < rounds; round++) {
        shuffle();
        for (int i = 0; i < count; i++)
            (files ? open_file : forge)(&ways[order[i]]);
        for (int i = 0; files && i < WARMING; i++)
            turn(-1);
        for (int i = 0; i < times; i++)
            turn(round * times + i);
        for (int i = 0; i < count; i++)
            (files ? close_file : forget)(&ways[order[i]]);
    }
}

static void parse(struct way *w, char *text)
{
    char *source = strtok(text, ","), *server = strtok(NULL, ","), *port = strtok(NULL, ",");

    w->source.sin_family = w->server.sin_family = AF_INET;
    w->server.sin_port = htons(port ? atoi(port) : 21);
    if (!server || !inet_aton(source, &w->source.sin_addr) || !inet_aton(server, &w->server.sin_addr))
        errx(64, "%s: SOURCE,SERVER[,PORT]", text);
}

static void stay(int core)
{
    struct sched_param priority = {.sched_priority = 10};
    cpu_set_t cores;

    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    if (sched_setaffinity(0, sizeof cores, &cores))
        err(1, "core %d", core);
    sched_setscheduler(0, SCHED_FIFO, &priority);
}

int main(int argc, char **argv)
{
    int option;
    char line[1024], *end = "";

    settle();
    while ((option = getopt(argc, argv, "g:u:f:b:d:k:r:n:p:c")) != -1)
        switch (option) {
        case 'g':
        case 'u':
        case 'f':
        case 'b':
        case 'd':
            kind = option;
            amount = strtoull(optarg, &end, 10);
            break;
        case 'k': times = atoi(optarg); break;
        case 'r': rounds = atoi(optarg); break;
        case 'n': far = open(optarg, O_RDONLY); break;
        case 'p': stay(atoi(optarg)); break;
        case 'c': copying = true; break;
        default: kind = 0; optind = argc;
        }
    if (!kind || !amount || *end || rounds < 1 || times < 1 || optind == argc || argc - optind > WAYS ||
        ((kind == 'b' || kind == 'd') && far < 0))
        errx(64, "usage: turns -r ROUNDS -k TIMES  -g OCTETS | -u OCTETS | -f PACKETS | -b PACKETS | -d PACKETS"
                 "  [-n NAMESPACE] [-c] [-p CORE]  SOURCE,SERVER[,PORT] ...");
    home = open("/proc/self/ns/net", O_RDONLY);
    pattern_fd = pattern_file();
    for (; optind < argc; optind++) {
        struct way *w = &ways[count];

        parse(w, argv[optind]);
        order[count] = count;
        count++;
        w->took = calloc((size_t)rounds * times, sizeof *w->took);
        if (!w->took)
            err(1, "calloc");
        login(w);
    }
    measure();
    printf("[");
    for (int i = 0; i < count; i++) {
        say(&ways[i], "QUIT\r\n");
        reply(&ways[i], 221, line);
        printf("%s{\"seen_as\": \"%s\", \"port\": %u, \"took_ns\": [", i ? ", " : "", ways[i].seen_as, ways[i].port);
        for (int round = 0; round < rounds; round++)
            for (int j = 0; j < times; j++)
                printf("%s%llu%s", j ? ", " : round ? ", [" : "[", (unsigned long long)ways[i].took[round * times + j],
                       j + 1 < times ? "" : "]");
        printf("]}");
    }
    printf("]\n");
}
