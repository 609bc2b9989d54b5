/* The Poincaré ball: each row of a C-contiguous matrix is a vector, and a team works on it in float64.
 *
 * Inside, lengths are measured in `unit`, the power of two that brings the curvature between 1/2 and 2. A vector is a function
 * from an index to an entry; nothing as long as a row is kept but the result. `outside[k]` becomes 1 if a point of the k-th
 * argument is on or beyond the boundary. */

#define BALL_ARGUMENTS double curvature, double unit, index_t rows, index_t length

#define SATURATED 400.0 /* from here tanh is 1 and sech^2 is 0 in float64 */
#define OUTER 0.5       /* from this relative radius on, a radius is handled through its distance to the boundary */
#define SERIES_LIMIT 1.0
#define ARTANH_SERIES_LIMIT 0.25 /* of s^2 */
#define EXACT_GAP 0x1p-48
#define REAL_EPSILON (REAL_IS_DOUBLE ? 0x1p-52 : 0x1p-23)

/* ---- sums ---- */

template <class F>
INLINE double row_sum(index_t length, F term) {
    double sum = 0;
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) sum += term(i);
    return team_reduce<Add>(sum);
}

template <class A, class B>
INLINE double dot(index_t length, A a, B b) {
    return row_sum(length, [&](index_t i) { return a(i) * b(i); });
}

struct Wide { /* a + b + c, each at most about a unit in the last place of the one before */
    double a, b, c;
};

INLINE double sum_error(double a, double b, double sum) { /* of the rounded sum of a and b */
    double b_seen = sum - a;
    return (a - (sum - b_seen)) + (b - b_seen);
}

INLINE Wide wide_add(Wide sum, double term) {
    Wide next;
    next.a = sum.a + term;
    double rest = sum_error(sum.a, term, next.a);
    next.b = sum.b + rest;
    next.c = sum.c + sum_error(sum.b, rest, next.b);
    return next;
}

struct AddWide {
    static __device__ __forceinline__ Wide join(Wide x, Wide y) {
        Wide sum = wide_add(wide_add(x, y.a), y.b);
        sum.c += y.c;
        return sum;
    }
};

INLINE Wide shuffle(Wide value, int lanes) {
    Wide other = {shuffle(value.a, lanes), shuffle(value.b, lanes), shuffle(value.c, lanes)};
    return other;
}

static __device__ __noinline__ Wide team_sum(Wide value) { return team_reduce<AddWide>(value); }

INLINE double rounded(Wide sum) {
    double high = sum.b + sum.c, low = sum_error(sum.b, sum.c, high);
    double total = sum.a + high;
    return total + (sum_error(sum.a, high, total) + low);
}

/* 1 - curvature |x|^2. Near the boundary the difference cancels nearly everything, so products and sums carry their rounding
 * errors along, and closer than those resolve, the errors of the errors too. */
template <class F>
INLINE double gap_of(index_t length, double curvature, double square, F x) {
    if (curvature * square >= 2) return 1 - curvature * square;
    Wide sum = {0, 0, 0};
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
        double v = x(i), product = v * v;
        sum = wide_add(sum, product);
        sum.b += fma(v, v, -product);
    }
    sum = team_sum(sum);
    double high = sum.a * curvature, error = fma(sum.a, curvature, -high);
    double gap = (1 - high) - (error + curvature * (sum.b + sum.c));
    if (!(fabs(gap) < (double) (length + 4) * EXACT_GAP)) return gap;
    Wide exact = {threadIdx.x == 0 ? 1.0 : 0.0, 0, 0};
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) {
        double v = x(i), parts[2];
        parts[0] = v * v;
        parts[1] = fma(v, v, -parts[0]);
        for (int k = 0; k < 2; k++) {
            double product = parts[k] * curvature;
            exact = wide_add(wide_add(exact, -product), -fma(parts[k], curvature, -product));
        }
    }
    return rounded(team_sum(exact));
}

INLINE double two_to(int n) { return __longlong_as_double((long long) (n + 1023) << 52); }

/* value 2^n for |n| <= 1100, in two steps of which the first is exact. */
INLINE double times_two_to(double value, int n) { return value * two_to(n / 2) * two_to(n - n / 2); }

struct Size { /* of a vector: scaled 2^exponent; no square overflows or underflows */
    double scaled;
    int exponent;

