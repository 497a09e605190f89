/* What debug registers set by a tracer really do here, found by trying. */
#define _GNU_SOURCE
#include "registers.h"

/* Registers that a debugger has left enabled on the calling thread, as bits; or -errno. */
int hww_registers_foreign(void)
{
    struct hww_errand errand = {.only = (int32_t)HWW_RAW(SYS_gettid)};
    int error = hww_tracer_run(&errand), out = 0;
    for (int i = 0; i < HWW_MAX_PIECES && !error; i++)
        out |= (errand.found >> 2 * i & 3 && !(hww_slots_ours >> i & 1)) << i;
    return error ? error : out;
}

/* Free registers, as far as ptrace shows: perf events hold theirs unseen. */
int hww_registers_free(void)
{
    hww_registers_enter();
    int taken = hww_registers_foreign(), free = 0;
    for (int i = 0; i < HWW_MAX_PIECES; i++)
        free += hww_slots[i].state == HWW_SLOT_FREE && !(taken >> i & 1);
    hww_registers_leave();
    return taken < 0 ? taken : free;
}

static uint64_t scratch[2] __attribute__((aligned(16)));

__attribute__((noinline, aligned(16))) static void scratch_function(void)
{
    __asm__ volatile("");
}

static void access_scratch(uint32_t mode)
{
    void (*volatile call)(void) = scratch_function;
    uint64_t keep = 1ull << (SIGTRAP - 1) | 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1), mask;
    uint64_t most = ~keep;
    HWW_RAW(SYS_rt_sigprocmask, SIG_BLOCK, &most, &mask, 8);
    hww_thread.canary = 1;
    HWW_FENCE();
    if (mode == HWW_EXECUTE)
        call();
    else if (mode == HWW_READWRITE || mode == HWW_READ)
        (void)*(volatile uint8_t *)scratch;
    else
        *(volatile uint8_t *)scratch = 1;
    HWW_FENCE();
    hww_thread.canary = 0;
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}

/* Prove on the calling thread that a register set by a helper really traps. Returns 1 when it fired, 0 when
 * it did not, -EDEADLK where the thread blocks SIGTRAP, -errno. */
int hww_registers_canary(uint32_t mode, uint32_t nbytes)
{
    struct hww_errand errand;
    int error = hww_registers_prepare_process(), number = 0;
    if (error)
        return error;
    hww_registers_enter();
    int taken = hww_registers_foreign();
    while (taken >= 0 && number < HWW_MAX_PIECES &&
           (hww_slots[number].state != HWW_SLOT_FREE || taken >> number & 1))
        number++;
    error = taken < 0 ? taken : number == HWW_MAX_PIECES ? -ENOSPC : 0;
    uint64_t seen = hww_canary_seen;
    if (!error) {
        struct hww_slot slot = {HWW_SLOT_ON, 0, 0, mode, 0, (uint64_t)scratch, nbytes};
        slot.address = mode == HWW_EXECUTE ? (uint64_t)scratch_function : slot.address;
        hww_registers_plan(&errand, (int32_t)HWW_RAW(SYS_gettid));
        hww_registers_describe(&errand.want, number, &slot);
        hww_slots_ours |= 1u << number;
        errand.ours = hww_slots_ours;
        error = hww_registers_run(&errand);
        const struct hww_traced *here = error ? NULL : hww_traced_find(errand.only);
        if (here && here->state == HWW_THREAD_DEAF)
            error = -EDEADLK;
        if (!error)
            access_scratch(mode);
        hww_registers_apply(errand.only);
    }
    hww_registers_leave();
    return error ? error : hww_canary_seen != seen;
}
