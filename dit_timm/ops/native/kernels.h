/* The inner loops, written once in vectors and compiled for one instruction set each time this file is included.
 *
 * The includer defines
 *   ISA      a suffix for the names, such as _avx512
 *   TARGET   the function attribute that selects the instruction set, or nothing
 *   LANES    floats in a vector register
 *   ROWS, VECS  the register tile: ROWS * VECS accumulators, and VECS + 1 registers more, must fit the registers
 * and this file undefines them again.
 *
 * One loop does all the arithmetic: `multiply_add`, the heart of a matrix product. Its right operand is a tile of
 * products of two channels (forward, gradient of the weights) that was formed a moment ago and still is in the
 * first-level cache, or its result is a tile of gradients of products that is contracted while still in registers
 * (gradient of the inputs). Products never reach memory.
 */

#define JOIN_(name, isa) name##isa
#define JOIN(name, isa) JOIN_(name, isa)
#define NAME(name) JOIN(name, ISA)
#define VECTOR NAME(vector)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define TILE (LANES * VECS)

typedef float VECTOR __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

#define AT(pointer) (*(VECTOR *)(pointer))
#define CONST_AT(pointer) (*(const VECTOR *)(pointer))

typedef int32_t NAME(index) __attribute__((vector_size(LANES * sizeof(int32_t))));

/* Lanes of two vectors one after the other, of which a vector takes the even or the odd groups of `distance`. */
#define EVEN(lane, distance) ((lane) & (distance) ? LANES + (lane) - (distance) : (lane))
#define ODD(lane, distance) ((lane) & (distance) ? LANES + (lane) : (lane) + (distance))
#define LIST4(of, lane, distance) \
    of(lane, distance), of(lane + 1, distance), of(lane + 2, distance), of(lane + 3, distance)
#define LIST8(of, lane, distance) LIST4(of, lane, distance), LIST4(of, lane + 4, distance)
#define LIST16(of, lane, distance) LIST8(of, lane, distance), LIST8(of, lane + 8, distance)
#define SHUFFLE(a, b, of, distance) \
    __builtin_shuffle(a, b, (NAME(index)){JOIN(LIST, LANES)(of, 0, distance)})

/* Swap the off-diagonal quarters of every square of 2 * distance: transposes after all powers of two below LANES. */
#define SWAP(distance) \
    for (int row = 0; row < LANES; row++) \
        if (!(row & (distance))) { \
            const VECTOR a = rows[row], b = rows[row + (distance)]; \
            rows[row] = SHUFFLE(a, b, EVEN, distance); \
            rows[row + (distance)] = SHUFFLE(a, b, ODD, distance); \
        }

INLINE void NAME(transpose_square)(const float *from, int64_t from_row, float *to, int64_t to_row) {
    VECTOR rows[LANES];
    for (int row = 0; row < LANES; row++)
        rows[row] = CONST_AT(from + row * from_row);
    SWAP(1)
    SWAP(2)
#if LANES > 4
    SWAP(4)
#endif
#if LANES > 8
    SWAP(8)
#endif
    for (int row = 0; row < LANES; row++)
        AT(to + row * to_row) = rows[row];
}

/* to[column * to_row + row] = from[row * from_row + column] */
TARGET static void NAME(transpose)(
    int64_t rows, int64_t columns, const float *from, int64_t from_row, float *to, int64_t to_row
) {
    if (rows < LANES || columns < LANES) {
        for (int64_t column = 0; column < columns; column++)
            for (int64_t row = 0; row < rows; row++)
                to[column * to_row + row] = from[row * from_row + column];
        return;
    }
    /* The last squares may overlap those before them. */
    for (int64_t r = 0; r < rows; r += LANES)
        for (int64_t c = 0; c < columns; c += LANES) {
            const int64_t row = minimum(r, rows - LANES), column = minimum(c, columns - LANES);
            NAME(transpose_square)(from + row * from_row + column, from_row, to + column * to_row + row, to_row);
        }
}

/* sums[row][lanes of vecs] += left[step, row] * right[step, lanes of vecs], summed over steps, in registers.
 * `vecs` is a constant of the caller, at most VECS. */
INLINE void NAME(multiply_add)(
    const int vecs, int64_t steps, const float *left, int64_t left_step, int64_t left_row, const float *right,
    int64_t right_step, VECTOR sums[ROWS][VECS]
) {
    for (int64_t step = 0; step < steps; step++) {
        VECTOR lanes[VECS];
        for (int v = 0; v < vecs; v++)
            lanes[v] = CONST_AT(right + step * right_step + v * LANES);
        for (int row = 0; row < ROWS; row++)
            for (int v = 0; v < vecs; v++)
                sums[row][v] += left[step * left_step + row * left_row] * lanes[v];
    }
}

