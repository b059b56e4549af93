// Launches by the CUDA driver, of kernels that NVRTC compiles when they are first wanted.
//
// Neither is linked: libcuda.so.1 comes with the driver and libnvrtc with tensorflow[and-cuda], and
// where one is missing every launch says so. The text of the kernels is part of this library. A
// compiled kernel is kept in memory for each context and in a folder of the user's
// (TFQUANT_CACHE_DIR, as for libraries compiled at first use) for each architecture.
//
// The driver's and NVRTC's names below are those of the CUDA documentation; only what is called is
// declared, so that no CUDA header is needed.
#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "launch.h"
#include "nvrtc.h"

// The files that make a kernel, one behind the other; the parts as kernels.cuh has them.
#define TFQUANT_TEXT(file) ".incbin \"" TFQUANT_CUDA_FOLDER "/" file "\"\n"
extern "C" const char tfquant_cuda_source[];
__asm__(
    // clang-format off
    ".pushsection .rodata\n"
    ".global tfquant_cuda_source\n"
    ".hidden tfquant_cuda_source\n"
    ".type tfquant_cuda_source, %object\n"
    "tfquant_cuda_source:\n"
    TFQUANT_TEXT("../settings.h")
    TFQUANT_TEXT("arguments.h")
    TFQUANT_TEXT("intrinsics.cuh")
    TFQUANT_TEXT("parts/values.cuh")
    TFQUANT_TEXT("parts/output.cuh")
    TFQUANT_TEXT("parts/rows.cuh")
    TFQUANT_TEXT("parts/weights.cuh")
    TFQUANT_TEXT("parts/forms.cuh")
    TFQUANT_TEXT("parts/gemm.cuh")
    TFQUANT_TEXT("parts/skinny.cuh")
    TFQUANT_TEXT("parts/gemv.cuh")
    TFQUANT_TEXT("parts/binary.cuh")
    TFQUANT_TEXT("parts/plain.cuh")
    ".byte 0\n"
    ".popsection\n"
    // clang-format on
);

namespace tfquant {
namespace {

using Handle = void*;  // CUcontext, CUmodule, CUfunction, nvrtcProgram

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

template <class Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// --- NVRTC ------------------------------------------------------------------------------------

struct Nvrtc {
  std::string problem, file;
  int major = 0, minor = 0;
  int (*version)(int*, int*) = nullptr;
  int (*create)(Handle*, const char*, const char*, int, const char* const*,
                const char* const*) = nullptr;
  int (*compile)(Handle, int, const char* const*) = nullptr;
  int (*destroy)(Handle*) = nullptr;
  int (*log_size)(Handle, size_t*) = nullptr;
  int (*log)(Handle, char*) = nullptr;
  int (*cubin_size)(Handle, size_t*) = nullptr;
  int (*cubin)(Handle, char*) = nullptr;
  int (*ptx_size)(Handle, size_t*) = nullptr;
  int (*ptx)(Handle, char*) = nullptr;
  int (*arch_count)(int*) = nullptr;
  int (*archs)(int*) = nullptr;
};

// Folder of Python packages that TensorFlow was loaded from, or "".
std::string PackagesFolder() {
  std::string found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        if (std::strstr(info->dlpi_name, "libtensorflow_framework.so") == nullptr) return 0;
        // The loader's name may have `..` in it.
        char* const real = realpath(info->dlpi_name, nullptr);
        const std::string name = real ? real : info->dlpi_name;
        std::free(real);
        const size_t at = name.rfind("/tensorflow/libtensorflow_framework.so");
        if (at == std::string::npos) return 0;
        *static_cast<std::string*>(out) = name.substr(0, at);
        return 1;
      },
      &found);
  return found;
}

