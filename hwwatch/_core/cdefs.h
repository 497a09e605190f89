/* What cffi sees of the core, and the one description of everything that Python and C share.
 * cffi reads this file itself: declarations and plain #define constants only.
 *
 * Shared memory (one anonymous MAP_SHARED mapping, so that forked children write into the same):
 *   hww_shared   counters and the watch table
 *   ring         slots of 128 bytes; a hit takes one slot, or two (hww_record + hww_extension)
 *   arena        interned code objects and call stacks, append-only
 * Each field names its writer: [arm] the arming call, [trap] the SIGTRAP handler of any process of
 * the family, [read] the timeline reader. */

#define HWW_PROTOCOL 1

#define HWW_MAX_WATCHES 64 /* armed at one time, in one family of processes */
#define HWW_MAX_PIECES 4   /* debug registers that one watch may use */
#define HWW_MAX_FRAMES 64  /* Python frames in one call stack */
#define HWW_SNAPSHOT 32    /* bytes: HWW_MAX_PIECES pieces of at most 8 */
#define HWW_SLOT 128       /* bytes */
#define HWW_INLINE_REGISTERS 7
#define HWW_REGISTERS 16 /* rax rbx rcx rdx rsi rdi rbp rsp r8 ... r15 */

/* Bits of hww_record.tag; the rest is the lap, so that a slot's earlier life is told from this one. */
#define HWW_TAG_RESERVED 1
#define HWW_TAG_COMMITTED 2
#define HWW_TAG_EXTENSION 4
#define HWW_TAG_LAP_SHIFT 3

/* Bits of hww_record.flags. */
#define HWW_HIT_LATE 1 /* delivered late (TRAP_PERF_FLAG_ASYNC): pc, frames, values are not the access's */
#define HWW_HIT_EXTENDED 2     /* a hww_extension follows: all registers, snapshot bytes 8..31 */
#define HWW_HIT_KERNEL 4       /* pc stands behind a syscall instruction */
#define HWW_HIT_INFERRED 8     /* the signal named another watch; this one was seen to have changed */
#define HWW_HIT_OLD_UNKNOWN 16 /* no earlier snapshot in this process */
#define HWW_HIT_UNREADABLE 32  /* the watched bytes could not be read */
#define HWW_HIT_NO_STACK 64    /* Python runs on the thread, but its frames could not be walked or stored */
#define HWW_HIT_EXECUTE 128
#define HWW_HIT_TRUNCATED 256  /* the call stack is deeper than what was asked for */
#define HWW_HIT_REFUSED 512    /* the policy could not be carried out: see hww_record.action for what was */
#define HWW_HIT_AMBIGUOUS 1024 /* nothing changed, and other watches may have been meant */

#define HWW_MAX_LEAVES 32
#define HWW_MAX_OPERATIONS 64
#define HWW_STACK_DEPTH 16

enum hww_watch_state { HWW_FREE, HWW_CLAIMED, HWW_ARMED, HWW_RETIRED };

enum hww_mode { HWW_WRITE, HWW_READWRITE, HWW_EXECUTE, HWW_READ };

/* Whose SIGTRAP handler is in place. */
enum hww_owner { HWW_OWNER_NONE, HWW_OWNER_US, HWW_OWNER_OTHER };

/* What became of a thread that a tracer's helper was to arm (registers.c). */
enum hww_thread_state {
    HWW_THREAD_UNSEEN,
    HWW_THREAD_ARMED,
    HWW_THREAD_DEAF, /* blocks SIGTRAP: a hit would kill the process */
    HWW_THREAD_ENDED,
    HWW_THREAD_STUCK, /* did not stop */
    HWW_THREAD_REFUSED,
    HWW_THREAD_TORN /* the helper was killed meanwhile */
};

