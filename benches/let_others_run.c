/* For count_instructions.sh, preloaded into a node under valgrind. valgrind runs one thread at a time, and takes io_uring_enter for a call
 * that can't block: a core that waits in it would keep all other threads from running. So a core first waits in poll, which valgrind
 * knows, until its ring has something or some milliseconds are over. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/syscall.h>

enum { WAIT_MS = 5 };

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_io_uring_enter && a[2] > 0) {
        /* What is to be submitted first is; then nothing is waited for in the call itself. */
        long submitted = a[1] > 0 ? next(number, a[0], a[1], 0L, a[3], a[4], a[5]) : 0;
        struct pollfd ring = {.fd = (int)a[0], .events = POLLIN};
        poll(&ring, 1, WAIT_MS);
        long got = next(number, a[0], 0L, 0L, a[3], a[4], a[5]);
        return got < 0 ? got : submitted;
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
