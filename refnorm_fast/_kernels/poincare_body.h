/* Rows of one dtype: T the entries, N(name) the names, SINGLE whether T is float. Included twice by poincare.c. */

#include "poincare_rows.h"

/* z = scale * x where |x| overflows or 1/|x| would underflow: in units in which it does neither. */
static void N(scale_long)(const T *x, T *z, size_t length, double radius) {
    double small = radius / sqrt(N(square)(x, length, 0x1p-1000));
    EACH(x, a, { PUT(z, a * 0x1p-1000 * small); });
}

/* z = scale * x for one of the maps, from s = sqrt(c)|x| and where tanh or arsinh leads to. */
static void N(scale_row)(int op, const T *x, T *z, size_t length, double curvature, double margin, double s, double reach) {
    double root = sqrt(curvature), scale = s > 0 ? reach / s : 1;
    if (op != RN_LOG0) {
        int clipped = margin >= 0 && reach > 1 - margin;
        if (clipped) reach = 1 - margin;
        if (s / root > 1e290 && (clipped || op == RN_EXP0)) {
            N(scale_long)(x, z, length, reach / root);
            N(inside)(z, length, curvature);
            return;
        }
        scale = clipped || (op == RN_EXP0 && s > 0) ? reach / s : 1;
    }
    if (scale == 1)
        memmove(z, x, length * sizeof(T));
    else
        EACH(x, a, { PUT(z, a * scale); });
    if (op != RN_LOG0 && !(reach < 1 - 1e-4)) N(inside)(z, length, curvature);
}

static int N(unary_block)(int op, const T *x, size_t x_stride, T *z, size_t rows, size_t length, double curvature,
                          double margin) {
    double s[BLOCK] = {0}, reach[BLOCK] = {0}, root = sqrt(curvature);
    int outside = 0;
    for (size_t i = 0; i < rows; i++) {
        const T *row = x + i * x_stride;
        double square = 0, gap = 1;
        if (op == RN_LOG0) gap = N(gap_of)(row, length, curvature, &square);
        s[i] = root * (square > 1e-280 && square < 1e300 ? sqrt(square) : N(length_of)(row, NULL, 0, length));
        reach[i] = op == RN_LOG0 ? s[i] / sqrt(gap) : s[i];
        outside |= gap <= 0;
    }
    if (op == RN_EXP0) tanh_block(reach, !SINGLE);
    if (op == RN_LOG0) arsinh_block(reach, !SINGLE);
    for (size_t i = 0; i < rows; i++)
        N(scale_row)(op, x + i * x_stride, z + i * length, length, curvature, margin, s[i], reach[i]);
    return outside;
}

