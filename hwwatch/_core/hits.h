/* One trap: shared by trap.c, which receives it, and hits.c. */
#ifndef HWW_HITS_H
#define HWW_HITS_H

#include <ucontext.h>

#include "core.h"

/* In place of a watch: the trap names none. */
#define HWW_NO_WATCH HWW_MAX_WATCHES

struct hww_trap {
    uint32_t watch, piece, generation;
    uint32_t flags;
    int current; /* the watch is still the one that was named */
    ucontext_t *context;
    struct hww_moment moment;
    uint32_t stack_flags;
    int looked, after_syscall, known_writer;
    int poked;          /* by a register that a tracer has set: the signal names nobody */
    uint32_t registers; /* those that it may stand for */
    enum hww_certainty certain;
    int assumed; /* each of them gets a record */
};

/* Find the watches that it has hit; carry out their policies, and record. */
void hww_hits_take(struct hww_thread *self, struct hww_trap *trap);

#endif
