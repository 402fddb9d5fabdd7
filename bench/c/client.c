/* client [OPTION]... PORT: sends lines to a server on 127.0.0.1, checks every byte it returns, prints a JSON object.

   -c N   connections (1)
   -t S   seconds, or
   -n N   requests; -n stops after exactly N, -t after the requests in progress
   -d N   requests in one write, before waiting for their replies (1)
   -s N   bytes of a request, newline included (64)
   -r N   requests on a connection before a new one replaces it (0: no limit)
   -R N   open loop: N requests a second at random times (Poisson), whether or not replies come; the time of a request
          counts from when it was due, not from when it could be sent. With -r 1 each request has a connection of its
          own, opened when the request is due and closed after its reply; at most -c at a time
   -S N   seed of those random times (1)
   -w     sleeps until replies come, and in an open loop until the next request is due, instead of polling

   It polls because the sender has to wake a sleeping receiver, and pays for that. On a virtual machine with an idle
   core a wake-up costs several times as much as a request, and would say more about the machine than about servers.

   Without -R it is a closed loop: each connection sends, waits for its replies, sends again. Latencies are in
   microseconds. Any fault (refused, closed, wrong bytes, ten seconds of silence) ends it with status 1. */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { SOURCES = 16, READ_ROOM = 1 << 18 };
static const uint64_t SILENCE = 10000000000ull;

struct connection {
    int fd, watching_out;
    uint64_t to_send, to_receive; /* bytes of the requests in progress */
    uint64_t sent, received;      /* bytes since the connection was opened */
    long asked;                   /* requests since the connection was opened */
    uint64_t *due;                /* when the requests in progress began, the oldest at `first` */
    size_t first, count, room;
};

static int port, poller, depth = 1, size = 64, patience = 0;
static long connections = 1, most, each_most, done, opened, asked;
static double rate, seconds;
static uint64_t bytes_sent, bytes_received, last_heard, random_state = 1;
static char *requests, *incoming; /* `requests`: equal requests in a row, longer than any write */
static size_t requests_bytes;
static float *latencies;
static size_t latency_room;

static void fail(const char *what)
{
    fprintf(stderr, "client: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static void watch(struct connection *connection, int operation, int out)
{
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = connection};
    if (epoll_ctl(poller, operation, connection->fd, &event))
        fail("epoll_ctl");
    connection->watching_out = out;
}

static void open_connection(struct connection *connection)
{
    struct sockaddr_in address = {.sin_family = AF_INET}, source = address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)port);
    /* Sixteen source addresses: a single one would run out of ports with a new connection for each request. */
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(opened % SOURCES));
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || setsockopt(connection->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on)
        || bind(connection->fd, (struct sockaddr *)&source, sizeof source)
        || connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->sent = connection->received = 0;
    connection->asked = 0;
    opened++;
    watch(connection, EPOLL_CTL_ADD, 0);
}

static void push(struct connection *connection, uint64_t due)
{
    if (connection->count == connection->room) {
        size_t room = connection->room ? 2 * connection->room : 64;
        uint64_t *queue = malloc(room * sizeof *queue);
        if (!queue)
            fail("malloc");
        for (size_t each = 0; each < connection->count; each++)
            queue[each] = connection->due[(connection->first + each) % connection->room];
        free(connection->due);
        connection->due = queue;
        connection->room = room;
        connection->first = 0;
    }
    connection->due[(connection->first + connection->count++) % connection->room] = due;
}

