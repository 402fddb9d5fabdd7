/* The work of every server here: it returns each line it gets.

   As in the servers that these are compared with, a line is cut out and passed to a handler, and its length is not
   known in advance. */
#ifndef BENCH_LINES_H
#define BENCH_LINES_H

#include <stddef.h>
#include <string.h>

enum { LINE_LIMIT = 65536, ROOM = 2 * LINE_LIMIT };

/* The handler: writes the reply to one request, returns the reply's length. */
static size_t echo(const char *request, size_t length, char *reply)
{
    memcpy(reply, request, length);
    return length;
}

/* Answers every whole line of in[0..length); `out` has room for that many bytes. Returns the number of bytes used, the
   same as the number of bytes of replies in `out`. The caller keeps the rest, an unfinished line, for the next call and
   passes its length as `seen`: those bytes hold no newline. */
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
