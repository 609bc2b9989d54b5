/* Softmax, log-softmax, log-sum-exp and cross-entropy over the rows of a C-contiguous matrix.
 *
 * x - largest is kept as a pair: float32 would round off the digits that decide the last places of its exponential. Sums
 * are pairs, too. stats holds for each row the largest entry and the sum of e^(x - largest) as a pair; its first term, that
 * of the largest entry itself, is 1. */

INLINE Pair below(real x, real largest) { /* x - largest, exactly where its exponential is not 0 */
    Pair d = two_sum(x, -largest);
    if (!(d.high >= VANISHES)) d.low = 0; /* so far down, or NaN, nothing hangs on it (and an overflow has left NaN) */
    return d;
}

INLINE Pair normalized(Pair sum) {
    Pair result;
    result.high = sum.high + sum.low;
    result.low = sum.low - (result.high - sum.high);
    return result;
}

/* e^(x - largest) / total, about half a unit in the last place off. */
INLINE real probability(real x, real largest, Pair total) {
    Pair d = below(x, largest);
    Exponential e = exponential(d.high, d.low);
    real quotient = e.high / total.high;
    real rest = multiply_add(-quotient, total.high, e.high) + (e.low - quotient * total.low);
    return scaled(quotient + rest / total.high, e.exponent);
}

/* The sum of e^(x - largest) over the row but for the entry `at`. */
INLINE Pair sum_of_others(Row row, index_t length, Place largest) {
    Pair sum = {0, 0};
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
        Pair d = below(row.again(i), largest.value);
        Exponential e = exponential(d.high, d.low);
        if (i != largest.at) sum = pair_add(sum, scaled(e.high, e.exponent));
    }
    return normalized(team_reduce<AddPairs>(sum));
}

INLINE Place largest_of(Row row, index_t length) {
    Place largest = {(real) -infinity(), length};
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
        Place here = {row.first(i), i};
        largest = LargestPlace::join(largest, here);
    }
    return team_reduce<LargestPlace>(largest);
}

INLINE bool is_finite(real x) { return x - x == 0; }

KERNEL softmax_rows(const real *x, real *y, index_t rows, index_t length, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Row row = row_of(x, r, length, shared, cached);
        Place largest = largest_of(row, length);
        Pair total = sum_of_others(row, length, largest);
        total = normalized(pair_add(total, is_finite(largest.value) ? (real) 1 : (real) quiet_nan()));
        for (index_t i = threadIdx.x; i < length; i += blockDim.x)
            y[r * length + i] = probability(row.again(i), largest.value, total);
    }
}

/* dx = y (g - sum(g y)). A number may be taken off g first, since the rows of y sum to 1; the entry of g at the largest y
 * is the one that keeps dx accurate where that y is nearly 1. */
KERNEL softmax_backward(const real *y, const real *g, real *dx, index_t rows, index_t length) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        const real *y_row = y + r * length, *g_row = g + r * length;
        Row row = {y_row, 0};
        Place largest = largest_of(row, length);
        double anchor = g_row[largest.at];
        double sum = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) sum += ((double) g_row[i] - anchor) * (double) y_row[i];
        sum = team_reduce<Add>(sum);
        for (index_t i = threadIdx.x; i < length; i += blockDim.x)
            dx[r * length + i] = (real) ((double) y_row[i] * (((double) g_row[i] - anchor) - sum));
    }
}

INLINE void store_stats(real *stats, index_t r, real largest, Pair total) {
    if (stats && threadIdx.x == 0) {
        stats[3 * r] = largest;
        stats[3 * r + 1] = total.high;
        stats[3 * r + 2] = total.low;
    }
}

INLINE Pair stored_total(const real *stats, index_t r) {
    Pair total = {stats[3 * r + 1], stats[3 * r + 2]};
    return total;
}

/* largest and total of a row; the logarithm of the total, from the sum without its first term, 1. */
INLINE double row_stats(Row row, index_t r, index_t length, real *stats, real *largest_out) {
    Place largest = largest_of(row, length);
    Pair others = sum_of_others(row, length, largest);
    Pair total = normalized(pair_add(others, is_finite(largest.value) ? (real) 1 : (real) quiet_nan()));
    store_stats(stats, r, largest.value, total);
    *largest_out = largest.value;
    return is_finite(largest.value) ? log1p((double) others.high + (double) others.low) : quiet_nan();
}

/* z = (x - largest) - log(total): both terms have one sign, so nothing cancels. */
KERNEL log_softmax_rows(const real *x, real *z, real *stats, index_t rows, index_t length, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Row row = row_of(x, r, length, shared, cached);
        real largest;
        double log_sum = row_stats(row, r, length, stats, &largest);
        real high = (real) log_sum, low = (real) (log_sum - high);
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            Pair d = two_sum(row.again(i), -largest);
            Pair sum = two_sum(d.high, -high);
            bool regular = is_finite(sum.high);
            z[r * length + i] = regular ? sum.high + (sum.low + (d.low - low)) : sum.high;
        }
    }
}

