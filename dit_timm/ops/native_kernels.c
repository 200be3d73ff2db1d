/* The quadratic form and its gradients on a CPU, in float32.
 *
 *     q[p, o] = sum over pairs k = (i <= j) of folded[o, k] x[p, i] x[p, j]
 *
 * C with the vector extensions of GCC; it knows nothing of Python or torch (see native_backend.py).
 * This file lays out operands and shares tiles among threads; native_kernels.h holds the inner loops, compiled for
 * several instruction sets, of which the best that the machine has is picked at run time.
 *
 * Memory: a copy of the folded weights (half the size of the weights) and, for each thread, a tile of pixels. No sum
 * depends on the number of threads.
 */

/* torch and code compiled by GCC share one pool of OpenMP threads, libgomp's. Clang brings a pool of its own, whose
 * waiting threads were seen to slow torch's down more than tenfold. */
#if !defined(__GNUC__) || defined(__clang__)
#error "The kernels need GCC; without them the package works in plain torch."
#endif

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    PANEL = 96,   /* pairs whose products lie in the first-level cache at a time: 24 KiB with tiles of 64 pixels */
    CHUNK = 256,  /* pixels over which the gradient of the weights is summed before its sums go back to memory */
    ALIGNMENT = 64,
};

/* The folded pairs, in the order of torch.triu_indices. The lists are longer than `count`, padded with pair (0, 0). */
struct pairs {
    int64_t count;
    int32_t *first, *second;
};

struct kernels {
    int64_t rows, lanes, tile;
    void (*forward_tile)(
        const struct pairs *, int64_t outputs, const float *weights, const float *x, float *products, float *sums);
    void (*grad_x_tile)(
        const struct pairs *, int64_t channels, int64_t outputs, const float *weights, const float *grad,
        const float *x, float *grad_x);
    void (*grad_weight_rows)(
        const int32_t *first, const int32_t *second, int64_t steps, int64_t lanes, const float *grad, const float *x,
        float *products, float *sums);
};

/* A matrix (pixels, channels) of any strides, in elements. */
struct matrix {
    const float *data;
    int64_t pixel_stride, channel_stride;
};

#if defined(__x86_64__)
#define ISA _avx512
#define TARGET __attribute__((target("avx512f,fma")))
#define LANES 16
#define ROWS 8
#define VECS 3
#include "native_kernels.h"

#define ISA _avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 4
#define VECS 3
#include "native_kernels.h"

#define ISA _sse2
#define TARGET
#define LANES 4
#define ROWS 4
#define VECS 3
#include "native_kernels.h"

static const struct kernels *const all_kernels[] = {&kernels_avx512, &kernels_avx2, &kernels_sse2};
static const char *const all_names[] = {"avx512", "avx2", "sse2"};

static int supported(int isa) {
    __builtin_cpu_init();
    switch (isa) {
    case 0: return __builtin_cpu_supports("avx512f") != 0;
    case 1: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default: return 1;
    }
}
#else
/* 128-bit vectors and 32 registers, as on aarch64. */
#define ISA _generic
#define TARGET
#define LANES 4
#define ROWS 8
#define VECS 3
#include "native_kernels.h"

static const struct kernels *const all_kernels[] = {&kernels_generic};
static const char *const all_names[] = {"generic"};

static int supported(int isa) {
    (void)isa;
    return 1;
}
#endif

enum { ISA_COUNT = sizeof(all_kernels) / sizeof(all_kernels[0]) };

/* Name of instruction set number `isa`, best first: empty where this machine lacks it, NULL past the last. */
const char *dit_native_isa(int isa) {
    return isa >= ISA_COUNT ? NULL : supported(isa) ? all_names[isa] : "";
}

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static int64_t minimum(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Room for `count` floats, or one, that starts on a cache line; NULL when there is none. */
static float *allocate(int64_t count) {
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, round_up(count * sizeof(float) + 1, ALIGNMENT)) ? NULL : memory;
}

static int list_pairs(struct pairs *pairs, int64_t channels, int64_t rows) {
    pairs->count = channels * (channels + 1) / 2;
    int64_t padded = round_up(pairs->count, rows);
    pairs->first = calloc(2 * padded + 1, sizeof(int32_t));
    if (!pairs->first)
        return 0;
    pairs->second = pairs->first + padded;
    for (int64_t i = 0, k = 0; i < channels; i++)
        for (int64_t j = i; j < channels; j++, k++) {
            pairs->first[k] = (int32_t)i;
            pairs->second[k] = (int32_t)j;
        }
    return 1;
}

/* Fold the weights (C, C) of one output, the pairs in groups: pair k goes to (k / group, k % group) of a target whose
 * groups lie `group_stride` apart. */
