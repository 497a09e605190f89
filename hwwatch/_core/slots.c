/* Kernel breakpoints: one event for each piece and thread, and the watch table they answer to.
 *
 * Not called from the handler, but for hww_watch_counted and hww_watch_forked. The caller serialises all
 * other calls (backends/perf.py holds a lock); any thread may trap meanwhile. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

struct event {
    pid_t tid;
    uint32_t doubtful; /* bit p: the thread may have inherited piece p as well */
    int fd[HWW_MAX_PIECES];
};

/* Bit w: watch w has doubtful events. */
static uint64_t doubts;

/* Events of one watch. The handler may read a list while it grows: arrays are replaced, and an outgrown
 * one is kept (together they are smaller than the last). */
static struct {
    struct event *events;
    uint32_t count, capacity;
} lists[HWW_MAX_WATCHES];

static uint64_t scratch[32];

/* Counts of one 8-byte piece when the kernel copies over it: 8 where it copies a byte at a time (rep movsb),
 * 1 where by words. Measured once. */
static uint32_t copy_counts;

/* Something to execute under the canary's breakpoint. */
__attribute__((noinline, noclone, aligned(16))) static void scratch_function(void)
{
    __asm__ volatile("");
}

static void event_describe(struct perf_event_attr *attr, uint32_t mode, uint64_t address, uint32_t nbytes,
                           uint64_t cookie, const struct hww_arm_options *options, int disabled)
{
    memset(attr, 0, sizeof *attr);
    attr->size = sizeof *attr;
    attr->type = PERF_TYPE_BREAKPOINT;
    attr->bp_type = mode == HWW_EXECUTE ? HW_BREAKPOINT_X
                    : mode == HWW_WRITE ? HW_BREAKPOINT_W
                                        : HW_BREAKPOINT_RW;
    attr->bp_addr = address;
    attr->bp_len = mode == HWW_EXECUTE ? sizeof(long) : nbytes; /* x86: arch_build_bp_info */
    attr->sample_period = 1;                                    /* 0 never signals */
    attr->sigtrap = 1;
    attr->remove_on_exec = 1; /* sigtrap demands it (perf_copy_attr) */
    attr->sig_data = cookie;
    attr->exclude_hv = 1;
    attr->exclude_kernel = mode == HWW_EXECUTE || !options->kernel;
    attr->disabled = disabled ? 1 : 0;
    attr->inherit = 1;
    /* vfork and posix_spawn children must never meet an execute breakpoint: it would kill the program. */
    attr->inherit_thread = mode == HWW_EXECUTE || !options->follow_fork;
}

static int event_open(uint32_t mode, uint64_t address, uint32_t nbytes, pid_t tid, uint64_t cookie,
                      const struct hww_arm_options *options, int disabled)
{
    struct perf_event_attr attr;
    event_describe(&attr, mode, address, nbytes, cookie, options, disabled);
    long fd = syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? -errno : (int)fd;
}

/* DISABLE first: while a forked child or a dup holds the event, close alone leaves it armed. The exchange
 * makes sure that of two closers (a handler at its limit, a thread that disarms) only one closes. */
static void event_close(int *place)
{
    int fd = __atomic_exchange_n(place, -1, __ATOMIC_ACQ_REL);
    if (fd < 0)
        return;
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    close(fd);
}

static struct hww_watch *watch_at(int watch)
{
    return &hww_region.shared->watches[watch];
}

static struct event *list_add(int watch, pid_t tid)
{
    if (lists[watch].count == lists[watch].capacity) {
        uint32_t capacity = lists[watch].capacity ? lists[watch].capacity * 2 : 64;
        struct event *grown = malloc(capacity * sizeof *grown);
        if (!grown)
            return NULL;
        if (lists[watch].count)
            memcpy(grown, lists[watch].events, lists[watch].count * sizeof *grown);
        HWW_STORE(&lists[watch].events, grown);
        lists[watch].capacity = capacity;
    }
    struct event *event = &lists[watch].events[lists[watch].count];
    event->tid = tid;
    event->doubtful = 0;
    for (int p = 0; p < HWW_MAX_PIECES; p++)
        event->fd[p] = -1;
    HWW_STORE(&lists[watch].count, lists[watch].count + 1);
    return event;
}

static struct event *list_find(int watch, pid_t tid)
{
    for (uint32_t i = 0; i < lists[watch].count; i++)
        if (lists[watch].events[i].tid == tid)
            return &lists[watch].events[i];
    return NULL;
}

