/* Arming: an event for each piece and thread, and none forgotten.
 *
 * Threads come and go while this runs. One that is born of an armed thread inherits its events; all others
 * are found in /proc. Not called from the handler, but for hww_watch_doubt. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "events.h"

/* Longest wait for threads that may be creating others, ns; what is not sure by then is told. */
#define PATIENCE 500000000

/* Bit w: watch w has doubtful events. */
static uint64_t doubts;

/* Held while events are open that are on no list: a child born meanwhile would keep their descriptors, and so
 * their registers. Taken by fork, too: after the tracer's lock, which must not be asked for under it, and
 * before that of modules.c. Never in the handler. */
static pthread_mutex_t unlisted = PTHREAD_MUTEX_INITIALIZER;

void hww_unlisted_enter(void)
{
    pthread_mutex_lock(&unlisted);
}

void hww_unlisted_leave(void)
{
    pthread_mutex_unlock(&unlisted);
}

static struct hww_event *list_add(int watch, pid_t tid)
{
    struct hww_event_list *list = &hww_events[watch];
    uint32_t chunk = 31u - (uint32_t)__builtin_clz(list->count / HWW_CHUNK + 1);
    if (chunk >= HWW_CHUNKS)
        return NULL;
    if (!list->chunks[chunk]) {
        struct hww_event *fresh = malloc((HWW_CHUNK << chunk) * sizeof *fresh);
        if (!fresh)
            return NULL;
        HWW_STORE(&list->chunks[chunk], fresh);
    }
    struct hww_event *event = hww_event_at(watch, list->count);
    memset(event, 0, sizeof *event);
    event->tid = tid;
    for (int p = 0; p < HWW_MAX_PIECES; p++)
        event->fd[p] = -1;
    HWW_STORE(&list->count, list->count + 1);
    return event;
}

static struct hww_event *list_find(int watch, pid_t tid)
{
    uint32_t count = HWW_LOAD(&hww_events[watch].count);
    for (uint32_t i = 0; i < count; i++)
        if (hww_event_at(watch, i)->tid == tid)
            return hww_event_at(watch, i);
    return NULL;
}

/* Arm one thread, skipping the first `inherited` pieces. */
static int arm_thread(int watch, pid_t tid, uint32_t inherited, const struct hww_arm_options *options,
                      struct hww_arm_report *report)
{
    struct hww_watch *entry = hww_watch_at(watch);
    struct hww_event *event = list_add(watch, tid);
    if (!event)
        return -ENOMEM;
    for (uint32_t p = inherited; p < entry->npieces; p++) {
        hww_unlisted_enter();
        int fd = hww_event_open(entry->mode, entry->pieces[p].address, entry->pieces[p].nbytes, tid,
                                hww_cookie(entry->generation, (uint32_t)watch, p), options, 0);
        if (fd >= 0)
            hww_event_keep(event, p, fd);
        hww_unlisted_leave();
        if (fd >= 0)
            continue;
        if (fd == -ESRCH) { /* ended meanwhile */
            report->vanished++;
            return 0;
        }
        report->failed_tid = tid;
        report->failed_piece = p;
        return fd;
    }
    if (inherited < entry->npieces)
        hww_birth_begin(&event->birth, tid);
    report->threads++;
    return 0;
}

/* Debug registers that the watches of this process take on each thread. */
int hww_slots_held(void)
{
    int held = 0;
    for (int watch = 0; watch < HWW_MAX_WATCHES; watch++) {
        int open = 0;
        for (uint32_t i = 0; i < hww_events[watch].count && !open; i++)
            for (int p = 0; p < HWW_MAX_PIECES; p++)
                open |= hww_event_at(watch, i)->fd[p] >= 0;
        held += open ? (int)hww_watch_at(watch)->npieces : 0;
    }
    return held;
}

/* Pieces that a thread has by inheritance, told by its free slots; -ESRCH when it has ended. Not quite sure:
 * the kernel swaps the contexts of sibling threads (context_equiv in kernel/events/core.c), and with them the
 * events, but not the slots on their account; when one ends, the other's account shrinks. So what is missing
 * on either account, the thread's or the caller's, counts as not inherited; the thread is armed, and settles
 * the doubt itself (hww_watch_doubt). */
static int inherited_pieces(int watch, pid_t tid)
{
    int npieces = (int)hww_watch_at(watch)->npieces;
    int here = hww_slots_free(0, HWW_MAX_PIECES), there = hww_slots_free(tid, HWW_MAX_PIECES),
        least = HWW_MAX_PIECES - hww_slots_held();
    if (here < 0 || there < 0)
        return here < 0 ? here : there;
    int absent = there - (here < least ? here : least);
    return npieces - (absent < 0 ? 0 : absent > npieces ? npieces : absent);
}