struct hww_record {
    uint32_t tag;        /* [trap] written last, with release */
    uint32_t flags;      /* HWW_HIT_* */
    uint64_t time;       /* ns, CLOCK_MONOTONIC */
    uint64_t pc;         /* program counter at the trap */
    uint32_t tid;        /* kernel thread id */
    uint32_t pid;        /* kernel process id */
    uint32_t stack;      /* arena id of a hww_stack; 0: none */
    uint32_t generation; /* of the watch */
    uint16_t watch;      /* index in the watch table */
    uint8_t hit;         /* bit p: piece p was named by the signal or has changed */
    uint8_t named;       /* piece that the signal named */
    uint16_t registers;  /* bit r: register r is in values[], in ascending order */
    uint8_t action;      /* what was done: enum hww_action */
    uint8_t reserved;
    uint32_t base;   /* slots back to the extended record that holds the other registers; 0: none */
    uint32_t eflags; /* low half of RFLAGS */
    uint64_t old_bytes;
    uint64_t new_bytes; /* snapshot bytes 0..7: the pieces one after the other */
    uint64_t values[7]; /* registers; in an extended record: the first 7 of all */
};

struct hww_extension {
    uint32_t tag;
    uint32_t reserved;
    uint64_t values[9];    /* registers 7..15 */
    uint64_t old_bytes[3]; /* snapshot bytes 8..31 */
    uint64_t new_bytes[3];
};

/* What was done before the thread went on. */
enum hww_action { HWW_CONTINUED, HWW_SKIPPED, HWW_RETURNED, HWW_JUMPED, HWW_NATIVE };

/* What is to be done. */
enum hww_policy { HWW_CONTINUE, HWW_SKIP, HWW_RETURN, HWW_GOTO, HWW_CALL };

/* How a condition reads the bytes of a value. */
enum hww_value { HWW_VALUE_NONE, HWW_VALUE_BOOL, HWW_VALUE_SIGNED, HWW_VALUE_UNSIGNED, HWW_VALUE_FLOAT };

/* A condition is a program for a stack of typed values; the compiler (hwwatch/conditions.py) has checked all
 * types, so the machine does not. _I works on integers (128 bits, exact), _F on doubles, _M compares an
 * integer (below) with a double (top), exactly. Comparisons and tests leave the integer 0 or 1. */
enum hww_operation_code {
    HWW_OP_INT,   /* push operand as int64 */
    HWW_OP_UINT,  /* push operand as uint64 */
    HWW_OP_FLOAT, /* push operand as double */
    HWW_OP_OLD,   /* push the value before; integer or double as value_kind says */
    HWW_OP_NEW,   /* push the value after */
    HWW_OP_CHANGED /* push: bytes differ */,
    HWW_OP_HITS,     /* push: hits of this watch so far, this one included */
    HWW_OP_THREAD,   /* push: kernel thread id */
    HWW_OP_TO_FLOAT, /* integer -> double */
    HWW_OP_ADD_I,
    HWW_OP_SUB_I,
    HWW_OP_MUL_I,
    HWW_OP_DIV_I, /* floor, as Python's //; the divisor is a constant other than 0 */
    HWW_OP_MOD_I, /* sign of the divisor, as Python's % */
    HWW_OP_NEG_I,
    HWW_OP_ABS_I,
    HWW_OP_ADD_F,
    HWW_OP_SUB_F,
    HWW_OP_MUL_F,
    HWW_OP_DIV_F, /* IEEE: x/0 is an infinity or nan */
    HWW_OP_NEG_F,
    HWW_OP_ABS_F,
    HWW_OP_ISNAN,
    HWW_OP_ISINF,
    HWW_OP_LT_I,
    HWW_OP_LE_I,
    HWW_OP_EQ_I,
    HWW_OP_LT_F,
    HWW_OP_LE_F,
    HWW_OP_EQ_F,
    HWW_OP_LT_M, /* integer < double */
    HWW_OP_GT_M, /* integer > double */
    HWW_OP_EQ_M,
    HWW_OP_SWAP, /* the two topmost */
    HWW_OP_AND,
    HWW_OP_OR,
    HWW_OP_NOT
};

struct hww_operation {
    uint32_t code;
    uint32_t reserved;
    uint64_t operand;
};

/* A value inside the snapshot. */
struct hww_leaf {
    uint8_t offset;
    uint8_t size; /* bytes */
    uint16_t reserved;
};

/* All that may change while a watch is armed. A change makes a new one, in the arena; the watch points to it
 * with a single store, so that no handler ever sees half a change. */