    __device__ __forceinline__ double length() const { return times_two_to(scaled, exponent); }
    __device__ __forceinline__ double direction(double entry) const { /* entry / length, 0 of the zero vector */
        return times_two_to(entry, -exponent) / (scaled == 0 ? 1 : scaled);
    }
};

template <class F>
INLINE Size size_of(index_t length, F x) {
    double largest = 0;
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) largest = Maximum::join(largest, fabs(x(i)));
    largest = team_reduce<Maximum>(largest);
    Size size;
    size.exponent = 0;
    if (largest - largest == 0) frexp(largest, &size.exponent);
    int down = -size.exponent;
    size.scaled = sqrt(row_sum(length, [&](index_t i) {
        double entry = times_two_to(x(i), down);
        return entry * entry;
    }));
    return size;
}

struct Point {
    double square, gap;
};

template <class F>
INLINE Point point_of(index_t length, double curvature, F x, int *outside) {
    Point p;
    p.square = dot(length, x, x);
    p.gap = gap_of(length, curvature, p.square, x);
    if (p.gap <= 0 && outside && threadIdx.x == 0) *outside = 1;
    return p;
}

/* ---- functions of one number: called, since in line they would make up most of the program ---- */

#define FUNCTION static __device__ __noinline__ double

INLINE double ratio(double numerator, double denominator, double limit) { return denominator == 0 ? limit : numerator / denominator; }
FUNCTION tanh_of(double s) { return tanh(s); }
FUNCTION tanh_ratio(double s) { return ratio(tanh_of(s), s, 1); }
FUNCTION arsinh_of(double s) { return asinh(s); }
FUNCTION artanh_ratio(double s, double gap) { return ratio(arsinh_of(s / sqrt(gap)), s, 1); }

FUNCTION sech_square(double s) { /* cosh itself overflows */
    double decay = exp(-2 * (s > SATURATED ? SATURATED : s));
    return 4 * decay / ((1 + decay) * (1 + decay));
}

/* (b cosh b - sinh b) / b^3 as a series in z = b^2: the sum of (2k + 2) / (2k + 3)! z^k, from its last term. */
FUNCTION cosh_excess_factor(double z) {
    double value = 1;
    for (int k = 9; k > 0; k--) value = 1 + value * z * (1 / (double) (2 * k * (2 * k + 3)));
    return value / 3;
}

FUNCTION tanh_excess(double a) { /* tanh(a) - a */
    if (!(fabs(a) <= SERIES_LIMIT)) return tanh_of(a) - a;
    return -a * a * a * cosh_excess_factor(a * a) / cosh(a);
}

FUNCTION tanh_bend(double s) { /* sech^2(s) - tanh(s) / s */
    double t = tanh_ratio(s), z = s * s;
    if (!(s <= SERIES_LIMIT)) return sech_square(s) - t;
    return z * (cosh_excess_factor(z) / cosh(s) - t * t);
}

FUNCTION artanh_bend(double s, double gap) { /* 1 / (1 - s^2) - artanh(s) / s */
    double z = s * s, value = 56.0 / 57;
    if (!(z <= ARTANH_SERIES_LIMIT)) return 1 / gap - artanh_ratio(s, gap);
    for (int k = 26; k >= 0; k--) value = value * z + (2 * k + 2) / (double) (2 * k + 3);
    return z * value;
}

/* ---- results ---- */

template <class F>
INLINE void leave(real *result, index_t length, double unit, F vector) {
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) result[i] = (real) (vector(i) / unit);
}

template <class F>
INLINE void leave_cotangent(real *result, index_t length, double unit, F vector) {
    for (index_t i = threadIdx.x; i < length; i += blockDim.x) result[i] = (real) (vector(i) * unit);
}

/* A point closer to the boundary than a real resolves is moved inward by 1, 2, 4 ... units in the last place. */
template <class F>
INLINE void leave_inside(real *result, index_t length, double curvature, double unit, F vector) {
    leave(result, length, unit, vector);
    for (double step = REAL_EPSILON;; step *= 2) {
        auto stored = [&](index_t i) { return (double) result[i] * unit; };
        if (!(gap_of(length, curvature, dot(length, stored, stored), stored) <= 0)) return;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) result[i] *= (real) (1 - step);
    }
}

struct Clip { /* the projection to a radius: entries of a vector of the given size */
    bool outside;
    double radius;
    Size size;

