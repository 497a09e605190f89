/* What an opcode does with its memory operand (Intel SDM vol. 2, appendix A). Pure. */
#include "opcodes.h"

static int describe_one_byte(uint8_t op, int reg)
{
    if (op < 0x40 && (op & 7) < 4) {
        int access = (op & 7) >= 2 ? OP_READ : (op & 0x38) == 0x38 ? OP_READ : OP_BOTH;
        int loads = (op & 7) >= 2 && (op & 0x38) != 0x38 ? OP_LOADS : 0;
        return access | loads | (op & 1 ? 0 : OP_BYTE);
    }
    switch (op) {
    case 0x63:
        return OP_READ | OP_LOADS | OP_DOUBLE;
    case 0x69:
        return OP_READ | OP_LOADS | OP_IMM;
    case 0x6b:
        return OP_READ | OP_LOADS | OP_IMM8;
    case 0x80:
        return (reg == 7 ? OP_READ : OP_BOTH) | OP_BYTE | OP_IMM8;
    case 0x81:
        return (reg == 7 ? OP_READ : OP_BOTH) | OP_IMM;
    case 0x83:
        return (reg == 7 ? OP_READ : OP_BOTH) | OP_IMM8;
    case 0x84:
        return OP_READ | OP_BYTE;
    case 0x85:
        return OP_READ;
    case 0x86:
        return OP_BOTH | OP_LOADS | OP_BYTE;
    case 0x87:
        return OP_BOTH | OP_LOADS;
    case 0x88:
        return OP_WRITE | OP_BYTE;
    case 0x89:
        return OP_WRITE;
    case 0x8a:
        return OP_READ | OP_LOADS | OP_BYTE;
    case 0x8b:
        return OP_READ | OP_LOADS;
    case 0xc0:
        return OP_BOTH | OP_BYTE | OP_IMM8;
    case 0xc1:
        return OP_BOTH | OP_IMM8;
    case 0xc6:
        return reg ? OP_NO : OP_WRITE | OP_BYTE | OP_IMM8;
    case 0xc7:
        return reg ? OP_NO : OP_WRITE | OP_IMM;
    case 0xd0:
    case 0xd2:
        return OP_BOTH | OP_BYTE;
    case 0xd1:
    case 0xd3:
        return OP_BOTH;
    case 0xd9: {
        static const int by_reg[] = {
            OP_READ | OP_DOUBLE, OP_NO, OP_WRITE | OP_DOUBLE, OP_WRITE | OP_DOUBLE, OP_NO,
            OP_READ | OP_WORD,   OP_NO, OP_WRITE | OP_WORD};
        return by_reg[reg];
    }
    case 0xdb: {
        static const int by_reg[] = {OP_READ | OP_DOUBLE,
                                     OP_WRITE | OP_DOUBLE,
                                     OP_WRITE | OP_DOUBLE,
                                     OP_WRITE | OP_DOUBLE,
                                     OP_NO,
                                     OP_NO,
                                     OP_NO,
                                     OP_NO};
        return by_reg[reg];
    }
    case 0xdd: {
        static const int by_reg[] = {OP_READ | OP_QUAD,
                                     OP_WRITE | OP_QUAD,
                                     OP_WRITE | OP_QUAD,
                                     OP_WRITE | OP_QUAD,
                                     OP_NO,
                                     OP_NO,
                                     OP_NO,
                                     OP_WRITE | OP_WORD};
        return by_reg[reg];
    }
    case 0xdf: {
        static const int by_reg[] = {OP_READ | OP_WORD,
                                     OP_WRITE | OP_WORD,
                                     OP_WRITE | OP_WORD,
                                     OP_WRITE | OP_WORD,
                                     OP_NO,
                                     OP_READ | OP_QUAD,
                                     OP_NO,
                                     OP_WRITE | OP_QUAD};
        return by_reg[reg];
    }
    case 0xd8:
    case 0xda:
        return OP_READ | OP_DOUBLE;
    case 0xdc:
        return OP_READ | OP_QUAD;
    case 0xde:
        return OP_READ | OP_WORD;
    case 0xf6:
        return reg < 2 ? OP_READ | OP_BYTE | OP_IMM8 : reg < 4 ? OP_BOTH | OP_BYTE : OP_READ | OP_BYTE;
    case 0xf7:
        return reg < 2 ? OP_READ | OP_IMM : reg < 4 ? OP_BOTH : OP_READ;
    case 0xfe:
        return reg < 2 ? OP_BOTH | OP_BYTE : OP_NO;
    case 0xff:
        return reg < 2 ? OP_BOTH : OP_NO;
    }
    return OP_NO;
}

