/* All that is specific to x86-64. */
#ifndef HWW_ARCH_X86_64_H
#define HWW_ARCH_X86_64_H

#include <ucontext.h>

#include "core.h"

/* struct siginfo for si_code TRAP_PERF, by offset, since libc headers before 2.35 lack the names.
 * Source: include/uapi/asm-generic/siginfo.h, struct _sigfault._perf (Linux 5.13; flags: 5.18). */
#define HWW_TRAP_PERF 6
#define HWW_SIGINFO_DATA 24
#define HWW_SIGINFO_TYPE 32
#define HWW_SIGINFO_FLAGS 36
#define HWW_SIGINFO_ASYNC 1

/* A debug exception whose cause was lost. With an empty DR6 the kernel takes it for an icebp instruction (f1)
 * and raises SIGTRAP with code TRAP_BRKPT; with a bit of DR6 whose breakpoint is gone, with TRAP_HWBKPT
 * (exc_debug_user, get_si_code in arch/x86/kernel). int3 has another code. A TRAP_BRKPT that no icebp
 * explains was seen once, in minutes of arming and disarming under fire in a virtual machine. */
#define HWW_TRAP_BRKPT 1
#define HWW_TRAP_HWBKPT 4

/* Two neighbouring words at once, aligned to 16 bytes. */
static inline int hww_arch_swap_pair(uint64_t *pair, uint64_t old0, uint64_t old1, uint64_t new0,
                                     uint64_t new1)
{
    unsigned char done;
    __asm__ volatile("lock cmpxchg16b %1\n\tsete %0"
                     : "=q"(done), "+m"(*(uint64_t(*)[2])pair), "+a"(old0), "+d"(old1)
                     : "b"(new0), "c"(new1)
                     : "cc", "memory");
    return done;
}

/* Its trap comes behind the instruction; in a virtual machine on an AMD processor pc was seen to stand in
 * front of it, so that it comes again and again until somebody else moves pc or the process dies of it. */
static inline int hww_arch_is_icebp(uint64_t pc)
{
    const unsigned char *code = (const unsigned char *)pc;
    return code[-1] == 0xf1 || code[0] == 0xf1;
}

static inline void hww_arch_moment(struct hww_moment *moment, const ucontext_t *context)
{
    static const int order[HWW_REGISTERS] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI,
                                             REG_RBP, REG_RSP, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                             REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *registers = context->uc_mcontext.gregs;
    for (int i = 0; i < HWW_REGISTERS; i++)
        moment->registers[i] = (uint64_t)registers[order[i]];
    moment->pc = (uint64_t)registers[REG_RIP];
    moment->eflags = (uint32_t)registers[REG_EFL];
}

static inline void hww_arch_context(ucontext_t *context, uint64_t pc, const uint64_t *values)
{
    static const int order[HWW_REGISTERS] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI,
                                             REG_RBP, REG_RSP, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                             REG_R12, REG_R13, REG_R14, REG_R15};
    for (int i = 0; i < HWW_REGISTERS; i++)
        context->uc_mcontext.gregs[order[i]] = (greg_t)values[i];
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
}

static inline uint64_t hww_arch_pc(const ucontext_t *context)
{
    return (uint64_t)context->uc_mcontext.gregs[REG_RIP];
}

static inline uint64_t hww_arch_stack(const ucontext_t *context)
{
    return (uint64_t)context->uc_mcontext.gregs[REG_RSP];
}

/* Go on elsewhere. The kernel has set the resume flag so that the instruction under an execute breakpoint can
 * run; it must not also cover up a breakpoint at the new place (Intel SDM vol. 3B, 18.3.1.1). */
static inline void hww_arch_go(ucontext_t *context, uint64_t pc)
{
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
    context->uc_mcontext.gregs[REG_EFL] &= ~0x10000ll;
}

/* Return from a function at whose entry the thread stands (System V ABI: rax or xmm0). */
static inline void hww_arch_return(ucontext_t *context, uint64_t pc, uint64_t stack, uint64_t value,
                                   uint32_t float_size)
{
    hww_arch_go(context, pc);
    context->uc_mcontext.gregs[REG_RSP] = (greg_t)stack;
    if (float_size && context->uc_mcontext.fpregs)
        memcpy(&context->uc_mcontext.fpregs->_xmm[0], &value, float_size);
    else
        context->uc_mcontext.gregs[REG_RAX] = (greg_t)value;
}

/* Low halves of xmm0 to xmm7: the floating-point arguments at a function's entry. */
static inline void hww_arch_arguments(const ucontext_t *context, uint64_t out[8])
{
    for (int i = 0; i < 8; i++) {
        out[i] = 0;
        if (context->uc_mcontext.fpregs)
            memcpy(&out[i], &context->uc_mcontext.fpregs->_xmm[i], 8);
    }
}

/* An access by the kernel is reported when the system call returns: pc stands behind `syscall` (0f 05). */
static inline int hww_arch_after_syscall(uint64_t pc)
{
    const unsigned char *code = (const unsigned char *)(pc - 2);
    return code[0] == 0x0f && code[1] == 0x05;
}

#endif
