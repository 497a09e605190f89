/* The memory that a family of forked processes shares: counters, watch table, ring, arena. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

struct hww_region hww_region;

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Untouched pages cost nothing: MAP_NORESERVE, and each page comes to be when a hit is written to it. */
int hww_core_open(uint64_t capacity, uint64_t arena_size)
{
    if (hww_region.shared)
        return -EALREADY;
    if (capacity < 2 || (capacity & (capacity - 1)) || arena_size < 4096 || arena_size / 8 > UINT32_MAX)
        return -EINVAL;
    uint64_t header = round_up(sizeof(struct hww_shared), 4096);
    uint64_t index = round_up(HWW_INDEX_SIZE * sizeof(uint32_t), 4096);
    uint64_t ring = capacity * HWW_SLOT;
    arena_size = round_up(arena_size, 4096);
    unsigned char *base = mmap(NULL, header + index + ring + arena_size, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return -errno;
    int error = hww_thread_open();
    if (error) {
        munmap(base, header + index + ring + arena_size);
        return error;
    }
    struct hww_shared *shared = (struct hww_shared *)base;
    shared->protocol = HWW_PROTOCOL;
    shared->opener = (uint64_t)getpid();
    shared->capacity = capacity;
    shared->arena_size = arena_size;
    shared->arena_used = 8; /* id 0 means none */
    hww_region.index = (uint32_t *)(base + header);
    hww_region.ring = base + header + index;
    hww_region.arena = base + header + index + ring;
    HWW_STORE(&hww_region.shared, shared);
    return 0;
}

/* Where records go when the ring is full; the caller closes `fd`. The file is sparse: disk space is taken as
 * records come (record.c). */
int hww_spill_open(int fd, uint64_t slots)
{
    if (!hww_region.shared)
        return -ENXIO;
    if (hww_region.spill)
        return -EALREADY;
    /* Not below the ring's size: a slot's lap tells its lives apart. */
    if (hww_region.shared->capacity < HWW_SPILL_CHUNK || slots < hww_region.shared->capacity ||
        (slots & (slots - 1)))
        return -EINVAL;
    void *base = mmap(NULL, slots * HWW_SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    hww_region.spill = base;
    HWW_STORE(&hww_region.shared->spill_slots, slots);
    return 0;
}

void *hww_core_spill(void)
{
    return hww_region.spill;
}

struct hww_shared *hww_core_shared(void)
{
    return hww_region.shared;
}

void *hww_core_ring(void)
{
    return hww_region.ring;
}

void *hww_core_arena(void)
{
    return hww_region.arena;
}