static void fold(const float *weight, int64_t channels, int64_t group, int64_t group_stride, float *target) {
    int64_t in_group = 0;
    for (int64_t i = 0; i < channels; i++)
        for (int64_t j = i; j < channels; j++) {
            target[in_group] = i == j ? weight[i * channels + i] : weight[i * channels + j] + weight[j * channels + i];
            if (++in_group == group) {
                in_group = 0;
                target += group_stride;
            }
        }
}

/* (pixels, channels) from pixel `start` -> (channels, size), zero past the last pixel. */
static void load_channels(
    struct matrix from, int64_t start, int64_t pixels, int64_t channels_start, int64_t channels_stop, int64_t size,
    float *to
) {
    int64_t count = minimum(pixels - start, size);
    for (int64_t c = channels_start; c < channels_stop; c++) {
        const float *source = from.data + start * from.pixel_stride + c * from.channel_stride;
        float *target = to + c * size;
        for (int64_t p = 0; p < count; p++)
            target[p] = source[p * from.pixel_stride];
        memset(target + count, 0, (size - count) * sizeof(float));
    }
}

/* (channels, size) -> contiguous (pixels, channels) from pixel `start`. */
static void store_pixels(
    const float *from, int64_t size, int64_t start, int64_t pixels, int64_t channels, float *to
) {
    int64_t count = minimum(pixels - start, size);
    for (int64_t p = 0; p < count; p++)
        for (int64_t c = 0; c < channels; c++)
            to[(start + p) * channels + c] = from[c * size + p];
}

/* x (P, C), weight (O, C, C) contiguous -> output (P, O) contiguous. Returns 0 when there is no memory, else 1. */
int dit_native_forward(
    int isa, int threads, int64_t pixels, int64_t channels, int64_t outputs, const float *x, int64_t x_pixel_stride,
    int64_t x_channel_stride, const float *weight, float *output
) {
    const struct kernels *kernels = all_kernels[isa];
    const struct matrix inputs = {x, x_pixel_stride, x_channel_stride};
    const int64_t rows = kernels->rows, tile = kernels->tile, padded_outputs = round_up(outputs, rows);
    const int64_t scratch_size = round_up((channels + PANEL + padded_outputs) * tile, ALIGNMENT);
    struct pairs pairs;
    int success = list_pairs(&pairs, channels, rows);
    float *packed = allocate(padded_outputs * pairs.count), *scratch = allocate(threads * scratch_size);
    success = success && packed && scratch;
    if (success) {
#pragma omp parallel num_threads(threads)
        {
            /* (outputs / ROWS, pairs, ROWS): the order in which the inner loop reads. */
#pragma omp for
            for (int64_t o = 0; o < padded_outputs; o++) {
                float *target = packed + o / rows * rows * pairs.count + o % rows;
                if (o < outputs)
                    fold(weight + o * channels * channels, channels, 1, rows, target);
                else
                    for (int64_t k = 0; k < pairs.count; k++)
                        target[k * rows] = 0;
            }
#pragma omp for
            for (int64_t thread = 0; thread < threads; thread++) {
                float *x_tile = scratch + thread * scratch_size, *products = x_tile + channels * tile;
                float *sums = products + PANEL * tile;
                for (int64_t start = thread * tile; start < pixels; start += threads * tile) {
                    load_channels(inputs, start, pixels, 0, channels, tile, x_tile);
                    kernels->forward_tile(&pairs, padded_outputs, packed, x_tile, products, sums);
                    store_pixels(sums, tile, start, pixels, outputs, output);
                }
            }
        }
    }
    free(scratch);
    free(packed);
    free(pairs.first);
    return success;
}

