/* Derivative of a fully connected layer and of its logits, from the inner products <x, z_k> and the gaps: one dtype. */

/* A row's numbers, `padded` to whole vectors: p and A = arsinh(p), a = 2|z| A, sinh and cosh of a (times e^-shift), the
 * cotangent after the projection, and the cotangent of A. */
typedef struct {
    double *p, *angle, *a, *sinh, *cosh, *up, *dangle;
} N(columns);

static void N(angles_of_row)(const T *inner, size_t length, double gap, const rn_planes *planes, N(columns) * r) {
    EACH(inner, x, {
        vf64 p = (x * vf64_load(planes->slope + k) - (2 - gap) * vf64_load(planes->sinh + k)) / gap;
        vf64 angle = vf64_copysign(SINGLE ? arsinh_lanes_wide(vf64_abs(p)) : arsinh_lanes_full(vf64_abs(p)), p);
        vf64_store(r->p + k, p);
        vf64_store(r->angle + k, angle);
        vf64_store(r->a + k, 2.0 * vf64_load(planes->length + k) * angle);
    });
}

/* From the cotangent of A to those of inner products (over |z|) and gap, and sums for the biases; the result is the
 * cotangent of sqrt(c) by way of p, apart from p being sqrt(c) times a function of c. */
static double N(pull_sides)(const T *inner, T *m, size_t length, double gap, double root, const rn_planes *planes,
                            const N(columns) * r, double *bias_sums, double *dgap) {
    vf64 of_gap = {0}, of_root = {0};
    EACH(inner, x, {
        vf64 p = vf64_load(r->p + k), cosh = vf64_load(planes->cosh + k), sinh = vf64_load(planes->sinh + k);
        vf64 inverse = vf64_load(planes->inverse_length + k), along = x * inverse;
        vf64 size = vf64_abs(p), square_root = vf64_select((vi64)(size > 1e100), size, vf64_sqrt(1.0 + p * p));
        vf64 top = vf64_load(r->dangle + k) / square_root / gap;
        /* With the rounded slope that p was made with: near the boundary this and p's part of the gap's cotangent cancel. */
        PUT(m, top * vf64_load(planes->slope + k));
        of_gap = vf64_fma(top, sinh - p, of_gap);
        vf64 of_bias = top * (2 * root) * (2 * root * along * sinh - (2 - gap) * cosh);
        vf64_store(bias_sums + k, vf64_load(bias_sums + k) + of_bias);
        vf64 varying = 4.0 * along * vf64_load(planes->bias + k) * sinh - (2 - gap) * vf64_load(planes->excess + k);
        of_root = vf64_fma(top, varying, of_root);
    });
    *dgap = vf64_sum(of_gap);
    return root * vf64_sum(of_root);
}

/* Logits 2|z|/sqrt(c) A: the cotangent of A, sums for the lengths; the result as above. */
static double N(logits_back_row)(const T *g, size_t length, double root, const rn_planes *planes, const N(columns) * r,
                                 double *length_sums) {
    vf64 of_root = {0};
    EACH(g, u, {
        vf64 angle = vf64_load(r->angle + k), pace = 2 / root * u, dangle = pace * vf64_load(planes->length + k);
        vf64_store(r->dangle + k, dangle);
        vf64_store(length_sums + k, vf64_load(length_sums + k) + pace * angle);
        of_root = vf64_fma(dangle, tanh_excess_signed(angle, vf64_load(r->p + k)), of_root);
    });
    return vf64_sum(of_root) / root;
}

