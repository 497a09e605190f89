/* Policies: what is done to the thread before it goes on. Runs in the handler, under its rules. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "arch_x86_64.h"
#include "core.h"
#include "hwwatch.h"

/* ---- data: put the old bytes back ------------------------------------------------------------------------
 */

struct restore {
    uint64_t address;
    uint32_t bytes; /* bit b: byte b */
    uint64_t value;
};

HWW_FOREIGN static void store_plainly(void *argument)
{
    const struct restore *self = argument;
    volatile unsigned char *bytes = (volatile unsigned char *)self->address;
    for (uint32_t b = 0; b < 8; b++)
        if (self->bytes >> b & 1)
            bytes[b] = (unsigned char)(self->value >> 8 * b);
}

/* Through the kernel, so that it does not trap again; only the watched bytes that changed, since the others
 * may meanwhile be another thread's. Where a sandbox forbids that, a plain store, whose trap returns
 * at once. */
static int put_back(struct hww_thread *self, uint64_t address, uint32_t bytes, uint64_t value)
{
    struct iovec local[8], remote[8];
    unsigned long n = 0;
    long total = 0;
    for (uint32_t b = 0; b < 8; b++) {
        if (!(bytes >> b & 1))
            continue;
        if (n && (char *)remote[n - 1].iov_base + remote[n - 1].iov_len == (char *)address + b) {
            local[n - 1].iov_len++;
            remote[n - 1].iov_len++;
        } else {
            local[n] = (struct iovec){(char *)&value + b, 1};
            remote[n++] = (struct iovec){(char *)address + b, 1};
        }
        total++;
    }
    if (syscall(SYS_process_vm_writev, self->pid, local, n, remote, n, 0ul) == total)
        return 0;
    struct restore job = {address, bytes, value};
    return hww_guarded(self, store_plainly, &job);
}

/* An object that has moved: its memory is somebody else's by now, who needs what was stored there. */
HWW_FOREIGN static void read_anchor(void *argument)
{
    uint64_t *self = argument;
    *self = *(const volatile uint64_t *)*self;
}

static int has_moved(struct hww_thread *self, const struct hww_settings *settings)
{
    uint64_t word = settings->anchor;
    return word && (hww_guarded(self, read_anchor, &word) < 0 || word != settings->anchored);
}

