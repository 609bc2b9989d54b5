/* What normalization does to one vector of pixels: scalars of a geodesic's passage from the midpoint m to the centre b, and
 * their derivatives. The same for all types of entries; included by poincare_image.c.
 *
 * The logarithm of x at m, its transport to b and the exponential map at b stay in the span of w = x - m, m and b:
 *
 *     e = (gap_m w/|w| - c|w| m)/sqrt(D)        unit vector at m,  D = gap_m gap_x + c|w|^2
 *     f = gyr[b, -m] e                          unit vector at b
 *     y = b (+) z,  z = tanh(t)/sqrt(c) f       t = scale A,  A = arsinh(sqrt(c)|w|/sqrt(gap_m gap_x))
 *
 * Cotangents stay in the span of these three and of the cotangent g of y: a vector of pixels costs the inner products of
 * w, m, b and g, scalars, and one combination a channel. */

/* What is the same for all pixels; vectors are arrays of `channels` entries. */
typedef struct {
    const double *middle, *centre, *way; /* m, b and b - m */
    double curvature, root, middle_gap, centre_gap, scale, margin;
    double middle_square, middle_centre, middle_way, centre_square, spread, denominator;
} rails;

static rails rails_of(const rn_poincare_pixels *pixels, const rn_poincare_normalization *to, double *way) {
    rails on = {.middle = to->middle, .centre = to->centre, .way = way, .curvature = pixels->curvature};
    double square = 0;
    on.root = sqrt(pixels->curvature);
    on.middle_gap = to->middle_gap;
    on.centre_gap = to->centre_gap;
    on.scale = to->scale;
    on.margin = to->margin;
    /* A loop that stores beside its sums is compiled twice, for arrays that overlap and that do not, and the two round differently:
     * the result would depend on where the arrays happen to lie. */
    for (size_t k = 0; k < pixels->channels; k++) way[k] = to->centre[k] - to->middle[k];
    for (size_t k = 0; k < pixels->channels; k++) {
        double m = to->middle[k], b = to->centre[k];
        on.middle_square += m * m;
        on.middle_centre += m * b;
        on.middle_way += m * way[k];
        on.centre_square += b * b;
        square += way[k] * way[k];
    }
    on.spread = pixels->curvature * square;
    on.denominator = to->middle_gap * to->centre_gap + on.spread;
    return on;
}

/* of_way w + of_middle m + of_centre b, and the numbers that led there. */
typedef struct {
    vf64 gap, square, length, inverse, distance; /* gap_x, |w|^2, |w|, 1/sqrt(D), A */
    vf64 reach, gap_step, p, q;                  /* tanh(t), 1 - tanh(t)^2, e = p w + q m */
    vf64 e_way, e_middle, along_centre, along_way, f_middle, f_centre, centre_f;
    vf64 spread, denominator, of_way, of_middle, of_centre;
    vf64 radius, shrink; /* sqrt(c)|y| before the projection, and its factor */
} passage;

RN_INLINE passage passage_of(const rails *on, vf64 gap_x, vf64 square, vf64 on_way, vf64 on_middle) {
    double c = on->curvature, root = on->root, gap_m = on->middle_gap, gap_b = on->centre_gap;
    passage a = {.gap = gap_x, .square = square, .length = vf64_sqrt(square)};
    vf64 both = gap_m * gap_x, decay;
    a.inverse = 1.0 / vf64_sqrt(both + c * square);
    a.distance = vf64_arsinh(root * a.length / vf64_sqrt(both));
    vf64 t = on->scale * a.distance;
    t = vf64_select((vi64)(t > SATURATED), vf64_set(SATURATED), t);
    a.reach = vf64_tanh(t, &decay);
    a.gap_step = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
    /* Where x is m, e does not matter. */
    a.p = vf64_select((vi64)(a.length == 0.0), vf64_set(0.0), gap_m * a.inverse / a.length);
    a.q = -c * a.length * a.inverse;
    a.e_way = a.p * on_way + a.q * on->middle_way;
    a.e_middle = a.p * on_middle + a.q * on->middle_square;
    /* f = e + 2c (along_centre b - along_way (b - m)) */
    a.along_centre = (gap_m * a.e_way - on->spread * a.e_middle) / on->denominator;
    a.along_way = (a.e_way + gap_b * a.e_middle) / on->denominator;
    a.f_middle = a.q + 2 * c * a.along_way;
    a.f_centre = 2 * c * (a.along_centre - a.along_way);
    a.centre_f = a.p * (on_way + on_middle) + a.f_middle * on->middle_centre + a.f_centre * on->centre_square;
    a.spread = c * on->centre_square + a.reach * (2 * root * a.centre_f + a.reach);
    a.denominator = gap_b * a.gap_step + a.spread;
    vf64 of_sum = gap_b / (root * a.denominator);
    a.of_way = of_sum * a.reach * a.p;
    a.of_middle = of_sum * a.reach * a.f_middle;
    a.of_centre = of_sum * (root + a.reach * a.f_centre) + a.spread / a.denominator;
    a.radius = vf64_sqrt(a.spread / a.denominator);
    a.shrink = vf64_set(1.0);
    if (on->margin >= 0) a.shrink = vf64_select((vi64)(a.radius > 1 - on->margin), (1 - on->margin) / a.radius, a.shrink);
    return a;
}

