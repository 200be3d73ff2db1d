/* The quadratic form and its gradients on a CPU, in float32.
 *
 *     q[p, o] = sum over pairs k = (i <= j) of folded[o, k] x[p, i] x[p, j]
 *
 * C with the vector extensions of GCC; it does not depend on Python or torch (see binding.py).
 * This file lays out operands and shares work among threads; kernels.h holds the inner loops, compiled for
 * several instruction sets, of which the best that the machine has is picked at run time.
 *
 * Threads: the work is cut into pieces by its shape alone, and whoever is free takes the next. Nobody waits for a
 * thread that other processes keep from its core, except at the end for the pieces that it holds. Each sum belongs to
 * one piece, and sums of pieces are added in their order, so that no bit depends on threads.
 *
 * Memory: a copy of the folded weights (half the size of the weights), for their gradient up to MOST_PARTIAL_SUMS (8
 * MiB) where a copy is smaller, and for each thread a tile of pixels.
 */

/* torch and code compiled by GCC share one pool of OpenMP threads, libgomp's. Clang brings a pool of its own, whose
 * waiting threads were seen to slow torch's down more than tenfold. */
#if !defined(__GNUC__) || defined(__clang__)
#error "The kernels need GCC; without them the package works in plain torch."
#endif

#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    PANEL = 96,   /* pairs whose products lie in the first-level cache at a time: 24 KiB with tiles of 64 pixels */
    CHUNK = 256,  /* pixels over which the gradient of the weights is summed before its sums go back to memory */
    ALIGNMENT = 64,
    LINE = 16,    /* floats of a cache line */
    /* Multiplications of a piece, at least: forward and gradient of the inputs, whose pieces share everything ... */
    TILE_PIECE = 1 << 18,
    /* ... and gradient of the weights, where each part of the pixels has sums of its own ... */
    GRAD_WEIGHT_PIECE = 1 << 24,
    /* ... and each piece loads its pixels: multiplications for each number that it loads. */
    PRODUCTS_OF_LOAD = 512,
    GRAD_WEIGHT_PIECES = 64,      /* at most: a small share of the work each, whatever the number of cores */
    MOST_PARTIAL_SUMS = 1 << 21,  /* floats */
};

/* The folded pairs, in the order of torch.triu_indices. The lists are longer than `count`, padded with its last. */
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
    void (*transpose)(int64_t rows, int64_t columns, const float *from, int64_t from_row, float *to, int64_t to_row);
};

/* A matrix (pixels, channels) of any strides, in elements. */
struct matrix {
    const float *data;
    int64_t pixel_stride, channel_stride;
};

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static int64_t minimum(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t maximum(int64_t a, int64_t b) {
    return a > b ? a : b;
}

#if defined(__x86_64__)
#define ISA _avx512
#define TARGET __attribute__((target("avx512f,fma")))
#define LANES 16
#define ROWS 8
#define VECS 3
#include "kernels.h"

#define ISA _avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 4
#define VECS 3
#include "kernels.h"

#define ISA _sse2
#define TARGET
#define LANES 4
#define ROWS 4
#define VECS 3
#include "kernels.h"

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
#include "kernels.h"

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

/* Count one more of `total` steps as done; true for the last. Whoever sees all of them counted sees what they wrote. */
static int count_done(int64_t *done, int64_t total) {
    return __atomic_add_fetch(done, 1, __ATOMIC_ACQ_REL) == total;
}

/* Wait for steps that other threads have begun. A barrier would wait for threads that have not come to the work yet
 * too, and spin on a core that they may need. */
static void wait_for(const int64_t *done, int64_t total) {
    while (__atomic_load_n(done, __ATOMIC_ACQUIRE) < total)
        sched_yield();
}

/* Room for `count` floats, or one, that starts on a cache line; NULL when there is none. */
static float *allocate(int64_t count) {
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, round_up(count * sizeof(float) + 1, ALIGNMENT)) ? NULL : memory;
}

