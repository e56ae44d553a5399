/* One block of tiles of `filtering.c`, for one instruction set. Included once for each, with

   NAME(x)   x with a prefix for this instruction set
   TARGET    the attribute by which a compiler emits it
   LANES     float32 numbers in a vector register
   ROWS      rows of a product that are summed up in registers: 2 * ROWS of them, two for the weights, one to spread

   A block is `tiles` tiles side by side along y times `pairs` along z; m = tiles * pairs. */

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(anywhere) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VECTOR NAME(vector)
#define AT(address) (*(NAME(anywhere) *)(address))
#define FROM(address) ((VECTOR)*(const NAME(anywhere) *)(address))
#define PANEL (2 * LANES)

/* A product of some rows (rows, depth) with a panel of weights (depth, PANEL), in registers. */
static inline __attribute__((always_inline)) TARGET void NAME(rows)(
    int rows, const float *lines, const float *panel, float *sums, ptrdiff_t depth, ptrdiff_t width)
{
    VECTOR sum[ROWS][2];
    UNROLL(16)
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = (VECTOR){0};
    for (ptrdiff_t k = 0; k < depth; k++) {
        VECTOR left = FROM(panel + k * PANEL), right = FROM(panel + k * PANEL + LANES);
        UNROLL(16)
        for (int r = 0; r < rows; r++) {
            float number = lines[r * depth + k];
            sum[r][0] += number * left;
            sum[r][1] += number * right;
        }
    }
    UNROLL(16)
    for (int r = 0; r < rows; r++) {
        AT(sums + r * width) = sum[r][0];
        AT(sums + r * width + LANES) = sum[r][1];
    }
}

/* (m, depth) times (depth, width), the weights in panels; rows are shared out evenly: few cost as much as many. */
static TARGET void NAME(product)(
    const float *lines, const float *panels, float *sums, ptrdiff_t m, ptrdiff_t depth, ptrdiff_t width)
{
    ptrdiff_t groups = (m + ROWS - 1) / ROWS;
    for (ptrdiff_t column = 0; column < width; column += PANEL, panels += depth * PANEL)
        for (ptrdiff_t i = 0; i < groups; i++) {
            ptrdiff_t first = m * i / groups, count = m * (i + 1) / groups - first;
            const float *from = lines + first * depth;
            float *to = sums + first * width + column;
            switch (count) {
#define CASE(count) case count: NAME(rows)(count, from, panels, to, depth, width); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
            }
        }
}

/* B x of F(4, 3) at 0, +-sqrt(1/2), +-sqrt(2) and infinity. */
#define TO_TILE(x0, x1, x2, x3, x4, x5, y0, y1, y2, y3, y4, y5) \
    do { \
        VECTOR even_1 = x4 - 2.0f * x2, odd_1 = ROOT_HALF * (x3 - 2.0f * x1); \
        VECTOR even_2 = x4 - 0.5f * x2, odd_2 = ROOT_TWO * (x3 - 0.5f * x1); \
        y0 = x0 - 2.5f * x2 + x4; \
        y1 = even_1 + odd_1; \
        y2 = even_1 - odd_1; \
        y3 = even_2 + odd_2; \
        y4 = even_2 - odd_2; \
        y5 = x1 - 2.5f * x3 + x5; \
    } while (0)

/* A m of F(4, 3) at the same points. */
#define TO_OUTPUTS(m0, m1, m2, m3, m4, m5, y0, y1, y2, y3) \
    do { \
        VECTOR sum_1 = m1 + m2, odd_1 = ROOT_HALF * (m1 - m2), sum_2 = m3 + m4, odd_2 = ROOT_TWO * (m3 - m4); \
        y0 = m0 + sum_1 + sum_2; \
        y1 = odd_1 + odd_2; \
        y2 = 0.5f * sum_1 + 2.0f * sum_2; \
        y3 = 0.5f * odd_1 + 2.0f * odd_2 + m5; \
    } while (0)

