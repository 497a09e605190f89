/* Which watches a trap has hit, and what is done about each. Runs in the handler, under its rules (trap.c).
 */
#define _GNU_SOURCE
#include "hits.h"
#include "arch_x86_64.h"

uint64_t hww_active, hww_readers;

/* The snapshot is the pieces' bytes one after the other. */
static void pack(const struct hww_watch *watch, const uint64_t pieces[4], uint64_t out[4])
{
    unsigned char *bytes = (unsigned char *)out;
    memset(out, 0, HWW_SNAPSHOT);
    for (uint32_t p = 0; p < watch->npieces; p++) {
        memcpy(bytes, &pieces[p], watch->pieces[p].nbytes);
        bytes += watch->pieces[p].nbytes;
    }
}

/* Bytes of the snapshot that are those of some pieces. */
static uint32_t bytes_of(const struct hww_watch *watch, uint32_t pieces)
{
    uint32_t bytes = 0, at = 0;
    for (uint32_t p = 0; p < watch->npieces; at += watch->pieces[p++].nbytes)
        if (pieces >> p & 1)
            bytes |= (uint32_t)(((1ull << watch->pieces[p].nbytes) - 1) << at);
    return bytes;
}

/* One record stands for one kernel count of each piece in mask; but a copy by the kernel counts a byte or
 * a word at a time and is delivered once, when the system call returns. */
static void account(struct hww_thread *self, const struct hww_trap *trap, struct hww_watch *watch,
                    uint32_t index, uint32_t mask, int kernel)
{
    if (watch->mode == HWW_EXECUTE && (uint32_t)self->pid != watch->owner)
        return; /* a forked child's own event, which the parent's counters do not include */
    for (uint32_t p = 0; p < watch->npieces; p++) {
        if (!(mask >> p & 1))
            continue;
        if (trap->watch == HWW_NO_WATCH) { /* the kernel did not count it either */
            HWW_ADD(&watch->accounted[p], 1);
            HWW_ADD(&watch->retired[p], 1);
            continue;
        }
        uint64_t known = HWW_ADD(&watch->accounted[p], 1) + 1 + HWW_LOAD(&watch->nested[p]);
        int64_t counted = kernel ? hww_watch_counted(index, p) : -1;
        if (counted < 0 || (uint64_t)counted <= known)
            continue;
        uint64_t excess = hww_copy_excess(watch->pieces[p].nbytes), missing = (uint64_t)counted - known;
        HWW_ADD(&watch->accounted[p], missing < excess ? missing : excess);
    }
}

static void read_behind(void *argument)
{
    struct hww_trap *trap = argument;
    trap->after_syscall = hww_arch_after_syscall(trap->moment.pc);
    trap->known_writer = hww_writer_known(trap->moment.pc);
}

/* What the instruction before the pc is, for the watches that ask. */
static void look_behind(struct hww_thread *self, struct hww_trap *trap, const struct hww_watch *watch)
{
    if (!trap->looked && (watch->kernel || watch->mode == HWW_READ)) {
        trap->looked = 1;
        hww_guarded(self, read_behind, trap);
    }
}

/* When it was: one time for all watches of a trap. A hit that is left out needs none. */
static void tell_time(struct hww_trap *trap)
{
    if (!trap->moment.time)
        trap->moment.time = hww_now();
}

static void walk_frames(struct hww_thread *self, struct hww_trap *trap, uint32_t nframes)
{
    if (trap->moment.nframes == nframes)
        return;
    trap->stack_flags = 0;
    trap->moment.stack = hww_frames_walk(self, nframes, &trap->stack_flags);
    trap->moment.nframes = nframes;
}

/* Left out on purpose: no record, but accounted for. */
static void filter(struct hww_thread *self, const struct hww_trap *trap, struct hww_watch *watch,
                   uint32_t index, uint32_t hit, int kernel)
{
    account(self, trap, watch, index, hit, kernel);
    HWW_ADD(&watch->filtered, 1);
}