struct hww_settings {
    uint64_t hash;
    uint32_t kind;   /* 3 */
    uint32_t policy; /* enum hww_policy */
    uint64_t value;  /* RETURN: bits to return; GOTO: address; CALL: int (*)(hwwatch_hit *, ucontext_t *) */
    uint32_t return_float; /* RETURN: 0 in rax; 4, 8: float, double in xmm0 */
    uint32_t code_size;    /* execute: bytes of the instruction, 0: unknown, cannot be skipped */
    uint8_t code[16];      /* execute: the instruction when it was armed */
    uint64_t limit;        /* disarm after so many records; 0: never */
    uint32_t notify;       /* wake the main thread for each record */
    uint32_t value_kind;   /* enum hww_value of all leaves */
    uint32_t swapped;      /* big-endian */
    uint32_t nleaves;
    struct hww_leaf leaves[32];
    uint32_t noperations; /* 0: no condition */
    uint32_t reserved;
    uint64_t anchor;   /* SKIP on data: where the object keeps the address of its memory; 0: it stays */
    uint64_t anchored; /* that address, when it was armed */
    struct hww_operation operations[64];
};

struct hww_piece {
    uint64_t address;
    uint32_t nbytes; /* 1, 2, 4, 8 */
    uint32_t wanted; /* bit b: byte b is watched; the others are neighbours that the piece also covers */
};

struct hww_watch {
    uint32_t state;      /* [arm] enum hww_watch_state */
    uint32_t generation; /* [arm] grows with each life of this entry */
    uint32_t owner;      /* [arm] pid that armed it */
    uint32_t mode;       /* [arm] enum hww_mode */
    uint32_t npieces;    /* [arm] */
    uint32_t nframes;    /* [arm] Python frames wanted a hit */
    uint32_t shared;     /* [arm] the bytes are in a shared mapping: so is their last snapshot */
    uint32_t settings;   /* [arm] arena id of a hww_settings; 0: none */
    uint32_t first;      /* [arm] generation when it was claimed; live changes of mode begin further ones */
    uint32_t hardware;   /* [arm] generation at the last change of the registers themselves */
    uint32_t kernel;     /* [arm] accesses by the kernel are included */
    uint32_t follow;     /* [arm] forked children of an execute watch arm themselves */
    struct hww_piece pieces[4];
    uint64_t initial[4];   /* [arm] value of each piece when it was armed */
    uint64_t snapshot[4];  /* [trap] last value of each piece, for shared mappings */
    uint64_t held[4];      /* [trap] the same but for what policies undo, for shared mappings */
    uint64_t seen;         /* [trap] hits, whatever became of them */
    uint64_t tickets;      /* [trap] hits that passed the condition: the limit counts these */
    uint64_t filtered;     /* [trap] hits left out: by the condition, as known writes, after the limit */
    uint64_t recorded;     /* [trap] records written */
    uint64_t dropped;      /* [trap] hits for which there was no room */
    uint64_t late;         /* [trap] records flagged HWW_HIT_LATE */
    uint64_t refused;      /* [trap] hits flagged HWW_HIT_REFUSED */
    uint64_t inferred;     /* [trap] records with a bit in hit that no signal named */
    uint64_t accounted[4]; /* [trap] by piece: kernel counts that records stand for */
    uint64_t guessed[4];   /* [trap] by piece: of those, the ones that no signal named */
    uint64_t nested[4];    /* [trap] by piece: traps that the handler itself caused */
    uint64_t retired[4];   /* [arm] by piece: final counts of events closed so far */
    uint64_t unfollowed;   /* [fork] children whose debug registers could not be set */
    uint64_t torn;         /* [arm] errands that ended with a thread's debug registers half set */
    uint64_t belated;      /* [arm] threads that began unseen and were armed later */
    uint64_t taken;        /* [arm] errands that found registers changed by somebody else */
};

/* A pc behind an instruction that only writes; the bytes before it must still be the same. */
struct hww_writer {
    uint64_t pc;   /* 0: free */
    uint64_t code; /* the 8 bytes before pc */
};

#define HWW_SPILL_CHUNK 8192 /* slots that get their disk space together: 1 MiB */