/* Arm the threads that are not on the list yet; the number of those that had not inherited all, or -errno. */
static int arm_new_threads(int watch, int first, const struct hww_arm_options *options,
                           struct hww_arm_report *report)
{
    struct hww_watch *entry = hww_watch_at(watch);
    pid_t *tids = NULL;
    int count = hww_threads_list(&tids), error = 0, armed = 0;
    if (count < 0)
        return count;
    for (int i = 0; i < count && !error; i++) {
        if (list_find(watch, tids[i]))
            continue;
        int inherited = first ? 0 : inherited_pieces(watch, tids[i]);
        if (inherited == -ESRCH) { /* ended meanwhile */
            report->vanished++;
            error = list_add(watch, tids[i]) ? 0 : -ENOMEM;
            continue;
        }
        if (inherited < 0) {
            report->failed_tid = tids[i];
            error = inherited;
            break;
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

/* Wait until no armed thread can be in a clone() that began before it was armed; how many still can be. */
static uint32_t await_births(int watch, uint64_t deadline)
{
    pid_t self = (pid_t)syscall(SYS_gettid);
    for (;;) {
        uint32_t possible = 0;
        for (uint32_t i = 0; i < hww_events[watch].count; i++) {
            struct hww_event *event = hww_event_at(watch, i);
            possible += event->tid != self && hww_birth_possible(&event->birth, event->tid);
        }
        if (!possible || hww_now() > deadline)
            return possible;
        hww_births_wait();
    }
}

/* Arm every thread, let those being born by a thread not armed yet appear, and look again, until twice no
 * thread is found that lacks a piece. */
int hww_watch_open(int watch, const struct hww_arm_options *options, struct hww_arm_report *report)
{
    uint64_t deadline = hww_now() + PATIENCE;
    memset(report, 0, sizeof *report);
    hww_watch_at(watch)->follow = options->follow_fork;
    hww_watch_at(watch)->kernel = options->kernel;
    hww_events[watch].forks = hww_forks();
    int armed = arm_new_threads(watch, 1, options, report);
    if (armed < 2)
        return armed < 0 ? armed : 0; /* alone: nobody else can have created a thread */
    for (int clean = 0; armed >= 0 && clean < 2; clean = armed ? 0 : clean + 1) {
        report->unsure = await_births(watch, deadline);
        armed = arm_new_threads(watch, 0, options, report);
        if (armed > 0 && hww_now() > deadline)
            return report->unsure += (uint32_t)armed, 0;
    }
    return armed < 0 ? armed : 0;
}

/* The entry begins another life. */
void hww_doubts_forget(int watch)
{
    __atomic_fetch_and(&doubts, ~(1ull << watch), __ATOMIC_ACQ_REL);
}

static void touch(void *address)
{
    __atomic_fetch_or((unsigned char *)address, 0, __ATOMIC_SEQ_CST);
}

/* With the thread's own event off, touch the watched bytes (an atomic or with 0, which changes nothing). If
 * that traps, inside the handler, it has inherited, and its own event goes; all that this has counted was
 * counted twice. */
static void settle_doubt(struct hww_thread *self, struct hww_event *event, uint32_t watch, uint32_t piece)
{
    int fd = hww_event_fd(event, piece);
    if (fd < 0)
        return;
    struct hww_watch *entry = hww_watch_at((int)watch);
    self->nested = UINT32_MAX;
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    hww_guarded(self, touch, (void *)entry->pieces[piece].address);
    if (self->nested != (watch << 8 | piece)) { /* another watch may be on these bytes, too */
        if (!hww_watch_over(entry))
            ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
        return;
    }
    if (__atomic_exchange_n(&event->fd[piece], -1, __ATOMIC_ACQ_REL) != fd)
        return; /* a thread that disarms was faster */
    uint64_t twice = hww_event_count(fd);
    HWW_ADD(&entry->accounted[piece], twice);
    HWW_ADD(&entry->retired[piece], twice);
    close(fd);
}

/* For the handler: settle whether the thread that traps is armed twice, if that is in doubt. */
void hww_watch_doubt(struct hww_thread *self, uint32_t watch, uint32_t piece)
{
    struct hww_event *event = HWW_LOAD(&doubts) >> watch & 1 ? list_find((int)watch, self->tid) : NULL;
    if (!event || !(event->doubtful >> piece & 1))
        return;
    event->doubtful &= ~(1u << piece);
    hww_events_hold(1);
    settle_doubt(self, event, watch, piece);
    hww_events_hold(-1);
}