/* Policy, limit and record of a hit that passed the condition. */
static void take(struct hww_thread *self, struct hww_trap *trap, struct hww_watch *watch, uint32_t index,
                 const struct hww_settings *settings, struct hww_finding *finding,
                 const struct hww_change *change)
{
    int kernel = finding->flags & HWW_HIT_KERNEL, drop = 0;
    uint64_t limit = settings ? settings->limit : 0;
    /* A watch for reads records a write only until its instruction is known for one: no hit of its limit. */
    int counts = watch->mode != HWW_READ || !change->mask;
    uint64_t ticket = counts ? HWW_ADD(&watch->tickets, 1) + 1 : 0;
    if (limit && ticket > limit) {
        filter(self, trap, watch, index, finding->hit, kernel);
        /* The limit was lowered below what there is, or a child has reached it, which cannot reach our
         * events. */
        if (hww_watch_stop_once(index) && (uint32_t)self->pid == watch->owner)
            hww_notify(self);
        return;
    }
    tell_time(trap);
    /* A late hit's thread is elsewhere by now: nothing is done to it. */
    if (settings && settings->policy != HWW_CONTINUE && !(finding->flags & HWW_HIT_LATE)) {
        /* Another watch on this instruction may have sent the thread elsewhere. */
        if (watch->mode == HWW_EXECUTE && hww_arch_pc(trap->context) != trap->moment.pc)
            finding->flags |= HWW_HIT_REFUSED;
        else
            hww_action(self, watch, index, settings, &trap->moment, finding, change, trap->context, &drop);
        if (finding->flags & HWW_HIT_REFUSED)
            HWW_ADD(&watch->refused, 1);
    }
    if (drop) {
        filter(self, trap, watch, index, finding->hit, kernel);
    } else {
        walk_frames(self, trap, watch->nframes);
        finding->flags |= trap->stack_flags;
        if (hww_record_write(watch, index, &trap->moment, finding) == 0) {
            account(self, trap, watch, index, finding->hit, kernel);
            for (uint32_t p = 0; p < watch->npieces; p++)
                if (finding->hit >> p & 1 && p != finding->named && trap->watch != HWW_NO_WATCH)
                    HWW_ADD(&watch->guessed[p], 1);
        }
    }
    int last = limit && ticket == limit;
    if (last)
        hww_watch_stop((int)index);
    /* A read watch asks for its unknown writers to be decoded, so that they cost no record from then on. A
     * forked child has no listener: on_hit is its parent's. */
    int wanted = last || (settings && settings->notify) || (watch->mode == HWW_READ && change->mask);
    if (wanted && (uint32_t)self->pid == watch->owner)
        hww_notify(self);
}

/* Two watches on one instruction raise one signal, too, which names one of them. */
static int same_instruction(const struct hww_trap *trap, const struct hww_watch *watch, uint32_t index,
                            int foreign)
{
    return trap->watch != HWW_NO_WATCH && hww_region.shared->watches[trap->watch].mode == HWW_EXECUTE &&
           !(trap->flags & HWW_HIT_LATE) && watch->pieces[0].address == trap->moment.pc &&
           (!foreign || hww_watch_counted(index, 0) >= 0); /* a child need not have armed all */
}

/* Nor does it name another watch on the same bytes: pieces that contain the named one were hit as well, but
 * for a read, which a watch for writes does not see. */
static uint32_t pieces_around(const struct hww_trap *trap, const struct hww_watch *watch)
{
    if (!trap->current || trap->flags & HWW_HIT_LATE || watch->mode == HWW_EXECUTE)
        return 0;
    const struct hww_watch *hit = &hww_region.shared->watches[trap->watch];
    if (hit->mode == HWW_EXECUTE || (hit->mode != HWW_WRITE && watch->mode == HWW_WRITE))
        return 0;
    uint64_t first = hit->pieces[trap->piece].address, end = first + hit->pieces[trap->piece].nbytes;
    uint32_t mask = 0;
    for (uint32_t p = 0; p < watch->npieces; p++)
        mask |= (uint32_t)(watch->pieces[p].address <= first &&
                           end <= watch->pieces[p].address + watch->pieces[p].nbytes)
                << p;
    return mask;
}

