/* filter: copies lines from standard input to standard output, for servers that run a program per connection. */
#include <errno.h>
#include <unistd.h>

#include "lines.h"

int main(void)
{
    static char in[ROOM], out[ROOM];
    size_t held = 0;
    for (;;) {
        ssize_t got = read(0, in + held, LINE_LIMIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0;
        size_t length = held + (size_t)got, used = answer_lines(in, length, held, out), written = 0;
        while (written < used) {
            ssize_t wrote = write(1, out + written, used - written);
            if (wrote < 0 && errno != EINTR)
                return 1;
            written += wrote > 0 ? (size_t)wrote : 0;
        }
        held = length - used;
        if (held > LINE_LIMIT)
            return 1;
        memmove(in, in + used, held);
    }
}
