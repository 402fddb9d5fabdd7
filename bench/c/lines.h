/* The work that every server here does: a line in, the same line back.

   A line is cut out and handed to a handler, as in the servers that are measured beside these; nothing is
   known in advance of its length. */
#ifndef BENCH_LINES_H
#define BENCH_LINES_H

#include <stddef.h>
#include <string.h>

enum { LINE_LIMIT = 65536, ROOM = 2 * LINE_LIMIT };

/* The handler: makes a reply of one request, gives the reply's length. */
static size_t echo(const char *request, size_t length, char *reply)
{
    memcpy(reply, request, length);
    return length;
}

/* Answers every whole line of in[0..length); `out` has room for as much. Gives the bytes used up, the same number of
   bytes of replies are in `out`. A line's rest stays for the next time; `seen` bytes of it are known to hold no end. */
static size_t answer_lines(const char *in, size_t length, size_t seen, char *out)
{
    size_t used = 0, made = 0;
    const char *end;
    while ((end = memchr(in + used + seen, '\n', length - used - seen))) {
        made += echo(in + used, (size_t)(end - in) - used, out + made);
        out[made++] = '\n';
        used = (size_t)(end - in) + 1;
        seen = 0;
    }
    return used;
}

#endif
