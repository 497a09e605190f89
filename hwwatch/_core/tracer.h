/* Debug registers set through ptrace: shared by tracer.c, registers.c, turns.c, hold.c and hooks.c. */
#ifndef HWW_TRACER_H
#define HWW_TRACER_H

#include "core.h"

/* What a thread's debug registers are to hold: DR0 to DR3, DR7. */
struct hww_debug {
    uint64_t address[HWW_MAX_PIECES];
    uint64_t control;
};

/* What is known of a thread. */
struct hww_traced {
    int32_t tid;
    uint8_t state;     /* enum hww_thread_state */
    uint8_t in_flight; /* stood between a trap and the end of its handler */
    uint16_t seen;     /* its place in hww_traps_done then */
    uint64_t errand;   /* number of the one that set it last */
};

/* One errand of a helper. */
struct hww_errand {
    int32_t only;   /* the one thread that is meant; 0: all */
    uint32_t fresh; /* leave threads alone that are in the table */
    uint32_t set;   /* 0: only look */
    uint32_t ours;  /* bit i: register i is ours, whatever a thread holds in it */
    struct hww_debug want;
    struct hww_debug before;           /* what armed threads hold, unless somebody has changed it */
    uint64_t found;                    /* out: the control registers met, or'ed */
    int32_t error;                     /* out: -errno of the first thread that could not be set */
    int32_t error_tid;                 /* out */
    uint32_t armed;                    /* out: threads that were set */
    uint32_t taken;                    /* out: threads whose registers somebody had changed */
    void (*meanwhile)(void *argument); /* to be called while all threads but `only` stand still (hold.c) */
    void *argument;
    uint32_t done;  /* out: it was */
    uint32_t still; /* out: none has run meanwhile */
};

/* The threads of this process that a helper has met, by tracer.c's lock. */
#define HWW_MAX_TRACED 16384
extern struct hww_traced hww_traced[HWW_MAX_TRACED];
extern uint32_t hww_traced_count;

void hww_tracer_lock(void);
int hww_tracer_try(void);
int hww_tracer_locked_here(void);
void hww_tracer_unlock(void);
void hww_tracer_reset(void);
int hww_tracer_run(struct hww_errand *errand);
int hww_tracer_send(struct hww_errand *errand);
uint64_t hww_tracer_errand(void);
struct hww_traced *hww_traced_find(int32_t tid);

/* Traps by debug registers that handlers have begun and done, by thread id, so that one that is on its way
 * can be waited for. Threads may share a counter: then a wait ends early. */
#define HWW_TRAP_COUNTERS 1024
extern uint16_t hww_traps_begun[HWW_TRAP_COUNTERS], hww_traps_done[HWW_TRAP_COUNTERS];

/* hold.c */
int hww_while_held(void (*act)(void *), void *argument);

/* hooks.c */
int hww_hooks_set(int on);

/* registers.c */
int hww_registers_wanted(void);

/* turns.c */
int hww_registers_leave_here(void);
int hww_registers_here(void);
void hww_registers_begin(void);

#endif
