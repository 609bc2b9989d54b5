/* Names of one instruction set level: RN(softmax_rows) is softmax_rows_avx2 in the avx2 objects. */
#ifndef REFNORM_NAMES_H
#define REFNORM_NAMES_H

#if defined(__GNUC__)
#define RN_EXPORT __attribute__((visibility("default")))
#define RN_INLINE static inline __attribute__((always_inline, unused))
#endif

#ifdef REFNORM_ISA_NAME
#define RN_PASTE2(a, b) a##_##b
#define RN_PASTE(a, b) RN_PASTE2(a, b)
#define RN(name) RN_PASTE(name, REFNORM_ISA_NAME)
/* RN_TABLE(softmax) = {...}; ends a family's source: the one symbol that a level exports. */
#define RN_TABLE(family) \
    extern const rn_##family##_table RN(rn_##family##_table); \
    const rn_##family##_table RN(rn_##family##_table)
#endif

#endif