/* As multiply_add, on sums in memory. */
INLINE void NAME(multiply_add_to)(
    const int vecs, int64_t steps, const float *left, int64_t left_step, int64_t left_row, const float *right,
    int64_t right_step, float *result, int64_t result_row
) {
    VECTOR sums[ROWS][VECS];
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < vecs; v++)
            sums[row][v] = CONST_AT(result + row * result_row + v * LANES);
    NAME(multiply_add)(vecs, steps, left, left_step, left_row, right, right_step, sums);
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < vecs; v++)
            AT(result + row * result_row + v * LANES) = sums[row][v];
}

INLINE void NAME(multiply_rows)(int64_t pixels, const float *first, const float *second, float *products) {
    for (int64_t p = 0; p < pixels; p += LANES)
        AT(products + p) = CONST_AT(first + p) * CONST_AT(second + p);
}

/* x (C, TILE) -> sums (outputs, TILE), with weights (outputs / ROWS, pairs, ROWS); products: scratch (PANEL, TILE). */
TARGET static void NAME(forward_tile)(
    const struct pairs *pairs, int64_t outputs, const float *weights, const float *x, float *products, float *sums
) {
    memset(sums, 0, outputs * TILE * sizeof(float));
    for (int64_t start = 0; start < pairs->count; start += PANEL) {
        int64_t size = pairs->count - start < PANEL ? pairs->count - start : PANEL;
        for (int64_t k = 0; k < size; k++)
            NAME(multiply_rows)(
                TILE, x + pairs->first[start + k] * TILE, x + pairs->second[start + k] * TILE, products + k * TILE);
        for (int64_t o = 0; o < outputs; o += ROWS)
            NAME(multiply_add_to)(
                VECS, size, weights + o * pairs->count + start * ROWS, ROWS, 1, products, TILE, sums + o * TILE, TILE);
    }
}

/* grad (O, TILE), x (C, TILE) -> grad_x (C, TILE), with weights (padded pairs / ROWS, O, ROWS). */
TARGET static void NAME(grad_x_tile)(
    const struct pairs *pairs, int64_t channels, int64_t outputs, const float *weights, const float *grad,
    const float *x, float *grad_x
) {
    memset(grad_x, 0, channels * TILE * sizeof(float));
    for (int64_t k = 0; k < pairs->count; k += ROWS) {
        VECTOR sums[ROWS][VECS];
        for (int row = 0; row < ROWS; row++)
            for (int v = 0; v < VECS; v++)
                sums[row][v] = (VECTOR){0};
        NAME(multiply_add)(VECS, outputs, weights + k * outputs, ROWS, 1, grad, TILE, sums);
        /* The gradient of a product goes to each of its factors, times the other. Pairs past the last have weight
         * zero. */
        for (int row = 0; row < ROWS; row++) {
            int64_t first = pairs->first[k + row] * TILE, second = pairs->second[k + row] * TILE;
            for (int v = 0; v < VECS; v++) {
                AT(grad_x + first + v * LANES) += sums[row][v] * CONST_AT(x + second + v * LANES);
                AT(grad_x + second + v * LANES) += sums[row][v] * CONST_AT(x + first + v * LANES);
            }
        }
    }
}

/* Add `steps` pixels of a chunk to the gradient of the weights of ROWS pairs: x (C, CHUNK), grad (CHUNK, lanes) with
 * steps and lanes multiples of LANES -> sums (ROWS, lanes); products: scratch (ROWS, CHUNK). */
TARGET static void NAME(grad_weight_rows)(
    const int32_t *first, const int32_t *second, int64_t steps, int64_t lanes, const float *grad, const float *x,
    float *products, float *sums
) {
    for (int row = 0; row < ROWS; row++)
        NAME(multiply_rows)(steps, x + first[row] * CHUNK, x + second[row] * CHUNK, products + row * CHUNK);
    int64_t vectors = lanes / LANES, groups = (vectors + VECS - 1) / VECS;
    for (int64_t group = 0; group < groups; group++) {
        int64_t start = group * vectors / groups, stop = (group + 1) * vectors / groups;
        const float *right = grad + start * LANES;
        float *result = sums + start * LANES;
        /* The compiler needs the width of the register tile as a constant. */
        switch (stop - start) {
#define WIDTH(vecs) \
        case vecs: \
            NAME(multiply_add_to)(vecs, steps, products, 1, CHUNK, right, lanes, result, lanes); \
            break;
        WIDTH(1)
        WIDTH(2)
        WIDTH(3)
#undef WIDTH
        }
    }
}

static const struct kernels NAME(kernels) = {
    .rows = ROWS,
    .lanes = LANES,
    .tile = TILE,
    .forward_tile = NAME(forward_tile),
    .grad_x_tile = NAME(grad_x_tile),
    .grad_weight_rows = NAME(grad_weight_rows),
    .transpose = NAME(transpose),
};

#undef JOIN_
#undef JOIN
#undef NAME
#undef VECTOR
#undef INLINE
#undef TILE
#undef AT
#undef CONST_AT
#undef EVEN
#undef ODD
#undef LIST4
#undef LIST8
#undef LIST16
#undef SHUFFLE
#undef SWAP
#undef ISA
#undef TARGET
#undef LANES
#undef ROWS
#undef VECS