Nvrtc LoadNvrtc() {
  Nvrtc n;
  std::vector<std::string> names;
  const std::string forced = Environment("TFQUANT_NVRTC"), packages = PackagesFolder();
  if (!forced.empty()) {
    names = {forced};
  } else {
    if (!packages.empty()) names.push_back(packages + "/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    names.push_back("libnvrtc.so.12");
    names.push_back("libnvrtc.so.13");
    names.push_back("libnvrtc.so");
  }
  void* library = nullptr;
  for (const std::string& name : names) {
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    n.file = name;
    if (library) break;
  }
  if (library == nullptr) {
    n.problem =
        "NVRTC, which compiles the GPU kernels, is missing" +
        (forced.empty() ? std::string(". Expected: libnvrtc.so.12; install it with `pip install "
                                      "nvidia-cuda-nvrtc-cu12` (tensorflow[and-cuda] brings it)")
                        : ". Received: TFQUANT_NVRTC=" + forced) +
        ", or place the op on the CPU with tf.device(\"CPU\").";
    return n;
  }
  if (!Find(library, "nvrtcVersion", &n.version) ||
      !Find(library, "nvrtcCreateProgram", &n.create) ||
      !Find(library, "nvrtcCompileProgram", &n.compile) ||
      !Find(library, "nvrtcDestroyProgram", &n.destroy) ||
      !Find(library, "nvrtcGetProgramLogSize", &n.log_size) ||
      !Find(library, "nvrtcGetProgramLog", &n.log) ||
      !Find(library, "nvrtcGetCUBINSize", &n.cubin_size) ||
      !Find(library, "nvrtcGetCUBIN", &n.cubin) || !Find(library, "nvrtcGetPTXSize", &n.ptx_size) ||
      !Find(library, "nvrtcGetPTX", &n.ptx) ||
      !Find(library, "nvrtcGetNumSupportedArchs", &n.arch_count) ||
      !Find(library, "nvrtcGetSupportedArchs", &n.archs)) {
    n.problem =
        "NVRTC lacks a function that is needed; expected a version of CUDA 11.2 or later. "
        "Received: " +
        n.file + ".";
    return n;
  }
  n.version(&n.major, &n.minor);
  return n;
}

const Nvrtc& TheNvrtc() {
  static const Nvrtc* const nvrtc = new Nvrtc(LoadNvrtc());
  return *nvrtc;
}

// The kernel as a function of its own, whatever its template arguments.
std::string SourceOf(const std::string& kernel) {
  return std::string(tfquant_cuda_source) +
         "\nextern \"C\" __global__ void __launch_bounds__(tfquant::kGpuThreads)\n"
         "tfquant_kernel(const tfquant::GpuArguments arguments) {\n"
         "  using namespace tfquant;\n  " +
         kernel + "::Run(arguments);\n}\n";
}

// --- the folder of compiled kernels -------------------------------------------------------------

std::string CacheFolder() {
  std::string folder = Environment("TFQUANT_CACHE_DIR");
  if (!folder.empty()) return folder;
  folder = Environment("XDG_CACHE_HOME");
  if (!folder.empty()) return folder + "/tfquant";
  folder = Environment("HOME");
  return folder.empty() ? "" : folder + "/.cache/tfquant";
}

// FNV-1a, over everything that the code depends on.
std::string CacheFile(const std::string& source, int architecture) {
  const Nvrtc& n = TheNvrtc();
  const std::string key = source + std::to_string(n.major) + "." + std::to_string(n.minor);
  uint64_t hash = 1469598103934665603u;
  for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  char name[64];
  std::snprintf(name, sizeof(name), "/cuda-sm_%d-%016llx.bin", architecture,
                static_cast<unsigned long long>(hash));
  const std::string folder = CacheFolder();
  return folder.empty() ? "" : folder + name;
}

std::string ReadFile(const std::string& path) {
  std::string text;
  std::FILE* const file = path.empty() ? nullptr : std::fopen(path.c_str(), "rb");
  if (file == nullptr) return text;
  char buffer[65536];
  for (size_t count; (count = std::fread(buffer, 1, sizeof(buffer), file)) > 0;) {
    text.append(buffer, count);
  }
  std::fclose(file);
  return text;
}

// As a whole or not at all; a folder that cannot be written costs a compilation, nothing more.
void WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return;
  for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    mkdir(path.substr(0, at).c_str(), 0777);
  }
  const std::string made = path + "." + std::to_string(getpid());
  std::FILE* const file = std::fopen(made.c_str(), "wb");
  if (file == nullptr) return;
  const bool whole = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !whole || std::rename(made.c_str(), path.c_str()) != 0) {
    std::remove(made.c_str());
  }
}

