// A matmul by ggml behind three C functions, for lowbit_matmul.py: the weights in the buffer type
// that ggml itself would pick (repacked where it can), rows of x in float.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

struct Rival {
  ggml_backend_t backend;
  ggml_context* weights;
  ggml_context* graph_memory;
  ggml_cgraph* graph;
  ggml_tensor* x;
  ggml_tensor* y;
};

ggml_backend_buffer_type_t RepackedBuffer(ggml_backend_t backend) {
  ggml_backend_dev_t device = ggml_backend_get_device(backend);
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
  auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
  if (get == nullptr) return nullptr;
  ggml_backend_buffer_type_t* types = get(device);
  for (; types != nullptr && *types != nullptr; ++types) {
    if (std::string(ggml_backend_buft_name(*types)).find("REPACK") != std::string::npos) {
      return *types;
    }
  }
  return nullptr;
}

}  // namespace

extern "C" {

// rows[n][k] floats, x[m][k] floats.
void* rival_new(const char* name, const float* rows, int k, int n, int m, const float* x,
                int threads) {
  const std::string wanted = name;
  const ggml_type type = wanted == "q4_0"   ? GGML_TYPE_Q4_0
                         : wanted == "q4_k" ? GGML_TYPE_Q4_K
                         : wanted == "q8_0" ? GGML_TYPE_Q8_0
                                            : GGML_TYPE_TQ2_0;
  Rival* rival = new Rival;
  rival->backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(rival->backend, threads);
  ggml_init_params params = {ggml_tensor_overhead() * 4, nullptr, true};
  rival->weights = ggml_init(params);
  ggml_tensor* w = ggml_new_tensor_2d(rival->weights, type, k, n);
  const bool repack = wanted == "q4_0" || wanted == "q4_k";  // asked for others, it crashes
  ggml_backend_buffer_type_t buffer_type = repack ? RepackedBuffer(rival->backend) : nullptr;
  if (buffer_type == nullptr) buffer_type = ggml_backend_cpu_buffer_type();
  if (ggml_backend_alloc_ctx_tensors_from_buft(rival->weights, buffer_type) == nullptr) {
    return nullptr;
  }
  std::vector<uint8_t> packed(ggml_nbytes(w));
  ggml_quantize_chunk(type, rows, packed.data(), 0, n, k, nullptr);
  ggml_backend_tensor_set(w, packed.data(), 0, packed.size());

  ggml_init_params graph_params = {ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr,
                                   true};
  rival->graph_memory = ggml_init(graph_params);
  rival->x = ggml_new_tensor_2d(rival->graph_memory, GGML_TYPE_F32, k, m);
  rival->y = ggml_mul_mat(rival->graph_memory, w, rival->x);
  rival->graph = ggml_new_graph(rival->graph_memory);
  ggml_build_forward_expand(rival->graph, rival->y);
  ggml_backend_alloc_ctx_tensors(rival->graph_memory, rival->backend);
  ggml_backend_tensor_set(rival->x, x, 0, ggml_nbytes(rival->x));
  return rival;
}

void rival_run(void* handle) {
  Rival* rival = static_cast<Rival*>(handle);
  ggml_backend_graph_compute(rival->backend, rival->graph);
}

void rival_result(void* handle, float* y) {
  Rival* rival = static_cast<Rival*>(handle);
  ggml_backend_tensor_get(rival->y, y, 0, ggml_nbytes(rival->y));
}

}  // extern "C"
