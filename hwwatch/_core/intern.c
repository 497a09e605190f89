/* Append-only store of things that many hits have in common. Entries are found by content, never by
 * pointer: a freed code object's address is soon another's. Lock-free; two writers that intern the same
 * thing at once agree on one id, and the loser's copy is left unused. */
#define _GNU_SOURCE
#include "core.h"

#define PROBES 64

uint64_t hww_hash(uint64_t seed, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    uint64_t hash = seed ^ size * 0x9e3779b97f4a7c15ull, word;
    for (; size >= 8; size -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0xff51afd7ed558ccdull;
        hash ^= hash >> 32;
    }
    if (size) {
        word = 0;
        memcpy(&word, bytes, size);
        hash = (hash ^ word) * 0xff51afd7ed558ccdull;
    }
    return hash ^ hash >> 29;
}

static const void *entry_at(uint32_t id)
{
    return hww_region.arena + (uint64_t)id * 8;
}

uint32_t hww_intern_find(uint64_t hash, int (*same)(const void *, const void *), const void *key)
{
    for (uint32_t i = 0; i < PROBES; i++) {
        uint32_t id = HWW_LOAD(&hww_region.index[(hash + i) & (HWW_INDEX_SIZE - 1)]);
        if (!id)
            return 0;
        if (*(const uint64_t *)entry_at(id) == hash && same(entry_at(id), key))
            return id;
    }
    return 0;
}

/* Room for an entry, or NULL when the arena is full: the hit is then recorded without its stack. */
void *hww_intern_reserve(uint32_t size, uint32_t *id)
{
    struct hww_shared *shared = hww_region.shared;
    uint64_t need = ((uint64_t)size + 7) & ~7ull;
    uint64_t at = HWW_LOAD(&shared->arena_used);
    do {
        if (at + need > shared->arena_size)
            return NULL;
    } while (!__atomic_compare_exchange_n(&shared->arena_used, &at, at + need, 0, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    *id = (uint32_t)(at / 8);
    return hww_region.arena + at;
}

uint32_t hww_intern_publish(uint64_t hash, uint32_t id, int (*same)(const void *, const void *),
                            const void *key)
{
    for (uint32_t i = 0; i < PROBES; i++) {
        uint32_t *place = &hww_region.index[(hash + i) & (HWW_INDEX_SIZE - 1)], found = 0;
        if (__atomic_compare_exchange_n(place, &found, id, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return id;
        if (*(const uint64_t *)entry_at(found) == hash && same(entry_at(found), key))
            return found;
    }
    return id; /* crowded: valid, though the next one like it is stored again */
}