/* Six rows to six along x; `numbers` of each, those of the result `apart` from one another. */
static TARGET void NAME(along_x)(const float *const rows[TILE], float *result, ptrdiff_t apart, ptrdiff_t numbers)
{
    for (ptrdiff_t k = 0; k < numbers; k += LANES) {
        VECTOR x0 = FROM(rows[0] + k), x1 = FROM(rows[1] + k), x2 = FROM(rows[2] + k);
        VECTOR x3 = FROM(rows[3] + k), x4 = FROM(rows[4] + k), x5 = FROM(rows[5] + k);
        float *to = result + k;
        TO_TILE(x0, x1, x2, x3, x4, x5, AT(to), AT(to + apart), AT(to + 2 * apart), AT(to + 3 * apart),
                AT(to + 4 * apart), AT(to + 5 * apart));
    }
}

/* Lines (4 tiles + 2, 2 pairs + 2, in) to tiles (6, 4, m, in): along y by F(4, 3), then along z by F(2, 3). */
static TARGET void NAME(along_yz)(const float *lines, float *result, ptrdiff_t tiles, ptrdiff_t pairs, ptrdiff_t in)
{
    VECTOR held[TILE][2 * MOST_PAIRS + 2];
    ptrdiff_t line = (2 * pairs + 2) * in, matrix = tiles * pairs * in + APART;
    for (ptrdiff_t tile = 0; tile < tiles; tile++)
        for (ptrdiff_t k = 0; k < in; k += LANES) {
            const float *at = lines + OUTPUTS * tile * line + k;
            for (ptrdiff_t z = 0; z < 2 * pairs + 2; z++, at += in) {
                VECTOR x0 = FROM(at), x1 = FROM(at + line), x2 = FROM(at + 2 * line);
                VECTOR x3 = FROM(at + 3 * line), x4 = FROM(at + 4 * line), x5 = FROM(at + 5 * line);
                TO_TILE(x0, x1, x2, x3, x4, x5, held[0][z], held[1][z], held[2][z], held[3][z], held[4][z], held[5][z]);
            }
            for (int j = 0; j < TILE; j++) {
                float *to = result + 4 * j * matrix + tile * pairs * in + k;
                for (const VECTOR *z = held[j]; z < held[j] + 2 * pairs; z += 2, to += in) {
                    AT(to) = z[2] - z[0];
                    AT(to + matrix) = z[1] + z[2];
                    AT(to + 2 * matrix) = z[2] - z[1];
                    AT(to + 3 * matrix) = z[3] - z[1];
                }
            }
        }
}

/* Products (6, 4, numbers) to (4, 2, numbers): along z, then along y. */
static TARGET void NAME(back_zy)(const float *products, float *result, ptrdiff_t numbers)
{
    ptrdiff_t matrix = numbers + APART;
    for (ptrdiff_t k = 0; k < numbers; k += LANES) {
        const float *at = products + k;
        float *to = result + k;
        VECTOR m[TILE];
        UNROLL(6)
        for (int j = 0; j < TILE; j++)
            m[j] = FROM(at + 4 * j * matrix) + FROM(at + (4 * j + 1) * matrix) + FROM(at + (4 * j + 2) * matrix);
        TO_OUTPUTS(m[0], m[1], m[2], m[3], m[4], m[5], AT(to), AT(to + 2 * numbers), AT(to + 4 * numbers),
                   AT(to + 6 * numbers));
        to += numbers;
        UNROLL(6)
        for (int j = 0; j < TILE; j++)
            m[j] = FROM(at + (4 * j + 1) * matrix) - FROM(at + (4 * j + 2) * matrix) + FROM(at + (4 * j + 3) * matrix);
        TO_OUTPUTS(m[0], m[1], m[2], m[3], m[4], m[5], AT(to), AT(to + 2 * numbers), AT(to + 4 * numbers),
                   AT(to + 6 * numbers));
    }
}