/* Thread ids of this process into *tids (malloc'ed); the number, or -errno. */
static int list_threads(pid_t **tids)
{
    DIR *directory = opendir("/proc/self/task");
    if (!directory)
        return -errno;
    int count = 0, capacity = 0;
    pid_t *list = NULL;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        int tid = atoi(entry->d_name);
        if (tid <= 0)
            continue;
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 64;
            pid_t *grown = realloc(list, (size_t)capacity * sizeof *list);
            if (!grown) {
                free(list);
                closedir(directory);
                return -ENOMEM;
            }
            list = grown;
        }
        list[count++] = tid;
    }
    closedir(directory);
    *tids = list;
    return count;
}

/* An unused entry, the one that was used longest ago first, so that generations live long. */
int hww_watch_claim(uint32_t mode, uint32_t npieces, const struct hww_piece *pieces, uint32_t nframes,
                    uint32_t shared)
{
    static uint32_t next;
    if (npieces < 1 || npieces > HWW_MAX_PIECES || mode > HWW_READ)
        return -EINVAL;
    for (uint32_t i = 0; i < HWW_MAX_WATCHES; i++) {
        uint32_t index = (next + i) % HWW_MAX_WATCHES;
        struct hww_watch *watch = watch_at((int)index);
        uint32_t state = HWW_LOAD(&watch->state);
        if ((state != HWW_FREE && state != HWW_RETIRED) ||
            !__atomic_compare_exchange_n(&watch->state, &state, HWW_CLAIMED, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE))
            continue;
        next = index + 1;
        HWW_STORE(&watch->generation, watch->generation + 1);
        watch->owner = (uint32_t)getpid();
        watch->mode = mode;
        watch->npieces = npieces;
        watch->nframes = nframes;
        watch->shared = shared;
        memset(watch->pieces, 0, sizeof watch->pieces);
        memcpy(watch->pieces, pieces, npieces * sizeof *pieces);
        watch->settings = 0;
        HWW_STORE(&watch->first, watch->generation);
        HWW_STORE(&watch->hardware, watch->generation);
        watch->seen = watch->tickets = watch->filtered = 0;
        watch->recorded = watch->dropped = watch->late = watch->inferred = 0;
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            watch->accounted[p] = watch->guessed[p] = watch->nested[p] = watch->retired[p] = 0;
        lists[index].count = 0;
        __atomic_fetch_and(&doubts, ~(1ull << index), __ATOMIC_ACQ_REL);
        hww_snapshot_take(index);
        __atomic_fetch_or(&hww_active, 1ull << index, __ATOMIC_ACQ_REL);
        return (int)index;
    }
    return -ENOSPC;
}

/* Free debug registers of a thread (0: the caller), found by taking them all for a moment. */
int hww_slots_free(int32_t tid)
{
    static const struct hww_arm_options options = {0, 0};
    int fds[16], count = 0, error = 0;
    while (count < 16) {
        int fd = event_open(HWW_WRITE, (uint64_t)scratch, 8, tid, 0, &options, 1);
        if (fd < 0) {
            error = fd;
            break;
        }
        fds[count++] = fd;
    }
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return error && error != -ENOSPC ? error : count;
}

/* Arm one thread, skipping the first `inherited` pieces. */
static int arm_thread(int watch, pid_t tid, uint32_t inherited, const struct hww_arm_options *options,
                      struct hww_arm_report *report)
{
    struct hww_watch *entry = watch_at(watch);
    struct event *event = list_add(watch, tid);
    if (!event)
        return -ENOMEM;
    for (uint32_t p = inherited; p < entry->npieces; p++) {
        int fd = event_open(entry->mode, entry->pieces[p].address, entry->pieces[p].nbytes, tid,
                            hww_cookie(entry->generation, (uint32_t)watch, p), options, 0);
        if (fd >= 0) {
            event->fd[p] = fd;
            continue;
        }
        if (fd == -ESRCH) { /* ended meanwhile */
            report->vanished++;
            return 0;
        }
        report->failed_tid = tid;
        report->failed_piece = p;
        return fd;
    }
    report->threads++;
    return 0;
}

/* Pieces that a thread has by inheritance, told by its free slots. Not quite sure: the kernel swaps the
 * contexts of sibling threads (context_equiv in kernel/events/core.c), and with them the events, but not the
 * slots on their account. So a thread without is armed, and settles the doubt itself (hww_watch_doubt). */
