/* Steps of Lion, AdamP and SGDP. Products and sums round one by one and in the reference's order. */

INLINE real blend(real momentum, real grad, real keep, real take, int lerp) {
    return lerp ? momentum + take * (grad - momentum) : keep * momentum + take * grad;
}

KERNEL lion_step(const real *param, const real *grad, const real *momentum, real *param_out, real *momentum_out, double rate,
                 double shrink, double keep1, double take1, double keep2, double take2, int lerp, index_t count) {
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x) {
        real m = momentum[i], g = grad[i];
        real blended = blend(m, g, (real) keep1, (real) take1, lerp);
        real direction = blended > 0 ? (real) 1 : blended < 0 ? (real) -1 : blended; /* 0 and NaN stay */
        param_out[i] = param[i] * (real) shrink - (real) rate * direction;
        momentum_out[i] = blend(m, g, (real) keep2, (real) take2, lerp);
    }
}

/* ---- AdamP and SGDP: three kernels and no word from the host between them ---- */

#define STEP_ARGUMENTS                                                                                                  \
    int adam, int nesterov, double keep1, double take1, double keep2, double take2, double root_correction, double eps

#define STEP_NAMES adam, nesterov, keep1, take1, keep2, take2, root_correction, eps

/* What is added to the parameter but for the learning rate, from the state after the step. */
INLINE real update_of(real grad, real first, real second, STEP_ARGUMENTS) {
    if (!adam) return nesterov ? grad + (real) keep1 * first : first;
    real scale = sqrt(second) / (real) root_correction + (real) eps;
    return (nesterov ? (real) keep1 * first + (real) take1 * grad : first) / scale;
}

/* The state after the step, and for each row the squares of parameter and gradient and the inner products of the parameter
 * with the gradient and with the update. */
KERNEL moments(const real *param, const real *grad, const real *first, const real *second, real *first_out, real *second_out,
               double *inner, STEP_ARGUMENTS, index_t rows, index_t length) {
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        double sums[4] = {0, 0, 0, 0};
        for (index_t i = r * length + threadIdx.x; i < (r + 1) * length; i += blockDim.x) {
            real g = grad[i], m = (real) keep1 * first[i] + (real) take1 * g, v = 0;
            if (adam) {
                v = (real) keep2 * second[i] + (real) take2 * (g * g);
                second_out[i] = v;
            }
            first_out[i] = m;
            double p = (double) param[i];
            sums[0] = fma(p, p, sums[0]);
            sums[1] = fma((double) g, (double) g, sums[1]);
            sums[2] = fma(p, (double) g, sums[2]);
            sums[3] = fma(p, (double) update_of(g, m, v, STEP_NAMES), sums[3]);
        }
        for (int k = 0; k < 4; k++) {
            double sum = team_reduce<Add>(sums[k]);
            if (threadIdx.x == 0) inner[4 * r + k] = sum;
        }
    }
}

INLINE double cosine(double param_square, double grad_square, double product, double eps) {
    double p = sqrt(param_square), g = sqrt(grad_square);
    double norms = (p < eps ? eps : p) * (g < eps ? eps : g);
    return fabs(product) / (norms == 0 ? 1 : norms);
}

/* One block: whether the parameter looks scale-invariant row by row or as a whole. `inner` becomes for each row the number
 * that the parameter is divided by to be a unit vector, and the update's component along it; plan[0] says whether to take
 * it out. */
KERNEL choose_view(double *inner, double *plan, index_t rows, index_t length, double delta, double eps) {
    double largest = 0, sums[4] = {0, 0, 0, 0};
    for (index_t r = threadIdx.x; r < rows; r += blockDim.x) {
        largest = Maximum::join(largest, cosine(inner[4 * r], inner[4 * r + 1], inner[4 * r + 2], eps));
        for (int k = 0; k < 4; k++) sums[k] += inner[4 * r + k];
    }
    largest = team_reduce<Maximum>(largest);
    for (int k = 0; k < 4; k++) sums[k] = team_reduce<Add>(sums[k]);
    bool by_row = largest < delta / sqrt((double) length);
    bool whole = !by_row && cosine(sums[0], sums[1], sums[2], eps) < delta / sqrt((double) (rows * length));
    if (threadIdx.x == 0) plan[0] = by_row || whole;
    for (index_t r = threadIdx.x; r < rows; r += blockDim.x) {
        double divisor = sqrt(by_row ? inner[4 * r] : sums[0]) + eps;
        if (divisor == 0) divisor = 1;
        double radial = (by_row ? inner[4 * r + 3] : sums[3]) / divisor;
        inner[4 * r] = divisor;
        inner[4 * r + 1] = radial;
    }
}

/* The parameter after the step; `buffer_out`, if given, takes the projected update. Without a plan nothing is projected. */
KERNEL projected_step(const real *param, const real *grad, const real *first, const real *second, const double *inner,
                      const double *plan, real *param_out, real *buffer_out, double rate, double shrink,
                      double shrink_projected, STEP_ARGUMENTS, index_t length, index_t count) {
    bool project = plan && plan[0] != 0;
    real factor = (real) (project ? shrink_projected : shrink);
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x) {
        real update = update_of(grad[i], first[i], adam ? second[i] : (real) 0, STEP_NAMES);
        if (project) {
            const double *of_row = inner + 4 * (i / length);
            update = (real) ((double) update - (double) param[i] / of_row[0] * of_row[1]);
        }
        param_out[i] = param[i] * factor - (real) rate * update;
        if (buffer_out) buffer_out[i] = update;
    }
}
