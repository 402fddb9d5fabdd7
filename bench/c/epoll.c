/* epoll PORT: the server that forkd's event workers are compared with.

   One process serves all connections with one epoll. It has no deadlines, answers whole lines only, and stops reading
   from a client until the client has read its replies. */
#include <errno.h>
#include <sys/epoll.h>

#include "lines.h"
#include "listen.h"

struct connection {
    int fd;
    size_t held, unsent; /* bytes of an unfinished line, and of unsent replies */
    char *held_bytes, *unsent_bytes;
};

static int poller;

static char *copy(const char *data, size_t length)
{
    char *room = malloc(length);
    if (!room)
        fail("malloc");
    return memcpy(room, data, length);
}

static void watch(struct connection *connection, int operation, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(poller, operation, connection->fd, &event))
        fail("epoll_ctl");
}

static void end(struct connection *connection)
{
    close(connection->fd);
    free(connection->held_bytes);
    free(connection->unsent_bytes);
    free(connection);
}

/* Returns the number of bytes sent, -1 if the connection is broken. */
static ssize_t send_some(int fd, const char *data, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t sent = send(fd, data + done, length - done, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            return -1;
        done += (size_t)sent;
    }
    return (ssize_t)done;
}

static void readable(struct connection *connection)
{
    static char in[ROOM], out[ROOM];
    size_t held = connection->held;
    if (held)
        memcpy(in, connection->held_bytes, held);
    ssize_t got = recv(connection->fd, in + held, LINE_LIMIT, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        end(connection);
        return;
    }
    size_t length = held + (size_t)got, used = answer_lines(in, length, held, out), rest = length - used;
    ssize_t sent = used ? send_some(connection->fd, out, used) : 0;
    if (sent < 0 || rest > LINE_LIMIT) {
        end(connection);
        return;
    }
    if (held) {
        free(connection->held_bytes);
        connection->held_bytes = NULL;
    }
    if ((connection->held = rest))
        connection->held_bytes = copy(in + used, rest);
    if ((connection->unsent = used - (size_t)sent)) {
        connection->unsent_bytes = copy(out + sent, connection->unsent);
        watch(connection, EPOLL_CTL_MOD, EPOLLOUT);
    }
}

static void writable(struct connection *connection)
{
    ssize_t sent = send_some(connection->fd, connection->unsent_bytes, connection->unsent);
    if (sent < 0) {
        end(connection);
        return;
    }
    connection->unsent -= (size_t)sent;
    memmove(connection->unsent_bytes, connection->unsent_bytes + sent, connection->unsent);
    if (!connection->unsent) {
        free(connection->unsent_bytes);
        connection->unsent_bytes = NULL;
        watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void welcome(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *connection = calloc(1, sizeof *connection);
        if (!connection)
            fail("calloc");
        connection->fd = fd;
        watch(connection, EPOLL_CTL_ADD, EPOLLIN);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    struct connection listener = {.fd = listen_on(argv[1], SOCK_NONBLOCK | SOCK_CLOEXEC)};
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int each = 0; each < count; each++) {
            struct connection *connection = events[each].data.ptr;
            if (connection == &listener)
                welcome(listener.fd);
            else if (connection->unsent)
                writable(connection);
            else
                readable(connection);
        }
    }
}