// --- the driver -------------------------------------------------------------------------------

struct Driver {
  std::string problem;
  int (*init)(unsigned) = nullptr;
  int (*device_count)(int*) = nullptr;
  int (*current)(Handle*) = nullptr;
  int (*device)(int*) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
  int (*retain)(Handle*, int) = nullptr;
  int (*set_current)(Handle) = nullptr;
  int (*load)(Handle*, const void*) = nullptr;
  int (*function)(Handle*, Handle, const char*) = nullptr;
  int (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                Handle, void**, void**) = nullptr;
  int (*error_string)(int, const char**) = nullptr;
};

Driver LoadDriver() {
  Driver d;
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    d.problem = "There is no CUDA driver: libcuda.so.1 is missing.";
  } else if (!Find(library, "cuInit", &d.init) ||
             !Find(library, "cuDeviceGetCount", &d.device_count) ||
             !Find(library, "cuCtxGetCurrent", &d.current) ||
             !Find(library, "cuCtxGetDevice", &d.device) ||
             !Find(library, "cuDeviceGetAttribute", &d.attribute) ||
             !Find(library, "cuDevicePrimaryCtxRetain", &d.retain) ||
             !Find(library, "cuCtxSetCurrent", &d.set_current) ||
             !Find(library, "cuModuleLoadData", &d.load) ||
             !Find(library, "cuModuleGetFunction", &d.function) ||
             !Find(library, "cuLaunchKernel", &d.launch) ||
             !Find(library, "cuGetErrorString", &d.error_string)) {
    d.problem = "The CUDA driver lacks a function that is needed.";
  } else if (d.init(0) != 0) {
    d.problem = "The CUDA driver does not start: there is no GPU that it can use.";
  }
  return d;
}

const Driver& TheDriver() {
  static const Driver* const driver = new Driver(LoadDriver());
  return *driver;
}

std::string DriverError(const std::string& what, int code) {
  if (code == 0) return "";
  const char* words = nullptr;
  TheDriver().error_string(code, &words);
  return what + " failed: " + (words ? words : "CUDA error " + std::to_string(code)) + ".";
}

constexpr int kAttributeMajor = 75, kAttributeMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY

// The context of this thread, which TensorFlow has made current; without one, device 0's.
std::string CurrentContext(Handle* context, int* architecture) {
  const Driver& d = TheDriver();
  std::string error = DriverError("cuCtxGetCurrent", d.current(context));
  if (error.empty() && *context == nullptr) {
    error = DriverError("cuDevicePrimaryCtxRetain", d.retain(context, 0));
    if (error.empty()) error = DriverError("cuCtxSetCurrent", d.set_current(*context));
  }
  int device = 0, major = 0, minor = 0;
  if (error.empty()) error = DriverError("cuCtxGetDevice", d.device(&device));
  if (error.empty()) d.attribute(&major, kAttributeMajor, device);
  if (error.empty()) d.attribute(&minor, kAttributeMinor, device);
  *architecture = 10 * major + minor;
  if (error.empty() && *architecture < 75) {
    error =
        "The GPU kernels need compute capability 7.5 or later. Received: " + std::to_string(major) +
        "." + std::to_string(minor) + ".";
  }
  return error;
}

std::string LoadKernel(const std::string& kernel, int architecture, Handle* function) {
  const Driver& d = TheDriver();
  const std::string source = SourceOf(kernel), file = CacheFile(source, architecture);
  Handle module = nullptr;
  std::string code = ReadFile(file);
  if (code.empty() || d.load(&module, code.c_str()) != 0) {
    const std::string error = CompileKernel(kernel, architecture, &code);
    if (!error.empty()) return error;
    const std::string loading = DriverError("Loading " + kernel, d.load(&module, code.c_str()));
    if (!loading.empty()) return loading;
    WriteFile(file, code);
  }
  return DriverError("Loading " + kernel, d.function(function, module, "tfquant_kernel"));
}

}  // namespace

