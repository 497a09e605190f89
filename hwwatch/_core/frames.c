/* Python frames of the trapping thread, read from a signal handler.
 *
 * Only the thread's own frames: it stands still while we read, another thread's do not. No reference is
 * taken and nothing is called but PyGILState_GetThisThreadState, a pthread_getspecific. Everything read is
 * foreign memory that may be half-built: the walk runs under a fault guard (hww_thread.recover), and each
 * pointer's type is checked before its fields are believed. Offsets come from hwwatch/interpreter.py. */
#define _GNU_SOURCE
#include "core.h"

#define CODE 1
#define STACK 2
#define LONGEST_NAME 65536    /* bytes; a longer one is no name but garbage */
#define LONGEST_TABLE 4194304 /* bytes */

static struct hww_python python;

void hww_frames_configure(const struct hww_python *layout)
{
    uint64_t thread_state = layout->thread_state;
    python.thread_state = 0; /* off while the offsets change */
    HWW_FENCE();
    python = *layout;
    python.thread_state = 0;
    HWW_FENCE();
    python.thread_state = thread_state;
}

static uint64_t word(uint64_t address)
{
    return *(const volatile uint64_t *)address;
}

struct text {
    const unsigned char *data;
    uint32_t size; /* bytes */
    uint8_t width;
};

struct code_key {
    int32_t first_line;
    struct text filename, name, linetable;
};

static int read_str(uint64_t object, struct text *out)
{
    uint32_t state = *(const volatile uint32_t *)(object + python.str_state);
    uint64_t length = word(object + python.str_length);
    uint32_t width = state >> python.str_kind_shift & 7;
    if (!(state >> python.str_compact_bit & 1) || (width != 1 && width != 2 && width != 4))
        return 0;
    if (length * width > LONGEST_NAME)
        return 0;
    int ascii = state >> python.str_ascii_bit & 1;
    out->data = (const unsigned char *)object + (ascii ? python.str_ascii_data : python.str_other_data);
    out->size = (uint32_t)(length * width);
    out->width = (uint8_t)width;
    return 1;
}

static int read_code(uint64_t code, struct code_key *out)
{
    uint64_t table = word(code + python.code_linetable);
    uint64_t size = word(table + python.bytes_size);
    if (size > LONGEST_TABLE)
        return 0;
    out->linetable = (struct text){(const unsigned char *)table + python.bytes_data, (uint32_t)size, 1};
    out->first_line = *(const volatile int32_t *)(code + python.code_firstlineno);
    return read_str(word(code + python.code_filename), &out->filename) &&
           read_str(word(code + python.code_qualname), &out->name);
}

static uint32_t padded(uint32_t size)
{
    return (size + 7) & ~7u;
}

static int same_code(const void *entry, const void *wanted)
{
    const struct hww_code *code = entry;
    const struct code_key *key = wanted;
    const unsigned char *data = (const unsigned char *)(code + 1);
    if (code->kind != CODE || code->first_line != key->first_line ||
        code->filename_size != key->filename.size || code->name_size != key->name.size ||
        code->linetable_size != key->linetable.size || code->filename_width != key->filename.width ||
        code->name_width != key->name.width)
        return 0;
    const unsigned char *name = data + padded(code->filename_size), *table = name + padded(code->name_size);
    return !memcmp(table, key->linetable.data, code->linetable_size) &&
           !memcmp(name, key->name.data, code->name_size) &&
           !memcmp(data, key->filename.data, code->filename_size);
}

static uint32_t intern_code(const struct code_key *key)
{
    uint64_t hash = hww_hash((uint32_t)key->first_line, key->filename.data, key->filename.size);
    hash = hww_hash(hash, key->name.data, key->name.size);
    hash = hww_hash(hash, key->linetable.data, key->linetable.size);
    uint32_t id = hww_intern_find(hash, same_code, key);
    if (id)
        return id;
    uint32_t size = (uint32_t)sizeof(struct hww_code) + padded(key->filename.size) + padded(key->name.size) +
                    padded(key->linetable.size);
    struct hww_code *code = hww_intern_reserve(size, &id);
    if (!code)
        return 0;
    code->hash = hash;
    code->kind = CODE;
    code->first_line = key->first_line;
    code->filename_size = key->filename.size;
    code->name_size = key->name.size;
    code->linetable_size = key->linetable.size;
    code->filename_width = key->filename.width;
    code->name_width = key->name.width;
    unsigned char *data = (unsigned char *)(code + 1);
    memcpy(data, key->filename.data, key->filename.size);
    data += padded(key->filename.size);
    memcpy(data, key->name.data, key->name.size);
    data += padded(key->name.size);
    memcpy(data, key->linetable.data, key->linetable.size);
    return hww_intern_publish(hash, id, same_code, key);
}

