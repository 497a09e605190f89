/* Kernel breakpoints: one event for each piece and thread, and the watch table they answer to.
 *
 * The handler calls only hww_watch_counted, hww_watch_stop, hww_watch_stop_once, hww_watch_orphaned and
 * hww_events_hold; fork calls hww_watch_forked. The caller serialises all other calls (backends/perf.py holds
 * a lock); any thread may trap meanwhile. */
#define _GNU_SOURCE
#include "events.h"

struct hww_event_list hww_events[HWW_MAX_WATCHES];

/* Bit w: watch w was stopped in this process. */
static uint64_t stopped;
/* Handlers that work on descriptors: they must not be closed meanwhile, and their numbers used again. */
static uint32_t holders;

void hww_events_hold(int change)
{
    __atomic_fetch_add(&holders, (uint32_t)change, __ATOMIC_SEQ_CST);
}

void hww_event_describe(struct perf_event_attr *attr, uint32_t mode, uint64_t address, uint32_t nbytes,
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

int hww_event_open(uint32_t mode, uint64_t address, uint32_t nbytes, pid_t tid, uint64_t cookie,
                   const struct hww_arm_options *options, int disabled)
{
    struct perf_event_attr attr;
    hww_event_describe(&attr, mode, address, nbytes, cookie, options, disabled);
    long fd = syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? -errno : (int)fd;
}

static uint64_t event_id(int fd)
{
    uint64_t id = 0;
    return ioctl(fd, PERF_EVENT_IOC_ID, &id) == 0 ? id : 0;
}

/* A piece's event has been opened. */
void hww_event_keep(struct hww_event *event, uint32_t piece, int fd)
{
    event->id[piece] = event_id(fd);
    HWW_STORE(&event->fd[piece], fd);
}

/* The descriptor of a piece's event, or -1. A program may close all that are open (os.closerange, daemons),
 * and the number may be another file's by now: that must not be read, changed or closed. */
int hww_event_fd(const struct hww_event *event, uint32_t piece)
{
    int fd = HWW_LOAD(&event->fd[piece]);
    return fd >= 0 && event_id(fd) == event->id[piece] ? fd : -1;
}

/* DISABLE first: while a forked child or a dup holds the event, close alone leaves it armed. The exchange
 * makes sure that of two closers (a handler at its limit, a thread that disarms) only one closes. */
void hww_event_close(int *place)
{
    int fd = __atomic_exchange_n(place, -1, __ATOMIC_ACQ_REL);
    if (fd < 0)
        return;
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    close(fd);
}

struct hww_watch *hww_watch_at(int watch)
{
    return &hww_region.shared->watches[watch];
}

static int ended(uint32_t process)
{
    return process && kill((pid_t)process, 0) < 0 && errno == ESRCH;
}

/* In a forked child: events that it had inherited have gone with the process that had armed them. Registers
 * have not. */
static void retire_orphans(void)
{
    uint32_t self = (uint32_t)getpid();
    for (uint64_t left = HWW_LOAD(&hww_active); left; left &= left - 1) {
        uint32_t index = (uint32_t)__builtin_ctzll(left), owner = hww_watch_at((int)index)->owner;
        if (owner != self && ended(owner) && !hww_registers_pieces(UINT32_MAX, index))
            hww_watch_stop((int)index);
    }
}

/* Whether an entry may begin another life. Its owner frees it once the figures are read; at need, those of
 * processes that have ended are taken as well, first what was over by then. */
static int claimable(const struct hww_watch *watch, uint32_t state, int need)
{
    if (!need || state == HWW_FREE)
        return state == HWW_FREE;
    return (need > 1 || state == HWW_RETIRED) && ended(watch->owner);
}

/* An unused entry, the one that was used longest ago first, so that generations live long. */
int hww_watch_claim(uint32_t mode, uint32_t npieces, const struct hww_piece *pieces, uint32_t nframes,
                    uint32_t shared)
{
    static uint32_t next;
    if (npieces < 1 || npieces > HWW_MAX_PIECES || mode > HWW_READ)
        return -EINVAL;
    retire_orphans();
    for (uint32_t i = 0; i < 3 * HWW_MAX_WATCHES; i++) {
        uint32_t index = (next + i) % HWW_MAX_WATCHES;
        struct hww_watch *watch = hww_watch_at((int)index);
        uint32_t state = HWW_LOAD(&watch->state);
        if (!claimable(watch, state, (int)(i / HWW_MAX_WATCHES)) ||
            !__atomic_compare_exchange_n(&watch->state, &state, HWW_CLAIMED, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE))
            continue;
        next = index + 1;
        HWW_STORE(&watch->generation, watch->generation + 1);
        watch->owner = (uint32_t)getpid();
        hww_mode_set(index, mode);
        watch->npieces = npieces;
        watch->nframes = nframes;
        watch->shared = shared;
        memset(watch->pieces, 0, sizeof watch->pieces);
        memcpy(watch->pieces, pieces, npieces * sizeof *pieces);
        __atomic_fetch_and(&stopped, ~(1ull << index), __ATOMIC_SEQ_CST);
        watch->settings = 0;
        watch->kernel = 1; /* until hww_watch_open knows better */
        HWW_STORE(&watch->first, watch->generation);
        HWW_STORE(&watch->hardware, watch->generation);
        watch->seen = watch->tickets = watch->filtered = 0;
        watch->unfollowed = watch->torn = watch->belated = watch->taken = 0;
        watch->recorded = watch->dropped = watch->late = watch->refused = watch->inferred = 0;
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            watch->accounted[p] = watch->guessed[p] = watch->nested[p] = watch->retired[p] = 0;
        hww_events[index].count = 0;
        hww_doubts_forget((int)index);
        hww_snapshot_take(index);
        __atomic_fetch_or(&hww_active, 1ull << index, __ATOMIC_ACQ_REL);
        return (int)index;
    }
    return -ENOSPC;
}

/* From now on the watch is compared at every trap, also at those that name another. */
int hww_watch_publish(int watch)
{
    HWW_STORE(&hww_watch_at(watch)->state, HWW_ARMED);
    return 0;
}

uint64_t hww_event_count(int fd)
{
    uint64_t value = 0;
    return fd >= 0 && read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

int hww_watch_counts(int watch, uint64_t counts[4])
{
    for (int p = 0; p < HWW_MAX_PIECES; p++) {
        counts[p] = hww_watch_at(watch)->retired[p];
        for (uint32_t i = 0; i < hww_events[watch].count; i++)
            counts[p] += hww_event_count(hww_event_fd(hww_event_at(watch, i), (uint32_t)p));
    }
    return 0;
}

int64_t hww_watch_counted(uint32_t watch, uint32_t piece)
{
    uint32_t count = HWW_LOAD(&hww_events[watch].count);
    if (!count)
        return -1;
    uint64_t total = hww_region.shared->watches[watch].retired[piece];
    for (uint32_t i = 0; i < count; i++)
        total += hww_event_count(hww_event_fd(hww_event_at((int)watch, i), piece));
    return (int64_t)total;
}

/* No new hits from now on, in any thread or child. The handler calls this when a limit is reached, perhaps
 * while another thread does: only system calls. */
int hww_watch_stop(int watch)
{
    struct hww_watch *entry = hww_watch_at(watch);
    hww_events_hold(1);
    __atomic_fetch_or(&stopped, 1ull << watch, __ATOMIC_SEQ_CST);
    uint32_t count = HWW_LOAD(&hww_events[watch].count);
    for (uint32_t i = 0; i < count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++) {
            int fd = hww_event_fd(hww_event_at(watch, i), (uint32_t)p);
            if (fd >= 0)
                ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
        }
    uint32_t state = HWW_LOAD(&entry->state);
    while (state != HWW_RETIRED && state != HWW_FREE &&
           !__atomic_compare_exchange_n(&entry->state, &state, HWW_RETIRED, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
        ;
    __atomic_fetch_and(&hww_active, ~(1ull << watch), __ATOMIC_ACQ_REL);
    hww_events_hold(-1);
    hww_registers_drop((uint32_t)watch);
    return 0;
}

/* For the handler: the same, unless it was done in this process; returns whether it was not. */
int hww_watch_stop_once(uint32_t watch)
{
    if (HWW_LOAD(&stopped) >> watch & 1)
        return 0;
    hww_watch_stop((int)watch);
    return 1;
}

/* Wait for hits that were counted and are on their way to the handler: closing an event cancels the task
 * work that would send its signal (perf_pending_task_sync). Returns how many are still missing. A hit that no
 * signal named may stand for one that is still on its way; `strict` does not count those. */
int hww_watch_settle(int watch, uint32_t milliseconds, int strict)
{
    const struct hww_watch *entry = hww_watch_at(watch);
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
    const struct timespec moment = {0, 100000};
    hww_watch_stop_once((uint32_t)watch);
    /* Bounded: a child made by a raw clone() has its parent's count, not its threads. */
    for (int tries = 0; tries < 1000 && __atomic_load_n(&holders, __ATOMIC_SEQ_CST); tries++)
        nanosleep(&moment, NULL);
    hww_unlisted_enter(); /* a child that is born between exchange and close would keep it */
    for (uint32_t i = 0; i < hww_events[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++) {
            struct hww_event *event = hww_event_at(watch, i);
            int ours = hww_event_fd(event, (uint32_t)p),
                fd = __atomic_exchange_n(&event->fd[p], -1, __ATOMIC_ACQ_REL);
            if (fd < 0 || fd != ours)
                continue;
            HWW_ADD(&hww_watch_at(watch)->retired[p], hww_event_count(fd));
            close(fd);
        }
    hww_unlisted_leave();
    return 0;
}

/* Its last figures have been read: the entry may be used again. */
void hww_watch_free(int watch, uint32_t generation)
{
    struct hww_watch *entry = hww_watch_at(watch);
    uint32_t retired = HWW_RETIRED;
    if (entry->owner == (uint32_t)getpid() && HWW_LOAD(&entry->generation) == generation)
        __atomic_compare_exchange_n(&entry->state, &retired, HWW_FREE, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

#define SETTINGS 3
/* What comes behind hash and kind. */
#define SETTINGS_AT offsetof(struct hww_settings, policy)
#define SETTINGS_SIZE (sizeof(struct hww_settings) - SETTINGS_AT)

static int same_settings(const void *entry, const void *wanted)
{
    return ((const struct hww_settings *)entry)->kind == SETTINGS &&
           !memcmp((const char *)entry + SETTINGS_AT, (const char *)wanted + SETTINGS_AT, SETTINGS_SIZE);
}

/* Put new settings in force, for all threads and children, with one store. They are kept for good, each once.
 */
int hww_watch_configure(int watch, const struct hww_settings *settings)
{
    uint64_t hash = hww_hash(SETTINGS, (const char *)settings + SETTINGS_AT, SETTINGS_SIZE);
    uint32_t id = hww_intern_find(hash, same_settings, settings);
    if (!id) {
        struct hww_settings *copy = hww_intern_reserve(sizeof *copy, &id);
        if (!copy)
            return -ENOMEM;
        *copy = *settings;
        copy->hash = hash;
        copy->kind = SETTINGS;
        id = hww_intern_publish(hash, id, same_settings, settings);
    }
    HWW_STORE(&hww_watch_at(watch)->settings, id);
    return 0;
}

/* Pause and resume; a paused watch keeps its slots. What changed meanwhile is not told. */
int hww_watch_enable(int watch, int on)
{
    int result = 0;
    if (on)
        hww_snapshot_take((uint32_t)watch);
    else
        HWW_STORE(&hww_watch_at(watch)->state, HWW_CLAIMED);
    for (uint32_t i = 0; i < hww_events[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++) {
            int fd = hww_event_fd(hww_event_at(watch, i), (uint32_t)p);
            if (fd >= 0 && ioctl(fd, on ? PERF_EVENT_IOC_ENABLE : PERF_EVENT_IOC_DISABLE, 0) < 0)
                result = -errno;
        }
    if (on && !result)
        HWW_STORE(&hww_watch_at(watch)->state, HWW_ARMED);
    return result;
}

/* Threads that have an event of their own (others inherited theirs). */
int hww_watch_threads(int watch, int32_t *tids, int capacity)
{
    int count = 0;
    for (uint32_t i = 0; i < hww_events[watch].count; i++) {
        const struct hww_event *event = hww_event_at(watch, i);
        if (hww_event_fd(event, hww_watch_at(watch)->npieces - 1) < 0)
            continue; /* armed by inheritance, or closed */
        if (count < capacity)
            tids[count] = event->tid;
        count++;
    }
    return count;
}

/* Events whose descriptors the program has closed: what they stood for is not watched any more. */
int hww_watch_closed(int watch)
{
    int count = 0;
    for (uint32_t i = 0; i < hww_events[watch].count; i++)
        for (uint32_t p = 0; p < hww_watch_at(watch)->npieces; p++) {
            const struct hww_event *event = hww_event_at(watch, i);
            count += event->fd[p] >= 0 && hww_event_fd(event, p) < 0;
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
    holders = 0;
    for (int watch = 0; watch < HWW_MAX_WATCHES; watch++) {
        struct hww_watch *entry = hww_watch_at(watch);
        uint32_t count = hww_events[watch].count;
        for (uint32_t i = 0; i < count; i++)
            for (int p = 0; p < HWW_MAX_PIECES; p++)
                if (hww_event_fd(hww_event_at(watch, i), (uint32_t)p) >= 0)
                    close(hww_event_at(watch, i)->fd[p]);
        hww_events[watch].count = 0;
        if (!count || entry->mode != HWW_EXECUTE || !entry->follow || HWW_LOAD(&entry->state) != HWW_ARMED)
            continue;
        struct hww_event *own = hww_event_at(watch, 0);
        own->tid = 0;
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            own->fd[p] = -1;
        int fd = hww_event_open(entry->mode, entry->pieces[0].address, 0, 0,
                                hww_cookie(entry->generation, (uint32_t)watch, 0), &options, 0);
        if (fd >= 0)
            hww_event_keep(own, 0, fd);
        hww_events[watch].count = 1;
    }
}

/* In a forked child, whose own events the parent cannot reach: the parent has ended the watch. */
void hww_watch_orphaned(uint32_t watch)
{
    for (uint32_t i = 0; i < hww_events[watch].count; i++)
        for (int p = 0; p < HWW_MAX_PIECES; p++)
            if (hww_event_fd(hww_event_at((int)watch, i), (uint32_t)p) >= 0)
                hww_event_close(&hww_event_at((int)watch, i)->fd[p]);
    hww_registers_drop(watch);
}
