/* What happened to the watched bytes since the last trap. Runs in the handler, under its rules (trap.c). */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core.h"

/* Last value of each piece of a watch; private, since after a fork the memory is private too. */
static struct {
    uint32_t first; /* whose: hww_watch.first */
    uint64_t values[HWW_MAX_PIECES];
    uint64_t held[HWW_MAX_PIECES];
} snapshots[HWW_MAX_WATCHES];

/* What the handler reads of the watched memory, piece by piece. */
struct reading {
    const struct hww_watch *watch;
    uint32_t first, last; /* pieces */
    uint64_t values[HWW_MAX_PIECES];
};

/* A plain load. On a write breakpoint it does not trap; it may fault where the object has died. */
HWW_FOREIGN static void read_plainly(void *argument)
{
    struct reading *self = argument;
    for (uint32_t p = self->first; p <= self->last; p++) {
        uint64_t address = self->watch->pieces[p].address;
        switch (self->watch->pieces[p].nbytes) {
        case 1:
            self->values[p] = *(const volatile uint8_t *)address;
            break;
        case 2:
            self->values[p] = *(const volatile uint16_t *)address;
            break;
        case 4:
            self->values[p] = *(const volatile uint32_t *)address;
            break;
        default:
            self->values[p] = *(const volatile uint64_t *)address;
        }
    }
}

/* Through the kernel, which reaches the bytes by another mapping: neither traps nor faults. */
static int read_by_kernel(struct reading *self, pid_t pid)
{
    struct iovec local[HWW_MAX_PIECES], remote[HWW_MAX_PIECES];
    uint32_t n = 0;
    long total = 0;
    for (uint32_t p = self->first; p <= self->last; p++, n++) {
        uint32_t nbytes = self->watch->pieces[p].nbytes;
        self->values[p] = 0;
        local[n] = (struct iovec){&self->values[p], nbytes};
        remote[n] = (struct iovec){(void *)self->watch->pieces[p].address, nbytes};
        total += nbytes;
    }
    long got = syscall(SYS_process_vm_readv, pid, local, (unsigned long)n, remote, (unsigned long)n, 0ul);
    return got == total ? 0 : got < 0 ? -errno : -EFAULT;
}

/* A load of bytes under a read-write breakpoint, this watch's or another's, would trap again: then they are
 * read by the kernel. Where a sandbox forbids that, the load traps, and the nested trap returns at once. */
static int read_pieces(struct hww_thread *self, struct reading *reading)
{
    if (!(HWW_LOAD(&hww_readers) & HWW_LOAD(&hww_active))) {
        if (hww_guarded(self, read_plainly, reading) == 0)
            return 0;
        return read_by_kernel(reading, self->pid);
    }
    int error = read_by_kernel(reading, self->pid);
    if (error == -EPERM || error == -ENOSYS)
        error = hww_guarded(self, read_plainly, reading);
    return error;
}

uint64_t *hww_snapshot_of(uint32_t index, const struct hww_watch *watch)
{
    return watch->shared ? (uint64_t *)watch->snapshot : snapshots[index].values;
}

/* What the bytes are but for stores that a policy undoes: of two at once, each is undone to this, not to
 * what the other had left. */
uint64_t *hww_held_of(uint32_t index, const struct hww_watch *watch)
{
    return watch->shared ? (uint64_t *)watch->held : snapshots[index].held;
}

/* Ones in each byte that differs. */
uint64_t hww_differing(uint64_t one, uint64_t other)
{
    uint64_t mask = 0;
    for (int shift = 0; shift < 64; shift += 8)
        mask |= (one ^ other) >> shift & 0xff ? 0xffull << shift : 0;
    return mask;
}

