/* hwwatch.h: for native policies, functions that run in the trap handler.
 *
 *     #define _GNU_SOURCE // for REG_RIP and the like
 *     #include <hwwatch.h>
 *     #include <string.h>
 *
 *     int clamp(hwwatch_hit *hit, ucontext_t *context)
 *     {
 *         double value;
 *         memcpy(&value, hit->new_bytes, sizeof value);
 *         return value < 0 ? HWWATCH_SKIP : HWWATCH_CONTINUE;
 *     }
 *
 * The function runs on the thread that made the access, at that very moment, perhaps inside malloc() or
 * holding Python's GIL. So:
 *   1. Async-signal-safe code only: no allocation, no locks, no stdio, no Python (signal-safety(7)).
 *   2. It may read and change the thread's registers through `context`; the thread goes on with those. On an
 *      execute trap the instruction at the pc has not run; on a data trap the access is done and the pc is
 *      that of the next instruction.
 *   3. It may touch watched memory: the trap that this makes is passed over.
 *   4. A fault in it is caught; the hit is then recorded as if there had been no policy.
 *   5. It may take as long as it likes; only its own thread waits.
 *
 * Find this file with hwwatch.include(). */
#ifndef HWWATCH_H
#define HWWATCH_H

#include <stdint.h>
#include <ucontext.h>

#define HWWATCH_VERSION 1

typedef struct hwwatch_hit {
    uint32_t size;    /* of this structure, bytes: grows with later versions */
    uint32_t version; /* HWWATCH_VERSION */
    uint64_t time;    /* ns, CLOCK_MONOTONIC */
    uint64_t address; /* first watched byte of the piece that was hit; execute: of the instruction */
    uint64_t nbytes;  /* of that piece */
    uint64_t pc;
    uint32_t tid;
    uint32_t pid;
    uint64_t hits;               /* of this watch, this one included */
    unsigned char old_bytes[32]; /* all watched bytes before; execute: xmm0 to xmm3, low halves */
    unsigned char new_bytes[32]; /* as they are now; execute: xmm4 to xmm7, low halves */
    uint32_t changed;            /* whether they differ */
    uint32_t reserved;
} hwwatch_hit;

/* What such a function returns. */
enum hwwatch_action {
    HWWATCH_CONTINUE = 0, /* go on, with the registers as the function left them */
    HWWATCH_SKIP = 1,     /* as policy "skip": undo the store, or do not run the instruction */
    HWWATCH_DROP = 2      /* go on and do not record this hit */
};

typedef int (*hwwatch_handler)(hwwatch_hit *, ucontext_t *);

#endif
