/* Watches in debug registers that a tracer has set: what is wanted in them, the same in all threads.
 *
 * The handler calls what is in identify.c, hww_registers_drop and
 * hww_registers_purge; hooks.c and fork call hww_registers_here. All else is for backends/ptrace.py. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "helper.h"
#include "registers.h"

struct hww_slot hww_slots[HWW_MAX_PIECES] = {[0 ... HWW_MAX_PIECES - 1] = {.watch = HWW_MAX_WATCHES}};
uint32_t hww_slots_ours;
/* What all armed threads hold; nothing where that is not sure. */
static struct hww_debug given;
/* Bit w: watch w is to be dropped as soon as the lock is free. */
static uint64_t doomed;
/* The process that all this is about. A vfork child shares our memory, and must never be armed. */
static int32_t home;

/* 1: a fork is under way; 2, too: somebody wanted a helper meanwhile. */
static uint32_t forking;

/* Longest wait of a thread that is to block SIGTRAP for a fork's end, ns. */
#define FORKS 1000000000
/* Of a new thread: most forks are over by then, and do not wait for it; until it is armed its hits are
 * missed. */
#define BIRTH 200000000
/* Longest wait for threads that may be creating others, and for traps on their way, ns. */
#define BIRTHS 500000000
#define FLIGHTS 1000000000

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* DR7 (Intel SDM vol. 3B, 18.2.4): local enable bits, and by register what traps and how many bytes. */
void hww_registers_describe(struct hww_debug *out, int number, const struct hww_slot *slot)
{
    static const uint8_t lengths[] = {0, 0, 1, 0, 3, 0, 0, 0, 2};
    uint64_t kind = slot->mode == HWW_EXECUTE ? 0 : slot->mode == HWW_WRITE ? 1 : 3;
    uint64_t length = slot->mode == HWW_EXECUTE ? 0 : lengths[slot->nbytes & 15];
    out->address[number] = slot->address;
    out->control |= 1ull << 2 * number | (kind | length << 2) << (16 + 4 * number);
}

void hww_registers_plan(struct hww_errand *errand, int32_t only)
{
    memset(errand, 0, sizeof *errand);
    errand->only = only;
    errand->set = 1;
    errand->before = given;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (hww_slots[i].state == HWW_SLOT_ON)
            hww_registers_describe(&errand->want, i, &hww_slots[i]);
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        hww_slots_ours |= (uint32_t)(hww_slots[i].state == HWW_SLOT_ON) << i;
    errand->ours = hww_slots_ours;
}

/* Add 1 to a count of each watch that is on. */
static void note(size_t counter)
{
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (hww_slots[i].state == HWW_SLOT_ON && hww_slots[i].piece == 0)
            HWW_ADD((uint64_t *)((char *)hww_watch_at((int)hww_slots[i].watch) + counter), 1);
}

/* The helper may have been killed with a thread's registers half set: what it does until the next errand goes
 * unseen. */
int hww_registers_run(struct hww_errand *errand)
{
    int error = hww_tracer_run(errand);
    if (error == -ECHILD && errand->set)
        note(offsetof(struct hww_watch, torn));
    if (errand->taken)
        note(offsetof(struct hww_watch, taken));
    if (errand->set && !errand->only)
        given = error ? (struct hww_debug){{0}, 0} : errand->want;
    return error;
}

int hww_registers_apply(int32_t only)
{
    struct hww_errand errand;
    hww_registers_plan(&errand, only);
    return hww_registers_run(&errand);
}

static int in_use(void)
{
    int used = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        used += hww_slots[i].state != HWW_SLOT_FREE;
    return used;
}

/* ---- the lock, and what a handler could not do under it ---- */

