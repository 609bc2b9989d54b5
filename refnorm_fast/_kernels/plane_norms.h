/* What norms over planes, the channels of every example, do between their sweeps; included by channel_norm.c. All numbers
 * are float64 and few: one a plane, a channel, a group or a component. They come from the planes' moments or sums, and
 * become lines for the sweep that follows. Sums over the examples run in order, on the calling thread. */
#include "channel_norm.h"

/* ---- batch norm, then group norm: u_hat = alpha (x - own mean) + middle about every plane's own mean ---------------- */

static void batch_moments(const rn_batch_channel *of, double *mean, double *var) {
    double examples = (double)of->examples;
    for (size_t c = 0; c < of->channels; c++) mean[c] = var[c] = 0;
    for (size_t n = 0; n < of->examples; n++)
        for (size_t c = 0; c < of->channels; c++) {
            const rn_channel *own = of->own + n * of->channels + c;
            mean[c] += own->mean + own->low;
        }
    for (size_t c = 0; c < of->channels; c++) mean[c] /= examples;
    for (size_t n = 0; n < of->examples; n++)
        for (size_t c = 0; c < of->channels; c++) {
            const rn_channel *own = of->own + n * of->channels + c;
            double apart = (own->mean - mean[c]) + own->low;
            var[c] += own->spread + apart * apart;
        }
    for (size_t c = 0; c < of->channels; c++) var[c] /= examples;
}

static void batch_channel_step(const rn_batch_channel *of, rn_channel_line *lines) {
    size_t members = of->channels / of->groups;
    if (of->own_statistics) batch_moments(of, of->mean, of->var);
    for (size_t c = 0; c < of->channels; c++) of->inverse[c] = 1 / sqrt(of->var[c] + of->eps);
    for (size_t row = 0; row < of->examples * of->groups; row++) {
        size_t group = row % of->groups, first = row * members, channel = group * members;
        double sum = 0, spread = 0;
        for (size_t k = 0; k < members; k++) {
            const rn_channel *own = of->own + first + k;
            size_t c = channel + k;
            of->apart[first + k] = (own->mean - of->mean[c]) + own->low;
            of->alpha[first + k] = of->gain[c] * of->inverse[c];
            of->middle[first + k] = of->alpha[first + k] * of->apart[first + k] + of->bias[c];
        }
        /* Sums apart from stores: a loop with both is compiled for arrays that overlap and that do not, which round differently. */
        for (size_t k = first; k < first + members; k++) sum += of->middle[k];
        for (size_t k = first; k < first + members; k++) of->middle[k] -= sum / (double)members;
        for (size_t k = first; k < first + members; k++)
            spread += of->alpha[k] * of->alpha[k] * of->own[k].spread + of->middle[k] * of->middle[k];
        double inverse = 1 / sqrt(spread / (double)members + of->eps), gain = of->group_gain[group];
        of->group_inverse[row] = inverse;
        for (size_t k = first; k < first + members; k++) {
            of->alpha[k] *= inverse;
            of->middle[k] *= inverse;
            lines[k] = (rn_channel_line){.mean = of->own[k].mean,
                                         .low = of->own[k].low,
                                         .scale = gain * of->alpha[k],
                                         .level = gain * of->middle[k] + of->group_bias[group]};
        }
    }
}

/* The cotangent of the first step's output is steep * dy + slope * (x - own mean) + constant on every plane: slope and
 * constant of one example's group go to its lines; what its planes owe is added to the cotangents. */
static void batch_channel_pull_group(const rn_batch_channel *of, size_t row, const double *sums, rn_channel_line *lines,
                                     rn_batch_channel_sums to) {
    size_t members = of->channels / of->groups, group = row % of->groups, first = row * members;
    double total = 0, along = 0, entries = of->places * (double)members;
    for (size_t k = first; k < first + members; k++) {
        total += sums[2 * k];
        along += of->alpha[k] * sums[2 * k + 1] + of->middle[k] * sums[2 * k];
    }
    to.group_gain[group] += along;
    to.group_bias[group] += total;
    double inverse = of->group_inverse[row], steep = inverse * of->group_gain[group];
    double mean_up = of->group_gain[group] * total / entries, mean_along = of->group_gain[group] * along / entries;
    for (size_t k = first; k < first + members; k++) {
        size_t c = group * members + k - first;
        double slope = -inverse * mean_along * of->alpha[k];
        double constant = -inverse * (mean_up + of->middle[k] * mean_along);
        double down = steep * sums[2 * k] + of->places * constant;
        to.bias[c] += down;
        to.gain[c] += steep * sums[2 * k + 1] + of->places * slope * of->own[k].spread + of->apart[k] * down;
        lines[k] = (rn_channel_line){
            .mean = of->own[k].mean, .low = of->own[k].low, .scale = steep, .level = constant, .slope = slope};
    }
}