/* Coefficients of a vector on g, w, m and b. */
typedef struct {
    vf64 g, w, m, b;
} span;
RN_INLINE void add_to(span *sum, vf64 factor, span a) {
    sum->g = vf64_fma(factor, a.g, sum->g);
    sum->w = vf64_fma(factor, a.w, sum->w);
    sum->m = vf64_fma(factor, a.m, sum->m);
    sum->b = vf64_fma(factor, a.b, sum->b);
}

/* Inner products of w and g that differ from pixel to pixel. */
typedef struct {
    vf64 w_w, w_m, w_b, w_way, g_w, g_m, g_b;
} products;
RN_INLINE vf64 on_w(span a, const products *of) { return a.g * of->g_w + a.w * of->w_w + a.m * of->w_m + a.b * of->w_b; }
RN_INLINE vf64 on_m(span a, const products *of, const rails *on) {
    return a.g * of->g_m + a.w * of->w_m + a.m * on->middle_square + a.b * on->middle_centre;
}
RN_INLINE vf64 on_b(span a, const products *of, const rails *on) {
    return a.g * of->g_b + a.w * of->w_b + a.m * on->middle_centre + a.b * on->centre_square;
}

/* Cotangents of x, m and b, the share of t in the scale's, and <g, y>. */
typedef struct {
    span x, m, b;
    vf64 of_scale, along;
} pulled;

/* g before the projection: where it moved y, only what is across y counts. */
RN_INLINE span before_projection(const passage *a, const rails *on, span y, vf64 g_y) {
    span u = {.g = vf64_set(1.0)};
    if (on->margin < 0) return u;
    vi64 moved = (vi64)(a->shrink < 1.0);
    vf64 across = vf64_select(moved, -g_y * (on->curvature / (a->radius * a->radius)), vf64_set(0.0));
    add_to(&u, across, y);
    span all = {.g = {0}};
    add_to(&all, a->shrink, u);
    return all;
}

/* Through f = gyr[b, -m] e, from the cotangent h of f: adds `factor` times the cotangents of m and b, returns e's. */
RN_INLINE span turn_back(const passage *a, const rails *on, const products *of, span h, span e, vf64 factor, pulled *to) {
    double twice = 2 * on->curvature, gap_m = on->middle_gap, gap_b = on->centre_gap;
    vf64 h_b = on_b(h, of, on), h_way = h_b - on_m(h, of, on);
    /* <h, f> = <h, e> + 2c E; each bar is the derivative of E by the named number. */
    vf64 bar_top = h_b / on->denominator, bar_k = -h_way / on->denominator;
    vf64 bar_denominator = -(a->along_centre * h_b - a->along_way * h_way) / on->denominator;
    vf64 bar_gap_b = bar_denominator * gap_m + bar_k * a->e_middle;
    vf64 bar_gap_m = bar_denominator * gap_b + bar_top * a->e_way;
    vf64 bar_spread = bar_denominator - bar_top * a->e_middle;
    vf64 bar_e_way = bar_k + bar_top * gap_m, bar_e_minus_m = bar_top * on->spread - bar_k * gap_b;
    span way = {.m = vf64_set(-1.0), .b = vf64_set(1.0)}, both = {.g = {0}};
    add_to(&both, bar_e_way, e);
    add_to(&both, -a->along_way, h);
    add_to(&both, twice * bar_spread, way);
    span db = both, dm = both;
    add_to(&db, a->along_centre, h);
    db.b -= twice * bar_gap_b;
    add_to(&dm, bar_e_minus_m, e);
    dm.m += twice * bar_gap_m;
    add_to(&to->b, twice * factor, db);
    add_to(&to->m, -twice * factor, dm);
    /* The inverse rotation is gyr[-m, b]. */
    span turned = h;
    turned.m -= twice * (gap_b * h_way + on->spread * h_b) / on->denominator;
    add_to(&turned, -twice * (h_way - gap_m * h_b) / on->denominator, way);
    return turned;
}

