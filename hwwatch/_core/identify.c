/* Which watch a trap by a debug register stands for: the signal does not say. Runs in the handler, under its
 * rules (trap.c). */
#define _GNU_SOURCE
#include "registers.h"

int hww_registers_poked(void)
{
    return HWW_LOAD(&hww_slots_ours) != 0;
}

struct decoding {
    const struct hww_moment *moment;
    struct hww_reach found[HWW_LONGEST];
    int count;
};

static void decode(void *argument)
{
    struct decoding *self = argument;
    self->count = hww_decode_before(self->moment->pc, self->moment->registers, self->found);
}

static uint32_t reached(const struct hww_reach *reach, uint32_t data)
{
    uint32_t out = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (data >> i & 1 && (reach->access & HWW_REACH_WRITE || hww_slots[i].mode != HWW_WRITE) &&
            reach->address < hww_slots[i].address + hww_slots[i].nbytes &&
            hww_slots[i].address < reach->address + reach->nbytes)
            out |= 1u << i;
    return out;
}

/* Which of several data registers the instruction before the trap has touched. */
static uint32_t decoded(struct hww_thread *self, const struct hww_moment *moment, uint32_t data,
                        enum hww_certainty *certain)
{
    struct decoding decoding = {moment, {{0}}, 0};
    uint32_t touched = 0, vague = 0, readers = 0;
    int agreed = 1;
    *certain = HWW_UNKNOWN;
    if (hww_guarded(self, decode, &decoding) < 0)
        return data;
    for (int n = 0; n < decoding.count; n++) {
        uint32_t mask = decoding.found[n].vague ? 0 : reached(&decoding.found[n], data);
        vague |= decoding.found[n].vague ? decoding.found[n].access : 0;
        agreed &= !mask || !touched || mask == touched;
        touched |= mask;
    }
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        readers |= (data >> i & 1 && hww_slots[i].mode != HWW_WRITE ? 1u : 0) << i;
    if (touched) {
        *certain = agreed ? HWW_CERTAIN : HWW_LIKELY;
        return touched;
    }
    if (vague != HWW_REACH_READ || !readers)
        return data;
    *certain = readers & (readers - 1) ? HWW_LIKELY : HWW_CERTAIN;
    return readers;
}

/* The registers that a trap may stand for, as bits. An execute trap comes before its instruction, with the
 * resume flag set (hw_breakpoint_handler in arch/x86/kernel). */
uint32_t hww_registers_candidates(struct hww_thread *self, const struct hww_moment *moment,
                                  enum hww_certainty *certain)
{
    uint32_t data = 0, code = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++) {
        if (HWW_LOAD(&hww_slots[i].state) != HWW_SLOT_ON)
            continue;
        if (hww_slots[i].mode != HWW_EXECUTE)
            data |= 1u << i;
        else if (hww_slots[i].address == moment->pc)
            code |= 1u << i;
    }
    if (code && moment->eflags >> 16 & 1) {
        *certain = HWW_CERTAIN;
        return code;
    }
    *certain = HWW_CERTAIN;
    return data & (data - 1) ? decoded(self, moment, data, certain) : data;
}

/* The pieces of a watch that these registers hold. */
uint32_t hww_registers_pieces(uint32_t registers, uint32_t watch)
{
    uint32_t pieces = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        if (registers >> i & 1 && hww_slots[i].watch == watch &&
            hww_slots[i].first == HWW_LOAD(&hww_watch_at((int)watch)->first))
            pieces |= 1u << hww_slots[i].piece;
    return pieces;
}
