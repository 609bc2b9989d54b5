/* Layer norm, RMS norm and group norm: statistics over the rows of a C-contiguous matrix, in float64.
 *
 * In layer norm and RMS norm each entry of a row is a unit with a gain of its own. In group norm a row is one example's
 * group: `length / places` channels of `places` entries, and rows run through the `groups` groups of each example. */

INLINE index_t unit_of(index_t row, index_t i, index_t length, index_t groups, index_t places) {
    if (groups == 1 && places == 1) return i;
    return row % groups * (length / places) + i / places;
}

/* y = gain (x - centre) inv_std + bias; without `centred` (RMS norm) centre is 0. */
KERNEL norm_rows(const real *x, const real *gain, const real *bias, real *y, double *centres, double *inv_stds, double eps,
                 int centred, index_t groups, index_t places, index_t rows, index_t length, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Row row = row_of(x, r, length, shared, cached);
        double sum = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) sum += (double) row.first(i);
        double centre = centred ? team_reduce<Add>(sum) / (double) length : 0;
        double squares = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            double d = (double) row.again(i) - centre;
            squares = fma(d, d, squares);
        }
        double inv_std = 1 / sqrt(team_reduce<Add>(squares) / (double) length + eps);
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            index_t unit = unit_of(r, i, length, groups, places);
            double standard = ((double) row.again(i) - centre) * inv_std;
            double scale = gain ? (double) gain[unit] : 1;
            y[r * length + i] = (real) (bias ? fma(scale, standard, (double) bias[unit]) : scale * standard);
        }
        if (centres && threadIdx.x == 0) {
            centres[r] = centre;
            inv_stds[r] = inv_std;
        }
    }
}

/* dx = inv_std (g - mean(g) - x_hat mean(g x_hat)) with g = gain dy; without `centred`, mean(g) is left out. */
KERNEL norm_backward(const real *x, const real *gain, const real *dy, real *dx, const double *centres, const double *inv_stds,
                     int centred, index_t groups, index_t places, index_t rows, index_t length) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        const real *x_row = x + r * length, *dy_row = dy + r * length;
        double centre = centres[r], inv_std = inv_stds[r], sum = 0, along = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            double scale = gain ? (double) gain[unit_of(r, i, length, groups, places)] : 1;
            double g = scale * (double) dy_row[i];
            sum += g;
            along = fma(g, ((double) x_row[i] - centre) * inv_std, along);
        }
        sum = centred ? team_reduce<Add>(sum) / (double) length : 0;
        along = team_reduce<Add>(along) / (double) length;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
            double scale = gain ? (double) gain[unit_of(r, i, length, groups, places)] : 1;
            double x_hat = ((double) x_row[i] - centre) * inv_std;
            dx[r * length + i] = (real) (inv_std * ((scale * (double) dy_row[i] - sum) - x_hat * along));
        }
    }
}

/* Sums over rows of dy x_hat and of dy, for each unit: the rows of a chunk first. A block has 32 units of one chunk; its 8
 * warps take the chunk's rows in turns. */
KERNEL unit_partials(const real *x, const real *dy, const double *centres, const double *inv_stds, double *partials, index_t rows,
                     index_t length, index_t chunk) {
    __shared__ double of_warp[2][8][WARP];
    index_t unit = (index_t) blockIdx.x * WARP + threadIdx.x;
    index_t first = (index_t) blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    double dgain = 0, dbias = 0;
    if (unit < length)
        for (index_t r = first + threadIdx.y; r < last; r += blockDim.y) {
            double g = (double) dy[r * length + unit];
            dgain = fma(g, ((double) x[r * length + unit] - centres[r]) * inv_stds[r], dgain);
            dbias += g;
        }
    of_warp[0][threadIdx.y][threadIdx.x] = dgain;
    of_warp[1][threadIdx.y][threadIdx.x] = dbias;
    __syncthreads();
    if (threadIdx.y < 2 && unit < length) {
        double sum = 0;
        for (unsigned warp = 0; warp < blockDim.y; warp++) sum += of_warp[threadIdx.y][warp][threadIdx.x];
        partials[((index_t) blockIdx.y * 2 + threadIdx.y) * length + unit] = sum;
    }
}

KERNEL unit_totals(const double *partials, real *dgain, real *dbias, index_t chunks, index_t length) {
    for (index_t unit = (index_t) blockIdx.x * blockDim.x + threadIdx.x; unit < length; unit += (index_t) gridDim.x * blockDim.x) {
        double gain = 0, bias = 0;
        for (index_t c = 0; c < chunks; c++) {
            gain += partials[2 * c * length + unit];
            bias += partials[(2 * c + 1) * length + unit];
        }
        if (dgain) dgain[unit] = (real) gain;
        if (dbias) dbias[unit] = (real) bias;
    }
}

/* The same for group norm: one block a channel. `entries` are those of a group, `channels / groups` channels. */
KERNEL channel_totals(const real *x, const real *dy, const double *centres, const double *inv_stds, real *dgain, real *dbias,
                      index_t examples, index_t channels, index_t groups, index_t places) {
    index_t channel = blockIdx.x;
    double gain = 0, bias = 0;
    for (index_t i = threadIdx.x; i < examples * places; i += blockDim.x) {
        index_t example = i / places;
        index_t row = example * groups + channel / (channels / groups);
        index_t at = (example * channels + channel) * places + i % places;
        double g = (double) dy[at];
        gain = fma(g, ((double) x[at] - centres[row]) * inv_stds[row], gain);
        bias += g;
    }
    gain = team_reduce<Add>(gain);
    bias = team_reduce<Add>(bias);
    if (threadIdx.x == 0) {
        dgain[channel] = (real) gain;
        dbias[channel] = (real) bias;
    }
}