/* What a trap did to one watch. */
struct sight {
    uint32_t index;
    uint32_t sure; /* pieces that were hit for certain */
    struct hww_change change;
    struct hww_finding finding;
};

/* Whether the trap was a hit of this watch, and what it did. */
static int look_at(struct hww_thread *self, struct hww_trap *trap, uint32_t index, struct sight *out)
{
    struct hww_watch *watch = &hww_region.shared->watches[index];
    int named = index == trap->watch;
    uint32_t generation = HWW_LOAD(&watch->generation), first = HWW_LOAD(&watch->first);
    /* A live change of mode begins a new generation; hits of those before it may still be on their way. */
    if (named && trap->generation - first > generation - first) {
        HWW_ADD(&hww_region.shared->stale, 1);
        if ((uint32_t)self->pid != watch->owner)
            hww_watch_orphaned(index);
        return 0;
    }
    int foreign = watch->mode == HWW_EXECUTE && (uint32_t)self->pid != watch->owner;
    if (foreign && hww_watch_over(watch)) {
        hww_watch_orphaned(index);
        return 0;
    }
    if (hww_watch_over(watch))
        hww_watch_stop_once(index); /* a child may have reached its limit: it cannot reach our events */
    if (trap->poked && !hww_registers_pieces(UINT32_MAX, index))
        return 0; /* none of this process' */
    uint32_t mine = trap->poked ? hww_registers_pieces(trap->registers, index) : 0;
    int executed = watch->mode == HWW_EXECUTE &&
                   (trap->poked ? mine != 0 : same_instruction(trap, watch, index, foreign));
    if (!named && (HWW_LOAD(&watch->state) != HWW_ARMED || (watch->mode == HWW_EXECUTE && !executed)))
        return 0;
    out->index = index;
    out->change = (struct hww_change){{0}, {0}, 0, trap->flags | (trap->assumed ? HWW_HIT_AMBIGUOUS : 0)};
    /* A hit by the registers as they are is of the latest mode; one by those before a change, of the last
     * then. */
    uint32_t hardware = HWW_LOAD(&watch->hardware);
    int earlier = named && trap->generation - first < hardware - first;
    out->finding =
        (struct hww_finding){earlier ? hardware - 1 : generation, 0, 0, 0xff, HWW_CONTINUED, {0}, {0}};
    if (watch->mode == HWW_EXECUTE) {
        uint64_t arguments[8];
        out->change.flags |= HWW_HIT_EXECUTE;
        hww_arch_arguments(trap->context, arguments);
        memcpy(out->finding.old_bytes, arguments, sizeof out->finding.old_bytes);
        memcpy(out->finding.new_bytes, arguments + 4, sizeof out->finding.new_bytes);
    } else {
        hww_observe(self, index, watch, first, &out->change);
        pack(watch, out->change.before, out->finding.old_bytes);
        pack(watch, out->change.now, out->finding.new_bytes);
    }
    /* An execute watch has one piece, and is here only when it was hit. */
    out->sure = named                                         ? 1u << trap->piece
                : watch->mode == HWW_EXECUTE                  ? 1
                : trap->poked && trap->certain == HWW_CERTAIN ? mine
                                                              : pieces_around(trap, watch);
    out->finding.hit = out->change.mask | out->sure | (trap->assumed ? mine : 0);
    return out->finding.hit && HWW_LOAD(&watch->first) == first;
}

