/* Watches in debug registers that a tracer has set: what is wanted in them, the same in all threads.
 * Whose turn it is at them: turns.c; which of them a trap means: identify.c. The rest is for
 * backends/ptrace.py, and what registers.h and tracer.h declare. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "registers.h"

struct hww_slot hww_slots[HWW_MAX_PIECES] = {[0 ... HWW_MAX_PIECES - 1] = {.watch = HWW_MAX_WATCHES}};
uint32_t hww_slots_ours;
/* What all armed threads hold; nothing where that is not sure. */
static struct hww_debug given;

/* Longest wait for threads that may be creating others, and for traps on their way, ns. */
#define BIRTHS 500000000
#define FLIGHTS 1000000000

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
void hww_registers_note(size_t counter)
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
        hww_registers_note(offsetof(struct hww_watch, torn));
    if (errand->taken)
        hww_registers_note(offsetof(struct hww_watch, taken));
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

/* Have these watches no registers from now on; 1: some had. */
int hww_registers_take_out(uint64_t watches)
{
    int changed = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (hww_slots[i].state != HWW_SLOT_FREE && watches >> hww_slots[i].watch & 1) {
            HWW_STORE(&hww_slots[i].state, HWW_SLOT_FREE);
            changed = 1;
        }
    return changed;
}

/* Whether any register is to be set. */
int hww_registers_wanted(void)
{
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (HWW_LOAD(&hww_slots[i].state) == HWW_SLOT_ON)
            return 1;
    return 0;
}

/* In a forked child, which starts with empty registers (flush_ptrace_hw_breakpoint): what follows it is still
 * wanted. */
void hww_registers_inherit(void)
{
    given = (struct hww_debug){{0}, 0};
    hww_slots_ours = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++) {
        if (hww_slots[i].state == HWW_SLOT_FREE)
            continue;
        const struct hww_watch *watch = hww_watch_at((int)hww_slots[i].watch);
        if (!watch->follow || HWW_LOAD(&watch->state) != HWW_ARMED)
            hww_slots[i] = (struct hww_slot){.state = HWW_SLOT_FREE, .watch = HWW_MAX_WATCHES};
    }
}

static int in_use(void)
{
    int used = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        used += hww_slots[i].state != HWW_SLOT_FREE;
    return used;
}

/* ---- arming ---- */

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
    uint64_t deadline = hww_now() + BIRTHS;
    uint32_t possible = 0;
    for (int i = 0; births && i < count; i++)
        hww_birth_begin(&births[i], tids[i]);
    while (births) {
        possible = 0;
        for (int i = 0; i < count; i++)
            possible += tids[i] != self && hww_birth_possible(&births[i], tids[i]);
        if (!possible || hww_now() > deadline)
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
    uint64_t deadline = hww_now() + FLIGHTS;
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
        if (!flying || hww_now() > deadline)
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
    if (error && hww_registers_take_out(1ull << watch))
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
    int error = hww_registers_take_out(1ull << watch) ? hww_registers_apply(0) : 0;
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