/* grad (P, O), x (P, C), weight (O, C, C) contiguous -> grad_x (P, C) contiguous. */
int dit_native_grad_x(
    int isa, int threads, int64_t pixels, int64_t channels, int64_t outputs, const float *grad,
    int64_t grad_pixel_stride, int64_t grad_channel_stride, const float *x, int64_t x_pixel_stride,
    int64_t x_channel_stride, const float *weight, float *grad_x
) {
    const struct kernels *kernels = all_kernels[isa];
    const struct matrix grads = {grad, grad_pixel_stride, grad_channel_stride};
    const struct matrix inputs = {x, x_pixel_stride, x_channel_stride};
    const int64_t rows = kernels->rows, tile = kernels->tile;
    const int64_t scratch_size = round_up((2 * channels + outputs) * tile, ALIGNMENT);
    struct pairs pairs;
    int success = list_pairs(&pairs, channels, rows);
    const int64_t padded_pairs = round_up(pairs.count, rows);
    float *packed = allocate(padded_pairs * outputs), *scratch = allocate(threads * scratch_size);
    success = success && packed && scratch;
    if (success) {
#pragma omp parallel num_threads(threads)
        {
            /* (pairs / ROWS, O, ROWS). */
#pragma omp for
            for (int64_t o = 0; o < outputs; o++) {
                memset(packed + (padded_pairs - rows) * outputs + o * rows, 0, rows * sizeof(float));
                fold(weight + o * channels * channels, channels, rows, outputs * rows, packed + o * rows);
            }
#pragma omp for
            for (int64_t thread = 0; thread < threads; thread++) {
                float *x_tile = scratch + thread * scratch_size, *grad_tile = x_tile + channels * tile;
                float *result = grad_tile + outputs * tile;
                for (int64_t start = thread * tile; start < pixels; start += threads * tile) {
                    load_channels(inputs, start, pixels, 0, channels, tile, x_tile);
                    load_channels(grads, start, pixels, 0, outputs, tile, grad_tile);
                    kernels->grad_x_tile(&pairs, channels, outputs, packed, grad_tile, x_tile, result);
                    store_pixels(result, tile, start, pixels, channels, grad_x);
                }
            }
        }
    }
    free(scratch);
    free(packed);
    free(pairs.first);
    return success;
}

/* grad (P, O), x (P, C) -> grad_weight (O, C, C) contiguous, symmetric in its last two axes. */
int dit_native_grad_weight(
    int isa, int threads, int64_t pixels, int64_t channels, int64_t outputs, const float *grad,
    int64_t grad_pixel_stride, int64_t grad_channel_stride, const float *x, int64_t x_pixel_stride,
    int64_t x_channel_stride, float *grad_weight
) {
    const struct kernels *kernels = all_kernels[isa];
    const struct matrix inputs = {x, x_pixel_stride, x_channel_stride};
    const int64_t rows = kernels->rows, lanes = round_up(outputs, kernels->lanes);
    struct pairs pairs;
    int success = list_pairs(&pairs, channels, rows);
    const int64_t padded_pairs = round_up(pairs.count, rows);
    float *sums = allocate(padded_pairs * lanes), *x_chunk = allocate(channels * CHUNK);
    float *grad_chunk = allocate(CHUNK * lanes), *products = allocate(threads * rows * CHUNK);
    success = success && sums && x_chunk && grad_chunk && products;
    if (success) {
        /* Threads share the pairs, not the pixels: then each sum belongs to one thread. */
        const int64_t blocks = padded_pairs / rows;
        memset(sums, 0, padded_pairs * lanes * sizeof(float));
#pragma omp parallel num_threads(threads)
        {
            for (int64_t start = 0; start < pixels; start += CHUNK) {
                const int64_t count = minimum(pixels - start, CHUNK), steps = round_up(count, kernels->lanes);
#pragma omp for
                for (int64_t c = 0; c < channels; c++)
                    load_channels(inputs, start, pixels, c, c + 1, CHUNK, x_chunk);
#pragma omp for
                for (int64_t p = 0; p < steps; p++)
                    for (int64_t o = 0; o < lanes; o++)
                        grad_chunk[p * lanes + o] = p < count && o < outputs
                            ? grad[(start + p) * grad_pixel_stride + o * grad_channel_stride] : 0;
#pragma omp for
                for (int64_t thread = 0; thread < threads; thread++)
                    for (int64_t b = thread * blocks / threads; b < (thread + 1) * blocks / threads; b++)
                        kernels->grad_weight_rows(
                            pairs.first + b * rows, pairs.second + b * rows, steps, lanes, grad_chunk, x_chunk,
                            products + thread * rows * CHUNK, sums + b * rows * lanes);
            }
            /* (pairs, lanes) -> (O, C, C), a cache line of outputs at a time. */
#pragma omp for
            for (int64_t first_output = 0; first_output < outputs; first_output += 16) {
                const int64_t stop = minimum(first_output + 16, outputs);
                for (int64_t k = 0; k < pairs.count; k++)
                    for (int64_t o = first_output; o < stop; o++)
                        grad_weight[(o * channels + pairs.first[k]) * channels + pairs.second[k]] = sums[k * lanes + o];
                for (int64_t o = first_output; o < stop; o++)
                    for (int64_t i = 0; i < channels; i++)
                        for (int64_t j = 0; j < i; j++)
                            grad_weight[(o * channels + i) * channels + j] =
                                grad_weight[(o * channels + j) * channels + i];
            }
        }
    }
    free(products);
    free(grad_chunk);
    free(x_chunk);
    free(sums);
    free(pairs.first);
    return success;
}
