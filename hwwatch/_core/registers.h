/* Watches in debug registers that a tracer has set: shared by registers.c, turns.c, identify.c and probe.c.
 */
#ifndef HWW_REGISTERS_H
#define HWW_REGISTERS_H

#include <stddef.h>

#include "events.h"
#include "raw.h"
#include "tracer.h"

/* What one register is to hold, the same in all threads. */
struct hww_slot {
    uint32_t state; /* enum hww_slot_state */
    uint32_t watch, piece, mode;
    uint32_t first; /* of the watch: which of its lives */
    uint64_t address;
    uint32_t nbytes;
};
enum hww_slot_state { HWW_SLOT_FREE, HWW_SLOT_ON, HWW_SLOT_OFF };
extern struct hww_slot hww_slots[HWW_MAX_PIECES];
/* Bit i: register i has been ours in this process. */
extern uint32_t hww_slots_ours;

/* turns.c */
void hww_registers_enter(void);
void hww_registers_leave(void);
int hww_registers_prepare_process(void);

/* registers.c */
void hww_registers_describe(struct hww_debug *out, int number, const struct hww_slot *slot);
void hww_registers_plan(struct hww_errand *errand, int32_t only);
int hww_registers_run(struct hww_errand *errand);
int hww_registers_apply(int32_t only);
int hww_registers_take_out(uint64_t watches);
void hww_registers_note(size_t counter);
void hww_registers_inherit(void);

/* probe.c */
int hww_registers_foreign(void);

#endif
