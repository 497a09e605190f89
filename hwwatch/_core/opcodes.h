/* x86-64 opcodes with a memory operand, as far as the handler needs them: opcodes.c for decode.c. */
#ifndef HWW_OPCODES_H
#define HWW_OPCODES_H

#include <stdint.h>

/* Flags of an opcode. */
enum {
    OP_NO = 0,
    OP_READ = 1,
    OP_WRITE = 2,
    OP_BOTH = OP_READ | OP_WRITE,
    OP_LOADS = 4,     /* its register operand is overwritten, and may have been part of the address */
    OP_IMM8 = 8,      /* followed by 1 byte */
    OP_IMM = 16,      /* followed by 2 or 4 bytes */
    OP_BYTE = 32,     /* operand of 1 byte */
    OP_WORD = 64,     /* of 2 */
    OP_VECTOR = 128,  /* of 16 bytes or what the vector length says, 8 in MMX */
    OP_SCALAR = 256,  /* vector: by prefix 16, 4 (f3) or 8 (f2) bytes */
    OP_QUAD = 512,    /* of 8 */
    OP_DOUBLE = 1024, /* of 4 */
};

struct hww_instruction {
    const uint8_t *at;
    int prefix66, prefixF2, prefixF3, segment, short_address;
    int rex_w, rex_r, rex_x, rex_b;
    int vex, length; /* vex: 1, evex: 2; length: of vectors, bytes */
    int map;         /* 0: one byte, 1: 0f, 2: 0f38, 3: 0f3a */
    int broadcast;
};

int hww_opcode_flags(const struct hww_instruction *self, uint8_t op, int reg);

#endif