/* y = W/(sqrt(c)(1 + T)), W = sinh(a), T = sqrt(1 + |W|^2): y turns with the part of dW across W and grows with |W|. */
static double N(layer_back_row)(const T *g, size_t length, double curvature, double margin, const rn_planes *planes,
                                const N(columns) * r, double *length_sums, double *terms) {
    double root = sqrt(curvature), top = 0;
    size_t largest = 0, padded = planes->padded;
    for (size_t i = 0; i < length; i++)
        if (fabs(r->a[i]) > top) top = fabs(r->a[largest = i]);
    double shift = top > SINH_LIMIT ? top - SINH_LIMIT : 0, one = exp(-shift);
    vf64 sum = {0};
    for (size_t k = 0; k < padded; k += VF64) {
        vf64 a = vf64_load(r->a + k), size = vf64_abs(a), held = vf64_min(vf64_set(SINH_LIMIT), size);
        vf64 e = vf64_exp(held), inverse = 1.0 / e;
        vf64 excess = shift == 0 ? vf64_set(1.0) : vf64_exp(size - held - shift);
        vf64 cosh = 0.5 * (e + inverse), z = size * size;
        vf64 sinh = vf64_select((vi64)(size <= SERIES_LIMIT), size * cosh - size * z * cosh_excess_lanes(z), 0.5 * (e - inverse));
        sinh = vf64_copysign(sinh * excess, a);
        vf64_store(r->sinh + k, sinh);
        vf64_store(r->cosh + k, cosh * excess);
        sum = vf64_fma(sinh, sinh, sum);
    }
    double square = vf64_sum(sum), size = sqrt(square), term = sqrt(one * one + square);
    /* So short a W bends nothing: the map is a multiplication by 1/(2 sqrt(c)). */
    double inverse = square > 1e-280 || square != square ? 1 / size : 0;
    sum = (vf64){0};
    EACH(g, u, { sum = vf64_fma(u, vf64_load(r->sinh + k) * inverse, sum); });
    double radial = vf64_sum(sum), shrink = 1, removed = 0;
    *terms = 0;
    if (margin >= 0 && size / (one + term) > 1 - margin) {
        shrink = (1 - margin) * (one + term) / size;
        removed = radial;
        *terms = -(1 - margin) / (2 * curvature * root) * radial;
    }
    sum = (vf64){0};
    EACH(g, u, {
        vf64 heading = vf64_load(r->sinh + k) * inverse;
        vf64 up = shrink == 1 ? u : (u - removed * heading) * shrink;
        vf64_store(r->up + k, up);
        sum = vf64_fma(up, heading, sum);
    });
    radial = vf64_sum(sum);
    /* One entry may dwarf all others; its part across is then known better as a sum of small terms. */
    double h_top = r->sinh[largest] * inverse, up_top = r->up[largest];
    sum = (vf64){0};
    for (size_t k = 0; k < padded; k += VF64) {
        vf64 heading = vf64_load(r->sinh + k) * inverse, mine = heading * up_top, theirs = vf64_load(r->up + k) * h_top;
        /* The entry's own difference is 0 only if both products are rounded. */
        OPAQUE_LANES(mine);
        OPAQUE_LANES(theirs);
        sum = vf64_fma(heading, mine - theirs, sum);
    }
    double across_top = inverse == 0 ? up_top : vf64_sum(sum);
    double outer = 1 / (root * (one + term)), grow = one / term * radial;
    vf64 near = {0}, far = {0}, rising = {0}, of_angle = {0};
    for (size_t k = 0; k < padded; k += VF64) {
        vf64 a = vf64_load(r->a + k), sinh = vf64_load(r->sinh + k), cosh = vf64_load(r->cosh + k), z = a * a;
        vf64 heading = sinh * inverse, up = vf64_load(r->up + k), across = up - radial * heading;
        if (largest - k < VF64) across[largest - k] = across_top;
        vf64 bracket = across + grow * heading, da = outer * cosh * bracket, angle = vf64_load(r->angle + k);
        vf64 together = vf64_select((vi64)(z <= SERIES_LIMIT), a * z * cosh_excess_lanes(z) * one, a * cosh - sinh);
        near = vf64_fma(up, together, near);
        far = vf64_fma(bracket, a * cosh, far);
        rising = vf64_fma(heading, a * cosh, rising);
        vf64 dangle = 2.0 * vf64_load(planes->length + k) * da;
        vf64_store(r->dangle + k, dangle);
        vf64_store(length_sums + k, vf64_load(length_sums + k) + 2.0 * da * angle);
        of_angle = vf64_fma(dangle, tanh_excess_signed(angle, vf64_load(r->p + k)), of_angle);
    }
    /* In sqrt(c): what is left when -<g,y> and the leading part of <da,a> have cancelled, for short y. */
    double bent = term > 2 * one ? vf64_sum(far) - radial * size
                                 : vf64_sum(near) - radial * square / (one + term) / term * vf64_sum(rising);
    return outer / root * bent + vf64_sum(of_angle) / root;
}