static int take_out(uint64_t watches)
{
    int changed = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (hww_slots[i].state != HWW_SLOT_FREE && watches >> hww_slots[i].watch & 1) {
            HWW_STORE(&hww_slots[i].state, HWW_SLOT_FREE);
            changed = 1;
        }
    return changed;
}

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
    int32_t self = (int32_t)HWW_RAW(SYS_gettid);
    uint64_t deadline = 0;
    for (int32_t nobody = 0;
         !__atomic_compare_exchange_n(&hww_work.owner, &nobody, self, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
         nobody = 0) {
        uint32_t under_way = HWW_LOAD(&forking);
        if (under_way && !deadline)
            deadline = now_ns() + patience;
        if (under_way && now_ns() >= deadline &&
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
        if (take_out(__atomic_exchange_n(&doomed, 0, __ATOMIC_ACQ_REL)))
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
    take_out(gone);
    hww_registers_apply(gone ? 0 : (int32_t)HWW_RAW(SYS_gettid));
    hww_registers_leave();
}

/* ---- threads that begin, or change what they block; forked children ---- */

int hww_registers_wanted(void)
{
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (HWW_LOAD(&hww_slots[i].state) == HWW_SLOT_ON)
            return 1;
    return 0;
}

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
        note(offsetof(struct hww_watch, belated));
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
        note(offsetof(struct hww_watch, belated));
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

/* A child starts with empty registers (flush_ptrace_hw_breakpoint). Only system calls here. */
static void in_child(void)
{
    home = (int32_t)HWW_RAW(SYS_getpid);
    doomed = forking = 0;
    given = (struct hww_debug){{0}, 0};
    hww_slots_ours = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++) {
        if (hww_slots[i].state == HWW_SLOT_FREE)
            continue;
        const struct hww_watch *watch = hww_watch_at((int)hww_slots[i].watch);
        if (!watch->follow || HWW_LOAD(&watch->state) != HWW_ARMED)
            hww_slots[i] = (struct hww_slot){.state = HWW_SLOT_FREE, .watch = HWW_MAX_WATCHES};
    }
    if (hww_registers_wanted() && hww_registers_here() < 0)
        note(offsetof(struct hww_watch, unfollowed));
}

/* ---- arming ---- */

int hww_registers_prepare_process(void)
{
    if (home)
        return 0;
    int error = pthread_atfork(before_fork, after_fork, in_child);
    home = error ? 0 : getpid();
    return -error;
}

static int place(int watch, uint32_t taken)
{
    struct hww_watch *entry = hww_watch_at(watch);
    uint32_t piece = 0;
    for (int i = 0; i < HWW_MAX_PIECES && piece < entry->npieces; i++) {
        if (hww_slots[i].state != HWW_SLOT_FREE || taken >> i & 1)
            continue;
        hww_slots[i] = (struct hww_slot){HWW_SLOT_FREE,
                                         (uint32_t)watch,
                                         piece,
                                         entry->mode,
                                         entry->first,
                                         entry->pieces[piece].address,
                                         entry->pieces[piece].nbytes};
        HWW_STORE(&hww_slots[i].state, HWW_SLOT_ON);
        piece++;
    }
    return piece == entry->npieces ? 0 : -ENOSPC;
}

/* Threads that were about to create others when the hooks were set bring forth some that know nothing of us:
 * wait, and look again. */
static uint32_t await_births(void)
{
    pid_t *tids = NULL, self = (pid_t)HWW_RAW(SYS_gettid);
    int count = hww_threads_list(&tids);
    struct hww_birth *births = count > 1 ? calloc((size_t)count, sizeof *births) : NULL;
    uint64_t deadline = now_ns() + BIRTHS;
    uint32_t possible = 0;
    for (int i = 0; births && i < count; i++)
        hww_birth_begin(&births[i], tids[i]);
    while (births) {
        possible = 0;
        for (int i = 0; i < count; i++)
            possible += tids[i] != self && hww_birth_possible(&births[i], tids[i]);
        if (!possible || now_ns() > deadline)
            break;
        hww_births_wait();
    }
    free(births);
    free(tids);
    return possible;
}

/* Wait for traps that threads were in, or on their way to, when they were visited last. */
static void await_flights(void)
{
    const struct timespec moment = {0, 50000};
    uint64_t deadline = now_ns() + FLIGHTS;
    int32_t self = (int32_t)HWW_RAW(SYS_gettid), pid = (int32_t)HWW_RAW(SYS_getpid);
    for (;;) {
        uint32_t flying = 0;
        hww_registers_enter();
        for (uint32_t i = 0; i < hww_traced_count; i++) {
            struct hww_traced *thread = &hww_traced[i];
            if (!thread->in_flight || thread->tid == self)
                continue;
            if (HWW_LOAD(&hww_traps_done[(uint32_t)thread->tid % HWW_TRAP_COUNTERS]) != thread->seen ||
                HWW_RAW(SYS_tgkill, pid, thread->tid, 0) == -ESRCH)
                thread->in_flight = 0;
            flying += thread->in_flight;
        }
        hww_registers_leave();
        if (!flying || now_ns() > deadline)
            return;
        nanosleep(&moment, NULL);
    }
}

static int arm(int watch, int first, struct hww_errand *errand, uint32_t *unsure)
{
    int taken = hww_registers_foreign();
    int error = taken < 0 ? taken : place(watch, (uint32_t)taken);
    if (error)
        return error;
    hww_registers_plan(errand, 0);
    error = hww_registers_run(errand);
    if (error || !first)
        return error;
    hww_registers_leave();
    *unsure = await_births();
    hww_registers_enter();
    errand->fresh = 1;
    return hww_registers_run(errand);
}

/* Arm every thread; on failure none stays armed. */
int hww_registers_open(int watch, const struct hww_arm_options *options, struct hww_arm_report *report)
{
    struct hww_errand errand = {0};
    memset(report, 0, sizeof *report);
    int error = hww_registers_prepare_process();
    if (error)
        return error;
    hww_watch_at(watch)->follow = options->follow_fork;
    hww_watch_at(watch)->kernel = 0;
    int first = hww_hooks_set(1);
    if (first < 0)
        return first;
    hww_registers_enter();
    error = arm(watch, first, &errand, &report->unsure);
    report->threads = errand.armed;
    report->failed_tid = errand.error_tid;
    if (error && take_out(1ull << watch))
        hww_registers_apply(0);
    hww_registers_leave();
    if (!in_use())
        hww_hooks_set(0);
    return error == -EBUSY ? -ENOSPC : error;
}

/* Take a watch out of all registers, and wait for the hits that are on their way. */
int hww_registers_close(int watch)
{
    hww_registers_enter();
    int error = take_out(1ull << watch) ? hww_registers_apply(0) : 0;
    hww_registers_leave();
    if (!in_use())
        hww_hooks_set(0);
    await_flights();
    return error;
}

static int change(int watch, uint32_t state, uint32_t mode)
{
    hww_registers_enter();
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (hww_slots[i].state != HWW_SLOT_FREE && hww_slots[i].watch == (uint32_t)watch) {
            hww_slots[i].mode = mode;
            HWW_STORE(&hww_slots[i].state, state);
        }
    int error = hww_registers_apply(0);
    hww_registers_leave();
    await_flights();
    return error;
}

static int paused(int watch)
{
    return HWW_LOAD(&hww_watch_at(watch)->state) != HWW_ARMED;
}

/* Pause and resume; a paused watch keeps its registers from others. */
int hww_registers_enable(int watch, int on)
{
    struct hww_watch *entry = hww_watch_at(watch);
    if (on) {
        hww_snapshot_take((uint32_t)watch);
        HWW_STORE(&entry->state, HWW_ARMED);
    }
    int error = change(watch, on ? HWW_SLOT_ON : HWW_SLOT_OFF, entry->mode);
    if (on ? error : !error)
        HWW_STORE(&entry->state, HWW_CLAIMED);
    return error;
}

/* Change the mode of a data watch. A thread stands still while its registers change: nothing is missed.
 * Returns the generation that records of the new mode carry. */
int hww_registers_modify(int watch, uint32_t mode)
{
    struct hww_watch *entry = hww_watch_at(watch);
    if (mode == HWW_EXECUTE || entry->mode == HWW_EXECUTE)
        return -EINVAL;
    uint32_t generation = entry->generation + 1, before = entry->mode;
    int error = 0;
    if (before == HWW_WRITE || mode == HWW_WRITE) {
        HWW_STORE(&entry->hardware, generation);
        hww_mode_set((uint32_t)watch, HWW_READWRITE); /* until all have changed over: read with care */
        error = change(watch, paused(watch) ? HWW_SLOT_OFF : HWW_SLOT_ON, mode);
    }
    if (!error)
        HWW_STORE(&entry->generation, generation);
    hww_mode_set((uint32_t)watch, error ? before : mode);
    return error ? error : (int)generation;
}

/* The threads that a helper has met, and what became of them; how many there are. */
int hww_registers_threads(int32_t *tids, uint8_t *states, int capacity)
{
    hww_registers_enter();
    int count = (int)hww_traced_count;
    for (int i = 0; i < count && i < capacity; i++) {
        tids[i] = hww_traced[i].tid;
        states[i] = hww_traced[i].state;
    }
    hww_registers_leave();
    return count;
}
