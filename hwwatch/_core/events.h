/* Kernel breakpoints behind a watch: shared by slots.c, arm.c, modify.c and canary.c. */
#ifndef HWW_EVENTS_H
#define HWW_EVENTS_H

#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* What is known of clone() calls that a thread was in when it was armed (threads.c). */
struct hww_birth {
    uint64_t seen; /* its CPU time when it was looked at last, ns */
    uint64_t left; /* how much longer it must run until it has surely left them, ns */
};

/* One thread's events. */
struct hww_event {
    pid_t tid;
    struct hww_birth birth;
    uint32_t doubtful; /* bit p: the thread may have inherited piece p as well */
    int fd[HWW_MAX_PIECES];
    uint64_t id[HWW_MAX_PIECES]; /* the kernel's, by which a descriptor is known again */
};

/* Events of one watch, oldest first. The handler may read a list, and close an event of it, while it grows:
 * entries never move. Chunk c holds HWW_CHUNK << c of them; chunks are never freed. */
#define HWW_CHUNK 64u
#define HWW_CHUNKS 20
struct hww_event_list {
    struct hww_event *chunks[HWW_CHUNKS];
    uint32_t count;
    uint32_t forks; /* of the process, before */
};
extern struct hww_event_list hww_events[HWW_MAX_WATCHES];

static inline struct hww_event *hww_event_at(int watch, uint32_t i)
{
    uint32_t chunk = 31u - (uint32_t)__builtin_clz(i / HWW_CHUNK + 1);
    return &HWW_LOAD(&hww_events[watch].chunks[chunk])[i - ((HWW_CHUNK << chunk) - HWW_CHUNK)];
}

struct hww_watch *hww_watch_at(int watch);
void hww_event_describe(struct perf_event_attr *attr, uint32_t mode, uint64_t address, uint32_t nbytes,
                        uint64_t cookie, const struct hww_arm_options *options, int disabled);
int hww_event_open(uint32_t mode, uint64_t address, uint32_t nbytes, pid_t tid, uint64_t cookie,
                   const struct hww_arm_options *options, int disabled);
void hww_event_keep(struct hww_event *event, uint32_t piece, int fd);
int hww_event_fd(const struct hww_event *event, uint32_t piece);
void hww_event_close(int *place);
uint64_t hww_event_count(int fd);
void hww_events_hold(int change);
void hww_doubts_forget(int watch);
int hww_slots_held(void);
int hww_threads_list(pid_t **tids);
void hww_birth_begin(struct hww_birth *self, pid_t tid);
int hww_birth_possible(struct hww_birth *self, pid_t tid);
void hww_births_wait(void);

#endif
