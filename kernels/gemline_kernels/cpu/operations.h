// The library's operations as Python calls them, and as the loop over layers does.
#pragma once

#include "panels.h"

extern "C" {

// What every call on a layer's cache has in common; lengths in elements. `window` and `cap` are 0 when there is none.
struct AttentionShape {
  int64_t num_heads, num_groups, width, block_size, is_bf16, window;
  float scale, cap;
};

void gemline_linear(const gemline::Packed* weight, const void* x, int64_t num_rows, int64_t x_is_bf16, void* y,
                    int64_t y_is_bf16, float cap);

void gemline_rms_norm(int64_t is_bf16, const void* x, const void* weight, float eps, int64_t num_rows, int64_t width,
                      void* out);

void gemline_add_norm(int64_t is_bf16, const void* x, const void* residual, const void* post, const void* next,
                      float eps, int64_t num_rows, int64_t width, void* sum, void* out);

// projected is [T, num_heads + 2 num_groups, width]; cos and sin are [positions, width / 2].
void gemline_rope_write(int64_t is_bf16, const void* projected, const float* cos, const float* sin,
                        const int64_t* positions, const int64_t* slots, int64_t num_rows, int64_t num_heads,
                        int64_t num_groups, int64_t width, void* query, void* keys, void* values);

void gemline_paged_attention(const AttentionShape* shape, const void* query, const void* keys, const void* values,
                             const int64_t* table, int64_t table_width, const int64_t* query_start,
                             const int64_t* context_len, int64_t num_sequences, void* out);
}