static int inherited_pieces(int watch, pid_t tid)
{
    int npieces = (int)watch_at(watch)->npieces;
    int here = hww_slots_free(0), there = hww_slots_free(tid);
    if (here < 0 || there < 0)
        return -ESRCH;
    int absent = there - here;
    return npieces - (absent < 0 ? 0 : absent > npieces ? npieces : absent);
}

/* Arm the threads that are not on the list yet; the number of those that had not inherited all, or -errno. */
static int arm_new_threads(int watch, int first, const struct hww_arm_options *options,
                           struct hww_arm_report *report)
{
    struct hww_watch *entry = watch_at(watch);
    pid_t *tids = NULL;
    int count = list_threads(&tids), error = 0, armed = 0;
    if (count < 0)
        return count;
    for (int i = 0; i < count && !error; i++) {
        if (list_find(watch, tids[i]))
            continue;
        int inherited = first ? 0 : inherited_pieces(watch, tids[i]);
        if (inherited < 0) { /* ended meanwhile */
            report->vanished++;
            error = list_add(watch, tids[i]) ? 0 : -ENOMEM;
            continue;
        }
        armed += inherited < (int)entry->npieces;
        report->inherited += inherited == (int)entry->npieces;
        error = arm_thread(watch, tids[i], (uint32_t)inherited, options, report);
        if (!error && !first && inherited < (int)entry->npieces && entry->mode != HWW_EXECUTE) {
            list_find(watch, tids[i])->doubtful = (1u << entry->npieces) - (1u << inherited);
            __atomic_fetch_or(&doubts, 1ull << watch, __ATOMIC_ACQ_REL);
        }
    }
    free(tids);
    return error ? error : armed;
}

/* Arm every thread, and look again until none is found that lacks a piece: a thread that appears meanwhile
 * was created by an armed one, and has inherited, or by one not armed yet. Last, once more after a while,
 * since a clone that was under way has copied its creator's events before it showed. */
int hww_watch_open(int watch, const struct hww_arm_options *options, struct hww_arm_report *report)
{
    const struct timespec moment = {0, 500000};
    memset(report, 0, sizeof *report);
    watch_at(watch)->follow = options->follow_fork;
    int armed = arm_new_threads(watch, 1, options, report);
    if (armed < 2)
        return armed < 0 ? armed : 0; /* alone: nobody else can have created a thread */
    uint32_t before = lists[watch].count;
    for (int pass = 0; armed > 0 && pass < 100; pass++)
        armed = arm_new_threads(watch, 0, options, report);
    for (int look = 0; armed >= 0 && lists[watch].count > before && look < 4; look++) {
        nanosleep(&moment, NULL);
        armed = arm_new_threads(watch, 0, options, report);
    }
    return armed < 0 ? armed : 0;
}

/* From now on the watch is compared at every trap, also at those that name another. */
int hww_watch_publish(int watch)
{
    HWW_STORE(&watch_at(watch)->state, HWW_ARMED);
    return 0;
}

