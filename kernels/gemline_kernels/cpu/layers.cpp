// All layers of a step in one call: the loop of `PlainLayers` in layers.py, to the bit, without Python in between.
//
// Weights stream through every cache, so that each call from Python would find the interpreter's own memory evicted: an
// operation of 5 microseconds then costs 50, and a step makes some eighty.

#include <vector>

#include "operations.h"
#include "scratch.h"

using gemline::Packed;
using gemline::Scratch;

namespace {

struct Layer {
  const Packed *query_key_value, *attention_out, *gate_up, *down;
  const void *post_attention_norm, *pre_feedforward_norm, *post_feedforward_norm, *next_norm;
  AttentionShape shape;
};

struct Model {
  int64_t num_layers, width;  // D
  const Layer* layers;
  const void* first_norm;
  const float *cos, *sin;
  float eps;
};

struct Pool {
  void *keys, *values;
};

// A ragged batch; the tables and slots of layers with a window are apart from those without.
struct Step {
  int64_t num_rows, num_sequences, num_sampled, table_width[2];
  const int64_t *positions, *slots[2], *tables[2], *query_start, *context_len, *sample_rows;
};

// The sampled rows alone, each as a sequence with one new token whose keys and values are in the cache.
struct Narrowed {
  std::vector<int64_t> query_start, context_len, table;

  Narrowed(const Step& step, int kind) {
    for (int64_t i = 0; i < step.num_sampled; i++) {
      int64_t row = step.sample_rows[i], sequence = 0;
      while (step.query_start[sequence + 1] <= row) sequence++;
      query_start.push_back(i);
      context_len.push_back(step.context_len[sequence] - step.query_start[sequence + 1] + row + 1);
      const int64_t* from = step.tables[kind] + sequence * step.table_width[kind];
      table.insert(table.end(), from, from + step.table_width[kind]);
    }
    query_start.push_back(step.num_sampled);
  }
};

// Consecutive pieces of a thread's memory.
class Arena {
 public:
  Arena(Scratch& scratch, int64_t num_bytes) : next_((char*)scratch.take(num_bytes)) {}

  void* take(int64_t num_bytes) {
    char* taken = next_;
    next_ += gemline::up_to(num_bytes, 64);
    return taken;
  }

 private:
  char* next_;
};

// Rows `rows` of x, one after the other.
void gather(const void* x, const int64_t* rows, int64_t num_rows, int64_t row_bytes, void* out) {
  for (int64_t i = 0; i < num_rows; i++) {
    __builtin_memcpy((char*)out + i * row_bytes, (const char*)x + rows[i] * row_bytes, row_bytes);
  }
}

}  // namespace

extern "C" {

// residual is [T, D] and stays as it is. normed is [num_sampled, D] when only some rows' results are wanted, else [T,
// D].
void gemline_layers(const Model* model, const Pool* pools, const Step* step, int64_t is_narrow, const void* residual,
                    void* normed) {
  static thread_local Scratch scratch;
  const AttentionShape& first = model->layers[0].shape;
  const int64_t is_bf16 = first.is_bf16, element = is_bf16 ? 2 : 4, width = model->width;
  const int64_t query_width = first.num_heads * first.width;
  const int64_t projected_width = query_width + 2 * first.num_groups * first.width;
  const int64_t inner_width = model->layers[0].gate_up->num_outputs;
  int64_t num_rows = step->num_rows;
  const int64_t widths = 4 * width + projected_width + 2 * query_width + inner_width;
  Arena arena(scratch, (widths * num_rows + step->num_sampled * (query_width + width)) * element + 1024);
  const auto rows_of = [&](int64_t row_width) { return arena.take(num_rows * row_width * element); };
  void *hidden = rows_of(width), *added = rows_of(width), *streams[2] = {rows_of(width), rows_of(width)};
  void *projected = rows_of(projected_width), *query = rows_of(query_width), *attended = rows_of(query_width);
  void* inner = rows_of(inner_width);
  const void* stream = residual;

  gemline_rms_norm(is_bf16, stream, model->first_norm, model->eps, num_rows, width, hidden);
  for (int64_t i = 0; i < model->num_layers; i++) {
    const Layer& layer = model->layers[i];
    const AttentionShape& shape = layer.shape;
    const bool is_last = i + 1 == model->num_layers;
    const int kind = shape.window > 0;
    gemline_linear(layer.query_key_value, hidden, num_rows, is_bf16, projected, is_bf16, 0);
    gemline_rope_write(is_bf16, projected, model->cos, model->sin, step->positions, step->slots[kind], num_rows,
                       shape.num_heads, shape.num_groups, shape.width, query, pools[i].keys, pools[i].values);
    if (is_last && is_narrow) {
      const Narrowed few(*step, kind);
      num_rows = step->num_sampled;
      void *few_queries = rows_of(query_width), *few_residuals = rows_of(width);
      gather(query, step->sample_rows, num_rows, query_width * element, few_queries);
      gather(stream, step->sample_rows, num_rows, width * element, few_residuals);
      stream = few_residuals;
      gemline_paged_attention(&shape, few_queries, pools[i].keys, pools[i].values, few.table.data(),
                              step->table_width[kind], few.query_start.data(), few.context_len.data(), num_rows,
                              attended);
    } else {
      gemline_paged_attention(&shape, query, pools[i].keys, pools[i].values, step->tables[kind],
                              step->table_width[kind], step->query_start, step->context_len, step->num_sequences,
                              attended);
    }
    gemline_linear(layer.attention_out, attended, num_rows, is_bf16, added, is_bf16, 0);
    gemline_add_norm(is_bf16, added, stream, layer.post_attention_norm, layer.pre_feedforward_norm, model->eps,
                     num_rows, width, streams[0], hidden);
    gemline_linear(layer.gate_up, hidden, num_rows, is_bf16, inner, is_bf16, 0);
    gemline_linear(layer.down, inner, num_rows, is_bf16, added, is_bf16, 0);
    gemline_add_norm(is_bf16, added, streams[0], layer.post_feedforward_norm, layer.next_norm, model->eps, num_rows,
                     width, streams[1], is_last ? normed : hidden);
    stream = streams[1];
  }
}
}
