/* Internal declarations of the core. The layout shared with Python is in cdefs.h. */
#ifndef HWW_CORE_H
#define HWW_CORE_H

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include "cdefs.h"

/* Reads or writes memory that may be gone, under hww_guarded: no matter for a sanitizer. */
#define HWW_FOREIGN __attribute__((no_sanitize("address")))

#define HWW_LOAD(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define HWW_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define HWW_ADD(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)

static_assert(sizeof(struct hww_record) == HWW_SLOT, "a record is one slot");
static_assert(sizeof(struct hww_extension) == HWW_SLOT, "an extension is one slot");

/* region.c: one per process image; the mapping behind `shared` is the family's. */
struct hww_region {
    struct hww_shared *shared;
    unsigned char *ring;  /* capacity slots */
    unsigned char *spill; /* spill_slots slots, in a file */
    unsigned char *arena; /* arena_size bytes */
    uint32_t *index;      /* HWW_INDEX_SIZE arena ids, open addressing, 0: empty */
};
extern struct hww_region hww_region;
#define HWW_INDEX_SIZE (1u << 18)

/* thread.c: what the handler keeps per thread. Initial-exec, so that reaching it never allocates. */
struct hww_thread {
    volatile int in_handler;
    void **volatile recover; /* where a fault while reading foreign memory goes on */
    pid_t tid, pid;
    struct hww_delivery *deliveries[3]; /* SIGTRAP, SIGSEGV, SIGBUS that are being handed on (signals.c) */
    uint32_t nested; /* who was named by the last trap inside the handler: watch << 8 | piece */
    int canary;      /* a test access is being made under a register set by a tracer */
    int muted;       /* > 0: hwwatch's own code runs; its calls of a watched function are let through */
};
extern __thread struct hww_thread hww_thread __attribute__((tls_model("initial-exec")));
int hww_thread_open(void);
void hww_thread_identify(struct hww_thread *self);
int hww_thread_in_vfork(void);
uint32_t hww_forks(void);
int hww_guarded(struct hww_thread *self, void (*body)(void *), void *argument);
#define HWW_FENCE() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* ns, of the monotonic clock. */
static inline uint64_t hww_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Bit i: watch i is armed in this process. A forked child starts with its parent's. */
extern uint64_t hww_active;
/* Bit i: watch i traps on reads, too. */
extern uint64_t hww_readers;

/* signals.c: a signal that we share with whoever had it before. */
struct hww_signal {
    int number;
    int installed;
    struct sigaction previous; /* who had it when we took it last */
    struct sigaction original; /* who had it when we took it first */
    void (*handler)(int, siginfo_t *, void *);
};
int hww_signal_open(struct hww_signal *self, int number, void (*handler)(int, siginfo_t *, void *));
int hww_signal_close(struct hww_signal *self);
int hww_signal_owner(const struct hww_signal *self);
int hww_signal_handled(const struct hww_signal *self);
void hww_signal_forward(struct hww_signal *self, siginfo_t *info, void *context);
void hww_signal_stack(int on);
void hww_signal_others(struct hww_signal *self, int number);
int hww_signal_chain(struct hww_signal *self, const struct sigaction *action, struct sigaction *before);

/* trap.c: whether this signal is ours; then the handler now stands behind our own. */
void hww_trap_others(int number);
uint64_t hww_trap_waiting(void);
int hww_trap_chain(int number, const struct sigaction *action, struct sigaction *before);

/* hooks.c */
void hww_hooks_guard(int on);

/* modules.c */
void hww_modules_fork(int stage);

/* One trap, as the recorder needs it. */
struct hww_moment {
    uint64_t time;
    uint64_t pc;
    uint64_t registers[HWW_REGISTERS];
    uint32_t eflags;
    uint32_t tid, pid;
    uint32_t stack;   /* arena id */
    uint32_t nframes; /* asked for when the stack was walked */
};

/* observe.c */
struct hww_change {
    uint64_t before[HWW_MAX_PIECES], now[HWW_MAX_PIECES];
    uint32_t mask;  /* pieces that changed */
    uint32_t flags; /* HWW_HIT_* */
};
void hww_observe(struct hww_thread *self, uint32_t index, const struct hww_watch *watch, uint32_t first,
                 struct hww_change *out);