static int describe_0f(uint8_t op, int reg, const struct hww_instruction *self)
{
    if (op >= 0x40 && op <= 0x4f && !self->vex)
        return OP_READ | OP_LOADS;
    if (op >= 0x90 && op <= 0x9f && !self->vex)
        return OP_WRITE | OP_BYTE;
    switch (op) {
    case 0x10:
        return OP_READ | OP_SCALAR;
    case 0x11:
        return OP_WRITE | OP_SCALAR;
    case 0x12:
    case 0x16:
        return self->prefixF2 || self->prefixF3 ? OP_NO : OP_READ | OP_QUAD;
    case 0x13:
    case 0x17:
        return OP_WRITE | OP_QUAD;
    case 0x28:
        return OP_READ | OP_VECTOR;
    case 0x29:
    case 0x2b:
        return OP_WRITE | OP_VECTOR;
    case 0x2a:
        return self->prefixF2 || self->prefixF3 ? OP_READ : OP_NO;
    case 0x2c:
    case 0x2d:
        return self->prefixF2   ? OP_READ | OP_QUAD | OP_LOADS
               : self->prefixF3 ? OP_READ | OP_DOUBLE | OP_LOADS
                                : OP_NO;
    case 0x2e:
    case 0x2f:
        return OP_READ | (self->prefix66 ? OP_QUAD : OP_DOUBLE);
    case 0x5a:
        return self->prefixF2 ? OP_READ | OP_QUAD : self->prefixF3 ? OP_READ | OP_DOUBLE : OP_NO;
    case 0x6e:
        return OP_READ | (self->rex_w ? OP_QUAD : OP_DOUBLE);
    case 0x7e:
        return self->prefixF3 ? OP_READ | OP_QUAD : OP_WRITE | (self->rex_w ? OP_QUAD : OP_DOUBLE);
    case 0x6f:
        return OP_READ | OP_VECTOR;
    case 0x7f:
    case 0xe7:
        return OP_WRITE | OP_VECTOR;
    case 0xd6:
        return OP_WRITE | OP_QUAD;
    case 0x70:
    case 0xc6:
        return OP_READ | OP_VECTOR | OP_IMM8;
    case 0xc2:
        return OP_READ | OP_SCALAR | OP_IMM8;
    case 0xa3:
        return OP_NO; /* bt reaches beyond its operand */
    case 0xa4:
    case 0xac:
        return OP_BOTH | OP_IMM8;
    case 0xa5:
    case 0xad:
        return OP_BOTH;
    case 0xaf:
    case 0xb8:
    case 0xbc:
    case 0xbd:
        return OP_READ | OP_LOADS;
    case 0xb0:
        return OP_BOTH | OP_BYTE;
    case 0xb1:
        return OP_BOTH;
    case 0xb6:
    case 0xbe:
        return OP_READ | OP_BYTE | OP_LOADS;
    case 0xb7:
    case 0xbf:
        return OP_READ | OP_WORD | OP_LOADS;
    case 0xba:
        return reg == 4 ? OP_READ | OP_IMM8 : reg > 4 ? OP_BOTH | OP_IMM8 : OP_NO;
    case 0xc0:
        return OP_BOTH | OP_BYTE | OP_LOADS;
    case 0xc1:
        return OP_BOTH | OP_LOADS;
    case 0xc3:
        return OP_WRITE;
    case 0xc7:
        return reg == 1 ? OP_BOTH | (self->rex_w ? OP_VECTOR : OP_QUAD) : OP_NO;
    }
    if (op == 0xe6 ||
        (self->vex && ((op >= 0xd1 && op <= 0xd3) || op == 0xe1 || op == 0xe2 || (op >= 0xf1 && op <= 0xf3))))
        return OP_NO; /* operands smaller than the vector */
    if ((op >= 0x51 && op <= 0x5f) && op != 0x5b)
        return OP_READ | OP_SCALAR;
    if ((op >= 0x60 && op <= 0x6d) || op == 0x5b || op == 0x14 || op == 0x15 || (op >= 0x74 && op <= 0x76) ||
        op >= 0xd0)
        return OP_READ | OP_VECTOR;
    return OP_NO;
}

static int describe_0f38(uint8_t op, const struct hww_instruction *self)
{
    if (op == 0xf0)
        return self->prefixF2 ? OP_NO : OP_READ | OP_LOADS;
    if (op == 0xf1)
        return self->prefixF2 ? OP_NO : OP_WRITE;
    if (self->vex) {
        int scalar = self->rex_w ? OP_QUAD : OP_DOUBLE;
        if (op >= 0x96 && op <= 0xbf && (op & 7) != 0)
            return OP_READ | ((op & 0xf) >= 0x9 && (op & 1) ? scalar : OP_VECTOR);
        if (op == 0x18 || op == 0x58)
            return OP_READ | OP_DOUBLE;
        if (op == 0x19 || op == 0x59)
            return OP_READ | OP_QUAD;
        if (op == 0x78)
            return OP_READ | OP_BYTE;
        if (op == 0x79)
            return OP_READ | OP_WORD;
        return OP_NO; /* masked and gathered accesses among them */
    }
    if (op <= 0x0b || (op >= 0x1c && op <= 0x1e) || op == 0x28 || op == 0x29 || op == 0x2a ||
        (op >= 0x37 && op <= 0x40))
        return OP_READ | OP_VECTOR;
    return OP_NO;
}

static int describe_0f3a(uint8_t op)
{
    switch (op) {
    case 0x14:
        return OP_WRITE | OP_BYTE | OP_IMM8;
    case 0x15:
        return OP_WRITE | OP_WORD | OP_IMM8;
    case 0x17:
        return OP_WRITE | OP_DOUBLE | OP_IMM8;
    case 0x0a:
        return OP_READ | OP_DOUBLE | OP_IMM8;
    case 0x0b:
        return OP_READ | OP_QUAD | OP_IMM8;
    }
    return OP_NO;
}

/* `reg` is the middle field of ModRM, which some opcodes share; OP_NO: no memory operand, or none that is
 * known here. */
int hww_opcode_flags(const struct hww_instruction *self, uint8_t op, int reg)
{
    switch (self->map) {
    case 0:
        return describe_one_byte(op, reg);
    case 1:
        return describe_0f(op, reg, self);
    case 2:
        return describe_0f38(op, self);
    default:
        return describe_0f3a(op);
    }
}
