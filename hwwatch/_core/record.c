/* The ring: many writers in many processes, no locks, nothing half-written is ever read.
 *
 * A writer reserves one or two slots by moving `head`, marks the first as reserved, fills them, and
 * commits with a release store of the tag. A position is never used twice: the tag holds the lap, so a
 * slot's earlier life is not taken for a new record. A writer killed between the two costs its own record.
 *
 * When the ring is full, records go on in a file, from position `spill` on, until all have been released; a
 * position keeps its place. `head` and `spill` change together, so that writers agree where a position is.
 * The file is sparse and its pages come to be a chunk at a time, before a record is placed there: were the
 * disk full only at the store, that would be a SIGBUS. What has no room is dropped and counted.
 *
 * Registers are stored as differences to the last extended record at the same pc, since a loop changes
 * few of them. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch_x86_64.h"
#include "core.h"

#define BASES 1024
/* Position + 1 of the last extended record by hash of pc; private to the process, checked on use. */
static uint64_t bases[BASES];

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static unsigned char *spilled_at(uint64_t number)
{
    return hww_region.spill + (number & (hww_region.shared->spill_slots - 1)) * HWW_SLOT;
}

static struct hww_record *slot_at(uint64_t position)
{
    uint64_t mask = hww_region.shared->capacity - 1, spill = HWW_LOAD(&hww_region.shared->spill);
    unsigned char *at = spill && position >= spill ? spilled_at(position - spill)
                                                   : hww_region.ring + (position & mask) * HWW_SLOT;
    return (struct hww_record *)at;
}

static uint32_t lap_tag(uint64_t position, uint32_t bits)
{
    return (uint32_t)(position / hww_region.shared->capacity) << HWW_TAG_LAP_SHIFT | bits;
}

static const uint32_t COMMITTED = HWW_TAG_RESERVED | HWW_TAG_COMMITTED;

/* The registers that differ from those at `base` as a bit mask, or -1 where base is of no use. */
static int differences(uint64_t base, const struct hww_moment *moment)
{
    const struct hww_record *head = slot_at(base);
    const struct hww_extension *rest = (const struct hww_extension *)slot_at(base + 1);
    if (HWW_LOAD(&head->tag) != lap_tag(base, COMMITTED | HWW_TAG_EXTENSION) || head->pc != moment->pc)
        return -1;
    int mask = 0;
    for (int r = 0; r < HWW_REGISTERS; r++) {
        uint64_t there = r < HWW_INLINE_REGISTERS ? head->values[r] : rest->values[r - HWW_INLINE_REGISTERS];
        mask |= (there != moment->registers[r]) << r;
    }
    return __builtin_popcount((unsigned)mask) <= HWW_INLINE_REGISTERS ? mask : -1;
}

/* Disk space for the first `slots` of the spill file, when it begins at position `from`; what lies well
 * behind need not stay mapped. `spill_ready` is a position: after a pause of the file it lies before the new
 * `from`. */
