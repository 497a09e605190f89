/* Who am I, without a system call a hit: the thread's identity, right in forked children too. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"
#include "tracer.h"

__thread struct hww_thread hww_thread __attribute__((tls_model("initial-exec")));

/* The kernel zeroes this page in every forked child (MADV_WIPEONFORK, Linux 4.14), also in one made by a
 * raw clone() that runs no atfork handlers. A vfork child shares our memory, and with it our identity:
 * what it does before exec is reported under its parent's ids. */
static pid_t *cached_pid;

static uint32_t forks;

/* How often this process has forked, or is about to. */
uint32_t hww_forks(void)
{
    return HWW_LOAD(&forks);
}

static void before_fork(void)
{
    HWW_ADD(&forks, 1);
    hww_unlisted_enter();
    hww_modules_fork(0);
}

static void after_fork(void)
{
    hww_modules_fork(1);
    hww_unlisted_leave();
}

static void in_child(void)
{
    hww_modules_fork(1);
    hww_unlisted_leave();
    hww_tracer_reset();
    hww_notify_forked();
    hww_watch_forked();
}

int hww_thread_open(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, 4096, MADV_WIPEONFORK) < 0) {
        int error = -errno;
        munmap(page, 4096);
        return error;
    }
    cached_pid = page;
    int error = pthread_atfork(before_fork, after_fork, in_child);
    return -error;
}

/* Whether the caller borrows our memory until it calls exec. */
int hww_thread_in_vfork(void)
{
    pid_t pid = cached_pid ? __atomic_load_n(cached_pid, __ATOMIC_RELAXED) : 0;
    return pid && pid != (pid_t)syscall(SYS_getpid);
}

void hww_thread_identify(struct hww_thread *self)
{
    pid_t pid = __atomic_load_n(cached_pid, __ATOMIC_RELAXED);
    if (__builtin_expect(pid == 0, 0)) {
        pid = (pid_t)syscall(SYS_getpid);
        __atomic_store_n(cached_pid, pid, __ATOMIC_RELAXED);
    }
    if (__builtin_expect(self->pid != pid, 0)) {
        self->tid = (pid_t)syscall(SYS_gettid);
        self->pid = pid;
        hww_name_thread(self);
    }
}

/* Runs body(argument); a fault in it ends it and returns -EFAULT instead of killing the process (the
 * SIGSEGV and SIGBUS handlers in trap.c come here). Guards nest. The mask needs no saving: those handlers
 * block nothing that ours does not. The compiler's own setjmp, since a call into libc costs a page more. */
__attribute__((noinline)) int hww_guarded(struct hww_thread *self, void (*body)(void *), void *argument)
{
    void *here[5];
    struct hww_thread *volatile thread = self;
    void **volatile outer = self->recover;
    if (__builtin_setjmp(here)) {
        thread->recover = outer;
        HWW_ADD(&hww_region.shared->faults, 1);
        return -EFAULT;
    }
    self->recover = here;
    HWW_FENCE();
    body(argument);
    HWW_FENCE();
    self->recover = outer;
    return 0;
}

/* hwwatch's own Python calls strlen, malloc, memcpy … as any code does. While it runs on a thread, watches on
 * code do nothing there: else a policy "return 42" on strlen would meet the code that is to switch it off. */
void hww_mute(int change)
{
    hww_thread.muted += change;
}

/* Back to an earlier answer of hww_muted: one call, so that no signal's handler finds it half done. */
void hww_mute_to(int level)
{
    hww_thread.muted = level;
}

int hww_muted(void)
{
    return hww_thread.muted;
}
