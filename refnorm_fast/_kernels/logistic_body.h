/* The logistic function and its relatives on vectors of one type. The including file defines VT, VI, V(name), N(name),
 * FARTHEST (from where on the results are 0 or x), and ATANH_TERMS with atanh_terms.
 *
 * All of them are made of e = exp(-|x|) = 2^n m. To stay within 2 units in the last place, m and the quotients are
 * carried as a rounded value and its error, where the level has a fused multiply-add to tell the error; and what is
 * small is scaled by 2^n last, so that subnormal results are rounded once. */

typedef struct {
    VT m, m_error; /* e = 2^n (m + m_error) */
    VT n;
    VT e, e_error;
} N(exponential);

RN_INLINE N(exponential) N(exp_of_minus)(VT size) {
    N(exponential) x;
    VT low, minus = -V(min)(V(set)(FARTHEST), size); /* NaN passes: it is the second */
    x.n = V(exp_exponent)(minus) - RINT_MAGIC;
    VT t = V(exp_reduce_pair)(minus, x.n, &low), rest = V(expm1_core)(t) + low;
    x.m = 1 + rest;
    x.m_error = rest - (x.m - 1);
    x.e = V(ldexp)(x.m, x.n);
    x.e_error = V(ldexp)(x.m_error, x.n);
    return x;
}

/* (top + top_error) / (1 + e) or, with `base` 2, / (2 + e): the rounded quotient, and its error in *error. */
RN_INLINE VT N(divide)(VT top, VT top_error, const int base, N(exponential) x, VT *error) {
    VT one_or_two = V(set)(base);
    VT bottom = one_or_two + x.e, bottom_error = (x.e - (bottom - one_or_two)) + x.e_error;
    VT inverse = 1 / bottom, quotient = top * inverse;
    *error = V(set)(0);
#if VEC_HAS_FMA
    VT rest = V(fma)(-quotient, bottom, top);
    *error = (V(fma)(-quotient, bottom_error, rest) + top_error) * inverse;
#else
    (void)bottom_error, (void)top_error;
#endif
    return quotient;
}

RN_INLINE VT N(sigmoid)(VT x) {
    N(exponential) e = N(exp_of_minus)(V(abs)(x));
    VI negative = x < 0;
    VT error, top = V(select)(negative, e.m, V(set)(1));
    VT y = N(divide)(top, V(select)(negative, e.m_error, V(set)(0)), 1, e, &error);
    return V(ldexp)(y + error, V(select)(negative, e.n, V(set)(0)));
}

RN_INLINE VT N(silu)(VT x) {
    N(exponential) e = N(exp_of_minus)(V(abs)(x));
    VI negative = x < 0;
    VT error, top = V(select)(negative, e.m, V(set)(1));
    VT weight = N(divide)(top, V(select)(negative, e.m_error, V(set)(0)), 1, e, &error);
    VT bounded = V(max)(V(set)(-FARTHEST), x); /* -inf times 0 */
    VT y = bounded * weight;
#if VEC_HAS_FMA
    /* Infinity less itself has no place in a correction. */
    VT correction = V(fma)(bounded, weight, -y) + bounded * error;
    y += V(select)(x < FARTHEST, correction, V(set)(0));
#endif
    /* The correction of -0 is 0, and their sum has lost the sign. */
    return V(copysign)(V(ldexp)(y, V(select)(negative, e.n, V(set)(0))), x);
}

/* log(1 + e) = 2 atanh(e / (2 + e)), and the quotient is at most 1/3. */
RN_INLINE VT N(softplus)(VT x) {
    N(exponential) e = N(exp_of_minus)(V(abs)(x));
    VT error, q = N(divide)(e.m, e.m_error, 2, e, &error);
    VT root = V(ldexp)(q, e.n), square = root * root, series = V(set)(atanh_terms[ATANH_TERMS - 1]);
#pragma GCC unroll 16
    for (int i = ATANH_TERMS - 2; i >= 0; i--) series = V(fma)(series, square, V(set)(atanh_terms[i]));
    VT small = V(ldexp)(2 * (q + V(fma)(q * square, series, error)), e.n);
    return V(select)(x < 0, small, x + small);
}

/* e / (1 + e)^2, even in x. */
RN_INLINE VT N(sigmoid_slope)(VT x) {
    N(exponential) e = N(exp_of_minus)(V(abs)(x));
    VT inverse = 1 / (1 + e.e);
    return V(ldexp)(e.m * inverse * inverse, e.n);
}

RN_INLINE VT N(silu_slope)(VT x) {
    N(exponential) e = N(exp_of_minus)(V(abs)(x));
    VT inverse = 1 / (1 + e.e), slope = V(ldexp)(e.m * inverse * inverse, e.n);
    VT near = V(min)(V(set)(FARTHEST), V(max)(V(set)(-FARTHEST), x));
    return V(fma)(near, slope, V(select)(x < 0, e.e * inverse, inverse));
}