/* Cotangents of one vector of pixels. `by_distance` A is added to the cotangent of the distance A. */
RN_INLINE pulled pull_back(const passage *a, const rails *on, const products *of, double by_distance) {
    double c = on->curvature, root = on->root, gap_m = on->middle_gap, gap_b = on->centre_gap;
    vf64 zero = {0}, inverse_length = vf64_select((vi64)(a->length == 0.0), zero, 1.0 / a->length);
    span e = {.w = a->p, .m = a->q}, f = {.w = a->p, .m = a->f_middle, .b = a->f_centre};
    span y = {.w = a->of_way, .m = a->of_middle, .b = a->of_centre}, b = {.b = vf64_set(1.0)};
    vf64 g_y = y.w * of->g_w + y.m * of->g_m + y.b * of->g_b;
    pulled to = {.along = a->shrink * g_y};
    span u = before_projection(a, on, y, g_y);
    /* y = b (+) z, with |z| = reach/sqrt(c). */
    vf64 step = a->reach / root, u_b = on_b(u, of, on), u_f = a->p * on_w(u, of) + a->f_middle * on_m(u, of, on) + a->f_centre * u_b;
    vf64 k = a->reach * (a->reach * u_b + u_f / root) / a->denominator;
    vf64 u_y = (gap_b * (u_b + step * u_f) + a->spread * u_b) / a->denominator;
    add_to(&to.b, (gap_b + a->spread) / a->denominator, u);
    add_to(&to.b, -2 * c * k, y);
    span dz = {.g = {0}};
    add_to(&dz, gap_b / a->denominator, u);
    add_to(&dz, -2 * c * gap_b / a->denominator * k, b);
    add_to(&dz, -2 * c * gap_b / a->denominator * (k - u_y) * step, f);
    vf64 radial = gap_b / a->denominator * (u_f - 2 * c * (k * (a->centre_f + step) - u_y * step));
    radial = vf64_select((vi64)(a->length == 0.0), zero, radial);
    vf64 by_t = a->gap_step / root * radial;
    to.of_scale = by_t * a->distance;
    /* f turns with the part of z's cotangent across it. */
    span h = dz;
    add_to(&h, -radial, f);
    span bar_e = turn_back(a, on, of, h, e, step, &to);
    /* e = N/|N| with N = gap_m w - c|w|^2 m and |N| = |w| sqrt(D): across e, <h, de> = <h, dN>/|N|. */
    vf64 pace = vf64_select((vi64)(a->length == 0.0), vf64_set(on->scale) / vf64_sqrt(gap_m * a->gap), step * inverse_length) * a->inverse;
    vf64 e_m = on_m(bar_e, of, on), e_w = on_w(bar_e, of);
    add_to(&to.x, pace * gap_m, bar_e);
    to.x.w -= 2 * c * pace * e_m;
    add_to(&to.m, -pace * (gap_m + c * a->square), bar_e);
    to.m.w += 2 * c * pace * e_m;
    to.m.m -= 2 * c * pace * e_w;
    /* A grows with the steps of x and m away from each other, over their gaps: the first variation of length. */
    vf64 by_distance_all = root * (on->scale * by_t + by_distance * a->distance);
    vf64 outward = c * a->length / a->gap;
    to.x.w += by_distance_all * a->inverse * (inverse_length + outward);
    to.x.m += by_distance_all * a->inverse * outward;
    add_to(&to.m, -by_distance_all / gap_m, e);
    return to;
}
