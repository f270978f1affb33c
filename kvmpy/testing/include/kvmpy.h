/*
 * Assertions for guests, in assembly and in C: #include "kvmpy.h".
 *
 * An assertion that holds costs a compare and a jump, changes nothing but the flags, and works in every mode. One that
 * doesn't writes to a port; the test then fails at this line. What was asserted is in a section that isn't loaded.
 */
#ifndef KVMPY_H
#define KVMPY_H

#define KVMPY_ASSERT_PORT 0xee
#define KVMPY_EXIT_PORT 0xf4

#ifdef __ASSEMBLER__

#define KVMPY_FAIL(text, kind)					\
	6643: out %al, $KVMPY_ASSERT_PORT;			\
	.pushsection .rodata; 6644: .asciz text; 6645: .asciz __FILE__; .popsection;	\
	.pushsection .kvmpy_assert, "", @progbits;		\
	.quad 6643b, __LINE__, 6645b, 6644b, kind; .popsection

/* ASSERT(e), ASSERT(nz), ASSERT(a) …: a condition as in jcc, of the flags as they are. */
#define ASSERT(condition) j##condition 6642f; KVMPY_FAIL(KVMPY_TEXT(ASSERT(condition)), 0); 6642:
#define KVMPY_COMPARE(condition, left, right, text) cmp right, left; j##condition 6642f; KVMPY_FAIL(KVMPY_TEXT(text), 1); 6642:

/* Two operands, as for cmp, but in the order they are read in: ASSERT_LT(%eax, $10) is eax < 10 (unsigned). */
#define ASSERT_EQ(left, right) KVMPY_COMPARE(e, left, right, ASSERT_EQ(left, right))
#define ASSERT_NE(left, right) KVMPY_COMPARE(ne, left, right, ASSERT_NE(left, right))
#define ASSERT_LT(left, right) KVMPY_COMPARE(b, left, right, ASSERT_LT(left, right))
#define ASSERT_LE(left, right) KVMPY_COMPARE(be, left, right, ASSERT_LE(left, right))
#define ASSERT_GT(left, right) KVMPY_COMPARE(a, left, right, ASSERT_GT(left, right))
#define ASSERT_GE(left, right) KVMPY_COMPARE(ae, left, right, ASSERT_GE(left, right))

/* Ends the run with this status. */
#define EXIT(status) mov $status, %al; out %al, $KVMPY_EXIT_PORT

#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

static inline u64 rdmsr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 index, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline void print(const char *text)
{
	while (*text)
		outb(0x3f8, (u8)*text++);
}

#define KVMPY_FAIL(left, right, text, kind)					\
	__asm__ volatile("6643: outb %%al, %4\n\t"				\
			 ".pushsection .kvmpy_assert, \"\", @progbits\n\t"	\
			 ".quad 6643b, %c0, %c1, %c2, %c3\n\t.popsection"	\
			 : : "i"(__LINE__), "i"(__FILE__), "i"(text), "i"(kind), "N"(KVMPY_ASSERT_PORT),	\
			     "a"(left), "d"(right) : "memory")

#define ASSERT(condition)							\
	do {									\
		if (!(condition))						\
			KVMPY_FAIL(0, 0, KVMPY_TEXT(ASSERT(condition)), 0);	\
	} while (0)

#define KVMPY_COMPARE(op, a, b, text)						\
	do {									\
		u64 kvmpy_a = (u64)(a), kvmpy_b = (u64)(b);			\
		if (!(kvmpy_a op kvmpy_b))					\
			KVMPY_FAIL(kvmpy_a, kvmpy_b, KVMPY_TEXT(text), 2);	\
	} while (0)

/* Two numbers, compared without a sign in 64 bits; both are in the message. */
#define ASSERT_EQ(a, b) KVMPY_COMPARE(==, a, b, ASSERT_EQ(a, b))
#define ASSERT_NE(a, b) KVMPY_COMPARE(!=, a, b, ASSERT_NE(a, b))
#define ASSERT_LT(a, b) KVMPY_COMPARE(<, a, b, ASSERT_LT(a, b))
#define ASSERT_LE(a, b) KVMPY_COMPARE(<=, a, b, ASSERT_LE(a, b))
#define ASSERT_GT(a, b) KVMPY_COMPARE(>, a, b, ASSERT_GT(a, b))
#define ASSERT_GE(a, b) KVMPY_COMPARE(>=, a, b, ASSERT_GE(a, b))

#define EXIT(status) outb(KVMPY_EXIT_PORT, status)

#endif

#define KVMPY_TEXT(...) #__VA_ARGS__

#endif