/* (6, 4, 2, m, width) along x, plus the bias, to where the block stands in the result, but not beyond it. */
static TARGET void NAME(back_x)(
    const float *parts, const struct convolution *c, const float *bias, float *result, struct block b)
{
    ptrdiff_t m = b.tiles * b.pairs, apart = 8 * m * c->width + APART;
    ptrdiff_t row = c->size[1] * c->size[2] * c->out, rows = c->size[0] - b.x;
    for (ptrdiff_t i = 0; i < OUTPUTS * b.tiles * 2 * b.pairs; i++) {
        ptrdiff_t z = i % (2 * b.pairs), y = i / (2 * b.pairs);
        if (b.y + y >= c->size[1] || b.z + z >= c->size[2])
            continue;
        ptrdiff_t place = (2 * (y % OUTPUTS) + z % 2) * m + y / OUTPUTS * b.pairs + z / 2;
        const float *from = parts + place * c->width;
        float *to = result + ((b.x * c->size[1] + b.y + y) * c->size[2] + b.z + z) * c->out;
        for (ptrdiff_t k = 0; k < c->out; k += LANES, from += LANES, to += LANES) {
            VECTOR m0 = FROM(from), m1 = FROM(from + apart), m2 = FROM(from + 2 * apart);
            VECTOR m3 = FROM(from + 3 * apart), m4 = FROM(from + 4 * apart), m5 = FROM(from + 5 * apart);
            VECTOR added = FROM(bias + k), y0, y1, y2, y3;
            TO_OUTPUTS(m0, m1, m2, m3, m4, m5, y0, y1, y2, y3);
            AT(to) = y0 + added;
            if (rows > 1)
                AT(to + row) = y1 + added;
            if (rows > 2)
                AT(to + 2 * row) = y2 + added;
            if (rows > 3)
                AT(to + 3 * row) = y3 + added;
        }
    }
}

static TARGET void NAME(block)(const struct convolution *c, const struct numbers *n, struct block b)
{
    ptrdiff_t lines = OUTPUTS * b.tiles + 2, depth = 2 * b.pairs + 2, in = c->in, m = b.tiles * b.pairs;
    struct workspace w = workspace_of(c, b.tiles, b.pairs);
    float *rows_x = n->workspace + w.rows, *tiles = n->workspace + w.tiles, *products = n->workspace + w.products;
    float *parts = n->workspace + w.parts, *zeros = n->workspace + w.zeros;
    ptrdiff_t z = b.z - c->padding[2], apart = lines * depth * in;
    ptrdiff_t low = z < 0 ? -z : 0, high = c->input[2] - z < depth ? c->input[2] - z : depth; /* what exists along z */
    memset(zeros, 0, depth * in * sizeof(float));
    for (ptrdiff_t line = 0; line < lines; line++) {
        ptrdiff_t y = b.y - c->padding[1] + line;
        const float *rows[TILE];
        float *to = rows_x + line * depth * in;
        if (y < 0 || y >= c->input[1] || high <= low) {
            for (int i = 0; i < TILE; i++)
                memset(to + i * apart, 0, depth * in * sizeof(float));
            continue;
        }
        for (int i = 0; i < TILE; i++) {
            ptrdiff_t x = b.x - c->padding[0] + i;
            int exists = x >= 0 && x < c->input[0];
            rows[i] = exists ? n->source + ((x * c->input[1] + y) * c->input[2] + z + low) * in : zeros;
            memset(to + i * apart, 0, low * in * sizeof(float));
            memset(to + i * apart + high * in, 0, (depth - high) * in * sizeof(float));
        }
        NAME(along_x)(rows, to + low * in, apart, (high - low) * in);
    }
    for (int i = 0; i < TILE; i++) {
        NAME(along_yz)(rows_x + i * apart, tiles, b.tiles, b.pairs, in);
        for (int j = 0; j < 4 * TILE; j++)
            NAME(product)(tiles + j * (m * in + APART), n->weights + (4 * TILE * i + j) * in * c->width,
                          products + j * (m * c->width + APART), m, in, c->width);
        NAME(back_zy)(products, parts + i * (8 * m * c->width + APART), m * c->width);
    }
    NAME(back_x)(parts, c, n->bias, n->result, b);
}

#undef TO_TILE
#undef TO_OUTPUTS
#undef PANEL
#undef FROM
#undef AT
#undef VECTOR
#undef NAME
#undef TARGET
#undef LANES
#undef ROWS