static void send_some(struct connection *connection)
{
    while (connection->to_send) {
        size_t offset = connection->sent % (size_t)size, length = connection->to_send;
        if (length > requests_bytes - offset)
            length = requests_bytes - offset;
        ssize_t sent = send(connection->fd, requests + offset, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            fail("send");
        connection->sent += (uint64_t)sent;
        connection->to_send -= (uint64_t)sent;
        bytes_sent += (uint64_t)sent;
    }
    if (connection->watching_out != (connection->to_send > 0))
        watch(connection, EPOLL_CTL_MOD, connection->to_send > 0);
}

static void ask(struct connection *connection, long count, uint64_t due)
{
    for (long each = 0; each < count; each++)
        push(connection, due);
    connection->to_send += (uint64_t)count * (uint64_t)size;
    connection->to_receive += (uint64_t)count * (uint64_t)size;
    connection->asked += count;
    asked += count;
    send_some(connection);
}

/* Returns how many requests to send next on a connection of a closed loop; 0 if no more. */
static long next_batch(struct connection *connection, uint64_t time, uint64_t end)
{
    long count = depth;
    if (end && time >= end)
        return 0;
    if (most && count > most - asked)
        count = most - asked;
    if (each_most && count > each_most - connection->asked)
        count = each_most - connection->asked;
    return count;
}

static void note(uint64_t from, uint64_t to)
{
    if ((size_t)done == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 20;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies)
            fail("realloc");
    }
    latencies[done++] = (float)(to - from) / 1000;
}

static void receive(struct connection *connection, uint64_t time)
{
    ssize_t got = recv(connection->fd, incoming, READ_ROOM, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got < 0)
        fail("recv");
    errno = 0;
    if (got == 0)
        fail("the server closed a connection");
    if ((uint64_t)got > connection->to_receive)
        fail("more came back than was sent");
    for (ssize_t at = 0; at < got;) {
        size_t offset = (connection->received + (uint64_t)at) % (size_t)size, length = (size_t)(got - at);
        if (length > requests_bytes - offset)
            length = requests_bytes - offset;
        if (memcmp(incoming + at, requests + offset, length))
            fail("other bytes came back than were sent");
        at += (ssize_t)length;
    }
    uint64_t whole = (connection->received + (uint64_t)got) / (uint64_t)size - connection->received / (uint64_t)size;
    connection->received += (uint64_t)got;
    connection->to_receive -= (uint64_t)got;
    bytes_received += (uint64_t)got;
    last_heard = time;
    for (; whole; whole--) {
        note(connection->due[connection->first], time);
        connection->first = (connection->first + 1) % connection->room;
        connection->count--;
    }
}

static void check_silence(uint64_t time)
{
    errno = 0;
    if (asked > done && time > last_heard && time - last_heard > SILENCE)
        fail("no answer for ten seconds");
}

static void handle(struct epoll_event *event, uint64_t time)
{
    struct connection *connection = event->data.ptr;
    if (!connection) /* the alarm of an open loop */
        return;
    if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(connection, time);
    if (connection->to_send)
        send_some(connection);
}

static void closed_loop(struct connection *all, uint64_t begin)
{
    uint64_t end = most ? 0 : begin + (uint64_t)(seconds * 1e9);
    long active = 0;
    struct epoll_event events[256];
    for (long each = 0; each < connections; each++) {
        long count = next_batch(&all[each], begin, end);
        if (count) {
            active++;
            ask(&all[each], count, now());
        }
    }
    while (active) {
        int count = epoll_wait(poller, events, 256, patience);
        for (int each = 0; each < count; each++) {
            struct connection *connection = events[each].data.ptr;
            uint64_t time = now();
            handle(&events[each], time);
            if (connection->to_receive)
                continue;
            if (each_most && connection->asked == each_most && next_batch(&(struct connection){0}, time, end)) {
                close(connection->fd);
                open_connection(connection);
            }
            long batch = next_batch(connection, time, end);
            if (batch)
                ask(connection, batch, time);
            else
                active--;
        }
        check_silence(now());
    }
}

/* Returns a random gap in nanoseconds, by xorshift64*: every server gets the same gaps. */
static double gap(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    double uniform = (double)((random_state * 2685821657736338717ull) >> 11) / 9007199254740992.0;
    return -log(1 - uniform) * 1e9 / rate;
}

/* Wakes the sleeping client when the next request is due. */
static void set_alarm(int alarm, double next)
{
    struct itimerspec due = {.it_value = {(time_t)(next / 1e9), (long)fmod(next, 1e9)}};
    if (timerfd_settime(alarm, TFD_TIMER_ABSTIME, &due, NULL))
        fail("timerfd_settime");
}

