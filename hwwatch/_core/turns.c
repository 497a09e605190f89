/* Whose turn it is at the debug registers: the lock, and what handlers, threads that begin or block SIGTRAP,
 * and forks do about it.
 *
 * The handler calls hww_registers_drop and hww_registers_purge; hooks.c and fork hww_registers_here, _begin
 * and _leave_here; backends/ptrace.py hww_registers_belated and _again. */
#define _GNU_SOURCE
#include <pthread.h>

#include "registers.h"

/* Bit w: watch w is to be dropped as soon as the lock is free. */
static uint64_t doomed;
/* The process that all this is about. A vfork child shares our memory, and must never be armed. */
static int32_t home;

/* 1: a fork is under way; 3: and somebody wanted a helper meanwhile. */
static uint32_t forking;

/* Longest wait of a thread that is to block SIGTRAP for a fork's end, ns. */
#define FORKS 1000000000
/* Of a new thread: most forks are over by then, and do not wait for it; until it is armed its hits are
 * missed. */
#define BIRTH 200000000

void hww_registers_enter(void)
{
    hww_tracer_lock();
}

/* The same, but for no longer than this while a fork is under way: handlers of it (pthread_atfork) may wait
 * for the calling thread, as OpenBLAS's do, which end its workers. 0: it is not entered; one errand for all
 * threads follows the fork. */
static int enter_or_pass(uint64_t patience)
{
    const struct timespec moment = {0, 50000};
    uint64_t deadline = 0;
    while (!hww_tracer_try()) {
        uint32_t under_way = HWW_LOAD(&forking);
        if (under_way && !deadline)
            deadline = hww_now() + patience;
        if (under_way && hww_now() >= deadline &&
            __atomic_compare_exchange_n(&forking, &under_way, 3, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 0;
        HWW_RAW(SYS_nanosleep, &moment, 0);
    }
    return 1;
}

/* Whether a handler or hook may send a helper now: not under the lock, and not from a vfork child. */
static int may_enter(void)
{
    return (int32_t)HWW_RAW(SYS_getpid) == home && !hww_tracer_locked_here();
}

void hww_registers_leave(void)
{
    for (;;) {
        hww_tracer_unlock();
        if (!HWW_LOAD(&doomed))
            return;
        hww_tracer_lock();
        if (hww_registers_take_out(__atomic_exchange_n(&doomed, 0, __ATOMIC_ACQ_REL)))
            hww_registers_apply(0);
    }
}

/* From now on this watch has no registers. */
void hww_registers_drop(uint32_t watch)
{
    int mine = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        mine |= HWW_LOAD(&hww_slots[i].state) != HWW_SLOT_FREE && hww_slots[i].watch == watch;
    if (!mine)
        return;
    __atomic_fetch_or(&doomed, 1ull << watch, __ATOMIC_ACQ_REL);
    if (may_enter() && enter_or_pass(0))
        hww_registers_leave();
}

/* A trap that no register of hww_slots_ours explains: a watch that its parent process has ended, or a helper
 * was killed before it had taken the registers back. */
void hww_registers_purge(void)
{
    uint64_t gone = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++) {
        if (HWW_LOAD(&hww_slots[i].state) == HWW_SLOT_FREE)
            continue;
        const struct hww_watch *watch = hww_watch_at((int)hww_slots[i].watch);
        if (HWW_LOAD(&watch->first) != hww_slots[i].first || hww_watch_over(watch))
            gone |= 1ull << hww_slots[i].watch;
    }
    if (!may_enter() || !enter_or_pass(0))
        return;
    hww_registers_take_out(gone);
    hww_registers_apply(gone ? 0 : (int32_t)HWW_RAW(SYS_gettid));
    hww_registers_leave();
}

/* ---- threads that begin, or change what they block; forked children ---- */

/* Set the calling thread's registers as all are to be. */
int hww_registers_here(void)
{
    if (!may_enter() || !enter_or_pass(BIRTH))
        return -EBUSY;
    int error = hww_registers_apply((int32_t)HWW_RAW(SYS_gettid));
    hww_registers_leave();
    return error;
}

/* The same for a thread that has just begun; while it waited for the lock, it may have been armed with all.
 */
void hww_registers_begin(void)
{
    int32_t tid = (int32_t)HWW_RAW(SYS_gettid);
    uint64_t since = hww_tracer_errand();
    if (!may_enter())
        return;
    if (!enter_or_pass(BIRTH)) {
        hww_registers_note(offsetof(struct hww_watch, belated));
        return;
    }
    const struct hww_traced *thread = hww_traced_find(tid);
    if (!thread || thread->state != HWW_THREAD_ARMED || thread->errand < since)
        hww_registers_apply(tid);
    hww_registers_leave();
}

/* Set those of a thread that began unseen, or was not armed for another reason. */
int hww_registers_belated(int32_t tid)
{
    hww_registers_enter();
    int unseen = !hww_traced_find(tid), error = hww_registers_apply(tid);
    const struct hww_traced *thread = hww_traced_find(tid);
    if (unseen && thread && thread->state == HWW_THREAD_ARMED)
        hww_registers_note(offsetof(struct hww_watch, belated));
    hww_registers_leave();
    return error;
}

/* Set all threads' registers once more: a debugger may have changed them. */
int hww_registers_again(void)
{
    hww_registers_enter();
    int error = hww_registers_apply(0);
    hww_registers_leave();
    return error;
}

/* The calling thread is about to block SIGTRAP: a hit would kill from then on. Fails where no helper can
 * clear its registers, since somebody else traces it. */
int hww_registers_leave_here(void)
{
    struct hww_errand errand;
    if (!may_enter())
        return 0;
    if (!enter_or_pass(FORKS))
        return -EAGAIN;
    hww_registers_plan(&errand, (int32_t)HWW_RAW(SYS_gettid));
    memset(&errand.want, 0, sizeof errand.want);
    int error = hww_registers_run(&errand);
    struct hww_traced *thread = error ? NULL : hww_traced_find(errand.only);
    if (thread)
        thread->state = HWW_THREAD_DEAF;
    hww_registers_leave();
    return error;
}

static void before_fork(void)
{
    hww_tracer_lock();
    HWW_STORE(&forking, 1);
}

static void after_fork(void)
{
    if (__atomic_exchange_n(&forking, 0, __ATOMIC_SEQ_CST) == 3)
        hww_registers_apply(0);
    hww_registers_leave();
}

/* Only system calls here. */
static void in_child(void)
{
    home = (int32_t)HWW_RAW(SYS_getpid);
    doomed = forking = 0;
    hww_registers_inherit();
    if (hww_registers_wanted() && hww_registers_here() < 0)
        hww_registers_note(offsetof(struct hww_watch, unfollowed));
}

int hww_registers_prepare_process(void)
{
    if (home)
        return 0;
    int error = pthread_atfork(before_fork, after_fork, in_child);
    home = error ? 0 : getpid();
    return -error;
}