    __device__ __forceinline__ double operator()(double entry) const { return outside ? radius * size.direction(entry) : entry; }
};

/* margin < 0: no projection */
template <class F>
INLINE Clip clip_of(index_t length, double curvature, double margin, F vector) {
    Clip clip;
    clip.size = size_of(length, vector);
    clip.radius = (1 - margin) / sqrt(curvature);
    clip.outside = margin >= 0 && clip.size.length() > clip.radius;
    return clip;
}

/* The cotangent u of the projected vector pulled back, and (in *dc) the curvature's term. */
template <class F, class U>
INLINE double clip_radial(Clip clip, index_t length, double curvature, F vector, U u, double *dc) {
    *dc = 0;
    if (!clip.outside) return 0;
    double radial = row_sum(length, [&](index_t i) { return u(i) * clip.size.direction(vector(i)); });
    *dc = -clip.radius / (2 * curvature) * radial;
    return radial;
}

INLINE double clip_back(Clip clip, double entry, double u, double radial) {
    return clip.outside ? clip.radius / clip.size.length() * (u - radial * clip.size.direction(entry)) : u;
}

#define EACH_ROW for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW)
#define VECTOR(name, source)               \
    const real *name##_row = source + r * length; \
    auto name = [&](index_t i) { return (double) name##_row[i] * unit; }
#define COTANGENT(name, source)            \
    const real *name##_row = source + r * length; \
    auto name = [&](index_t i) { return (double) name##_row[i] / unit; }

/* ---- addition ---- */

struct Sum { /* x (+) y = (gap_x w + S x) / D with w = x + y, S = curvature |w|^2, D = gap_x gap_y + S */
    Point x, y;
    double square, spread, denominator;
};

template <class X, class Y>
INLINE Sum sum_of(index_t length, double curvature, X x, Y y, int *outside) {
    Sum s;
    s.x = point_of(length, curvature, x, outside);
    s.y = point_of(length, curvature, y, outside ? outside + 1 : 0);
    s.square = row_sum(length, [&](index_t i) { return (x(i) + y(i)) * (x(i) + y(i)); });
    s.spread = curvature * s.square;
    s.denominator = s.x.gap * s.y.gap + s.spread;
    return s;
}

KERNEL mobius_add(const real *x_in, const real *y_in, real *result, int *outside, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(y, y_in);
        Sum s = sum_of(length, curvature, x, y, outside);
        leave_inside(result + r * length, length, curvature, unit,
                     [&](index_t i) { return (s.x.gap * (x(i) + y(i)) + s.spread * x(i)) / s.denominator; });
    }
}

KERNEL mobius_add_backward(const real *x_in, const real *y_in, const real *dz, real *dx, real *dy, double *dc, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(y, y_in);
        COTANGENT(u, dz);
        Sum s = sum_of(length, curvature, x, y, 0);
        double u_x = dot(length, u, x), u_total = row_sum(length, [&](index_t i) { return u(i) * (x(i) + y(i)); });
        double u_z = (s.x.gap * u_total + s.spread * u_x) / s.denominator;
        double k = (u_total - s.y.gap * u_x) / s.denominator;
        leave_cotangent(dx + r * length, length, unit, [&](index_t i) {
            double z = (s.x.gap * (x(i) + y(i)) + s.spread * x(i)) / s.denominator;
            return (s.x.gap + s.spread) / s.denominator * u(i) - 2 * curvature * k * z;
        });
        leave_cotangent(dy + r * length, length, unit, [&](index_t i) {
            return s.x.gap / s.denominator * (u(i) - 2 * curvature * (k * (x(i) + y(i)) - u_z * y(i)));
        });
        if (threadIdx.x == 0) dc[r] = (s.x.gap * u_z * s.y.square - k * s.square) / s.denominator;
    }
}

/* ---- the maps at the origin ---- */

struct Expansion { /* exp0 of a vector of the given size: tanh(s) / s times it, s = sqrt(curvature) length */
    Size size;
    double root, s, scale;

    __device__ __forceinline__ double operator()(double entry) const {
        return s >= SATURATED ? size.direction(entry) / root : scale * entry;
    }
};

template <class F>
INLINE Expansion expansion_of(index_t length, double curvature, F v) {
    Expansion e;
    e.size = size_of(length, v);
    e.root = sqrt(curvature);
    e.s = e.root * e.size.length();
    e.scale = tanh_ratio(e.s);
    return e;
}

