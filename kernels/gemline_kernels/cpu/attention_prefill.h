// Attention of many query rows of one sequence and one KV head: register-tiled float32 products over blocks of 64 keys.
//
// A row is one query of one head; R rows in a row belong to one position. Per block of keys: scores = Q . K^T for all
// rows, scores to weights, sums += weights . V. Keys (transposed) and values are converted to float32 once a block and
// lie as the products read them, in panels of 32 columns, so that both stay in the first two caches.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention_problem.h"

namespace gemline::attention {

constexpr int64_t TILE_ROWS = 12;  // rows of a product held in registers: 12 x 32 sums are 24 of 32 registers
constexpr int64_t COLUMNS = 32;    // columns of the same
constexpr int64_t BLOCK_KEYS = 64;
constexpr int64_t ITEM_ROWS = 144;  // rows that share the conversion of a block
constexpr float NO_LEVEL = -1e30f;  // of a row that has seen no key: under any level, and finite as 2^(m - m) is 1

struct PrefillItem {
  int64_t sequence;
  int64_t group;
  int64_t row;       // of the first query
  int64_t num_rows;  // queries
  int64_t position;  // of the first query
};

// c[i][0 .. 16 VECTORS) (+)= sum over k of a(i, k) * b[k][0 .. 16 VECTORS), b with COLUMNS floats a row.
template <int ROWS, int VECTORS, bool ADD, typename A>
inline void product(A a, const float* b, int64_t begin, int64_t end, float* c, int64_t c_stride) {
  __m512 sum[ROWS][VECTORS];
  for (int i = 0; i < ROWS; i++) {
    for (int v = 0; v < VECTORS; v++) {
      sum[i][v] = ADD ? _mm512_load_ps(c + i * c_stride + 16 * v) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = begin; k < end; k++) {
    __m512 x[VECTORS];
    for (int v = 0; v < VECTORS; v++) x[v] = _mm512_load_ps(b + k * COLUMNS + 16 * v);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) {
      const __m512 y = _mm512_set1_ps(a(i, k));
      for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_fmadd_ps(x[v], y, sum[i][v]);
    }
  }
  for (int i = 0; i < ROWS; i++) {
    for (int v = 0; v < VECTORS; v++) _mm512_store_ps(c + i * c_stride + 16 * v, sum[i][v]);
  }
}

// One item's memory: rows are padded to a multiple of 4, columns of values to whole panels.
struct Workspace {
  float* query;    // tiles of [K, rows of the tile]
  float* out;      // [rows, columns]
  float* weights;  // [rows, BLOCK_KEYS]
  float* keys;     // [BLOCK_KEYS / COLUMNS, K, COLUMNS]
  float* values;   // [columns / COLUMNS, BLOCK_KEYS, COLUMNS]
  float* sums;     // [rows, 16]
  float* levels;   // [rows]
  int64_t num_rows;
  int64_t num_columns;