#define RECENT 4096
/* Arena id by hash of the code object's address: a guess that is compared in full before it is used. */
static uint32_t recent[RECENT];

static uint32_t find_code(uint64_t code)
{
    struct code_key key;
    if (!read_code(code, &key))
        return 0;
    uint32_t *guess = &recent[(code >> 4 ^ code >> 16) % RECENT];
    uint32_t id = __atomic_load_n(guess, __ATOMIC_RELAXED);
    if (id && same_code(hww_region.arena + (uint64_t)id * 8, &key))
        return id;
    id = intern_code(&key);
    __atomic_store_n(guess, id, __ATOMIC_RELAXED);
    return id;
}

struct stack_key {
    uint32_t nframes;
    const struct hww_frame *frames;
};

static int same_stack(const void *entry, const void *wanted)
{
    const struct hww_stack *stack = entry;
    const struct stack_key *key = wanted;
    return stack->kind == STACK && stack->nframes == key->nframes &&
           !memcmp(stack + 1, key->frames, key->nframes * sizeof *key->frames);
}

static uint32_t intern_stack(const struct stack_key *key)
{
    uint32_t bytes = key->nframes * (uint32_t)sizeof *key->frames;
    uint64_t hash = hww_hash(STACK, key->frames, bytes);
    uint32_t id = hww_intern_find(hash, same_stack, key);
    if (id)
        return id;
    struct hww_stack *stack = hww_intern_reserve((uint32_t)sizeof *stack + bytes, &id);
    if (!stack)
        return 0;
    stack->hash = hash;
    stack->kind = STACK;
    stack->nframes = key->nframes;
    memcpy(stack + 1, key->frames, bytes);
    return hww_intern_publish(hash, id, same_stack, key);
}

struct walk {
    uint64_t tstate;
    uint32_t nframes;
    uint32_t flags; /* out */
    uint32_t stack; /* out: arena id; 0 with HWW_HIT_NO_STACK where frames exist but could not be kept */
};

static void walk(void *argument)
{
    struct walk *self = argument;
    struct hww_frame frames[HWW_MAX_FRAMES];
    uint64_t frame = python.has_cframe ? word(word(self->tstate + python.tstate_frame) + python.cframe_frame)
                                       : word(self->tstate + python.tstate_frame);
    uint32_t n = 0;
    for (int steps = 0; frame && steps < 4 * HWW_MAX_FRAMES; steps++) {
        uint64_t code = word(frame + python.frame_code) & ~3ull; /* 3.14 tags references in the low bits */
        uint8_t owner = *(const volatile uint8_t *)(frame + python.frame_owner);
        if (code && owner < python.first_foreign_owner &&
            word(code + python.object_type) == python.code_type) {
            if (n == self->nframes) {
                self->flags |= HWW_HIT_TRUNCATED;
                break;
            }
            int64_t offset =
                (int64_t)(word(frame + python.frame_instruction) - (code + python.code_bytecode));
            frames[n].code = find_code(code);
            frames[n].offset = offset > INT32_MAX || offset < -2 ? -1 : (int32_t)offset;
            if (!frames[n++].code) {
                self->flags |= HWW_HIT_NO_STACK;
                return;
            }
        }
        frame = word(frame + python.frame_previous);
    }
    if (!n)
        return;
    struct stack_key key = {n, frames};
    self->stack = intern_stack(&key);
    if (!self->stack)
        self->flags |= HWW_HIT_NO_STACK;
}

uint32_t hww_frames_walk(struct hww_thread *self, uint32_t nframes, uint32_t *flags)
{
    uint64_t get = python.thread_state;
    if (!get || !nframes)
        return 0;
    struct walk job = {0, nframes < HWW_MAX_FRAMES ? nframes : HWW_MAX_FRAMES, 0, 0};
    job.tstate = (uint64_t)((void *(*)(void))get)();
    if (!job.tstate)
        return 0;
    if (hww_guarded(self, walk, &job) < 0) {
        job.stack = 0;
        job.flags = HWW_HIT_NO_STACK;
    }
    *flags |= job.flags;
    return job.stack;
}

/* For the self-test in hwwatch/interpreter.py: the calling thread's own stack, as a trap would see it. */
uint32_t hww_frames_here(uint32_t nframes)
{
    uint32_t flags = 0;
    return hww_frames_walk(&hww_thread, nframes, &flags);
}