static int N(linear_back)(int layer, const T *inner, const T *g, const double *gaps, const rn_planes *planes, T *m,
                          double *dgaps, double *terms, double *length_sums, double *bias_sums, size_t rows, size_t length,
                          double curvature, double margin) {
    int failed = 0;
    size_t padded = planes->padded;
    double root = sqrt(curvature);
    int threads = rn_threads((rows + BLOCK - 1) / BLOCK, 6.0 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE((rows + BLOCK - 1) / BLOCK, first, last);
        double *room = rn_scratch(0, 7 * padded * sizeof(double));
        if (room == NULL) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        } else {
            memset(room, 0, 7 * padded * sizeof(double));
            N(columns) r = {room, room + padded, room + 2 * padded, room + 3 * padded, room + 4 * padded, room + 5 * padded,
                            room + 6 * padded};
            /* Sums over the rows of a block, which does not depend on the threads. */
            for (size_t block = first; block < last; block++) {
                double *of_lengths = length_sums + block * padded, *of_biases = bias_sums + block * padded;
                memset(of_lengths, 0, padded * sizeof(double));
                memset(of_biases, 0, padded * sizeof(double));
                for (size_t row = block * BLOCK; row < rows && row < (block + 1) * BLOCK; row++) {
                    const T *x = inner + row * length, *up = g + row * length;
                    double droot, term = 0;
                    N(angles_of_row)(x, length, gaps[row], planes, &r);
                    if (layer)
                        droot = N(layer_back_row)(up, length, curvature, margin, planes, &r, of_lengths, &term);
                    else
                        droot = N(logits_back_row)(up, length, root, planes, &r, of_lengths);
                    droot += N(pull_sides)(x, m + row * length, length, gaps[row], root, planes, &r, of_biases, dgaps + row);
                    terms[row] = term + droot / (2 * root);
                }
            }
        }
    }
    return failed;
}

/* What the gaps add to the cotangents of the points and of the curvature: dgap = -2c<x,dx> - |x|^2 dc. */
static void N(gaps_back)(const T *x, const double *dgaps, T *dx, double *terms, size_t rows, size_t length,
                         double curvature) {
    int threads = rn_threads(rows, (double)rows * (10.0 + 0.5 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * length;
            T *to = dx + row * length;
            double pace = -2 * curvature * dgaps[row];
            vf64 sum = {0};
            EACH_PAIR(from, to, a, d, {
                sum = vf64_fma(a, a, sum);
                PUT(to, vf64_fma(a, vf64_set(pace), d));
            });
            terms[row] -= dgaps[row] * vf64_sum(sum);
        }
    }
}

/* In place, columns d of a (depth, width) matrix: d - <d,e> e + dlength e with e = z/|z|, of the columns z of `weight`. */
static void N(turn_columns)(T *d, const T *weight, const double *lengths, const double *dlengths, double *along, size_t depth,
                            size_t width) {
    for (size_t k = 0; k < width; k++) along[k] = -dlengths[k];
    for (size_t i = 0; i < depth; i++)
        for (size_t k = 0; k < width; k++) along[k] += (double)d[i * width + k] * ((double)weight[i * width + k] / lengths[k]);
    for (size_t i = 0; i < depth; i++)
        for (size_t k = 0; k < width; k++)
            d[i * width + k] = (T)((double)d[i * width + k] - along[k] * ((double)weight[i * width + k] / lengths[k]));
}
