/* The threads of this process, as /proc shows them, and what cannot be seen there: those being born.
 *
 * Not called from the handler. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "events.h"

/* Threads that exist according to the kernel's count, or 0 where it cannot be read: the directory's links
 * are two more (proc_task_getattr in fs/proc/base.c). */
static int threads_counted(void)
{
    struct stat task;
    return stat("/proc/self/task", &task) == 0 && task.st_nlink > 2 ? (int)task.st_nlink - 2 : 0;
}

static int list_once(pid_t **list, int *capacity)
{
    DIR *directory = opendir("/proc/self/task");
    if (!directory)
        return -errno;
    int count = 0;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        int tid = atoi(entry->d_name);
        if (tid <= 0)
            continue;
        if (count == *capacity) {
            int larger = *capacity ? *capacity * 2 : 64;
            pid_t *grown = realloc(*list, (size_t)larger * sizeof **list);
            if (!grown) {
                closedir(directory);
                return -ENOMEM;
            }
            *list = grown;
            *capacity = larger;
        }
        (*list)[count++] = tid;
    }
    closedir(directory);
    return count;
}

/* Thread ids of this process into *tids (malloc'ed); the number, or -errno. When a thread ends while the
 * directory is read, the kernel goes on by position and may leave out one that lives (first_tid and next_tid
 * in fs/proc/base.c): a listing that is too short is made again. */
int hww_threads_list(pid_t **tids)
{
    int capacity = 0, count = 0;
    *tids = NULL;
    for (int tries = 0; tries < 20; tries++) {
        int before = threads_counted();
        count = list_once(tids, &capacity);
        if (count < 0 || (count >= before && count >= threads_counted()))
            break;
    }
    if (count < 0) {
        free(*tids);
        *tids = NULL;
    }
    return count;
}

/* ---- threads being born -----------------------------------------------------------------------------------
 *
 * clone() copies its caller's events first (perf_event_init_task in copy_process), long before the new thread
 * shows in /proc. One that was under way when its caller was armed brings forth a thread that has no events,
 * and nothing tells how soon: the caller may lose its CPU, to another virtual machine too, or wait for a
 * lock. So whoever arms a thread waits until that has left any clone() it was in, and lists the threads
 * again. It has when it
 *   - has ended, or sleeps interruptibly, which clone() does not, or waits in some other system call;
 *   - or has run for much longer than a clone() takes. Time counts only as far as its CPU has proved, by
 * answering an interrupt, that it was there: while the host runs somebody else, the guest's clock goes on. */

/* ns of CPU time. Not a proof but a wide margin: a whole pthread_create took 0.01 ms of its caller's time at
 * the median, 0.4 ms at 99.9 %, and 1.3 and 42 ms at most in two runs of 20 000 in a virtual machine; such
 * maxima are mostly the host's, and count as PROVEN_AT_ONCE. */
#define LONGER_THAN_A_CLONE 4000000
#define PROVEN_AT_ONCE 200000

static uint64_t cpu_time(pid_t tid)
{
    struct timespec time;
    clockid_t clock = (clockid_t)(~(unsigned)tid << 3 | 6); /* MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED) */
    if (clock_gettime(clock, &time) < 0)
        return 0; /* ended */
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec + 1;
}

static ssize_t read_task(pid_t tid, const char *file, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", (int)tid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, size - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return got;
}

/* Whether a thread that waits does so in clone, fork, vfork or clone3; unknown counts as yes. */
static int waits_in_clone(pid_t tid)
{
    char text[128];
    if (read_task(tid, "syscall", text, sizeof text) <= 0 || text[0] < '0' || text[0] > '9')
        return 1;
    long number = atol(text);
    return number == SYS_clone || number == SYS_fork || number == SYS_vfork || number == SYS_clone3;
}

void hww_birth_begin(struct hww_birth *self, pid_t tid)
{
    self->seen = cpu_time(tid);
    self->left = self->seen ? LONGER_THAN_A_CLONE : 0;
}

/* Whether a thread may still be in a clone() that it was in at hww_birth_begin. */
int hww_birth_possible(struct hww_birth *self, pid_t tid)
{
    char text[512];
    if (!self->left)
        return 0;
    ssize_t got = read_task(tid, "stat", text, sizeof text);
    const char *state = got > 0 ? strrchr(text, ')') : NULL; /* tid (name) state … */
    char letter = state && state[1] == ' ' ? state[2] : 0;
    if (got == -ENOENT || got == -ESRCH || (letter && !strchr("RD", letter)) ||
        (letter == 'D' && !waits_in_clone(tid))) {
        self->left = 0;
        return 0;
    }
    uint64_t now = cpu_time(tid);
    if (!now) { /* it has ended */
        self->left = 0;
        return 0;
    }
    uint64_t ran = now - self->seen;
    self->seen = now;
    ran = ran < PROVEN_AT_ONCE ? ran : PROVEN_AT_ONCE;
    self->left -= ran < self->left ? ran : self->left;
    return self->left != 0;
}

/* Let others run for a moment, then wait for an answer from each CPU that runs a thread of ours. */
void hww_births_wait(void)
{
    static int registered;
    const struct timespec moment = {0, 50000};
    nanosleep(&moment, NULL);
    if (!registered)
        registered = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0 ? 1 : -1;
    if (registered > 0)
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}
