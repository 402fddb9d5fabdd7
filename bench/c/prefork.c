/* prefork PORT WORKERS: the server that forkd's sync workers are compared with.

   Each worker accepts a connection and serves it to its end with blocking calls. The kernel keeps the deadlines:
   SO_RCVTIMEO and SO_SNDTIMEO. */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "lines.h"
#include "listen.h"

static int send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static void serve(int fd)
{
    static char in[ROOM], out[ROOM];
    size_t held = 0;
    for (;;) {
        ssize_t got = recv(fd, in + held, LINE_LIMIT, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return;
        size_t length = held + (size_t)got;
        size_t used = answer_lines(in, length, held, out);
        if (used && send_all(fd, out, used))
            return;
        held = length - used;
        if (held > LINE_LIMIT)
            return;
        memmove(in, in + used, held);
    }
}

static void work(int listener)
{
    struct timeval read_limit = {.tv_sec = 60}, write_limit = {.tv_sec = 30};
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &read_limit, sizeof read_limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &write_limit, sizeof write_limit);
        serve(fd);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int listener = listen_on(argv[1], SOCK_CLOEXEC);
    for (int each = 0; each < atoi(argv[2]); each++) {
        pid_t pid = fork();
        if (pid < 0)
            fail("fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            work(listener);
        }
    }
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    return 0;
}
