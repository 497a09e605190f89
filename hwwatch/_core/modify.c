/* Changing what an armed watch looks for, without a moment in which nothing does. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "events.h"
#include "tracer.h"

/* A register that was given up a moment ago may still be on its way back: the kernel frees an event when the
 * last hit of it has been delivered. In tries of 0.1 ms. */
#define TRIES 100

struct bridge {
    int *fds;
    int count;
};

static void bridge_disable(struct bridge *self)
{
    for (int i = 0; i < self->count; i++)
        ioctl(self->fds[i], PERF_EVENT_IOC_DISABLE, 0);
}

static void bridge_close(struct bridge *self)
{
    for (int i = 0; i < self->count; i++)
        close(self->fds[i]);
    free(self->fds);
    self->fds = NULL;
    self->count = 0;
}

static int bridge_try(struct bridge *self, int watch, uint32_t piece, const struct hww_arm_options *options)
{
    const struct hww_watch *entry = hww_watch_at(watch);
    pid_t *tids = NULL;
    int threads = hww_threads_list(&tids), error = 0;
    if (threads < 0)
        return threads;
    self->count = 0;
    self->fds = malloc((size_t)threads * sizeof *self->fds);
    if (!self->fds)
        error = -ENOMEM;
    for (int i = 0; i < threads && !error; i++) {
        int fd = hww_event_open(HWW_WRITE, entry->pieces[piece].address, entry->pieces[piece].nbytes, tids[i],
                                hww_cookie(entry->generation, (uint32_t)watch, piece), options, 0);
        if (fd >= 0)
            self->fds[self->count++] = fd;
        else if (fd != -ESRCH)
            error = fd;
    }
    free(tids);
    if (error) {
        bridge_disable(self);
        bridge_close(self);
    }
    return error;
}

/* A further event for writes on every thread, so that nothing is missed while a piece's own events change
 * over: the kernel takes a breakpoint out to change it (modify_user_hw_breakpoint). */
static int bridge_open(struct bridge *self, int watch, uint32_t piece, const struct hww_arm_options *options)
{
    const struct timespec moment = {0, 100000};
    for (int tries = 0;; tries++) {
        int error = bridge_try(self, watch, piece, options);
        if (error != -ENOSPC || hww_slots_held() >= HWW_MAX_PIECES || tries == TRIES)
            return error;
        nanosleep(&moment, NULL);
    }
}

/* What only the bridge has seen is recorded, and not in the real events' counts. Hits on their way, and those
 * that no signal named, make this too small, never too large: a hit that never was must not be called
 * lost. */
static void count_bridged(int watch, uint32_t piece)
{
    struct hww_watch *entry = hww_watch_at(watch);
    uint64_t counts[HWW_MAX_PIECES]; /* read last, since they may grow meanwhile */
    uint64_t known = HWW_LOAD(&entry->accounted[piece]) + HWW_LOAD(&entry->nested[piece]) -
                     HWW_LOAD(&entry->guessed[piece]);
    hww_watch_counts(watch, counts);
    if ((int64_t)(known - counts[piece]) > 0)
        HWW_ADD(&entry->retired[piece], known - counts[piece]);
}

/* MODIFY_ATTRIBUTES switches an event on unless it is told not to: one that is paused stays so. */
static int change_piece(int watch, uint32_t piece, uint32_t mode, const struct hww_arm_options *options,
                        int paused)
{
    struct hww_watch *entry = hww_watch_at(watch);
    struct perf_event_attr attr;
    int result = 0;
    hww_event_describe(&attr, mode, entry->pieces[piece].address, entry->pieces[piece].nbytes,
                       hww_cookie(entry->generation, (uint32_t)watch, piece), options, paused);
    for (uint32_t i = 0; i < hww_events[watch].count; i++) {
        int fd = hww_event_fd(hww_event_at(watch, i), piece);
        if (fd >= 0 && ioctl(fd, PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &attr) < 0 && errno != ESRCH)
            result = -errno;
    }
    return result;
}

/* A change of several pieces at once, for hww_while_held. */
struct change {
    const struct hww_arm_options *options;
    uint32_t from, mode;
    int watch, paused, result;
};

static void change_rest(void *argument)
{
    struct change *self = argument;
    uint32_t pieces = hww_watch_at(self->watch)->npieces;
    for (uint32_t p = self->from; p < pieces && !self->result; p++)
        self->result = change_piece(self->watch, p, self->mode, self->options, self->paused);
}

/* Under cover of a bridge; how many pieces have been changed when no register is free for the next. */
static uint32_t change_bridged(struct change *self)
{
    uint32_t pieces = hww_watch_at(self->watch)->npieces, p;
    for (p = 0; p < pieces && !self->result; p++) {
        struct bridge bridge = {NULL, 0};
        hww_unlisted_enter();
        int error = bridge_open(&bridge, self->watch, p, self->options);
        if (!error) {
            self->result = change_piece(self->watch, p, self->mode, self->options, 0);
            bridge_disable(&bridge);
            hww_watch_settle(self->watch, 1, 1);
            bridge_close(&bridge);
        }
        hww_unlisted_leave();
        if (error)
            break;
        count_bridged(self->watch, p);
    }
    return p;
}

/* Change the mode of a data watch. Between reads only and reads and writes the registers stay as they are.
 * Else each event is re-aimed by one ioctl, which reaches inherited ones too, piece by piece under cover of a
 * bridge. Where no register is free for one, the other threads are held still meanwhile; where that cannot
 * be, or forked children may run, accesses of that moment are missed, and `*covered` is 0. Returns the
 * generation that records of the new mode carry. */
int hww_watch_modify(int watch, uint32_t mode, const struct hww_arm_options *options, int32_t *covered)
{
    struct hww_watch *entry = hww_watch_at(watch);
    *covered = 1;
    if (mode == HWW_EXECUTE || entry->mode == HWW_EXECUTE)
        return -EINVAL;
    uint32_t generation = entry->generation + 1, before = entry->mode;
    if (before != HWW_WRITE && mode != HWW_WRITE) {
        hww_mode_set((uint32_t)watch, mode);
        HWW_STORE(&entry->generation, generation);
        return (int)generation;
    }
    HWW_STORE(&entry->hardware, generation);
    HWW_STORE(&entry->generation, generation);
    /* Until all have changed over: read watched bytes with care. */
    hww_mode_set((uint32_t)watch, HWW_READWRITE);
    struct change change = {options, 0, mode, watch, HWW_LOAD(&entry->state) != HWW_ARMED, 0};
    if (change.paused || !hww_events[watch].count) {
        change_rest(&change);
    } else {
        change.from = change_bridged(&change);
        if (!change.result && change.from < entry->npieces)
            *covered = hww_while_held(change_rest, &change) &&
                       (!options->follow_fork || hww_events[watch].forks == hww_forks());
    }
    hww_mode_set((uint32_t)watch, change.result < 0 ? before : mode);
    return change.result < 0 ? change.result : (int)generation;
}
