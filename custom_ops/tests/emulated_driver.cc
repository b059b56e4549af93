// The functions of the CUDA driver and of NVRTC that nvrtc_launch.cc calls, on the emulated GPU:
// the library that has them stands in for libcuda.so.1 and libnvrtc.so.12 in the tests. Signatures
// are those of the CUDA documentation. A "cubin" is the text that was to be compiled; its last
// lines name the kernel. The GPU is an sm_80, and NVRTC knows the architectures of
// TFQUANT_EMULATED_NVRTC, by default that one.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../core/cuda/launch.h"

namespace {

constexpr int kInvalidValue = 1, kInvalidImage = 200;  // CUDA_ERROR_...

struct Program {
  std::string text, target;
};

int KnownArchitecture() {
  const char* const known = std::getenv("TFQUANT_EMULATED_NVRTC");
  return known ? std::atoi(known) : 80;
}

void* current_context = nullptr;
int primary_context;

}  // namespace

extern "C" {

int cuInit(unsigned flags) { return flags == 0 ? 0 : kInvalidValue; }

int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}

int cuCtxGetCurrent(void** context) {
  *context = current_context;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &primary_context;
  return device == 0 ? 0 : kInvalidValue;
}

int cuCtxSetCurrent(void* context) {
  current_context = context;
  return 0;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return current_context == &primary_context ? 0 : kInvalidValue;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : 0;
  return device == 0 && (attribute == 75 || attribute == 76) ? 0 : kInvalidValue;
}

int cuModuleLoadData(void** module, const void* image) {
  const std::string text = static_cast<const char*>(image);
  const size_t end = text.rfind("::Run(arguments);"), begin = text.rfind("\n  ", end);
  if (end == std::string::npos || begin == std::string::npos) return kInvalidImage;
  *module = new std::string(text.substr(begin + 3, end - begin - 3));
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = module;
  return std::strcmp(name, "tfquant_kernel") == 0 ? 0 : kInvalidValue;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void* stream, void** arguments, void** extra) {
  if (grid_y != 1 || grid_z != 1 || block_x != tfquant::kGpuThreads || block_y != 1 ||
      block_z != 1 || shared_bytes != 0 || extra != nullptr) {
    return kInvalidValue;
  }
  const auto& given = *static_cast<const tfquant::GpuArguments*>(arguments[0]);
  const std::string& kernel = *static_cast<const std::string*>(function);
  return tfquant::LaunchKernel(kernel, grid_x, given, stream).empty() ? 0 : kInvalidValue;
}

int cuGetErrorString(int code, const char** words) {
  *words = code == kInvalidImage ? "device kernel image is invalid" : "invalid argument";
  return 0;
}

int nvrtcVersion(int* major, int* minor) {
  *major = 12;
  *minor = 5;
  return 0;
}

int nvrtcGetNumSupportedArchs(int* count) {
  *count = 1;
  return 0;
}

int nvrtcGetSupportedArchs(int* architectures) {
  *architectures = KnownArchitecture();
  return 0;
}

int nvrtcCreateProgram(void** program, const char* source, const char* name, int headers,
                       const char* const* header_texts, const char* const* header_names) {
  static_cast<void>(header_texts);
  static_cast<void>(header_names);
  *program = new Program{source, ""};
  return name != nullptr && headers == 0 ? 0 : kInvalidValue;
}

int nvrtcCompileProgram(void* program, int count, const char* const* options) {
  Program* const p = static_cast<Program*>(program);
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i], flag = "--gpu-architecture=";
    if (option.compare(0, flag.size(), flag) == 0) p->target = option.substr(flag.size());
  }
  const std::string known = std::to_string(KnownArchitecture());
  return p->target == "sm_" + known || p->target == "compute_" + known ? 0 : kInvalidValue;
}

int nvrtcDestroyProgram(void** program) {
  delete static_cast<Program*>(*program);
  *program = nullptr;
  return 0;
}

int nvrtcGetProgramLogSize(void* program, size_t* size) {
  *size = static_cast<Program*>(program)->target.size() + 1;
  return 0;
}

int nvrtcGetProgramLog(void* program, char* log) {
  std::strcpy(log, static_cast<Program*>(program)->target.c_str());
  return 0;
}

// A virtual architecture has no cubin.
int nvrtcGetCUBINSize(void* program, size_t* size) {
  const Program& p = *static_cast<Program*>(program);
  *size = p.target.compare(0, 3, "sm_") == 0 ? p.text.size() + 1 : 0;
  return 0;
}

int nvrtcGetCUBIN(void* program, char* code) {
  const Program& p = *static_cast<Program*>(program);
  std::strcpy(code, p.text.c_str());
  return 0;
}

int nvrtcGetPTXSize(void* program, size_t* size) {
  *size = static_cast<Program*>(program)->text.size() + 1;
  return 0;
}

int nvrtcGetPTX(void* program, char* code) { return nvrtcGetCUBIN(program, code); }

}  // extern "C"
