/* The helper that sets debug registers: no thread can set its own, a tracer can set those of others.
 *
 * For each errand a child is born, does it, and is gone: it seizes each thread, stops it for a moment, writes
 * DR0 to DR3 and DR7 and lets go; the registers stay. So there is no process to be found, traced or killed in
 * between, and none that outlives its parent.
 *   1. It shares our memory (CLONE_VM): nothing is copied, and it can be made in a signal handler. It has no
 *      thread-local data of its own: no C library in it, only hww_raw.
 *   2. It blocks all signals and is in a session of its own: neither Ctrl-C nor a stop reaches it.
 *   3. It raises no SIGCHLD (exit signal 0), and wait() does not see it (__WCLONE).
 *   4. When it is killed, the kernel lets its tracees go on (exit_ptrace), and clears and wakes the word that
 *      its parent waits at (CLONE_CHILD_CLEARTID). When its parent thread dies, it dies (PR_SET_PDEATHSIG),
 *      also by an exec. It is told to begin once it has made that call, and does not wait without end.
 *   5. Under Yama it may trace us only while its parent says so (PR_SET_PTRACER), which ends with the errand.
 *   6. A thread that blocks SIGTRAP is left without registers: a hit would kill the process (force_sig). */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "helper.h"

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

struct hww_traced hww_traced[HWW_MAX_TRACED];
uint32_t hww_traced_count;
uint16_t hww_traps_begun[HWW_TRAP_COUNTERS], hww_traps_done[HWW_TRAP_COUNTERS];

/* How long one thread is waited for: it may be in a system call that cannot be interrupted. In several steps,
 * since the whole machine may have stood still during one. */
#define PATIENCE 400000000 /* ns */
#define STEPS 3
/* A helper that was killed is replaced so often. */
#define HELPERS 50

struct hww_work hww_work;
static unsigned char stack[32768] __attribute__((aligned(16)));

static int32_t own_tid(void)
{
    return (int32_t)HWW_RAW(SYS_gettid);
}

/* ---- the lock: not a mutex, since a handler takes it, too ---- */

/* Whether it was free, and is the caller's now. */
int hww_tracer_try(void)
{
    int32_t nobody = 0;
    return __atomic_compare_exchange_n(&hww_work.owner, &nobody, own_tid(), 0, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
}

void hww_tracer_lock(void)
{
    const struct timespec moment = {0, 50000};
    while (!hww_tracer_try())
        HWW_RAW(SYS_nanosleep, &moment, 0);
}

int hww_tracer_locked_here(void)
{
    return HWW_LOAD(&hww_work.owner) == own_tid();
}

void hww_tracer_unlock(void)
{
    HWW_STORE(&hww_work.owner, 0);
}

/* In a forked child. */
void hww_tracer_reset(void)
{
    hww_work.owner = hww_work.alive = 0;
    hww_traced_count = 0;
    memset(hww_traps_begun, 0, sizeof hww_traps_begun);
    memset(hww_traps_done, 0, sizeof hww_traps_done);
}

struct hww_traced *hww_traced_find(int32_t tid)
{
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].tid == tid)
            return &hww_traced[i];
    return NULL;
}

/* ---- what the helper runs ---- */

/* Whether the parent has said so. One that is stopped meanwhile, or does not get a CPU, finds this helper
 * gone and sends another. */
static int may_begin(void)
{
    const struct timespec patience = {0, PATIENCE};
    for (int steps = 0; steps < STEPS && !HWW_LOAD(&hww_work.go); steps++) {
        if ((int32_t)HWW_RAW(SYS_getppid) != hww_work.pid)
            return 0;
        HWW_RAW(SYS_futex, &hww_work.go, FUTEX_WAIT, 0, &patience, 0, 0);
    }
    return HWW_LOAD(&hww_work.go) && (int32_t)HWW_RAW(SYS_getppid) == hww_work.pid;
}