static int make_ready(struct hww_shared *shared, uint64_t from, uint64_t slots)
{
    uint64_t ready = HWW_LOAD(&shared->spill_ready);
    for (;;) {
        uint64_t number = ready > from ? (ready - from) / HWW_SPILL_CHUNK * HWW_SPILL_CHUNK : 0;
        if (number >= slots)
            return 0;
        if (madvise(spilled_at(number), HWW_SPILL_CHUNK * HWW_SLOT, MADV_POPULATE_WRITE) < 0)
            return -ENOSPC;
        if (number >= 2 * HWW_SPILL_CHUNK)
            madvise(spilled_at(number - 2 * HWW_SPILL_CHUNK), HWW_SPILL_CHUNK * HWW_SLOT, MADV_DONTNEED);
        if (__atomic_compare_exchange_n(&shared->spill_ready, &ready, from + number + HWW_SPILL_CHUNK, 0,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ready = from + number + HWW_SPILL_CHUNK;
    }
}

static int reserve(uint64_t slots, uint64_t *position)
{
    struct hww_shared *shared = hww_region.shared;
    for (;;) {
        uint64_t spill = HWW_LOAD(&shared->spill), at = HWW_LOAD(&shared->head),
                 tail = HWW_LOAD(&shared->tail);
        uint64_t from = spill;
        if (!spill && at + slots - tail > shared->capacity) {
            if (HWW_LOAD(&shared->on_full) != HWW_FULL_SPILL || !shared->spill_slots)
                return -ENOSPC;
            from = at;
        }
        /* A chunk is made ready as a whole, so it must be free as a whole. */
        if (from && (at + slots - (tail > from ? tail : from) > shared->spill_slots - HWW_SPILL_CHUNK ||
                     make_ready(shared, from, at + slots - from) < 0))
            return -ENOSPC;
        if (hww_arch_swap_pair(&shared->head, at, spill, at + slots, from)) {
            *position = at;
            return 0;
        }
    }
}

/* A record to be written to slots that are reserved for it. */
struct draft {
    const struct hww_moment *moment;
    const struct hww_finding *finding;
    uint64_t position, base;
    uint32_t watch;
    int extended, mask; /* all registers; else which of them differ from those at `base` */
};

static void fill(void *argument)
{
    const struct draft *self = argument;
    const struct hww_moment *moment = self->moment;
    const struct hww_finding *finding = self->finding;
    struct hww_record *record = slot_at(self->position);
    uint32_t extension = self->extended ? HWW_TAG_EXTENSION : 0;
    HWW_STORE(&record->tag, lap_tag(self->position, HWW_TAG_RESERVED | extension));
    record->flags = finding->flags | (self->extended ? HWW_HIT_EXTENDED : 0);
    record->time = moment->time;
    record->pc = moment->pc;
    record->tid = moment->tid;
    record->pid = moment->pid;
    record->stack = moment->stack;
    record->generation = finding->generation;
    record->watch = (uint16_t)self->watch;
    record->hit = (uint8_t)finding->hit;
    record->named = (uint8_t)finding->named;
    record->action = (uint8_t)finding->action;
    record->reserved = 0;
    record->eflags = moment->eflags;
    record->old_bytes = finding->old_bytes[0];
    record->new_bytes = finding->new_bytes[0];
    if (self->extended) {
        struct hww_extension *rest = (struct hww_extension *)slot_at(self->position + 1);
        rest->tag = 0;
        record->registers = 0;
        record->base = 0;
        memcpy(record->values, moment->registers, sizeof record->values);
        memcpy(rest->values, moment->registers + HWW_INLINE_REGISTERS, sizeof rest->values);
        memcpy(rest->old_bytes, finding->old_bytes + 1, sizeof rest->old_bytes);
        memcpy(rest->new_bytes, finding->new_bytes + 1, sizeof rest->new_bytes);
    } else {
        int mask = self->mask, n = 0;
        record->registers = (uint16_t)mask;
        record->base = (uint32_t)(self->position - self->base);
        for (; mask; mask &= mask - 1)
            record->values[n++] = moment->registers[__builtin_ctz((unsigned)mask)];
    }
    HWW_STORE(&record->tag, lap_tag(self->position, COMMITTED | extension));
}

int hww_record_write(struct hww_watch *watch, uint32_t index, const struct hww_moment *moment,
                     const struct hww_finding *finding)
{
    struct hww_shared *shared = hww_region.shared;
    struct draft draft = {moment, finding, 0, 0, index, 1, -1};
    uint32_t snapshot = 0;
    for (uint32_t p = 0; p < watch->npieces; p++)
        snapshot += watch->pieces[p].nbytes;
    uint64_t *cached = &bases[(moment->pc ^ moment->pc >> 10) % BASES];
    uint64_t base = __atomic_load_n(cached, __ATOMIC_RELAXED);
    if (snapshot <= 8 && watch->mode != HWW_EXECUTE && base && base - 1 >= HWW_LOAD(&shared->tail)) {
        draft.base = base - 1;
        draft.mask = differences(draft.base, moment);
        draft.extended = draft.mask < 0;
    }
    int error = reserve(draft.extended ? 2 : 1, &draft.position);
    /* A file's pages may be gone when the slots are: a writer that was stopped for long comes too late. */
    uint64_t spill = error ? 0 : HWW_LOAD(&shared->spill);
    if (!error && spill && draft.position >= spill)
        error = hww_guarded(&hww_thread, fill, &draft);
    else if (!error)
        fill(&draft);
    if (error) {
        HWW_ADD(&watch->dropped, 1);
        if (HWW_LOAD(&shared->on_full) == HWW_FULL_STOP)
            hww_watch_stop((int)index);
        return error;
    }
    if (draft.extended)
        __atomic_store_n(cached, draft.position + 1, __ATOMIC_RELAXED);
    HWW_ADD(&watch->recorded, 1);
    return 0;
}

/* First position at or after `from` that is not committed yet: everything before may be read. */
uint64_t hww_ring_committed(uint64_t from)
{
    uint64_t head = HWW_LOAD(&hww_region.shared->head);
    while (from < head) {
        uint32_t tag = HWW_LOAD(&slot_at(from)->tag);
        if ((tag & ~(uint32_t)HWW_TAG_EXTENSION) != lap_tag(from, COMMITTED))
            break;
        from += tag & HWW_TAG_EXTENSION ? 2 : 1;
    }
    return from;
}

/* Give memory or disk space of `count` slots back, whole pages only. The slots of `base` may wrap. */
static void give_back(unsigned char *base, uint64_t slots, uint64_t from, uint64_t to)
{
    const uint64_t page = 4096 / HWW_SLOT;
    uint64_t first = (from + page - 1) / page * page, last = to / page * page;
    while (first < last) {
        uint64_t offset = first & (slots - 1), run = slots - offset;
        if (run > last - first)
            run = last - first;
        madvise(base + offset * HWW_SLOT, run * HWW_SLOT, MADV_REMOVE);
        first += run;
    }
}

/* Whether the records are this process' to give back: it has begun the recording, or is the first to ask of
 * those whose parent has ended. */
static int owned(void)
{
    uint64_t self = (uint64_t)getpid(), opener = HWW_LOAD(&hww_region.shared->opener);
    if (opener == self)
        return 1;
    return kill((pid_t)opener, 0) < 0 && errno == ESRCH &&
           __atomic_compare_exchange_n(&hww_region.shared->opener, &opener, self, 0, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

/* Forget the records before `to` and give their memory back; in a forked child nothing, since its parent may
 * not have read them. Only committed records and those of dead
 * writers may lie there, else a late writer could meet the slot's next life. */
int hww_ring_release(uint64_t to)
{
    struct hww_shared *shared = hww_region.shared;
    if (!owned())
        return 0;
    uint64_t tail = shared->tail, spill = HWW_LOAD(&shared->spill);
    if (to < tail || to > HWW_LOAD(&shared->head))
        return -EINVAL;
    /* Before others may use them again. */
    give_back(hww_region.ring, shared->capacity, tail, spill && spill < to ? spill : to);
    if (spill && to > spill)
        give_back(hww_region.spill, shared->spill_slots, tail > spill ? tail - spill : 0, to - spill);
    HWW_STORE(&shared->tail, to);
    if (spill && to == HWW_LOAD(&shared->head))
        hww_arch_swap_pair(&shared->head, to, spill, to, 0);
    return 0;
}

/* Spilled records that have been read need not stay in this process' memory: the file has them. */
void hww_ring_unmap(uint64_t from, uint64_t to)
{
    uint64_t spill = HWW_LOAD(&hww_region.shared->spill);
    if (!spill || to <= spill)
        return;
    from = from > spill ? from - spill : 0;
    to -= spill;
    for (uint64_t at = from / HWW_SPILL_CHUNK * HWW_SPILL_CHUNK; at < to; at += HWW_SPILL_CHUNK)
        madvise(spilled_at(at), HWW_SPILL_CHUNK * HWW_SLOT, MADV_DONTNEED);
}