static int N(unary)(int op, const T *x, size_t x_stride, T *z, T *kept, size_t rows, size_t length, double curvature,
                    double margin) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (20.0 + 0.6 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row += BLOCK) {
            size_t count = last - row < BLOCK ? last - row : BLOCK;
            mine |= N(unary_block)(op, x + row * x_stride, x_stride, z + row * length, count, length, curvature, margin);
            N(keep_rows)(kept ? kept + row * length : NULL, x + row * x_stride, x_stride, count, length);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

/* z = (gap_x w + S x)/D with w = x + y, S = c|w|^2, D = gap_x gap_y + S. */
static int N(add_row)(const T *x, const T *y, T *z, size_t length, double curvature) {
    double xx, yy, gap_x = N(gap_of)(x, length, curvature, &xx), gap_y = N(gap_of)(y, length, curvature, &yy);
    double spread = curvature * N(square_of_sum)(x, y, 1.0, length, 1.0);
    double denominator = gap_x * gap_y + spread, of_sum = gap_x / denominator, of_x = spread / denominator;
    EACH_PAIR(x, y, a, b, { PUT(z, vf64_fma((a + b), vf64_set(of_sum), a * of_x)); });
    if (!(gap_x * gap_y / denominator > SAFE_GAP)) N(inside)(z, length, curvature);
    return gap_x <= 0 || gap_y <= 0;
}

static int N(log_block)(const T *x, size_t x_stride, const T *y, size_t y_stride, T *z, size_t rows, size_t length,
                        double curvature) {
    double gap_x[BLOCK], gap_y[BLOCK], size[BLOCK], p[BLOCK] = {0}, a[BLOCK] = {0}, root = sqrt(curvature), square;
    int outside = 0;
    for (size_t i = 0; i < rows; i++) {
        gap_x[i] = N(gap_of)(x + i * x_stride, length, curvature, &square);
        gap_y[i] = N(gap_of)(y + i * y_stride, length, curvature, &square);
        size[i] = N(length_of)(y + i * y_stride, x + i * x_stride, -1.0, length);
        a[i] = p[i] = root * size[i] / sqrt(gap_x[i] * gap_y[i]);
        outside |= gap_x[i] <= 0 || gap_y[i] <= 0;
    }
    arsinh_block(a, !SINGLE);
    for (size_t i = 0; i < rows; i++) {
        const T *from = x + i * x_stride, *to = y + i * y_stride;
        T *result = z + i * length;
        /* gap_x A/sqrt(c) (gap_x w/|w| - c|w| x)/sqrt(D), with A/(sqrt(c)|w|) = (A/p)/sqrt(gap_x gap_y). */
        double both = gap_x[i] * gap_y[i], denominator = both + curvature * size[i] * size[i];
        double pace = gap_x[i] * (p[i] > 0 ? a[i] / p[i] : 1) / sqrt(both * denominator);
        double of_x = -pace * curvature * size[i] * size[i], of_w = pace * gap_x[i];
        EACH_PAIR(from, to, l, r, { PUT(result, vf64_fma((r - l), vf64_set(of_w), l * of_x)); });
    }
    return outside;
}

/* From the start's gap and |x|^2, the velocity's length, t = sqrt(c)|v|/gap, reach = tanh(t) and decay = e^-2t. */
static void N(exp_row)(const T *x, const T *v, T *z, size_t length, double curvature, double margin, double gap_x, double xx,
                       double size, double reach, double decay) {
    double root = sqrt(curvature), radius = root * sqrt(xx), gap_b = 4 * decay / ((1 + decay) * (1 + decay));
    if (size == 0) size = 1; /* the direction is a vector of zeros */
    int exponent;
    frexp(size, &exponent);
    /* In two steps, so that neither a subnormal nor an enormous length leaves the range. */
    double first = ldexp(1.0, exponent > 1000 ? -1000 : exponent < -1000 ? 1000 : 0);
    double unit = 1 / (size * first);
    vf64 sum = {0};
    EACH_PAIR(x, v, a, b, { sum = vf64_fma(a * root, b * first * unit, sum); });
    double inner = vf64_sum(sum);
    int diving = inner < 0 && radius >= OUTER;
    double beyond = fmin(radius, reach) < OUTER ? reach - radius : gap_x / (1 + radius) - 2 * decay / (1 + decay);
    /* sqrt(c) x + tanh(t) e, by way of sqrt(c) x + radius e where the geodesic dives through the ball. */
    double along = diving ? radius : reach, more = diving ? beyond : 0;
    sum = (vf64){0};
    EACH_PAIR(x, v, a, b, {
        vf64 total = vf64_fma(b * first * unit, vf64_set(along), a * root);
        sum = vf64_fma(total, total, sum);
    });
    double spread = vf64_sum(sum);
    if (diving) spread = beyond * beyond + reach * spread / radius;
    double denominator = gap_x * gap_b + spread, of_sum = gap_x / (root * denominator), of_x = spread / denominator;
    double gap_z = gap_x * gap_b / denominator, radius_z = sqrt(spread / denominator);
    if (margin >= 0 && radius_z > 1 - margin) {
        double shrink = (1 - margin) / radius_z;
        of_sum *= shrink;
        of_x *= shrink;
        gap_z = margin;
    }
    EACH_PAIR(x, v, a, b, {
        vf64 e = b * first * unit;
        vf64 total = vf64_fma(e, vf64_set(along), a * root) + e * more;
        PUT(z, vf64_fma(total, vf64_set(of_sum), a * of_x));
    });
    if (!(gap_z > SAFE_GAP)) N(inside)(z, length, curvature);
}

static int N(exp_block)(const T *x, size_t x_stride, const T *v, size_t v_stride, T *z, size_t rows, size_t length,
                        double curvature, double margin) {
    double gap[BLOCK], square[BLOCK], size[BLOCK], reach[BLOCK] = {0}, decay[BLOCK] = {0}, root = sqrt(curvature);
    int outside = 0;
    for (size_t i = 0; i < rows; i++) {
        gap[i] = N(gap_of)(x + i * x_stride, length, curvature, &square[i]);
        size[i] = N(length_of)(v + i * v_stride, NULL, 0, length);
        double t = root * size[i] / gap[i];
        reach[i] = decay[i] = t > SATURATED ? SATURATED : t;
        outside |= gap[i] <= 0;
    }
    tanh_block(reach, !SINGLE);
    decay_block(decay, !SINGLE);
    for (size_t i = 0; i < rows; i++)
        N(exp_row)(x + i * x_stride, v + i * v_stride, z + i * length, length, curvature, margin, gap[i], square[i], size[i],
                   reach[i], decay[i]);
    return outside;
}

static int N(binary)(int op, const T *x, size_t x_stride, const T *y, size_t y_stride, T *z, T *kept_x, T *kept_y,
                     size_t rows, size_t length, double curvature, double margin) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (40.0 + 1.5 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row += BLOCK) {
            size_t count = last - row < BLOCK ? last - row : BLOCK;
            const T *a = x + row * x_stride, *b = y + row * y_stride;
            T *to = z + row * length;
            if (op == RN_LOGMAP)
                mine |= N(log_block)(a, x_stride, b, y_stride, to, count, length, curvature);
            else if (op == RN_EXPMAP)
                mine |= N(exp_block)(a, x_stride, b, y_stride, to, count, length, curvature, margin);
            else
                for (size_t i = 0; i < count; i++)
                    mine |= N(add_row)(a + i * x_stride, b + i * y_stride, to + i * length, length, curvature);
            N(keep_rows)(kept_x ? kept_x + row * length : NULL, a, x_stride, count, length);
            N(keep_rows)(kept_y ? kept_y + row * length : NULL, b, y_stride, count, length);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

static int N(dist)(int squared, const T *x, size_t x_stride, const T *y, size_t y_stride, T *z, T *kept_x, T *kept_y,
                   size_t rows, size_t length, double curvature) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (20.0 + (double)length));
    double root = sqrt(curvature);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row += BLOCK) {
            size_t count = last - row < BLOCK ? last - row : BLOCK;
            double a[BLOCK] = {0}, square;
            for (size_t i = 0; i < count; i++) {
                const T *from = x + (row + i) * x_stride, *to = y + (row + i) * y_stride;
                double gap_x = N(gap_of)(from, length, curvature, &square);
                double gap_y = N(gap_of)(to, length, curvature, &square);
                a[i] = root * N(length_of)(from, to, -1.0, length) / sqrt(gap_x * gap_y);
                mine |= gap_x <= 0 || gap_y <= 0;
            }
            arsinh_block(a, !SINGLE);
            for (size_t i = 0; i < count; i++) {
                double d = 2 / root * a[i];
                z[row + i] = (T)(squared ? d * d : d);
            }
            N(keep_rows)(kept_x ? kept_x + row * length : NULL, x + row * x_stride, x_stride, count, length);
            N(keep_rows)(kept_y ? kept_y + row * length : NULL, y + row * y_stride, y_stride, count, length);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

static void N(column_squares)(const T *weight, size_t depth, size_t width, double *squares) {
    for (size_t k = 0; k < width; k++) squares[k] = 0;
    for (size_t i = 0; i < depth; i++) {
        const T *row = weight + i * width;
        size_t k = 0;
        for (; k + VF64 <= width; k += VF64) {
            vf64 a = LOAD(row + k);
            vf64_store(squares + k, vf64_fma(a, a, vf64_load(squares + k)));
        }
        for (; k < width; k++) squares[k] += (double)row[k] * (double)row[k];
    }
}

static int N(gaps)(const T *x, size_t x_stride, double *gaps, size_t rows, size_t length, double curvature) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (10.0 + 0.4 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row++) {
            double square;
            gaps[row] = N(gap_of)(x + row * x_stride, length, curvature, &square);
            mine |= gaps[row] <= 0;
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

#include "poincare_rows_end.h"