KERNEL exp0(const real *v_in, real *result, double margin, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(v, v_in);
        Expansion expand = expansion_of(length, curvature, v);
        auto y = [&](index_t i) { return expand(v(i)); };
        Clip clip = clip_of(length, curvature, margin, y);
        leave_inside(result + r * length, length, curvature, unit, [&](index_t i) { return clip(y(i)); });
    }
}

/* Along v the derivative is sech^2(s), across it tanh(s) / s. */
KERNEL exp0_backward(const real *v_in, const real *dy, real *dv, double *dc, double margin, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(v, v_in);
        COTANGENT(g, dy);
        Expansion expand = expansion_of(length, curvature, v);
        auto y = [&](index_t i) { return expand(v(i)); };
        Clip clip = clip_of(length, curvature, margin, y);
        double dc_clip, clipped = clip_radial(clip, length, curvature, y, g, &dc_clip);
        auto u = [&](index_t i) { return clip_back(clip, y(i), g(i), clipped); };
        auto direction = [&](index_t i) { return expand.size.direction(v(i)); };
        double radial = dot(length, u, direction), along = sech_square(expand.s) * radial;
        leave_cotangent(dv + r * length, length, unit, [&](index_t i) {
            return expand.scale * (u(i) - radial * direction(i)) + along * direction(i);
        });
        if (threadIdx.x == 0)
            dc[r] = dc_clip + radial * expand.size.length() * tanh_bend(expand.s) / (2 * curvature);
    }
}

KERNEL log0(const real *y_in, real *result, int *outside, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(y, y_in);
        Point point = point_of(length, curvature, y, outside);
        double scale = artanh_ratio(sqrt(curvature) * size_of(length, y).length(), point.gap);
        leave(result + r * length, length, unit, [&](index_t i) { return scale * y(i); });
    }
}

/* Along y the derivative is 1 / (1 - s^2), across it artanh(s) / s. */
KERNEL log0_backward(const real *y_in, const real *dv, real *dy, double *dc, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(y, y_in);
        COTANGENT(u, dv);
        Point point = point_of(length, curvature, y, 0);
        Size size = size_of(length, y);
        double s = sqrt(curvature) * size.length(), scale = artanh_ratio(s, point.gap);
        auto direction = [&](index_t i) { return size.direction(y(i)); };
        double radial = dot(length, u, direction);
        leave_cotangent(dy + r * length, length, unit, [&](index_t i) {
            return scale * (u(i) - radial * direction(i)) + radial / point.gap * direction(i);
        });
        if (threadIdx.x == 0) dc[r] = radial * size.length() * artanh_bend(s, point.gap) / (2 * curvature);
    }
}

KERNEL project_ball(const real *x_in, real *result, double margin, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        Clip clip = clip_of(length, curvature, margin, x);
        leave_inside(result + r * length, length, curvature, unit, [&](index_t i) { return clip(x(i)); });
    }
}

KERNEL project_ball_backward(const real *x_in, const real *dy, real *dx, double *dc, double margin, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        COTANGENT(u, dy);
        Clip clip = clip_of(length, curvature, margin, x);
        double term, radial = clip_radial(clip, length, curvature, x, u, &term);
        leave_cotangent(dx + r * length, length, unit, [&](index_t i) { return clip_back(clip, x(i), u(i), radial); });
        if (threadIdx.x == 0) dc[r] = term;
    }
}

/* ---- geodesics ---- */

/* x (+) tanh(t) / sqrt(curvature) v / |v| with t = sqrt(curvature) |v| / gap_x. A geodesic that dives through the ball ends
 * nearly opposite to its start; then radii are compared through their distances to 1, and directions through
 * sqrt(curvature) x + radius v / |v|. */
