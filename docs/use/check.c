/* Holds two functions in float to the golden vectors of an exported folder.
       cc -O2 -std=c11 check.c -lm -o check && ./check FOLDER              */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void softmax(const float *x, long n, float *y) {
    float largest = -INFINITY, sum = 0;
    for (long i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    for (long i = 0; i < n; i++) sum += y[i] = expf(x[i] - largest);
    for (long i = 0; i < n; i++) y[i] /= sum;
}

static void layer_norm(const float *x, const float *gain, const float *bias, float eps,
                       long n, float *y) {
    float mean = 0, variance = 0;
    for (long i = 0; i < n; i++) mean += x[i] / n;
    for (long i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / n;
    for (long i = 0; i < n; i++)
        y[i] = gain[i] * (x[i] - mean) / sqrtf(variance + eps) + bias[i];
}

/* The columns of values.tsv. */
enum { FUNCTION, CASE, ROLE, TYPE, SHAPE, DATA, VALUE, FIELDS };

static struct { /* the case that is being read */
    float *x, *gain, *bias, eps;
    double *expected, limit;
    long size, row;
    char function[64], name[256], rule[32];
    int other; /* something about it that these two functions do not do */
} c;

/* Read an array, little-endian as this machine is; set how many entries it has, and a row. */
static void *load(const char *folder, char **field, long *size, long *row) {
    char path[4096], *shape = field[SHAPE];
    for (*size = *row = 1; *shape; shape += *shape == ',')
        *size *= *row = strtol(shape, &shape, 10);
    size_t item = strcmp(field[TYPE], "float32") ? 8 : 4, count = (size_t)*size;
    void *data = malloc(count * item + 1);
    snprintf(path, sizeof path, "%s/%s", folder, field[DATA]);
    FILE *in = fopen(path, "rb");
    if (!in || fseek(in, atol(field[VALUE]), SEEK_SET) || fread(data, item, count, in) != count)
        perror(path), exit(2);
    fclose(in);
    return data;
}

/* Compute the case and compare; the unit is that of each entry, or of the largest one. */
static int failed(void) {
    if (c.other || !c.expected) return 0;
    float *y = malloc(sizeof(float) * (size_t)c.size + 1), largest = 0;
    for (long i = 0; i < c.size; i += c.row)
        c.gain ? layer_norm(c.x + i, c.gain, c.bias, c.eps, c.row, y + i)
               : softmax(c.x + i, c.row, y + i);
    double worst = 0;
    long at = 0;
    for (long i = 0; i < c.size; i++) largest = fmaxf(largest, fabsf((float)c.expected[i]));
    for (long i = 0; i < c.size; i++) {
        float e = strcmp(c.rule, "ulp") ? largest : fabsf((float)c.expected[i]);
        double ulps = fabs(y[i] - c.expected[i]) / (nextafterf(e, INFINITY) - e);
        int same = y[i] == c.expected[i] || (isnan(y[i]) && isnan(c.expected[i]));
        if (!same && !(ulps <= worst)) worst = ulps, at = i;
    }
    int wrong = !(worst <= c.limit);
    printf("%s %s, %s: %.3g ULP", wrong ? "FAILED" : "passed", c.function, c.name, worst);
    if (wrong) printf(" at entry %ld: %.9g, expected %.9g", at, y[at], c.expected[at]);
    putchar('\n');
    return wrong;
}

int main(int count, char **given) {
    const char *folder = count > 1 ? given[1] : ".";
    static char line[1 << 16], path[4096];
    snprintf(path, sizeof path, "%s/values.tsv", folder);
    FILE *in = fopen(path, "r");
    if (!in) return perror(path), 2;
    int failures = 0;
    while (fgets(line, sizeof line, in)) {
        char *field[FIELDS], *rest = line;
        for (int i = 0; i < FIELDS; i++) {
            field[i] = rest;
            rest += strcspn(rest, "\t\n");
            if (*rest) *rest++ = 0;
        }
        const char *function = field[FUNCTION], *role = field[ROLE], *text = field[VALUE];
        if (strcmp(function, "softmax.softmax") && strcmp(function, "norms.layer_norm")) continue;
        int single = !strcmp(field[TYPE], "float32");
        long size, row;
        if (!strcmp(role, "name")) { /* the case before is complete */
            failures += failed();
            memset(&c, 0, sizeof c);
            c.eps = 1e-5f;
            snprintf(c.function, sizeof c.function, "%s", function);
            snprintf(c.name, sizeof c.name, "%s", text);
        }
        else if (!strcmp(role, "rule")) snprintf(c.rule, sizeof c.rule, "%s", text);
        else if (!strcmp(role, "tolerance")) c.limit = atof(text);
        else if (!strcmp(role, "options.eps")) c.eps = strtof(text, NULL);
        else if (!strcmp(role, "args.x") && single)
            c.x = load(folder, field, &c.size, &c.row);
        else if (!strcmp(role, "args.gain") && single)
            c.gain = load(folder, field, &size, &row);
        else if (!strcmp(role, "args.bias") && single)
            c.bias = load(folder, field, &size, &row);
        else if (!strcmp(role, "expected") && !single)
            c.expected = load(folder, field, &size, &row);
        else if (strcmp(role, "kind")) c.other = 1; /* another dtype, another axis, another algorithm */
    }
    failures += failed();
    return failures > 0;
}