/* What is done about it. */
static void decide(struct hww_thread *self, struct hww_trap *trap, struct sight *sight)
{
    uint32_t index = sight->index;
    struct hww_watch *watch = &hww_region.shared->watches[index];
    struct hww_finding *finding = &sight->finding;
    uint32_t flags = sight->change.flags;
    if (self->muted > 0 && watch->mode == HWW_EXECUTE) {
        filter(self, trap, watch, index, 1, 0);
        return;
    }
    if (sight->sure)
        finding->named = (uint32_t)__builtin_ctz(sight->sure);
    /* A late hit comes at the end of whatever system call unblocked the signal: it says nothing of origin. */
    look_behind(self, trap, watch);
    int kernel =
        watch->kernel && trap->after_syscall && watch->mode != HWW_EXECUTE && !(trap->flags & HWW_HIT_LATE);
    if (watch->mode == HWW_READ && trap->known_writer && !kernel) {
        filter(self, trap, watch, index, finding->hit, kernel);
        return;
    }
    if (finding->hit != (finding->named < HWW_MAX_PIECES ? 1u << finding->named : 0)) {
        flags |= HWW_HIT_INFERRED;
        HWW_ADD(&watch->inferred, 1);
    }
    if (flags & HWW_HIT_LATE)
        HWW_ADD(&watch->late, 1);
    finding->flags = flags | (kernel ? HWW_HIT_KERNEL : 0);
    uint64_t seen = HWW_ADD(&watch->seen, 1) + 1;
    uint32_t id = HWW_LOAD(&watch->settings);
    const struct hww_settings *settings =
        id ? (const struct hww_settings *)(hww_region.arena + (uint64_t)id * 8) : NULL;
    if (settings && !hww_condition_true(settings, (const unsigned char *)finding->old_bytes,
                                        (const unsigned char *)finding->new_bytes,
                                        bytes_of(watch, finding->hit), seen, trap->moment.tid))
        filter(self, trap, watch, index, finding->hit, kernel);
    else
        take(self, trap, watch, index, settings, finding, &sight->change);
}

static void act_on(struct hww_thread *self, struct hww_trap *trap, struct sight *sight)
{
    decide(self, trap, sight);
    if (sight->change.mask && sight->finding.action != HWW_SKIPPED)
        hww_held_take(sight->index, &hww_region.shared->watches[sight->index], &sight->change);
}

/* One signal names one watch, though the instruction may have touched several: all are compared, before a
 * policy of one of them changes the bytes. More than four cannot be armed on one thread; in a child there may
 * be some that its parent has ended since. */
#define SIGHTS 8

static uint32_t look_around(struct hww_thread *self, struct hww_trap *trap, uint64_t watches,
                            struct sight *sights, uint32_t count)
{
    for (; watches && count < SIGHTS; watches &= watches - 1)
        count += (uint32_t)look_at(self, trap, (uint32_t)__builtin_ctzll(watches), &sights[count]);
    return count;
}

void hww_hits_take(struct hww_thread *self, struct hww_trap *trap)
{
    struct hww_moment *moment = &trap->moment;
    struct sight sights[SIGHTS];
    uint32_t count = 0;
    hww_arch_moment(moment, trap->context);
    moment->time = 0;
    moment->tid = (uint32_t)self->tid;
    moment->pid = (uint32_t)self->pid;
    moment->stack = 0;
    moment->nframes = UINT32_MAX;
    uint64_t others = HWW_LOAD(&hww_active);
    int nobody = !others;
    if (trap->watch != HWW_NO_WATCH) {
        hww_watch_doubt(self, trap->watch, trap->piece);
        trap->current = look_at(self, trap, trap->watch, &sights[0]);
        count = (uint32_t)trap->current;
        others &= ~(1ull << trap->watch);
    }
    if (trap->poked)
        trap->registers = hww_registers_candidates(self, moment, &trap->certain);
    /* Several watches may have been read, or written with what they held. Each gets a record that names
     * nobody; those that the instruction does not reach are left out when it is decoded. */
    trap->assumed = trap->poked && trap->certain == HWW_LIKELY;
    count = look_around(self, trap, others, sights, count);
    if (trap->poked && !count && trap->registers) {
        trap->assumed = 1;
        count = look_around(self, trap, others, sights, 0);
    }
    for (uint32_t i = 0; i < count; i++)
        act_on(self, trap, &sights[i]);
    if (!count && trap->poked)
        hww_registers_purge();
    else if (!count && !nobody && trap->watch == HWW_NO_WATCH)
        HWW_ADD(&hww_region.shared->unexplained, 1);
}