KERNEL expmap(const real *x_in, const real *v_in, real *result, int *outside, double margin, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(v, v_in);
        Point start = point_of(length, curvature, x, outside);
        Size size = size_of(length, v);
        auto direction = [&](index_t i) { return size.direction(v(i)); };
        double root = sqrt(curvature), t = root * size.length() / start.gap;
        if (t > SATURATED) t = SATURATED;
        double reach = tanh_of(t), step_gap = sech_square(t), decay = exp(-2 * t);
        double radius = root * size_of(length, x).length();
        double beyond = reach - radius;
        if (!((reach < radius ? reach : radius) < OUTER)) beyond = start.gap / (1 + radius) - 2 * decay / (1 + decay);
        bool diving = root * dot(length, x, direction) < 0 && radius >= OUTER;
        auto turn = [&](index_t i) { return root * x(i) + radius * direction(i); };
        auto total = [&](index_t i) {
            return diving ? turn(i) + beyond * direction(i) : root * x(i) + reach * direction(i);
        };
        double spread = diving ? beyond * beyond + reach * dot(length, turn, turn) / radius : dot(length, total, total);
        double denominator = start.gap * step_gap + spread;
        auto y = [&](index_t i) { return (start.gap * (total(i) / root) + spread * x(i)) / denominator; };
        Clip clip = clip_of(length, curvature, margin, y);
        leave_inside(result + r * length, length, curvature, unit, [&](index_t i) { return clip(y(i)); });
    }
}

struct Segment { /* the geodesic from x to y: its half length times sqrt(curvature), and what its direction is made of */
    Point x, y;
    Size straight;
    double length, denominator, half_length;
};

template <class X, class Y>
INLINE Segment segment_of(index_t length, double curvature, X x, Y y, int *outside) {
    Segment s;
    s.x = point_of(length, curvature, x, outside);
    s.y = point_of(length, curvature, y, outside ? outside + 1 : 0);
    s.straight = size_of(length, [&](index_t i) { return y(i) - x(i); });
    s.length = s.straight.length();
    s.denominator = s.x.gap * s.y.gap + curvature * s.length * s.length;
    s.half_length = arsinh_of(sqrt(curvature) * s.length / sqrt(s.x.gap * s.y.gap));
    return s;
}

/* The entry of the unit direction at `from`, whose gap is given, towards the other end; `way` is that end minus `from`. */
INLINE double heading(Segment s, double gap, double curvature, double from, double way) {
    if (s.length == 0) return 0;
    return (gap * s.straight.direction(way) - curvature * s.length * from) / sqrt(s.denominator);
}

KERNEL logmap(const real *x_in, const real *y_in, real *result, int *outside, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(y, y_in);
        Segment s = segment_of(length, curvature, x, y, outside);
        double scale = s.x.gap * s.half_length / sqrt(curvature);
        leave(result + r * length, length, unit,
              [&](index_t i) { return scale * heading(s, s.x.gap, curvature, x(i), y(i) - x(i)); });
    }
}

/* The distance, or its square. */
KERNEL distance(const real *x_in, const real *y_in, real *result, int *outside, int squared, BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(y, y_in);
        Segment s = segment_of(length, curvature, x, y, outside);
        double value = 2 / sqrt(curvature) * s.half_length;
        if (threadIdx.x == 0) result[r] = (real) (squared ? value * value / (unit * unit) : value / unit);
    }
}

/* Moving an end along the geodesic, away from the other end, lengthens it at the rate of the conformal factor 2 / gap. */
KERNEL distance_backward(const real *x_in, const real *y_in, const real *dd, real *dx, real *dy, double *dc, int squared,
                         BALL_ARGUMENTS) {
    EACH_ROW {
        VECTOR(x, x_in);
        VECTOR(y, y_in);
        Segment s = segment_of(length, curvature, x, y, 0);
        double root = sqrt(curvature), g = (double) dd[r] / (squared ? unit * unit : unit);
        if (squared) g *= 2 * (2 / root * s.half_length);
        leave_cotangent(dx + r * length, length, unit, [&](index_t i) {
            return -2 * g / s.x.gap * heading(s, s.x.gap, curvature, x(i), y(i) - x(i));
        });
        leave_cotangent(dy + r * length, length, unit, [&](index_t i) {
            return -2 * g / s.y.gap * heading(s, s.y.gap, curvature, y(i), x(i) - y(i));
        });
        double growth = curvature * (s.x.square / s.x.gap + s.y.square / s.y.gap);
        if (threadIdx.x == 0)
            dc[r] = g / (curvature * root) * (tanh_excess(s.half_length) + tanh_of(s.half_length) * growth);
    }
}

/* One block: the curvature's cotangent, the sum of all rows' terms. */
KERNEL curvature_total(const double *terms, double *total, index_t rows, double unit) {
    double sum = 0;
    for (index_t r = threadIdx.x; r < rows; r += blockDim.x) sum += terms[r];
    sum = team_reduce<Add>(sum);
    if (threadIdx.x == 0) total[0] = sum / (unit * unit);
}
