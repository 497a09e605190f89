/* System calls without the C library: no errno, no cancellation point, nothing that belongs to a thread. The
 * tracer's helper shares our memory, and with it the thread-local data of whoever started it. */
#ifndef HWW_RAW_H
#define HWW_RAW_H

#include <sys/syscall.h>

static inline long hww_raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define HWW_RAW6(n, a, b, c, d, e, f, ...)                                                                   \
    hww_raw((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define HWW_RAW(...) HWW_RAW6(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* A child that runs body(argument) on a stack of its own, and never returns from it. */
static inline long hww_raw_clone(unsigned long flags, void *stack_end, int *cleared, void (*body)(void *),
                                 void *argument)
{
    void **top = (void **)stack_end;
    *--top = argument;
    *--top = (void *)body;
    register long r10 __asm__("r10") = (long)cleared;
    register long r8 __asm__("r8") = 0;
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "pop %%rax\n\t"
                     "pop %%rdi\n\t"
                     "call *%%rax\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(result)
                     : "a"((long)SYS_clone), "D"(flags), "S"(top), "d"(0l), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

#endif