std::string CompileKernel(const std::string& kernel, int architecture, std::string* code) {
  const Nvrtc& n = TheNvrtc();
  if (!n.problem.empty()) return n.problem;
  // An NVRTC older than the GPU compiles for its newest architecture, for the driver to translate.
  int count = 0;
  n.arch_count(&count);
  std::vector<int> known(static_cast<size_t>(count));
  n.archs(known.data());
  bool exact = false;
  int newest = 0;
  for (const int each : known) {
    exact = exact || each == architecture;
    if (each <= architecture && each > newest) newest = each;
  }
  if (newest == 0) {
    return "NVRTC " + std::to_string(n.major) + "." + std::to_string(n.minor) +
           " cannot compile for sm_" + std::to_string(architecture) + ".";
  }
  const std::string target = exact ? "--gpu-architecture=sm_" + std::to_string(architecture)
                                   : "--gpu-architecture=compute_" + std::to_string(newest);
  const std::string source = SourceOf(kernel);
  Handle program = nullptr;
  if (n.create(&program, source.c_str(), "tfquant_kernels.cu", 0, nullptr, nullptr) != 0) {
    return "NVRTC failed to start.";
  }
  const char* const options[] = {target.c_str(), "--std=c++17"};
  std::string error;
  size_t size = 0;
  if (n.compile(program, 2, options) != 0) {
    n.log_size(program, &size);
    std::string log(size, '\0');
    n.log(program, &log[0]);
    error = "NVRTC failed on " + kernel + " with " + target + ":\n" + log.c_str();
  } else {
    (exact ? n.cubin_size : n.ptx_size)(program, &size);
    code->assign(size, '\0');
    (exact ? n.cubin : n.ptx)(program, &(*code)[0]);
  }
  n.destroy(&program);
  return error;
}

std::string LaunchKernel(const std::string& kernel, int64_t blocks, const GpuArguments& arguments,
                         void* stream) {
  const Driver& d = TheDriver();
  if (!d.problem.empty()) return d.problem;
  Handle context = nullptr, function = nullptr;
  int architecture = 0;
  std::string error = CurrentContext(&context, &architecture);
  if (!error.empty()) return error;
  {
    static std::mutex* const mutex = new std::mutex;
    static auto* const functions = new std::map<std::pair<Handle, std::string>, Handle>;
    const std::lock_guard<std::mutex> lock(*mutex);
    Handle& found = (*functions)[{context, kernel}];
    if (found == nullptr) error = LoadKernel(kernel, architecture, &found);
    function = found;
  }
  if (!error.empty()) return error;
  GpuArguments copy = arguments;
  void* list[] = {&copy};
  return DriverError(kernel, d.launch(function, static_cast<unsigned>(blocks), 1, 1, kGpuThreads, 1,
                                      1, 0, stream, list, nullptr));
}

std::string DescribeGpu() {
  const Nvrtc& n = TheNvrtc();
  const Driver& d = TheDriver();
  int count = 0;
  if (d.problem.empty()) d.device_count(&count);
  const std::string driver =
      d.problem.empty() ? "GPUs seen by the CUDA driver: " + std::to_string(count) : d.problem;
  const std::string nvrtc = n.problem.empty() ? "NVRTC " + std::to_string(n.major) + "." +
                                                    std::to_string(n.minor) + " (" + n.file + ")"
                                              : n.problem;
  return driver + (d.problem.empty() ? ". " : " ") + nvrtc;
}

}  // namespace tfquant

int tfquant_cuda_compile(const char* kernel, int architecture, char* code, int64_t* bytes) {
  static thread_local std::string compiled, error;
  if (code == nullptr) {
    error = tfquant::CompileKernel(kernel, architecture, &compiled);
    const std::string& out = error.empty() ? compiled : error;
    *bytes = static_cast<int64_t>(out.size());
    return error.empty() ? 0 : -1;
  }
  const std::string& out = error.empty() ? compiled : error;
  std::memcpy(code, out.data(), out.size());
  return error.empty() ? 0 : -1;
}