  Workspace(Scratch& scratch, int64_t rows, int64_t width) {
    num_rows = (rows + 3) / 4 * 4;
    num_columns = (width + COLUMNS - 1) / COLUMNS * COLUMNS;
    const int64_t sizes[] = {num_rows * width,
                             num_rows * num_columns,
                             num_rows * BLOCK_KEYS,
                             BLOCK_KEYS * width,
                             BLOCK_KEYS * num_columns,
                             num_rows * 16,
                             num_rows};
    float** parts[] = {&query, &out, &weights, &keys, &values, &sums, &levels};
    int64_t total = 0;
    for (int64_t size : sizes) total += size;
    auto* next = (float*)scratch.take(total * sizeof(float));
    for (int i = 0; i < 7; i++) {
      *parts[i] = next;
      next += sizes[i];
    }
  }
};

// The block's keys and values of one group, from their slots. Keys that are not there are zeros.
template <typename T>
void load_block(const Problem<T>& problem, int64_t group, const int64_t* offset, int64_t num_keys, Workspace& work) {
  const int64_t width = problem.width;
  const T* keys = problem.keys + group * width;
  const T* values = problem.values + group * width;
  for (int64_t j = 0; j < BLOCK_KEYS && j < (num_keys + 15) / 16 * 16; j += 16) {
    float* to = work.keys + j / COLUMNS * width * COLUMNS + j % COLUMNS;
    for (int64_t k = 0; k < width; k += 16) {
      __m512 rows[16];
      for (int64_t i = 0; i < 16; i++) {
        rows[i] = j + i < num_keys ? load(keys + offset[j + i] + k) : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      for (int64_t i = 0; i < 16; i++) _mm512_store_ps(to + (k + i) * COLUMNS, rows[i]);
    }
  }
  for (int64_t j = 0; j < num_keys; j++) {
    for (int64_t k = 0; k < width; k += 16) {
      float* to = work.values + k / COLUMNS * BLOCK_KEYS * COLUMNS + j * COLUMNS + k % COLUMNS;
      _mm512_store_ps(to, load(values + offset[j] + k));
    }
  }
}

// The keys [begin, end) of a block that a row sees.
struct Seen {
  int64_t begin;
  int64_t end;
};

inline Seen seen_of_block(int64_t first_key, int64_t position, int64_t block_start) {
  return {std::clamp<int64_t>(first_key - block_start, 0, BLOCK_KEYS),
          std::clamp<int64_t>(position + 1 - block_start, 0, BLOCK_KEYS)};
}

inline uint64_t mask_of(Seen seen) {
  if (seen.begin >= seen.end) return 0;
  return (seen.end == BLOCK_KEYS ? ~0ull : (1ull << seen.end) - 1) & (~0ull << seen.begin);
}

// Scores of a row in that block become weights, in place; those under a zero of the mask are 0. Without a bound on the
// scores everything summed up so far is first brought to the new maximum.
inline void weigh_row(const Curve& curve, uint64_t mask, float* scores, float* out, int64_t num_columns, float* sums,
                      float& level) {
  constexpr int VECTORS = BLOCK_KEYS / 16;
  __m512 levels[VECTORS], sum = _mm512_load_ps(sums);
  for (int v = 0; v < VECTORS; v++) levels[v] = curve.level(_mm512_load_ps(scores + 16 * v));
  if (!curve.bounded) {
    __m512 largest = _mm512_set1_ps(level);
    for (int v = 0; v < VECTORS; v++) {
      largest = _mm512_mask_max_ps(largest, __mmask16(mask >> (16 * v)), largest, levels[v]);
    }
    const float new_level = _mm512_reduce_max_ps(largest);
    const __m512 factor = exp2_poly(_mm512_set1_ps(level - new_level));  // before the first key: 0
    sum = _mm512_mul_ps(sum, factor);
    for (int64_t k = 0; k < num_columns; k += 16) {
      _mm512_store_ps(out + k, _mm512_mul_ps(_mm512_load_ps(out + k), factor));
    }
    level = new_level;
    for (int v = 0; v < VECTORS; v++) levels[v] = _mm512_sub_ps(levels[v], _mm512_set1_ps(level));
  }
  for (int v = 0; v < VECTORS; v++) {
    const __m512 weight = _mm512_maskz_mov_ps(__mmask16(mask >> (16 * v)), exp2_poly(levels[v]));
    sum = _mm512_add_ps(sum, weight);
    _mm512_store_ps(scores + 16 * v, weight);
  }
  _mm512_store_ps(sums, sum);
}

// Of the rows [row, row + ROWS): the keys of the block that any of them sees.
template <typename T>
inline Seen seen_of_tile(const Problem<T>& problem, const PrefillItem& item, int64_t row, int64_t num_rows,
                         int64_t block_start) {
  const int64_t per_group = problem.heads_per_group();
  const int64_t first = item.position + std::min(row / per_group, item.num_rows - 1);
  const int64_t last = item.position + std::min((row + num_rows - 1) / per_group, item.num_rows - 1);
  return seen_of_block(problem.first_key(first), last, block_start);
}

template <typename T, int ROWS>
void score_tile(const Problem<T>& problem, const Curve& curve, const PrefillItem& item, int64_t row,
                int64_t block_start, Workspace& work) {
  const int64_t width = problem.width, per_group = problem.heads_per_group();
  const Seen any = seen_of_tile(problem, item, row, ROWS, block_start);
  if (any.begin >= any.end) return;
  const float* query = work.query + row * width;
  float* scores = work.weights + row * BLOCK_KEYS;
  for (int64_t j = any.begin / COLUMNS * COLUMNS; j < any.end; j += COLUMNS) {
    product<ROWS, 2, false>([query](int i, int64_t k) { return query[k * ROWS + i]; }, work.keys + j * width, 0, width,
                            scores + j, BLOCK_KEYS);
  }
  const int64_t first = item.position + row / per_group, last_of_block = block_start + BLOCK_KEYS - 1;
  const bool all_seen = any.begin == 0 &&
                        problem.first_key(item.position + (row + ROWS - 1) / per_group) <= block_start &&
                        first >= last_of_block;
  for (int64_t i = 0; i < ROWS; i++) {
    uint64_t mask = ~0ull;
    if (!all_seen) {
      const int64_t position = item.position + std::min((row + i) / per_group, item.num_rows - 1);
      mask = mask_of(seen_of_block(problem.first_key(position), position, block_start));
    }
    float* row_scores = scores + i * BLOCK_KEYS;
    if (mask) {
      weigh_row(curve, mask, row_scores, work.out + (row + i) * work.num_columns, work.num_columns,
                work.sums + (row + i) * 16, work.levels[row + i]);
    } else {
      std::memset(row_scores, 0, BLOCK_KEYS * sizeof(float));
    }
  }
}

template <typename T, int ROWS>
void sum_tile(const Problem<T>& problem, const PrefillItem& item, int64_t row, int64_t block_start, int64_t column,
              Workspace& work) {
  const Seen any = seen_of_tile(problem, item, row, ROWS, block_start);
  const float* weights = work.weights + row * BLOCK_KEYS;
  const float* values = work.values + column * BLOCK_KEYS;
  float* out = work.out + row * work.num_columns + column;
  const auto weight = [weights](int i, int64_t j) { return weights[i * BLOCK_KEYS + j]; };
  if (problem.width - column >= COLUMNS) {
    product<ROWS, 2, true>(weight, values, any.begin, any.end, out, work.num_columns);
  } else {
    product<ROWS, 1, true>(weight, values, any.begin, any.end, out, work.num_columns);
  }
}

// Calls f(row, rows of the tile as a constant) over all rows: tiles of 12, and what is left in one of 8 or 4.
template <typename F>
inline void for_tiles(int64_t num_rows, F f) {
  int64_t row = 0;
  for (; row + TILE_ROWS <= num_rows; row += TILE_ROWS) f(row, std::integral_constant<int, 12>());
  if (num_rows - row == 8) f(row, std::integral_constant<int, 8>());
  if (num_rows - row == 4) f(row, std::integral_constant<int, 4>());
}

// The item's queries as float32, in the tiles' order; rows after the last are 0.
template <typename T>
void load_queries(const Problem<T>& problem, const PrefillItem& item, Workspace& work) {
  const int64_t width = problem.width, per_group = problem.heads_per_group();
  for_tiles(work.num_rows, [&](int64_t row, auto rows) {
    alignas(64) float lanes[16];
    for (int64_t i = 0; i < rows; i++) {
      const int64_t query = item.row + (row + i) / per_group;
      const int64_t head = item.group * per_group + (row + i) % per_group;
      const bool is_there = row + i < item.num_rows * per_group;
      for (int64_t k = 0; k < width; k += 16) {
        const T* from = problem.query + (query * problem.num_heads + head) * width + k;
        _mm512_store_ps(lanes, is_there ? load(from) : _mm512_setzero_ps());
        for (int64_t lane = 0; lane < 16; lane++) {
          work.query[row * width + (k + lane) * rows + i] = lanes[lane];
        }
      }
    }
  });
}

template <typename T>
void prefill_item(const Problem<T>& problem, const Curve& curve, const PrefillItem& item, Scratch& scratch) {
  const int64_t width = problem.width, per_group = problem.heads_per_group();
  Workspace work(scratch, item.num_rows * per_group, width);
  load_queries(problem, item, work);
  std::memset(work.out, 0, work.num_rows * work.num_columns * sizeof(float));
  std::fill(work.sums, work.sums + work.num_rows * 16, 0.0f);
  std::fill(work.levels, work.levels + work.num_rows, curve.bounded ? 0.0f : NO_LEVEL);

  const int64_t last_key = item.position + item.num_rows;
  for (int64_t start = problem.first_key(item.position); start < last_key; start += BLOCK_KEYS) {
    const int64_t num_keys = std::min(BLOCK_KEYS, last_key - start);
    int64_t offset[BLOCK_KEYS];
    problem.slot_offsets(item.sequence, start, num_keys, offset);
    load_block(problem, item.group, offset, num_keys, work);
    for_tiles(work.num_rows,
              [&](int64_t row, auto rows) { score_tile<T, rows>(problem, curve, item, row, start, work); });
    for (int64_t column = 0; column < width; column += COLUMNS) {
      for_tiles(work.num_rows,
                [&](int64_t row, auto rows) { sum_tile<T, rows>(problem, item, row, start, column, work); });
    }
  }
  for (int64_t i = 0; i < item.num_rows * per_group; i++) {
    const int64_t query = item.row + i / per_group, head = item.group * per_group + i % per_group;
    const __m512 sum = _mm512_set1_ps(_mm512_reduce_add_ps(_mm512_load_ps(work.sums + i * 16)));
    for (int64_t k = 0; k < width; k += 16) {
      const __m512 weighted = _mm512_load_ps(work.out + i * work.num_columns + k);
      store(problem.out + (query * problem.num_heads + head) * width + k, _mm512_div_ps(weighted, sum));
    }
  }
}

}  // namespace gemline::attention