/* What is done with a hit for which the ring has no room. */
enum hww_on_full { HWW_FULL_SPILL, HWW_FULL_DROP, HWW_FULL_STOP };

struct hww_shared {
    uint32_t protocol;
    uint32_t names;       /* [trap] newest struct hww_name; 0: none */
    uint64_t capacity;    /* ring slots, a power of two */
    uint64_t head;        /* [trap] next position to reserve; changes together with spill */
    uint64_t spill;       /* [trap] position from which on records are in the spill file; 0: none are */
    uint64_t spill_slots; /* [arm] room in the spill file, a power of two; 0: there is none */
    uint64_t spill_ready; /* [trap] position up to which the spill file has its disk space */
    uint64_t on_full;     /* [arm] enum hww_on_full */
    uint64_t tail;        /* [read] first position still in use */
    uint64_t arena_size;  /* bytes */
    uint64_t arena_used;  /* [trap] bytes */
    uint64_t stale;       /* [trap] hits of a generation that is gone */
    uint64_t forwarded;   /* [trap] SIGTRAPs that were not ours */
    uint64_t unexplained; /* [trap] debug exceptions without a cause, and no watched byte had changed */
    uint64_t faults;      /* [trap] faults caught while reading frames or bytes, or in a native policy */
    uint64_t opener;      /* [read] process whose records these are to give back */
    struct hww_writer writers[4096]; /* [read] instructions known to write only, by hash of pc */
    struct hww_watch watches[64];
};

/* Interned objects in the arena; an id is an offset in units of 8 bytes. */
struct hww_code {
    uint64_t hash;
    uint32_t kind; /* 1 */
    int32_t first_line;
    uint32_t filename_size; /* bytes */
    uint32_t name_size;
    uint32_t linetable_size;
    uint8_t filename_width; /* bytes a character: 1 (Latin-1), 2, 4 */
    uint8_t name_width;
    uint16_t reserved;
    /* filename, qualified name, line table follow, each padded to 8 bytes */
};

struct hww_frame {
    uint32_t code;  /* arena id */
    int32_t offset; /* bytes into the bytecode */
};

struct hww_stack {
    uint64_t hash;
    uint32_t kind; /* 2 */
    uint32_t nframes;
    /* struct hww_frame frames[nframes], innermost first */
};

/* What a thread, or a process by its main thread, was called when it first made a hit, or later. */
struct hww_name {
    uint32_t before; /* arena id of the one before; 0: none */
    int32_t tid, pid;
    uint32_t given; /* by Python, which knows better than the kernel */
    char name[48];  /* UTF-8 */
};

/* Where CPython keeps what the frame reader needs; offsets in bytes. Filled by hwwatch/interpreter.py. */
struct hww_python {
    uint64_t thread_state; /* address of PyGILState_GetThisThreadState; 0: do not read frames */
    uint64_t code_type;    /* address of PyCode_Type */
    uint32_t tstate_frame; /* 3.11, 3.12: of the cframe pointer */
    uint32_t cframe_frame; /* 3.11, 3.12 only */
    uint32_t has_cframe;
    uint32_t frame_code;
    uint32_t frame_previous;
    uint32_t frame_instruction;
    uint32_t frame_owner;
    uint32_t first_foreign_owner; /* frames owned by C or the interpreter itself are skipped */
    uint32_t code_filename;
    uint32_t code_qualname;
    uint32_t code_linetable;
    uint32_t code_firstlineno;
    uint32_t code_bytecode;
    uint32_t object_type;
    uint32_t bytes_size;
    uint32_t bytes_data;
    uint32_t str_length;
    uint32_t str_state;
    uint32_t str_kind_shift;
    uint32_t str_compact_bit;
    uint32_t str_ascii_bit;
    uint32_t str_ascii_data; /* of a compact ASCII string */
    uint32_t str_other_data; /* of a compact non-ASCII string */
    uint32_t reserved;
};

/* How events are opened. */
struct hww_arm_options {
    uint32_t kernel;      /* 1: include accesses made by the kernel */
    uint32_t follow_fork; /* 1: forked children inherit */
};