/* dx = g - softmax(x) sum(g) */
KERNEL log_softmax_backward(const real *x, const real *stats, const real *g, real *dx, index_t rows, index_t length) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        const real *x_row = x + r * length, *g_row = g + r * length;
        Pair total = stored_total(stats, r);
        double sum = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) sum += (double) g_row[i];
        sum = team_reduce<Add>(sum);
        for (index_t i = threadIdx.x; i < length; i += blockDim.x)
            dx[r * length + i] = (real) ((double) g_row[i] - sum * (double) probability(x_row[i], stats[3 * r], total));
    }
}

KERNEL logsumexp_rows(const real *x, real *value, real *stats, index_t rows, index_t length, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Row row = row_of(x, r, length, shared, cached);
        real largest;
        double log_sum = row_stats(row, r, length, stats, &largest);
        if (threadIdx.x == 0) value[r] = is_finite(largest) ? (real) ((double) largest + log_sum) : largest;
    }
}

/* dx = g softmax(x), one g a row */
KERNEL logsumexp_backward(const real *x, const real *stats, const real *g, real *dx, index_t rows, index_t length) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Pair total = stored_total(stats, r);
        for (index_t i = threadIdx.x; i < length; i += blockDim.x)
            dx[r * length + i] = g[r] * probability(x[r * length + i], stats[3 * r], total);
    }
}

/* ---- cross-entropy ---- */

/* One block: result[0] = targets that are counted, result[1] = the first one out of range, or `rows`. */
KERNEL count_targets(const index_t *target, index_t *result, index_t rows, index_t classes, index_t ignored) {
    double counted = 0, first = (double) rows;
    for (index_t r = threadIdx.x; r < rows; r += blockDim.x) {
        if (target[r] == ignored) continue;
        counted += 1;
        if ((target[r] < 0 || target[r] >= classes) && (double) r < first) first = (double) r;
    }
    counted = team_reduce<Add>(counted);
    Place place = {(real) -first, (index_t) first};
    Place wrong = team_reduce<LargestPlace>(place);
    if (threadIdx.x == 0) {
        result[0] = (index_t) counted;
        result[1] = wrong.at;
    }
}

/* A row's loss -(1 - s) z_target - s mean(z) in float64. */
KERNEL cross_entropy_rows(const real *x, const index_t *target, double *loss, real *stats, index_t rows, index_t length,
                          double smoothing, index_t ignored, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        if (target[r] == ignored) {
            if (threadIdx.x == 0) loss[r] = 0;
            continue;
        }
        Row row = row_of(x, r, length, shared, cached);
        real largest;
        double log_sum = row_stats(row, r, length, stats, &largest);
        double sum = 0;
        if (smoothing > 0) { /* otherwise a masked class would enter as 0 times infinity */
            for (index_t i = threadIdx.x; i < length; i += blockDim.x) sum += (double) row.again(i) - (double) largest;
            sum = team_reduce<Add>(sum);
        }
        if (threadIdx.x == 0) {
            double z = ((double) row.source[target[r]] - (double) largest) - log_sum;
            double value = -(1 - smoothing) * z;
            if (smoothing > 0) value -= smoothing * (sum / (double) length - log_sum);
            loss[r] = value;
        }
    }
}

/* weight (softmax(x) - q), weight = cotangent / count; in the target's column 1 is taken off inside expm1. */
KERNEL cross_entropy_backward(const real *x, const index_t *target, const real *stats, const real *cotangent, int per_row,
                              double count, real *dx, index_t rows, index_t length, double smoothing, index_t ignored) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        real *dx_row = dx + r * length;
        bool counted = target[r] != ignored;
        real largest = counted ? stats[3 * r] : 0;
        Pair total = {0, 0};
        if (counted) total = stored_total(stats, r);
        double weight = (double) cotangent[per_row ? r : 0] / count;
        double spread = smoothing / (double) length;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            double difference = 0;
            if (counted && i == target[r]) {
                /* log(total) from what it has beyond 1 */
                double log_sum = log1p(((double) total.high - 1) + (double) total.low);
                double z = ((double) x[r * length + i] - (double) largest) - log_sum;
                difference = expm1(z) + (smoothing - spread);
            } else if (counted) {
                difference = (double) probability(x[r * length + i], largest, total) - spread;
            }
            dx_row[i] = counted ? (real) (weight * difference) : (real) 0;
        }
    }
}

/* One block: the sum of all losses divided by `count`. */
KERNEL total_loss(const double *loss, real *value, index_t rows, double count) {
    double sum = 0;
    for (index_t r = threadIdx.x; r < rows; r += blockDim.x) sum += loss[r];
    sum = team_reduce<Add>(sum);
    if (threadIdx.x == 0) value[0] = (real) (sum / count);
}

KERNEL losses(const double *loss, real *value, index_t rows) {
    for (index_t r = (index_t) blockIdx.x * blockDim.x + threadIdx.x; r < rows; r += (index_t) gridDim.x * blockDim.x)
        value[r] = (real) loss[r];
}