static uint64_t event_count(int fd)
{
    uint64_t value = 0;
    return fd >= 0 && read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

int hww_watch_counts(int watch, uint64_t counts[4])
{
    for (int p = 0; p < HWW_MAX_PIECES; p++) {
        counts[p] = watch_at(watch)->retired[p];
        for (uint32_t i = 0; i < lists[watch].count; i++)
            counts[p] += event_count(lists[watch].events[i].fd[p]);
    }
    return 0;
}

/* Most counts beyond the first that one copy by the kernel makes of a piece. */
uint32_t hww_copy_excess(uint32_t nbytes)
{
    uint32_t counts = copy_counts * nbytes / 8;
    return counts > 1 ? counts - 1 : 0;
}

int64_t hww_watch_counted(uint32_t watch, uint32_t piece)
{
    uint32_t count = HWW_LOAD(&lists[watch].count);
    if (!count)
        return -1;
    const struct event *events = HWW_LOAD(&lists[watch].events);
    uint64_t total = hww_region.shared->watches[watch].retired[piece];
    for (uint32_t i = 0; i < count; i++)
        total += event_count(events[i].fd[piece]);
    return (int64_t)total;
}

static void touch(void *address)
{
    __atomic_fetch_or((unsigned char *)address, 0, __ATOMIC_SEQ_CST);
}

/* On a thread that traps and may be armed twice: with its own event off, touch the watched bytes (an atomic
 * or with 0, which changes nothing). If that traps, inside the handler, it has inherited, and its own event
 * goes; all that this has counted was counted twice. */
void hww_watch_doubt(struct hww_thread *self, uint32_t watch, uint32_t piece)
{
    struct event *event = HWW_LOAD(&doubts) >> watch & 1 ? list_find((int)watch, self->tid) : NULL;
    if (!event || !(event->doubtful >> piece & 1))
        return;
    event->doubtful &= ~(1u << piece);
    int fd = HWW_LOAD(&event->fd[piece]);
    if (fd < 0)
        return;
    struct hww_watch *entry = watch_at((int)watch);
    uint32_t before = self->nested;
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    hww_guarded(self, touch, (void *)entry->pieces[piece].address);
    if (self->nested == before) {
        if (HWW_LOAD(&entry->state) != HWW_RETIRED)
            ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
        return;
    }
    if (__atomic_exchange_n(&event->fd[piece], -1, __ATOMIC_ACQ_REL) != fd)
        return; /* a thread that disarms was faster */
    uint64_t twice = event_count(fd);
    HWW_ADD(&entry->accounted[piece], twice);
    HWW_ADD(&entry->retired[piece], twice);
    close(fd);
}

/* No new hits from now on, in any thread or child. The handler calls this when a limit is reached, perhaps
 * while another thread does: only system calls. */
int hww_watch_stop(int watch)
{
    struct hww_watch *entry = watch_at(watch);
    uint32_t count = HWW_LOAD(&lists[watch].count);
    const struct event *events = HWW_LOAD(&lists[watch].events);
    for (uint32_t i = 0; i < count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            if (HWW_LOAD(&events[i].fd[p]) >= 0)
                ioctl(HWW_LOAD(&events[i].fd[p]), PERF_EVENT_IOC_DISABLE, 0);
    uint32_t state = HWW_LOAD(&entry->state);
    while (state != HWW_RETIRED && state != HWW_FREE &&
           !__atomic_compare_exchange_n(&entry->state, &state, HWW_RETIRED, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
        ;
    __atomic_fetch_and(&hww_active, ~(1ull << watch), __ATOMIC_ACQ_REL);
    return 0;
}

/* Wait for hits that were counted and are on their way to the handler: closing an event cancels the task
 * work that would send its signal (perf_pending_task_sync). Returns how many are still missing. A hit that no
 * signal named may stand for one that is still on its way; `strict` does not count those. */
int hww_watch_settle(int watch, uint32_t milliseconds, int strict)
{
    const struct hww_watch *entry = watch_at(watch);
    const struct timespec moment = {0, 200000};
    for (uint32_t tries = 0;; tries++) {
        uint64_t counts[HWW_MAX_PIECES], missing = 0;
        hww_watch_counts(watch, counts);
        for (uint32_t p = 0; p < entry->npieces; p++) {
            uint64_t known = HWW_LOAD(&entry->accounted[p]) + HWW_LOAD(&entry->nested[p]);
            known -= strict ? HWW_LOAD(&entry->guessed[p]) : 0;
            missing += counts[p] > known ? counts[p] - known : 0;
        }
        if (!missing || tries >= milliseconds * 5)
            return missing > INT32_MAX ? INT32_MAX : (int)missing;
        nanosleep(&moment, NULL);
    }
}

/* Give the slots back. */
int hww_watch_close(int watch)
{
    hww_watch_stop(watch);
    for (uint32_t i = 0; i < lists[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++) {
            int fd = __atomic_exchange_n(&lists[watch].events[i].fd[p], -1, __ATOMIC_ACQ_REL);
            if (fd < 0)
                continue;
            HWW_ADD(&watch_at(watch)->retired[p], event_count(fd));
            close(fd);
        }
    return 0;
}

/* Put new settings in force, for all threads and children, with one store. */
int hww_watch_configure(int watch, const struct hww_settings *settings)
{
    uint32_t id;
    struct hww_settings *copy = hww_intern_reserve(sizeof *copy, &id);
    if (!copy)
        return -ENOMEM;
    *copy = *settings;
    copy->kind = 3;
    HWW_STORE(&watch_at(watch)->settings, id);
    return 0;
}

/* Further events for writes on every thread, so that nothing is missed while the real ones change over: the
 * kernel takes a breakpoint out to change it (modify_user_hw_breakpoint). Returns the descriptors' number. */
static int bridge_open(int watch, const struct hww_arm_options *options, uint32_t generation, int **fds)
{
    struct hww_watch *entry = watch_at(watch);
    pid_t *tids = NULL;
    int threads = list_threads(&tids), count = 0, error = 0;
    if (threads < 0)
        return threads;
    *fds = malloc((size_t)threads * entry->npieces * sizeof **fds);
    for (int i = 0; *fds && i < threads && !error; i++)
        for (uint32_t p = 0; p < entry->npieces; p++) {
            int fd = event_open(HWW_WRITE, entry->pieces[p].address, entry->pieces[p].nbytes, tids[i],
                                hww_cookie(generation, (uint32_t)watch, p), options, 0);
            if (fd >= 0)
                (*fds)[count++] = fd;
            else if (fd != -ESRCH)
                error = fd;
        }
    free(tids);
    for (; error && count; count--)
        event_close(&(*fds)[count - 1]);
    return *fds ? count : -ENOMEM;
}

/* Change the mode of a data watch. Between reads only and reads and writes the registers stay as they are.
 * Else each event is re-aimed by one ioctl, which reaches inherited ones too, under cover of a bridge; where
 * no slots are free for one, writes of that moment are missed, and `*bridged` is 0. Returns the generation
 * that records of the new mode carry. */
int hww_watch_modify(int watch, uint32_t mode, const struct hww_arm_options *options, int32_t *bridged)
{
    struct hww_watch *entry = watch_at(watch);
    *bridged = 1;
    if (mode == HWW_EXECUTE || entry->mode == HWW_EXECUTE)
        return -EINVAL;
    uint32_t generation = entry->generation + 1, before = entry->mode;
    if (before != HWW_WRITE && mode != HWW_WRITE) {
        HWW_STORE(&entry->mode, mode);
        HWW_STORE(&entry->generation, generation);
        return (int)generation;
    }
    HWW_STORE(&entry->hardware, generation);
    HWW_STORE(&entry->generation, generation);
    HWW_STORE(&entry->mode, HWW_READWRITE); /* until all have changed over: read watched bytes with care */
    int *fds = NULL, count = bridge_open(watch, options, generation, &fds);
    *bridged = count > 0;
    int result = 0;
    for (uint32_t i = 0; i < lists[watch].count; i++)
        for (uint32_t p = 0; p < entry->npieces; p++) {
            int fd = lists[watch].events[i].fd[p];
            struct perf_event_attr attr;
            event_describe(&attr, mode, entry->pieces[p].address, entry->pieces[p].nbytes,
                           hww_cookie(generation, (uint32_t)watch, p), options, 0);
            if (fd >= 0 && ioctl(fd, PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &attr) < 0 && errno != ESRCH)
                result = -errno;
        }
    for (int i = 0; i < count; i++)
        ioctl(fds[i], PERF_EVENT_IOC_DISABLE, 0);
    hww_watch_settle(watch, 1, 1);
    for (int i = 0; i < count; i++)
        event_close(&fds[i]);
    free(fds);
    /* What only the bridge has seen is recorded, and not in the real events' counts. Hits on their way make
     * this too small, never too large: a hit that never was must not be called lost. */
    uint64_t known[HWW_MAX_PIECES], counts[HWW_MAX_PIECES];
    for (uint32_t p = 0; p < entry->npieces; p++) /* before the counts, which may grow meanwhile */
        known[p] = HWW_LOAD(&entry->accounted[p]) + HWW_LOAD(&entry->nested[p]);
    hww_watch_counts(watch, counts);
    for (uint32_t p = 0; p < entry->npieces && count > 0; p++)
        if (known[p] > counts[p])
            HWW_ADD(&entry->retired[p], known[p] - counts[p]);
    HWW_STORE(&entry->mode, result < 0 ? before : mode);
    return result < 0 ? result : (int)generation;
}

/* Pause and resume; a paused watch keeps its slots. What changed meanwhile is not told. */
int hww_watch_enable(int watch, int on)
{
    int result = 0;
    if (on)
        hww_snapshot_take((uint32_t)watch);
    else
        HWW_STORE(&watch_at(watch)->state, HWW_CLAIMED);
    for (uint32_t i = 0; i < lists[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++) {
            int fd = lists[watch].events[i].fd[p];
            if (fd >= 0 && ioctl(fd, on ? PERF_EVENT_IOC_ENABLE : PERF_EVENT_IOC_DISABLE, 0) < 0)
                result = -errno;
        }
    if (on && !result)
        HWW_STORE(&watch_at(watch)->state, HWW_ARMED);
    return result;
}

/* Threads that have an event of their own (others inherited theirs). */
int hww_watch_threads(int watch, int32_t *tids, int capacity)
{
    int count = 0;
    for (uint32_t i = 0; i < lists[watch].count; i++) {
        const struct event *event = &lists[watch].events[i];
        if (event->fd[watch_at(watch)->npieces - 1] < 0)
            continue; /* armed by inheritance, or closed */
        if (count < capacity)
            tids[count] = event->tid;
        count++;
    }
    return count;
}

/* In a forked child: let go of the parent's events without touching them. A DISABLE here would disarm the
 * parent, and a descriptor kept open would keep its slot taken. Execute watches are not inherited, since a
 * vfork child must not have them; a forked one arms its own. Only system calls: the parent may have had
 * other threads, holding any lock. */
void hww_watch_forked(void)
{
    static const struct hww_arm_options options = {0, 1};
    for (int watch = 0; watch < HWW_MAX_WATCHES; watch++) {
        struct hww_watch *entry = watch_at(watch);
        uint32_t count = lists[watch].count;
        for (uint32_t i = 0; i < count; i++)
            for (int p = 0; p < HWW_MAX_PIECES; p++)
                if (lists[watch].events[i].fd[p] >= 0)
                    close(lists[watch].events[i].fd[p]);
        lists[watch].count = 0;
        if (!count || entry->mode != HWW_EXECUTE || !entry->follow || HWW_LOAD(&entry->state) != HWW_ARMED)
            continue;
        struct event *own = &lists[watch].events[0];
        own->tid = 0;
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            own->fd[p] = -1;
        own->fd[0] = event_open(entry->mode, entry->pieces[0].address, 0, 0,
                                hww_cookie(entry->generation, (uint32_t)watch, 0), &options, 0);
        lists[watch].count = 1;
    }
}

/* In a forked child, whose own events the parent cannot reach: the parent has ended the watch. */
void hww_watch_orphaned(uint32_t watch)
{
    for (uint32_t i = 0; i < lists[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            event_close(&lists[watch].events[i].fd[p]);
}

/* See copy_counts: a read of /dev/zero over a breakpoint that only counts, short and long. */
static void measure_copies(void)
{
    const struct hww_arm_options options = {1, 0};
    struct perf_event_attr attr;
    event_describe(&attr, HWW_WRITE, (uint64_t)scratch, 8, 0, &options, 0);
    attr.sample_period = 0;
    attr.sigtrap = attr.remove_on_exec = attr.inherit = attr.inherit_thread = 0;
    attr.sig_data = 0;
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    int zero = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    uint64_t before = 0, most = 1;
    for (size_t size = 8; fd >= 0 && zero >= 0 && size <= sizeof scratch; size *= 4) {
        ssize_t got = read(zero, scratch, size);
        uint64_t now = event_count(fd);
        if (got == (ssize_t)size && now - before > most)
            most = now - before;
        before = now;
    }
    copy_counts = (uint32_t)(most > 8 ? 8 : most);
    if (zero >= 0)
        close(zero);
    event_close(&fd);
}

/* Prove on the calling thread that a breakpoint of this kind really traps: some virtual machines and
 * sandboxes accept one and never fire it. Returns 1 when it fired, 0 when it did not, -errno. */
int hww_canary(uint32_t mode, uint32_t nbytes, uint32_t kernel)
{
    const struct hww_arm_options options = {kernel, 0};
    if (kernel && !copy_counts)
        measure_copies();
    sigset_t only, before;
    sigemptyset(&only);
    sigaddset(&only, SIGTRAP);
    uint64_t address = mode == HWW_EXECUTE ? (uint64_t)scratch_function : (uint64_t)scratch;
    uint64_t seen = hww_canary_seen;
    int fd = event_open(mode, address, nbytes, 0, hww_cookie(0, HWW_COOKIE_CANARY, 0), &options, 0);
    if (fd < 0)
        return fd;
    pthread_sigmask(SIG_UNBLOCK, &only, &before);
    if (mode == HWW_EXECUTE) {
        void (*volatile call)(void) = scratch_function;
        call();
    } else if (mode == HWW_READWRITE) {
        (void)*(volatile uint8_t *)scratch;
    } else {
        *(volatile uint8_t *)scratch = 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    event_close(&fd);
    return hww_canary_seen != seen;
}