/* A change that stands. */
void hww_held_take(uint32_t index, const struct hww_watch *watch, const struct hww_change *change)
{
    uint64_t *held = hww_held_of(index, watch);
    for (uint32_t p = 0; p < watch->npieces; p++) {
        if (!(change->mask >> p & 1))
            continue;
        uint64_t mask = hww_differing(change->before[p], change->now[p]), now = HWW_LOAD(&held[p]);
        while (!__atomic_compare_exchange_n(&held[p], &now, (now & ~mask) | (change->now[p] & mask), 0,
                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ;
    }
}

static void replace_byte(uint64_t *word, uint64_t shift, uint8_t old, uint8_t new)
{
    uint64_t now = HWW_LOAD(word);
    if ((now >> shift & 0xff) == old)
        __atomic_compare_exchange_n(word, &now, (now & ~(0xffull << shift)) | (uint64_t)new << shift, 0,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* A byte that a policy puts back: no other watch on it shall see a change from the undone value later. */
void hww_snapshot_undo(uint32_t index, uint64_t address, uint8_t undone, uint8_t value)
{
    uint64_t others = HWW_LOAD(&hww_active) & ~(1ull << index);
    for (; others; others &= others - 1) {
        uint32_t other = (uint32_t)__builtin_ctzll(others);
        const struct hww_watch *watch = &hww_region.shared->watches[other];
        uint64_t *last = hww_snapshot_of(other, watch);
        for (uint32_t p = 0; p < watch->npieces && watch->mode != HWW_EXECUTE; p++) {
            uint64_t at = address - watch->pieces[p].address;
            if (at < watch->pieces[p].nbytes) {
                replace_byte(&last[p], 8 * at, undone, value);
                replace_byte(&hww_held_of(other, watch)[p], 8 * at, undone, value);
            }
        }
    }
}

/* Everything that changes a data watch's mode comes by here. */
void hww_mode_set(uint32_t index, uint32_t mode)
{
    uint64_t bit = 1ull << index;
    if (mode == HWW_READWRITE || mode == HWW_READ)
        __atomic_fetch_or(&hww_readers, bit, __ATOMIC_ACQ_REL);
    HWW_STORE(&hww_region.shared->watches[index].mode, mode);
    if (mode == HWW_WRITE || mode == HWW_EXECUTE)
        __atomic_fetch_and(&hww_readers, ~bit, __ATOMIC_ACQ_REL);
}

/* Remember the bytes as they are now; before the events are enabled, in the arming thread. */
void hww_snapshot_take(uint32_t index)
{
    struct hww_watch *watch = &hww_region.shared->watches[index];
    struct reading now = {watch, 0, watch->npieces - 1, {0}};
    hww_thread_identify(&hww_thread);
    if (watch->mode != HWW_EXECUTE)
        read_by_kernel(&now, hww_thread.pid);
    memcpy(hww_snapshot_of(index, watch), now.values, sizeof now.values);
    memcpy(hww_held_of(index, watch), now.values, sizeof now.values);
    memcpy(watch->initial, now.values, sizeof now.values);
    HWW_STORE(&snapshots[index].first, watch->first);
}

/* What happened to the watched bytes since the last trap. Compare-and-swap, with the memory read between
 * load and swap, so that of two threads trapping at once neither can put an older value over a newer one:
 * the old value of each record is the new value of the one before. */
void hww_observe(struct hww_thread *self, uint32_t index, const struct hww_watch *watch, uint32_t first,
                 struct hww_change *out)
{
    uint64_t *last = hww_snapshot_of(index, watch);
    int unknown = !watch->shared && HWW_LOAD(&snapshots[index].first) != first;
    uint32_t count = watch->npieces;
    struct reading now = {watch, 0, count - 1, {0}};
    for (uint32_t p = 0; p < count; p++)
        out->before[p] = HWW_LOAD(&last[p]);
    if (read_pieces(self, &now) < 0) {
        memcpy(out->now, out->before, sizeof out->now);
        out->flags |= HWW_HIT_UNREADABLE;
        return;
    }
    if (unknown) {
        out->flags |= HWW_HIT_OLD_UNKNOWN;
        for (uint32_t p = 0; p < count; p++) {
            out->before[p] = now.values[p];
            HWW_STORE(&last[p], now.values[p]);
            HWW_STORE(&hww_held_of(index, watch)[p], now.values[p]);
        }
        HWW_STORE(&snapshots[index].first, first);
    }
    for (uint32_t p = 0; p < count; p++) {
        while (out->before[p] != now.values[p] &&
               !__atomic_compare_exchange_n(&last[p], &out->before[p], now.values[p], 0, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE)) {
            now.first = now.last = p;
            if (read_pieces(self, &now) < 0) {
                now.values[p] = out->before[p];
                out->flags |= HWW_HIT_UNREADABLE;
            }
        }
        out->now[p] = now.values[p];
        out->mask |= (uint32_t)(out->before[p] != out->now[p]) << p;
    }
}