static void helper(void *argument)
{
    (void)argument;
    HWW_RAW(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    HWW_RAW(SYS_setsid);
    HWW_STORE(&hww_work.ready, 1);
    HWW_RAW(SYS_futex, &hww_work.ready, FUTEX_WAKE, 1, 0, 0, 0);
    if (may_begin()) {
        if (hww_work.errand->meanwhile)
            hww_hold_all();
        else if (hww_work.errand->only)
            hww_visit(hww_work.errand->only);
        else
            hww_visit_all();
        HWW_STORE(&hww_work.finished, 1);
    }
    for (;;)
        HWW_RAW(SYS_exit, 0);
}

/* ---- what its parent runs ---- */

/* Wait for the helper's end; one that makes no progress is ended. Whether it was. */
static int await_helper(int32_t pid)
{
    const struct timespec patience = {0, PATIENCE};
    int32_t alive, stuck = 0, idle = 0;
    while ((alive = HWW_LOAD(&hww_work.alive))) {
        uint32_t progress = HWW_LOAD(&hww_work.progress);
        long error = HWW_RAW(SYS_futex, &hww_work.alive, FUTEX_WAIT, alive, &patience, 0, 0);
        idle = error == -ETIMEDOUT && progress == HWW_LOAD(&hww_work.progress) ? idle + 1 : 0;
        if (idle == STEPS) {
            stuck = 1;
            HWW_RAW(SYS_kill, pid, SIGKILL);
        }
    }
    while (HWW_RAW(SYS_wait4, pid, 0, __WALL, 0) == -EINTR)
        ;
    return stuck;
}

/* What is to be done while the threads stand still, as soon as they do. */
static void act_meanwhile(int32_t pid)
{
    const struct timespec patience = {0, PATIENCE};
    struct hww_errand *errand = hww_work.errand;
    for (int steps = 0; !HWW_LOAD(&hww_work.held) && HWW_LOAD(&hww_work.alive); steps++) {
        HWW_RAW(SYS_futex, &hww_work.held, FUTEX_WAIT, 0, &patience, 0, 0);
        if (steps == STEPS)
            HWW_RAW(SYS_kill, pid, SIGKILL);
    }
    if (HWW_LOAD(&hww_work.held)) {
        errand->meanwhile(errand->argument);
        errand->done = 1;
    }
    HWW_STORE(&hww_work.release, 1);
    HWW_RAW(SYS_futex, &hww_work.release, FUTEX_WAKE, 1, 0, 0, 0);
}

/* Not before its own end is sure to follow ours: a thread that an exec ends leaves no trace in getppid. In
 * short steps, since a helper that is killed wakes nobody here. */
static void await_ready(void)
{
    const struct timespec moment = {0, 1000000};
    while (!HWW_LOAD(&hww_work.ready) && HWW_LOAD(&hww_work.alive))
        HWW_RAW(SYS_futex, &hww_work.ready, FUTEX_WAIT, 0, &moment, 0, 0);
}

enum outcome { FINISHED, KILLED, STUCK };

/* One helper, one errand; or -errno. */
static int send_helper(void)
{
    /* Hits are handled meanwhile: a SIGTRAP that is blocked would kill. */
    uint64_t most = ~(1ull << (SIGTRAP - 1) | 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1)), all = ~0ull,
             mask;
    hww_work.ready = hww_work.go = hww_work.finished = hww_work.at = hww_work.held = hww_work.release = 0;
    hww_visits_begin();
    hww_work.alive = 1;
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, 8);
    int stuck = 0;
    long pid =
        hww_raw_clone(CLONE_VM | CLONE_CHILD_CLEARTID, stack + sizeof stack, &hww_work.alive, helper, NULL);
    most &= hww_trap_waiting();
    most |= mask;
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &most, 0, 8);
    if (pid > 0) {
        HWW_RAW(SYS_prctl, PR_SET_PTRACER, pid, 0, 0, 0); /* EINVAL where there is no Yama */
        await_ready();
        HWW_STORE(&hww_work.go, 1);
        HWW_RAW(SYS_futex, &hww_work.go, FUTEX_WAKE, 1, 0, 0, 0);
        if (hww_work.errand->meanwhile)
            act_meanwhile((int32_t)pid);
        stuck = await_helper((int32_t)pid);
        HWW_RAW(SYS_prctl, PR_SET_PTRACER, 0, 0, 0, 0);
    }
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
    return pid < 0 ? (int)pid : HWW_LOAD(&hww_work.finished) ? FINISHED : stuck ? STUCK : KILLED;
}

/* Threads that are no more take no room. */
static void forget_ended(void)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].state != HWW_THREAD_ENDED &&
            HWW_RAW(SYS_tgkill, hww_work.pid, hww_traced[i].tid, 0) != -ESRCH)
            hww_traced[kept++] = hww_traced[i];
    hww_traced_count = kept;
}

/* The number of the errand under way, or of the last one. */
uint64_t hww_tracer_errand(void)
{
    return HWW_LOAD(&hww_work.number);
}

static void begin_errand(struct hww_errand *errand)
{
    hww_work.errand = errand;
    HWW_STORE(&hww_work.number, hww_work.number + 1);
    hww_work.pid = (int32_t)HWW_RAW(SYS_getpid);
}

/* Send a helper once, under the lock: 0 where it came to its end. */
int hww_tracer_send(struct hww_errand *errand)
{
    begin_errand(errand);
    return send_helper();
}

/* Run an errand, under the lock; errno of the first thread that refused, -ECHILD where each helper was
 * killed. A thread that does not stop is noted in the table, and is no error. */
int hww_tracer_run(struct hww_errand *errand)
{
    begin_errand(errand);
    forget_ended();
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].state == HWW_THREAD_STUCK)
            hww_traced[i].state = HWW_THREAD_UNSEEN;
    for (int killed = 0, sent = 0; killed < HELPERS && sent < 64; sent++) {
        errand->error = errand->error_tid = 0;
        errand->armed = errand->taken = 0;
        int result = send_helper();
        if (result <= 0)
            return result ? result : errand->error;
        killed += result == KILLED;
        struct hww_traced *at = result == STUCK ? hww_traced_find(hww_work.at) : NULL;
        if (at)
            at->state = HWW_THREAD_STUCK;
    }
    struct hww_traced *at = hww_traced_find(HWW_LOAD(&hww_work.at));
    if (at)
        at->state = HWW_THREAD_TORN;
    return -ECHILD;
}
