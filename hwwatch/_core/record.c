/* The ring: many writers in many processes, no locks, nothing half-written is ever read.
 *
 * A writer reserves one or two slots by moving `head`, marks the first as reserved, fills them, and
 * commits with a release store of the tag. A position is never used twice: the tag holds the lap, so a
 * slot's earlier life is not taken for a new record. A writer killed between the two costs its own record.
 * A full ring drops the new hit and counts it. (Lossless spilling would extend the ring by further
 * segments here; positions and readers stay as they are.)
 *
 * Registers are stored as differences to the last extended record at the same pc, since a loop changes
 * few of them. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "core.h"

#define BASES 1024
/* Position + 1 of the last extended record by hash of pc; private to the process, checked on use. */
static uint64_t bases[BASES];

static struct hww_record *slot_at(uint64_t position)
{
    uint64_t mask = hww_region.shared->capacity - 1;
    return (struct hww_record *)(hww_region.ring + (position & mask) * HWW_SLOT);
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

static int reserve(uint64_t slots, uint64_t *position)
{
    struct hww_shared *shared = hww_region.shared;
    uint64_t at = HWW_LOAD(&shared->head);
    do {
        if (at + slots - HWW_LOAD(&shared->tail) > shared->capacity)
            return -ENOSPC;
    } while (
        !__atomic_compare_exchange_n(&shared->head, &at, at + slots, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    *position = at;
    return 0;
}

int hww_record_write(struct hww_watch *watch, uint32_t index, const struct hww_moment *moment,
                     const struct hww_finding *finding)
{
    uint32_t snapshot = 0;
    for (uint32_t p = 0; p < watch->npieces; p++)
        snapshot += watch->pieces[p].nbytes;
    uint64_t *cached = &bases[(moment->pc ^ moment->pc >> 10) % BASES];
    uint64_t base = __atomic_load_n(cached, __ATOMIC_RELAXED);
    int mask = -1;
    if (snapshot <= 8 && watch->mode != HWW_EXECUTE && base && base - 1 >= HWW_LOAD(&hww_region.shared->tail))
        mask = differences(base - 1, moment);
    int extended = mask < 0;

    uint64_t position;
    if (reserve(extended ? 2 : 1, &position) < 0) {
        HWW_ADD(&watch->dropped, 1);
        return -ENOSPC;
    }
    struct hww_record *record = slot_at(position);
    uint32_t extension = extended ? HWW_TAG_EXTENSION : 0;
    HWW_STORE(&record->tag, lap_tag(position, HWW_TAG_RESERVED | extension));
    record->flags = finding->flags | (extended ? HWW_HIT_EXTENDED : 0);
    record->time = moment->time;
    record->pc = moment->pc;
    record->tid = moment->tid;
    record->pid = moment->pid;
    record->stack = moment->stack;
    record->generation = finding->generation;
    record->watch = (uint16_t)index;
    record->hit = (uint8_t)finding->hit;
    record->named = (uint8_t)finding->named;
    record->action = (uint8_t)finding->action;
    record->reserved = 0;
    record->eflags = moment->eflags;
    record->old_bytes = finding->old_bytes[0];
    record->new_bytes = finding->new_bytes[0];
    if (extended) {
        struct hww_extension *rest = (struct hww_extension *)slot_at(position + 1);
        rest->tag = 0;
        record->registers = 0;
        record->base = 0;
        memcpy(record->values, moment->registers, sizeof record->values);
        memcpy(rest->values, moment->registers + HWW_INLINE_REGISTERS, sizeof rest->values);
        memcpy(rest->old_bytes, finding->old_bytes + 1, sizeof rest->old_bytes);
        memcpy(rest->new_bytes, finding->new_bytes + 1, sizeof rest->new_bytes);
    } else {
        int n = 0;
        record->registers = (uint16_t)mask;
        record->base = (uint32_t)(position - (base - 1));
        for (; mask; mask &= mask - 1)
            record->values[n++] = moment->registers[__builtin_ctz((unsigned)mask)];
    }
    HWW_STORE(&record->tag, lap_tag(position, COMMITTED | extension));
    if (extended)
        __atomic_store_n(cached, position + 1, __ATOMIC_RELAXED);
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

/* Forget the records before `to` and give their memory back. Only committed records and those of dead
 * writers may lie there, else a late writer could meet the slot's next life. */
int hww_ring_release(uint64_t to)
{
    struct hww_shared *shared = hww_region.shared;
    uint64_t tail = shared->tail;
    if (to < tail || to > HWW_LOAD(&shared->head))
        return -EINVAL;
    HWW_STORE(&shared->tail, to);
    const uint64_t page = 4096 / HWW_SLOT;
    uint64_t first = (tail + page - 1) / page * page, last = to / page * page;
    while (first < last) { /* at most two runs: the ring may wrap between them */
        uint64_t offset = first & (shared->capacity - 1), run = shared->capacity - offset;
        if (run > last - first)
            run = last - first;
        if (run >= page)
            madvise(hww_region.ring + offset * HWW_SLOT, run * HWW_SLOT, MADV_REMOVE);
        first += run;
    }
    return 0;
}