void hww_snapshot_take(uint32_t watch);
void hww_mode_set(uint32_t index, uint32_t mode);
uint64_t *hww_snapshot_of(uint32_t index, const struct hww_watch *watch);
uint64_t *hww_held_of(uint32_t index, const struct hww_watch *watch);
uint64_t hww_differing(uint64_t one, uint64_t other);
void hww_held_take(uint32_t index, const struct hww_watch *watch, const struct hww_change *change);
void hww_snapshot_undo(uint32_t index, uint64_t address, uint8_t undone, uint8_t value);

/* What a record says beside the moment. */
struct hww_finding {
    uint32_t generation;
    uint32_t flags; /* HWW_HIT_* */
    uint32_t hit;   /* pieces */
    uint32_t named;
    uint32_t action;
    uint64_t old_bytes[4], new_bytes[4]; /* snapshots; of an execute trap: xmm0 to xmm7, low halves */
};

/* record.c */
int hww_record_write(struct hww_watch *watch, uint32_t index, const struct hww_moment *moment,
                     const struct hww_finding *finding);

/* action.c: carry a policy out; may change the thread's registers in `context`, and the watched bytes. */
void hww_action(struct hww_thread *self, struct hww_watch *watch, uint32_t index,
                const struct hww_settings *settings, const struct hww_moment *moment,
                struct hww_finding *finding, const struct hww_change *change, void *context, int *drop);
int hww_writer_known(uint64_t pc);

/* notify.c */
void hww_notify(struct hww_thread *self);
void hww_notify_forked(void);
void hww_signals_look(const struct hww_thread *self);

/* frames.c */

uint32_t hww_frames_walk(struct hww_thread *self, uint32_t nframes, uint32_t *flags);

/* names.c */
void hww_name_thread(const struct hww_thread *self);

/* intern.c */
uint32_t hww_intern_find(uint64_t hash, int (*same)(const void *entry, const void *key), const void *key);
void *hww_intern_reserve(uint32_t size, uint32_t *id);
uint32_t hww_intern_publish(uint64_t hash, uint32_t id, int (*same)(const void *entry, const void *key),
                            const void *key);
uint64_t hww_hash(uint64_t seed, const void *data, size_t size);

/* No new hits; its figures may still be asked for (HWW_RETIRED), or not (HWW_FREE). */
static inline int hww_watch_over(const struct hww_watch *watch)
{
    uint32_t state = HWW_LOAD(&watch->state);
    return state == HWW_RETIRED || state == HWW_FREE;
}

/* slots.c, for the handler: how often the kernel counted a piece in this process' events; -1: cannot tell. */
int64_t hww_watch_counted(uint32_t watch, uint32_t piece);
uint32_t hww_copy_excess(uint32_t nbytes);
void hww_watch_forked(void);
void hww_watch_orphaned(uint32_t watch);
int hww_watch_stop_once(uint32_t watch);
extern volatile uint64_t hww_canary_seen;

/* identify.c */
enum hww_certainty {
    HWW_CERTAIN, /* all of them were touched */
    HWW_LIKELY,  /* none but them; which, the full decoder may tell */
    HWW_UNKNOWN,
};
uint32_t hww_registers_candidates(struct hww_thread *self, const struct hww_moment *moment,
                                  enum hww_certainty *certain);
uint32_t hww_registers_pieces(uint32_t registers, uint32_t watch);

/* turns.c, for the handler */
void hww_registers_drop(uint32_t watch);
void hww_registers_purge(void);

/* arm.c, for fork */
void hww_unlisted_enter(void);
void hww_unlisted_leave(void);

/* arm.c, for the handler */
void hww_watch_doubt(struct hww_thread *self, uint32_t watch, uint32_t piece);

/* The sig_data of our events, so that a trap tells whose it is: magic, generation, watch, piece. */
#define HWW_COOKIE_MAGIC 0x4857ull
#define HWW_COOKIE_CANARY 0xff /* in place of a watch */
static inline uint64_t hww_cookie(uint32_t generation, uint32_t watch, uint32_t piece)
{
    return HWW_COOKIE_MAGIC << 48 | (uint64_t)generation << 16 | watch << 8 | piece;
}

#endif