/* Returns the connection for the next request of an open loop; NULL if each has a request in progress. */
static struct connection *next_connection(struct connection *all, long *turn)
{
    if (!each_most)
        return &all[(*turn)++ % connections];
    for (long tried = 0; tried < connections; tried++) {
        struct connection *connection = &all[(*turn)++ % connections];
        if (connection->fd < 0) {
            open_connection(connection);
            return connection;
        }
    }
    return NULL;
}

static void open_loop(struct connection *all, uint64_t begin)
{
    double next = (double)begin + gap();
    uint64_t end = begin + (uint64_t)(seconds * 1e9);
    long turn = 0;
    int alarm = -1;
    struct connection *connection;
    struct epoll_event events[256], edge = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (patience) {
        alarm = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (alarm < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, alarm, &edge))
            fail("timerfd_create");
    }
    for (;;) {
        uint64_t time = now();
        int more = 1;
        while ((more = most ? asked < most : next < (double)end) && next <= (double)time
               && (connection = next_connection(all, &turn))) {
            ask(connection, 1, (uint64_t)next);
            next += gap();
        }
        if (done == asked && !more)
            return;
        if (patience && more)
            set_alarm(alarm, next);
        int count = epoll_wait(poller, events, 256, patience);
        time = now();
        for (int each = 0; each < count; each++) {
            handle(&events[each], time);
            connection = events[each].data.ptr;
            if (connection && each_most && !connection->to_receive) {
                close(connection->fd);
                connection->fd = -1;
            }
        }
        check_silence(time);
    }
}

static int compare(const void *one, const void *other)
{
    float a = *(const float *)one, b = *(const float *)other;
    return (a > b) - (a < b);
}

static double percentile(double share)
{
    long rank = (long)ceil(share * (double)done);
    return done ? latencies[rank > 0 ? rank - 1 : 0] : 0;
}

int main(int argc, char **argv)
{
    int option;
    while ((option = getopt(argc, argv, "c:t:n:d:s:r:R:S:w")) != -1) {
        switch (option) {
        case 'c': connections = atol(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': most = atol(optarg); break;
        case 'd': depth = atoi(optarg); break;
        case 's': size = atoi(optarg); break;
        case 'r': each_most = atol(optarg); break;
        case 'R': rate = atof(optarg); break;
        case 'S': random_state = (uint64_t)atoll(optarg) | 1; break;
        case 'w': patience = 1000; break;
        default: return 2;
        }
    }
    if (optind != argc - 1 || connections < 1 || depth < 1 || size < 1 || (seconds > 0) == (most > 0)
        || (rate > 0 && each_most > 1)) {
        fprintf(stderr, "client: wrong usage, see the head of client.c\n");
        return 2;
    }
    port = atoi(argv[optind]);
    requests_bytes = (size_t)size * (READ_ROOM / (size_t)size + 2);
    requests = malloc(requests_bytes);
    incoming = malloc(READ_ROOM);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    if (!requests || !incoming || !all)
        fail("malloc");
    for (size_t at = 0; at < requests_bytes; at++)
        requests[at] = (char)((at + 1) % (size_t)size ? 'a' + at % (size_t)size % 23 : '\n');
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (long each = 0; each < connections; each++)
        if (rate > 0 && each_most)
            all[each].fd = -1;
        else
            open_connection(&all[each]);
    uint64_t begin = last_heard = now();
    if (rate > 0)
        open_loop(all, begin);
    else
        closed_loop(all, begin);
    double took = (double)(now() - begin) / 1e9;
    if (bytes_sent != bytes_received || (uint64_t)done * (uint64_t)size != bytes_received) {
        errno = 0;
        fail("fewer or more bytes came back than were sent");
    }
    qsort(latencies, (size_t)done, sizeof *latencies, compare);
    printf("{\"requests\": %ld, \"connections\": %ld, \"bytes_sent\": %llu, \"bytes_received\": %llu, \"seconds\": %.6f, "
           "\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f}\n",
           done, opened, (unsigned long long)bytes_sent, (unsigned long long)bytes_received, took, percentile(0.5),
           percentile(0.9), percentile(0.99), percentile(0.999), percentile(1));
    return 0;
}