/* sums: of every plane sum(dy) and sum(dy (x - own mean)). */
static void batch_channel_pull(const rn_batch_channel *of, const double *sums, rn_channel_line *lines,
                               rn_batch_channel_sums to) {
    double count = of->places * (double)of->examples;
    for (size_t c = 0; c < of->channels; c++) to.gain[c] = to.bias[c] = 0;
    for (size_t g = 0; g < of->groups; g++) to.group_gain[g] = to.group_bias[g] = 0;
    for (size_t row = 0; row < of->examples * of->groups; row++) batch_channel_pull_group(of, row, sums, lines, to);
    for (size_t k = 0; k < of->examples * of->channels; k++) {
        size_t c = k % of->channels;
        rn_channel_line *line = lines + k;
        double scale = of->gain[c] * of->inverse[c];
        if (of->own_statistics) {
            double tilt = of->inverse[c] * of->inverse[c] * to.gain[c] / count;
            line->slope -= tilt;
            line->level -= to.bias[c] / count + tilt * of->apart[k];
        }
        line->slope *= scale;
        line->scale *= scale;
        /* Where the scale is 0, so is the constant. */
        line->level = line->scale != 0 ? -scale * line->level / line->scale : 0;
    }
    for (size_t c = 0; c < of->channels; c++) to.gain[c] *= of->inverse[c];
}

/* ---- a mixture of components, each pulled to the example by its share ------------------------------------------------ */

/* Component k's mean as blended with an example's, and how far the example's is from it. */
RN_INLINE double blended(const rn_unmix *of, size_t n, size_t k, size_t c, double *gap) {
    const rn_channel *own = of->own + n * of->channels + c;
    double mean = of->means[k * of->channels + c];
    *gap = (own->mean - mean) + own->low;
    return mean + of->share[n * of->components + k] * *gap;
}

static void unmix_step(const rn_unmix *of, const double *bias, rn_channel_line *lines) {
    double count = (double)of->components, gap;
    for (size_t n = 0; n < of->examples; n++) {
        size_t at = n * of->channels;
        double *mean = of->mean + at, *var = of->inverse + at;
        for (size_t c = 0; c < of->channels; c++) mean[c] = var[c] = 0;
        for (size_t k = 0; k < of->components; k++)
            for (size_t c = 0; c < of->channels; c++) mean[c] += blended(of, n, k, c, &gap);
        for (size_t c = 0; c < of->channels; c++) mean[c] /= count;
        for (size_t k = 0; k < of->components; k++) {
            double p = of->share[n * of->components + k], across = of->between ? p * (1 - p) : 0;
            for (size_t c = 0; c < of->channels; c++) {
                double apart = blended(of, n, k, c, &gap) - mean[c];
                var[c] += (1 - p) * of->variances[k * of->channels + c] + p * of->own[at + c].spread + apart * apart;
                if (of->between) var[c] += across * gap * gap;
            }
        }
        for (size_t c = 0; c < of->channels; c++) {
            of->inverse[at + c] = 1 / sqrt(var[c] / count + of->eps);
            lines[at + c] = (rn_channel_line){
                .mean = mean[c], .scale = of->gain[c] * of->inverse[at + c], .level = bias[c]};
        }
    }
}

/* What the batch moves the components by: rate times the mean over the examples of share * (own - component). */
static void unmix_move(const rn_unmix *of, double rate, double *means, double *variances) {
    for (size_t k = 0; k < of->components; k++)
        for (size_t c = 0; c < of->channels; c++) {
            size_t at = k * of->channels + c;
            double by_mean = 0, by_var = 0, gap;
            for (size_t n = 0; n < of->examples; n++) {
                double p = of->share[n * of->components + k];
                blended(of, n, k, c, &gap);
                by_mean += p * gap;
                by_var += p * (of->own[n * of->channels + c].spread - of->variances[at]);
            }
            means[at] = of->means[at] + rate * (by_mean / (double)of->examples);
            variances[at] = of->variances[at] + rate * (by_var / (double)of->examples);
        }
}

/* sums: of every plane sum(dy) and sum(dy (x - mean)). Every blended component has the share 1 / components of mean and
 * variance, an example's own statistics the share p of it. */
static void unmix_pull(const rn_unmix *of, const double *sums, rn_channel_line *lines, double *dgain, double *dbias) {
    double count = (double)of->components, gap;
    for (size_t c = 0; c < of->channels; c++) dgain[c] = dbias[c] = 0;
    for (size_t n = 0; n < of->examples; n++) {
        double shares = 0;
        for (size_t k = 0; k < of->components; k++) shares += of->share[n * of->components + k];
        for (size_t c = 0; c < of->channels; c++) {
            size_t at = n * of->channels + c;
            const rn_channel *own = of->own + at;
            double inverse = of->inverse[at], scale = of->gain[c] * inverse, down = 0;
            double dmean = -scale * sums[2 * at], dvar = -0.5 * scale * inverse * inverse * sums[2 * at + 1];
            for (size_t k = 0; k < of->components; k++) {
                double p = of->share[n * of->components + k], apart = blended(of, n, k, c, &gap) - of->mean[at];
                down += p * (dmean + 2 * apart * dvar);
                if (of->between) down += p * (2 * (1 - p) * gap * dvar);
            }
            double constant = down / (count * of->places);
            lines[at] = (rn_channel_line){.mean = own->mean,
                                          .low = own->low,
                                          .scale = scale,
                                          .level = scale != 0 ? -constant / scale : 0,
                                          .slope = 2 * dvar * shares / (count * of->places)};
            dgain[c] += sums[2 * at + 1] * inverse;
            dbias[c] += sums[2 * at];
        }
    }
}