/* The snapshot first: a store by another thread between the two is then seen, and undone, at its own trap. */
static int undo(struct hww_thread *self, struct hww_watch *watch, uint32_t index,
                const struct hww_change *change)
{
    uint64_t *last = hww_snapshot_of(index, watch);
    int result = 0;
    for (uint32_t p = 0; p < watch->npieces; p++) {
        const struct hww_piece *piece = &watch->pieces[p];
        uint64_t differing = hww_differing(change->before[p], change->now[p]);
        uint64_t now = HWW_LOAD(&last[p]), held = HWW_LOAD(&hww_held_of(index, watch)[p]), mask = 0;
        uint32_t bytes = 0;
        for (uint32_t b = 0; b < piece->nbytes; b++)
            if (piece->wanted >> b & 1 && differing >> 8 * b & 1) {
                bytes |= 1u << b;
                mask |= 0xffull << 8 * b;
                hww_snapshot_undo(index, piece->address + b, (uint8_t)(change->now[p] >> 8 * b),
                                  (uint8_t)(held >> 8 * b));
            }
        if (!bytes)
            continue;
        while (!__atomic_compare_exchange_n(&last[p], &now, (now & ~mask) | (held & mask), 0,
                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ;
        if (put_back(self, piece->address, bytes, held) < 0)
            result = -EFAULT;
    }
    return result;
}

/* ---- code: change where the thread goes on ---------------------------------------------------------------
 */

struct jump {
    const struct hww_settings *settings;
    ucontext_t *context;
    uint64_t to, stack;
    int done;
};

/* The instruction must still be the one whose length was decoded: code can change under us. */
HWW_FOREIGN static void over_instruction(void *argument)
{
    struct jump *self = argument;
    uint64_t pc = hww_arch_pc(self->context);
    if (self->settings->code_size &&
        !memcmp((const void *)pc, self->settings->code, self->settings->code_size)) {
        self->to = pc + self->settings->code_size;
        self->done = 1;
    }
}

HWW_FOREIGN static void to_caller(void *argument)
{
    struct jump *self = argument;
    self->stack = hww_arch_stack(self->context);
    self->to = *(const volatile uint64_t *)self->stack;
    self->done = 1;
}

static int skip(struct hww_thread *self, struct hww_watch *watch, uint32_t index,
                const struct hww_settings *settings, const struct hww_change *change, ucontext_t *context)
{
    if (watch->mode != HWW_EXECUTE)
        return !has_moved(self, settings) && undo(self, watch, index, change) == 0;
    struct jump jump = {settings, context, 0, 0, 0};
    if (hww_guarded(self, over_instruction, &jump) < 0 || !jump.done)
        return 0;
    hww_arch_go(context, jump.to);
    return 1;
}

/* A read passes: it has happened, and changed nothing that could be put back. */
static int skippable(const struct hww_watch *watch, const struct hww_change *change)
{
    return watch->mode == HWW_EXECUTE || watch->mode == HWW_WRITE || change->mask;
}

/* ---- native functions ------------------------------------------------------------------------------------
 */

struct call {
    hwwatch_handler function;
    hwwatch_hit hit;
    ucontext_t *context;
    int result;
};

static void call_native(void *argument)
{
    struct call *self = argument;
    self->result = self->function(&self->hit, self->context);
}

void hww_action(struct hww_thread *self, struct hww_watch *watch, uint32_t index,
                const struct hww_settings *settings, const struct hww_moment *moment,
                struct hww_finding *finding, const struct hww_change *change, void *machine, int *drop)
{
    ucontext_t *context = machine;
    int done = 0;
    switch (settings->policy) {
    case HWW_SKIP:
        done = skip(self, watch, index, settings, change, context);
        finding->action = done && skippable(watch, change) ? HWW_SKIPPED : HWW_CONTINUED;
        break;
    case HWW_RETURN: {
        struct jump jump = {settings, context, 0, 0, 0};
        done = hww_guarded(self, to_caller, &jump) == 0;
        if (done) {
            hww_arch_return(context, jump.to, jump.stack + 8, settings->value, settings->return_float);
            finding->action = HWW_RETURNED;
        }
        break;
    }
    case HWW_GOTO:
        hww_arch_go(context, settings->value);
        finding->action = HWW_JUMPED;
        done = 1;
        break;
    case HWW_CALL: {
        uint32_t piece =
            finding->named < HWW_MAX_PIECES ? finding->named : (uint32_t)__builtin_ctz(finding->hit);
        struct call call = {(hwwatch_handler)settings->value, {0}, context, 0};
        call.hit.size = sizeof call.hit;
        call.hit.version = HWWATCH_VERSION;
        call.hit.time = moment->time;
        call.hit.address = watch->pieces[piece].address;
        call.hit.nbytes = watch->pieces[piece].nbytes;
        call.hit.pc = moment->pc;
        call.hit.tid = moment->tid;
        call.hit.pid = moment->pid;
        call.hit.hits = HWW_LOAD(&watch->seen);
        call.hit.changed = change->mask != 0;
        memcpy(call.hit.old_bytes, finding->old_bytes, HWW_SNAPSHOT);
        memcpy(call.hit.new_bytes, finding->new_bytes, HWW_SNAPSHOT);
        done = hww_guarded(self, call_native, &call) == 0;
        if (!done)
            break;
        if (hww_arch_pc(context) != moment->pc)
            hww_arch_go(context, hww_arch_pc(context));
        finding->action = HWW_NATIVE;
        *drop = call.result == HWWATCH_DROP;
        if (call.result == HWWATCH_SKIP) {
            done = skip(self, watch, index, settings, change, context);
            finding->action = done && skippable(watch, change) ? HWW_SKIPPED : HWW_NATIVE;
        }
        break;
    }
    default:
        done = 1;
    }
    if (!done)
        finding->flags |= HWW_HIT_REFUSED;
}

/* ---- instructions known to write only: a watch for reads passes them over --------------------------------
 */

#define WRITERS 4096
#define PROBES 8

static struct hww_writer *writer_at(uint64_t pc, uint32_t probe)
{
    return &hww_region.shared->writers[((pc ^ pc >> 12) + probe) % WRITERS];
}

/* The caller reads memory just before pc, where the thread has just executed: it is there. */
int hww_writer_known(uint64_t pc)
{
    for (uint32_t probe = 0; probe < PROBES; probe++) {
        const struct hww_writer *writer = writer_at(pc, probe);
        uint64_t found = HWW_LOAD(&writer->pc);
        if (!found)
            return 0;
        if (found == pc) {
            uint64_t code;
            memcpy(&code, (const void *)(pc - 8), 8);
            return code == writer->code;
        }
    }
    return 0;
}

int hww_writer_add(uint64_t pc)
{
    uint64_t code;
    memcpy(&code, (const void *)(pc - 8), 8);
    for (uint32_t probe = 0; probe < PROBES; probe++) {
        struct hww_writer *writer = writer_at(pc, probe);
        uint64_t found = HWW_LOAD(&writer->pc);
        if (found && found != pc)
            continue;
        writer->code = code;
        HWW_STORE(&writer->pc, pc);
        return 0;
    }
    return -ENOSPC;
}