struct hww_arm_report {
    uint32_t threads;   /* armed by an event of their own */
    uint32_t inherited; /* found while arming, armed already by inheritance */
    uint32_t vanished;  /* ended while arming */
    uint32_t unsure;    /* may still be creating threads that do not inherit */
    int32_t failed_tid; /* first thread that could not be armed, or 0 */
    uint32_t failed_piece;
};

#define HWW_REACH_READ 1
#define HWW_REACH_WRITE 2
#define HWW_LONGEST 15 /* bytes of an x86 instruction (Intel SDM vol. 2A, 2.3.11) */

/* What an instruction that ends at some place may have touched (decode.c). */
struct hww_reach {
    uint64_t address;
    uint32_t nbytes;
    uint32_t access; /* HWW_REACH_* */
    uint32_t vague;  /* the address was computed with a register that the instruction has overwritten */
    uint32_t length; /* of the instruction, bytes */
};

/* region.c */
int hww_core_open(uint64_t capacity, uint64_t arena_size);
struct hww_shared *hww_core_shared(void);
void *hww_core_ring(void);
void *hww_core_arena(void);
int hww_spill_open(int fd, uint64_t slots);
void *hww_core_spill(void);

/* record.c */
uint64_t hww_ring_committed(uint64_t from);
int hww_ring_release(uint64_t to);
void hww_ring_unmap(uint64_t from, uint64_t to);

/* frames.c */
void hww_frames_configure(const struct hww_python *layout);
uint32_t hww_frames_here(uint32_t nframes);

/* notify.c */
void hww_notify_configure(uint32_t signal_number);
void hww_signals_configure(uint64_t function, uint64_t interpreter);
void hww_notify_taken(void);
int hww_notify_later(void);

/* trap.c */
int hww_trap_open(void);
int hww_trap_close(void);
int hww_trap_owner(void);
uint64_t hww_trap_cookie(uint32_t watch, uint32_t piece);
int hww_trap_simulate(uint64_t cookie, uint32_t flags, uint64_t pc, const uint64_t registers[16]);

/* condition.c */
int hww_condition_true(const struct hww_settings *settings, const unsigned char *old_bytes,
                       const unsigned char *new_bytes, uint32_t touched, uint64_t hits, uint64_t thread);

/* names.c */
int hww_name_note(int32_t tid, int32_t pid, const char *name, uint32_t given);

/* thread.c */
void hww_mute(int change);
void hww_mute_to(int level);
int hww_muted(void);

/* action.c */
int hww_writer_add(uint64_t pc);

/* decode.c */
int hww_decode_before(uint64_t pc, const uint64_t registers[16], struct hww_reach out[15]);

/* arm.c */
int hww_watch_open(int watch, const struct hww_arm_options *options, struct hww_arm_report *report);

/* slots.c */
int hww_watch_claim(uint32_t mode, uint32_t npieces, const struct hww_piece *pieces, uint32_t nframes,
                    uint32_t shared);
int hww_watch_publish(int watch);
int hww_watch_stop(int watch);
int hww_watch_settle(int watch, uint32_t milliseconds, int strict);
int hww_watch_close(int watch);
void hww_watch_free(int watch, uint32_t generation);
int hww_watch_enable(int watch, int on);
int hww_watch_configure(int watch, const struct hww_settings *settings);
int hww_watch_modify(int watch, uint32_t mode, const struct hww_arm_options *options, int32_t *covered);
int hww_watch_counts(int watch, uint64_t counts[4]);
int hww_watch_closed(int watch);
int hww_watch_threads(int watch, int32_t *tids, int capacity);
int hww_slots_free(int32_t tid, int most);
int hww_canary(uint32_t mode, uint32_t nbytes, uint32_t kernel);

/* registers.c, identify.c, probe.c, turns.c */
int hww_registers_open(int watch, const struct hww_arm_options *options, struct hww_arm_report *report);
int hww_registers_close(int watch);
int hww_registers_enable(int watch, int on);
int hww_registers_modify(int watch, uint32_t mode);
int hww_registers_free(void);
int hww_registers_threads(int32_t *tids, uint8_t *states, int capacity);
int hww_registers_canary(uint32_t mode, uint32_t nbytes);
int hww_registers_poked(void);
int hww_registers_belated(int32_t tid);
int hww_registers_again(void);