static int list_pairs(struct pairs *pairs, int64_t channels, int64_t rows) {
    pairs->count = channels * (channels + 1) / 2;
    int64_t padded = round_up(pairs->count, rows);
    pairs->first = malloc((2 * padded + 1) * sizeof(int32_t));
    if (!pairs->first)
        return 0;
    pairs->second = pairs->first + padded;
    for (int64_t i = 0, k = 0; i < channels; i++)
        for (int64_t j = i; j < channels; j++, k++) {
            pairs->first[k] = (int32_t)i;
            pairs->second[k] = (int32_t)j;
        }
    for (int64_t k = pairs->count; k < padded; k++)
        pairs->first[k] = pairs->second[k] = (int32_t)(channels - 1);
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

/* Channels from `first_channel` on of (pixels, channels) from pixel `start` -> (channels, size), zero past the last
 * pixel. */
static void load_channels(
    const struct kernels *kernels, struct matrix from, int64_t start, int64_t pixels, int64_t first_channel,
    int64_t channels, int64_t size, float *to
) {
    const int64_t count = minimum(pixels - start, size);
    const float *source = from.data + start * from.pixel_stride + first_channel * from.channel_stride;
    to += first_channel * size;
    channels -= first_channel;
    if (from.channel_stride == 1)
        kernels->transpose(count, channels, source, from.pixel_stride, to, size);
    else
        for (int64_t c = 0; c < channels; c++)
            for (int64_t p = 0; p < count; p++)
                to[c * size + p] = source[c * from.channel_stride + p * from.pixel_stride];
    for (int64_t c = 0; c < channels; c++)
        memset(to + c * size + count, 0, (size - count) * sizeof(float));
}

/* (pixels, channels) from pixel `start` -> (size, lanes), zero past the last pixel and the last channel. */
static void load_pixels(
    const struct kernels *kernels, struct matrix from, int64_t start, int64_t pixels, int64_t channels, int64_t size,
    int64_t lanes, float *to
) {
    const int64_t count = minimum(pixels - start, size);
    const float *source = from.data + start * from.pixel_stride;
    if (from.channel_stride == 1)
        for (int64_t p = 0; p < count; p++)
            memcpy(to + p * lanes, source + p * from.pixel_stride, channels * sizeof(float));
    else if (from.pixel_stride == 1)
        kernels->transpose(channels, count, source, from.channel_stride, to, lanes);
    else
        for (int64_t p = 0; p < count; p++)
            for (int64_t c = 0; c < channels; c++)
                to[p * lanes + c] = source[p * from.pixel_stride + c * from.channel_stride];
    for (int64_t p = 0; p < count; p++)
        memset(to + p * lanes + channels, 0, (lanes - channels) * sizeof(float));
    memset(to + count * lanes, 0, (size - count) * lanes * sizeof(float));
}

/* Tiles of pixels that a thread takes at a time. */
static int64_t tiles_of_piece(int64_t tile, int64_t pairs, int64_t outputs) {
    return 1 + TILE_PIECE / (tile * pairs * maximum(outputs, 1) + 1);
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
        const int64_t piece = tile * tiles_of_piece(tile, pairs.count, outputs);
        int64_t folded = 0;
#pragma omp parallel num_threads(threads)
        {
            /* (outputs / ROWS, pairs, ROWS): the order in which the inner loop reads. */
#pragma omp for schedule(dynamic) nowait
            for (int64_t group = 0; group < padded_outputs; group += rows) {
                float *target = packed + group * pairs.count;
                for (int64_t o = group; o < group + rows; o++, target++)
                    if (o < outputs)
                        fold(weight + o * channels * channels, channels, 1, rows, target);
                    else
                        for (int64_t k = 0; k < pairs.count; k++)
                            target[k * rows] = 0;
                count_done(&folded, padded_outputs / rows);
            }
            wait_for(&folded, padded_outputs / rows);
            float *x_tile = scratch + omp_get_thread_num() * scratch_size, *products = x_tile + channels * tile;
            float *sums = products + PANEL * tile;
#pragma omp for schedule(dynamic) nowait
            for (int64_t first = 0; first < pixels; first += piece)
                for (int64_t start = first; start < minimum(first + piece, pixels); start += tile) {
                    load_channels(kernels, inputs, start, pixels, 0, channels, tile, x_tile);
                    kernels->forward_tile(&pairs, padded_outputs, packed, x_tile, products, sums);
                    kernels->transpose(
                        outputs, minimum(pixels - start, tile), sums, tile, output + start * outputs, outputs);
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
    if (success && channels) {
        const int64_t piece = tile * tiles_of_piece(tile, pairs.count, outputs);
        int64_t folded = 0;
#pragma omp parallel num_threads(threads)
        {
            /* (pairs / ROWS, O, ROWS). */
#pragma omp for schedule(dynamic) nowait
            for (int64_t group = 0; group < outputs; group += LINE) {
                for (int64_t o = group; o < minimum(group + LINE, outputs); o++) {
                    memset(packed + (padded_pairs - rows) * outputs + o * rows, 0, rows * sizeof(float));
                    fold(weight + o * channels * channels, channels, rows, outputs * rows, packed + o * rows);
                }
                count_done(&folded, round_up(outputs, LINE) / LINE);
            }
            wait_for(&folded, round_up(outputs, LINE) / LINE);
            float *x_tile = scratch + omp_get_thread_num() * scratch_size, *grad_tile = x_tile + channels * tile;
            float *result = grad_tile + outputs * tile;
#pragma omp for schedule(dynamic) nowait
            for (int64_t first = 0; first < pixels; first += piece)
                for (int64_t start = first; start < minimum(first + piece, pixels); start += tile) {
                    load_channels(kernels, inputs, start, pixels, 0, channels, tile, x_tile);
                    load_channels(kernels, grads, start, pixels, 0, outputs, tile, grad_tile);
                    kernels->grad_x_tile(&pairs, channels, outputs, packed, grad_tile, x_tile, result);
                    kernels->transpose(
                        channels, minimum(pixels - start, tile), result, tile, grad_x + start * channels, channels);
                }
        }
    }
    free(scratch);
    free(packed);
    free(pairs.first);
    return success;
}

/* Add to the first of `parts` arrays that lie `stride` apart the others, in their order. */
static void add_parts(int64_t parts, int64_t stride, int64_t count, float *sums) {
    for (int64_t part = 1; part < parts; part++)
        for (int64_t n = 0; n < count; n++)
            sums[n] += sums[part * stride + n];
}

/* (pairs, lanes) -> both halves of the weights (C, C) of `count` outputs. */
static void unfold(
    const struct kernels *kernels, const float *sums, int64_t lanes, int64_t channels, int64_t count, float *weight
) {
    const float *row = sums;
    for (int64_t i = 0; i < channels; row += (channels - i) * lanes, i++)
        kernels->transpose(channels - i, count, row, lanes, weight + i * channels + i, channels * channels);
    for (int64_t o = 0; o < count; o++, weight += channels * channels)
        for (int64_t start = 0; start < channels; start += LINE) {
            const int64_t stop = minimum(start + LINE, channels);
            for (int64_t i = start; i < stop; i++)
                for (int64_t j = start; j < i; j++)
                    weight[i * channels + j] = weight[j * channels + i];
            kernels->transpose(
                stop - start, channels - stop, weight + start * channels + stop, channels,
                weight + stop * channels + start, channels);
        }
}

/* grad (P, O), x (P, C) -> grad_weight (O, C, C) contiguous, symmetric in its last two axes. */
int dit_native_grad_weight(
    int isa, int threads, int64_t pixels, int64_t channels, int64_t outputs, const float *grad,
    int64_t grad_pixel_stride, int64_t grad_channel_stride, const float *x, int64_t x_pixel_stride,
    int64_t x_channel_stride, float *grad_weight
) {
    const struct kernels *kernels = all_kernels[isa];
    const struct matrix grads = {grad, grad_pixel_stride, grad_channel_stride};
    const struct matrix inputs = {x, x_pixel_stride, x_channel_stride};
    const int64_t rows = kernels->rows, lanes = round_up(outputs, kernels->lanes);
    struct pairs pairs;
    int success = list_pairs(&pairs, channels, rows);
    const int64_t padded_pairs = round_up(pairs.count, rows), size = padded_pairs * lanes;
    const int64_t blocks = padded_pairs / rows, chunks = size ? round_up(pixels, CHUNK) / CHUNK : 0;
    /* A piece is a part of the pairs at a part of the pixels. */
    const int64_t pair_parts = minimum(
        maximum(1, size / (PRODUCTS_OF_LOAD * maximum(channels, 1))), GRAD_WEIGHT_PIECES);
    const int64_t pixel_parts = maximum(1, minimum(
        minimum(chunks * CHUNK * size / GRAD_WEIGHT_PIECE, chunks),
        minimum(GRAD_WEIGHT_PIECES / pair_parts, MOST_PARTIAL_SUMS / maximum(size, 1))));
    const int64_t scratch_size = round_up((channels + lanes + rows) * CHUNK, ALIGNMENT);
    float *sums = allocate(pixel_parts * size), *scratch = allocate(threads * scratch_size);
    int64_t *done = calloc(pair_parts, sizeof(int64_t)), summed = 0;
    success = success && sums && scratch && done;
    if (success) {
#pragma omp parallel num_threads(threads)
        {
            float *x_chunk = scratch + omp_get_thread_num() * scratch_size, *grad_chunk = x_chunk + channels * CHUNK;
            float *products = grad_chunk + lanes * CHUNK;
#pragma omp for schedule(dynamic) nowait
            for (int64_t piece = 0; piece < pixel_parts * pair_parts; piece++) {
                const int64_t pair_part = piece % pair_parts, pixel_part = piece / pair_parts;
                const int64_t first_block = pair_part * blocks / pair_parts;
                const int64_t last_block = (pair_part + 1) * blocks / pair_parts;
                const int64_t piece_size = (last_block - first_block) * rows * lanes;
                float *first_sums = sums + first_block * rows * lanes, *piece_sums = first_sums + pixel_part * size;
                memset(piece_sums, 0, piece_size * sizeof(float));
                for (int64_t chunk = pixel_part * chunks / pixel_parts;
                     chunk < (pixel_part + 1) * chunks / pixel_parts; chunk++) {
                    const int64_t start = chunk * CHUNK;
                    const int64_t steps = round_up(minimum(pixels - start, CHUNK), kernels->lanes);
                    /* The smaller channels of the pairs rise: no channel below the first of them is needed. */
                    load_channels(
                        kernels, inputs, start, pixels, pairs.first[first_block * rows], channels, CHUNK, x_chunk);
                    load_pixels(kernels, grads, start, pixels, outputs, steps, lanes, grad_chunk);
                    for (int64_t b = first_block; b < last_block; b++)
                        kernels->grad_weight_rows(
                            pairs.first + b * rows, pairs.second + b * rows, steps, lanes, grad_chunk, x_chunk,
                            products, piece_sums + (b - first_block) * rows * lanes);
                }
                if (count_done(done + pair_part, pixel_parts)) {
                    add_parts(pixel_parts, size, piece_size, first_sums);
                    count_done(&summed, pair_parts);
                }
            }
            wait_for(&summed, pair_parts);
#pragma omp for schedule(dynamic) nowait
            for (int64_t o = 0; o < outputs; o += LINE)
                unfold(
                    kernels, sums + o, lanes, channels, minimum(LINE, outputs - o),
                    grad_weight + o * channels * channels);
        }
    }
    free(done);
    free(scratch);
    free(sums);
    free(pairs.first);
    return success;
}
