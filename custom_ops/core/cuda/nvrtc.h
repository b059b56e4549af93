// Compiling a kernel at run time, without a GPU and without launching it; nvrtc_launch.cc.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_NVRTC_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_NVRTC_H_

#include <cstdint>
#include <string>

namespace tfquant {

// Compiles a kernel of kernel_list.h for sm_`architecture` (80 is sm_80): a cubin, or PTX where
// NVRTC is older than the architecture. Returns what went wrong, in words, or "".
std::string CompileKernel(const std::string& kernel, int architecture, std::string* code);

}  // namespace tfquant

// The same by the C ABI, in two calls of one thread: `code` null gives the number of bytes, then
// they are copied. When it returns -1 the bytes are the words of the error.
extern "C" int tfquant_cuda_compile(const char* kernel, int architecture, char* code,
                                    int64_t* bytes);

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_NVRTC_H_
