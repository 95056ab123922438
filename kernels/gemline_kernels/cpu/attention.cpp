// paged_attention for float32 and bfloat16 on AVX-512, as specified by `paged_attention` in reference_attention.py.
//
// Work is cut into items that do not depend on the number of threads nor, for a decode row, on any other row; items are
// handed out one by one, the longest first, as the cores may be busy with something else as well.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "attention_decode.h"
#include "attention_prefill.h"
#include "operations.h"

namespace gemline::attention {
namespace {

constexpr int64_t SMALL_WORK = 1 << 15;  // keys times heads times width: less than it costs to wake a thread

// A decode row's keys in up to 4 parts, so that a lone short one still keeps some cores busy, or more of MAX_CHUNK.
int64_t chunk_of(int64_t num_keys) { return std::clamp<int64_t>((num_keys / 4 + 15) / 16 * 16, 64, MAX_CHUNK); }

struct DecodeRow {
  int64_t row;
  int64_t num_parts;
  int64_t first_part;  // among the partials of all rows
};

struct Plan {
  std::vector<PrefillItem> prefill;
  std::vector<DecodeItem> decode;
  std::vector<DecodeRow> rows;  // those in more than one part
  int64_t num_parts = 0;
  int64_t work = 0;
};

template <typename T>
void plan_prefill(const Problem<T>& problem, int64_t sequence, int64_t first_row, int64_t num_rows, int64_t context_len,
                  Plan& plan) {
  const int64_t queries = std::max<int64_t>(1, ITEM_ROWS / problem.heads_per_group());
  for (int64_t row = 0; row < num_rows; row += queries) {
    const int64_t num_queries = std::min(queries, num_rows - row), position = context_len - num_rows + row;
    for (int64_t group = 0; group < problem.num_groups; group++) {
      plan.prefill.push_back({sequence, group, first_row + row, num_queries, position});
    }
    plan.work +=
        num_queries * (position + num_queries - problem.first_key(position)) * problem.num_heads * problem.width;
  }
}

template <typename T>
void plan_decode(const Problem<T>& problem, int64_t sequence, int64_t row, int64_t context_len, Plan& plan) {
  const int64_t first_key = problem.first_key(context_len - 1), num_keys = context_len - first_key;
  const int64_t chunk = chunk_of(num_keys), num_parts = (num_keys + chunk - 1) / chunk;
  for (int64_t key = first_key; key < context_len; key += chunk) {
    plan.decode.push_back({sequence, row, key, std::min(key + chunk, context_len), nullptr});
  }
  if (num_parts > 1) {
    plan.rows.push_back({row, num_parts, plan.num_parts});
    plan.num_parts += num_parts;
  }
  plan.work += num_keys * problem.num_groups * problem.width;
}

template <typename T>
Plan make_plan(const Problem<T>& problem, const int64_t* query_start, const int64_t* context_len,
               int64_t num_sequences) {
  Plan plan;
  for (int64_t sequence = 0; sequence < num_sequences; sequence++) {
    const int64_t row = query_start[sequence], num_rows = query_start[sequence + 1] - row;
    if (num_rows == 1) {
      plan_decode(problem, sequence, row, context_len[sequence], plan);
    } else {
      plan_prefill(problem, sequence, row, num_rows, context_len[sequence], plan);
    }
  }
  const auto cost = [&](const PrefillItem& item) {
    return item.num_rows * (item.position + item.num_rows - problem.first_key(item.position));
  };
  std::stable_sort(plan.prefill.begin(), plan.prefill.end(),
                   [&](const PrefillItem& a, const PrefillItem& b) { return cost(a) > cost(b); });
  return plan;
}

// Gives each item of a row in parts its place among the partials.
void place_partials(Plan& plan, float* partials, int64_t part_size) {
  auto row = plan.rows.begin();
  int64_t part = 0;
  for (DecodeItem& item : plan.decode) {
    while (row != plan.rows.end() && row->row < item.row) row++;
    if (row != plan.rows.end() && row->row == item.row) item.partial = partials + part++ * part_size;
  }
}

template <typename T>
void attend(const Problem<T>& problem, const Curve& curve, const int64_t* query_start, const int64_t* context_len,
            int64_t num_sequences) {
  static thread_local Scratch partial_memory;
  Plan plan = make_plan(problem, query_start, context_len, num_sequences);
  const int64_t part_size = (problem.num_heads * (problem.width + 2) + 15) / 16 * 16;
  auto* partials = (float*)partial_memory.take(plan.num_parts * part_size * sizeof(float));
  place_partials(plan, partials, part_size);
  const int64_t num_prefill = plan.prefill.size(), num_items = num_prefill + plan.decode.size();
  const int64_t num_rows = plan.rows.size();
#pragma omp parallel if (plan.work > SMALL_WORK)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_items; i++) {
      if (i < num_prefill) {
        prefill_item(problem, curve, plan.prefill[i], scratch);
      } else {
        decode_item(problem, curve, plan.decode[i - num_prefill], scratch);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < num_rows; i++) {
      const DecodeRow& row = plan.rows[i];
      combine(problem, row.row, partials + row.first_part * part_size, row.num_parts, part_size);
    }
  }
}

}  // namespace
}  // namespace gemline::attention

using namespace gemline::attention;

extern "C" {

void gemline_paged_attention(const AttentionShape* shape, const void* query, const void* keys, const void* values,
                             const int64_t* table, int64_t table_width, const int64_t* query_start,
                             const int64_t* context_len, int64_t num_sequences, void* out) {
  const Curve curve(shape->scale, shape->cap);
  const auto run = [&](auto element) {
    using T = decltype(element);
    const Problem<T> problem{static_cast<const T*>(query),
                             static_cast<const T*>(keys),
                             static_cast<const T*>(values),
                             table,
                             static_cast<T*>(out),
                             shape->num_heads,
                             shape->num_groups,
                             shape->width,
                             shape->block_size,
                             table_width,
                             shape->window > 0 ? shape->window : INT64_MAX};
    attend(problem, curve, query_start, context_len, num_sequences);
  };
  if (shape->is_bf16) {
    run(gemline::bf16{});
  } else {
    run(float{});
  }
}
}
