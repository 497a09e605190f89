/* What this machine really does, found by trying: free slots, breakpoints that fire, how the kernel copies.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>

#include "events.h"

static uint64_t scratch[32];

/* Counts of one 8-byte piece when the kernel copies over it: 8 where it copies a byte at a time (rep movsb),
 * 1 where by words. Measured once; 0: not yet, or it could not be. */
static uint32_t copy_counts;

/* Something to execute under the canary's breakpoint. */
__attribute__((noinline, aligned(16))) static void scratch_function(void)
{
    __asm__ volatile("");
}

/* Free debug registers of a thread (0: the caller), at most so many, found by taking them for a moment. */
int hww_slots_free(int32_t tid, int most)
{
    static const struct hww_arm_options options = {0, 0};
    int fds[HWW_MAX_PIECES], count = 0, error = 0;
    struct perf_event_attr attr;
    hww_event_describe(&attr, HWW_WRITE, (uint64_t)scratch, 8, 0, &options, 1);
    attr.inherit = attr.inherit_thread = 0;
    hww_unlisted_enter();
    while (count < most && count < HWW_MAX_PIECES) {
        long fd = syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (fd < 0) {
            error = -errno;
            break;
        }
        fds[count++] = (int)fd;
    }
    for (int i = 0; i < count; i++)
        close(fds[i]);
    hww_unlisted_leave();
    return error && error != -ENOSPC ? error : count;
}

/* Most counts beyond the first that one copy by the kernel makes of a piece. */
uint32_t hww_copy_excess(uint32_t nbytes)
{
    uint32_t counts = copy_counts * nbytes / 8;
    return counts > 1 ? counts - 1 : 0;
}

/* See copy_counts: random bytes read over a breakpoint that only counts, few and many. */
static void measure_copies(void)
{
    const struct hww_arm_options options = {1, 0};
    struct perf_event_attr attr;
    hww_event_describe(&attr, HWW_WRITE, (uint64_t)scratch, 8, 0, &options, 0);
    attr.sample_period = 0;
    attr.sigtrap = attr.remove_on_exec = attr.inherit = attr.inherit_thread = 0;
    attr.sig_data = 0;
    int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    hww_unlisted_enter();
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    uint64_t before = 0, most = 0;
    for (size_t size = 8; fd >= 0 && random >= 0 && size <= sizeof scratch; size *= 4) {
        ssize_t got = read(random, scratch, size);
        uint64_t now = hww_event_count(fd);
        if (got == (ssize_t)size && now - before > most)
            most = now - before;
        before = now;
    }
    copy_counts = (uint32_t)(most > 8 ? 8 : most);
    hww_event_close(&fd);
    hww_unlisted_leave();
    if (random >= 0)
        close(random);
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
    hww_unlisted_enter();
    int fd = hww_event_open(mode, address, nbytes, 0, hww_cookie(0, HWW_COOKIE_CANARY, 0), &options, 0);
    if (fd < 0) {
        hww_unlisted_leave();
        return fd;
    }
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
    hww_event_close(&fd);
    hww_unlisted_leave();
    return hww_canary_seen != seen;
}
