/* Changing what an armed watch looks for, without a moment in which nothing does. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "events.h"

/* Further events for writes on every thread, so that nothing is missed while the real ones change over: the
 * kernel takes a breakpoint out to change it (modify_user_hw_breakpoint). Returns the descriptors' number. */
static int bridge_open(int watch, const struct hww_arm_options *options, uint32_t generation, int **fds)
{
    struct hww_watch *entry = hww_watch_at(watch);
    pid_t *tids = NULL;
    int threads = hww_threads_list(&tids), count = 0, error = 0;
    if (threads < 0)
        return threads;
    *fds = malloc((size_t)threads * entry->npieces * sizeof **fds);
    for (int i = 0; *fds && i < threads && !error; i++)
        for (uint32_t p = 0; p < entry->npieces; p++) {
            int fd = hww_event_open(HWW_WRITE, entry->pieces[p].address, entry->pieces[p].nbytes, tids[i],
                                    hww_cookie(generation, (uint32_t)watch, p), options, 0);
            if (fd >= 0)
                (*fds)[count++] = fd;
            else if (fd != -ESRCH)
                error = fd;
        }
    free(tids);
    for (; error && count; count--)
        hww_event_close(&(*fds)[count - 1]);
    return *fds ? count : -ENOMEM;
}

/* Change the mode of a data watch. Between reads only and reads and writes the registers stay as they are.
 * Else each event is re-aimed by one ioctl, which reaches inherited ones too, under cover of a bridge; where
 * no slots are free for one, writes of that moment are missed, and `*bridged` is 0. Returns the generation
 * that records of the new mode carry. */
int hww_watch_modify(int watch, uint32_t mode, const struct hww_arm_options *options, int32_t *bridged)
{
    struct hww_watch *entry = hww_watch_at(watch);
    *bridged = 1;
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
    hww_mode_set((uint32_t)watch,
                 HWW_READWRITE); /* until all have changed over: read watched bytes with care */
    int *fds = NULL, count = bridge_open(watch, options, generation, &fds);
    *bridged = count > 0;
    int result = 0;
    for (uint32_t i = 0; i < hww_events[watch].count; i++)
        for (uint32_t p = 0; p < entry->npieces; p++) {
            int fd = hww_event_at(watch, i)->fd[p];
            struct perf_event_attr attr;
            hww_event_describe(&attr, mode, entry->pieces[p].address, entry->pieces[p].nbytes,
                               hww_cookie(generation, (uint32_t)watch, p), options, 0);
            if (fd >= 0 && ioctl(fd, PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &attr) < 0 && errno != ESRCH)
                result = -errno;
        }
    for (int i = 0; i < count; i++)
        ioctl(fds[i], PERF_EVENT_IOC_DISABLE, 0);
    hww_watch_settle(watch, 1, 1);
    for (int i = 0; i < count; i++)
        hww_event_close(&fds[i]);
    free(fds);
    /* What only the bridge has seen is recorded, and not in the real events' counts. Hits on their way, and
     * those that no signal named, make this too small, never too large: a hit that never was must not be
     * called lost. */
    uint64_t known[HWW_MAX_PIECES], counts[HWW_MAX_PIECES];
    for (uint32_t p = 0; p < entry->npieces; p++) /* before the counts, which may grow meanwhile */
        known[p] =
            HWW_LOAD(&entry->accounted[p]) + HWW_LOAD(&entry->nested[p]) - HWW_LOAD(&entry->guessed[p]);
    hww_watch_counts(watch, counts);
    for (uint32_t p = 0; p < entry->npieces && count > 0; p++)
        if ((int64_t)(known[p] - counts[p]) > 0)
            HWW_ADD(&entry->retired[p], known[p] - counts[p]);
    hww_mode_set((uint32_t)watch, result < 0 ? before : mode);
    return result < 0 ? result : (int)generation;
}
