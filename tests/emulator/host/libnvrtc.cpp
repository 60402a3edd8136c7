// A stand-in for NVIDIA's run-time compiler: hands the very source to the host's C++ compiler, with simt.hpp before it and a
// table of its entry points after it. The CUBIN is a shared object of the host that libcuda.cpp loads.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <unistd.h>
#include <vector>
#define API extern "C" __attribute__((visibility("default"))) int

enum Code { OK = 0, CREATION = 2, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };

namespace {
struct Program {
  std::string source, log;
  std::vector<char> image;
};

std::string read(const std::string &path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// `EMULATOR_DELETE=FILE:LINE:COLUMN:LENGTH:INSTEAD`, counted from 1 by the source's #line marks, exchanges a call in the source: what a
// test says then shows whether anything would miss it.
const char *deleted() {
  const char *what = getenv("EMULATOR_DELETE");
  return what ? what : "";
}
std::string without(std::string source) {
  char file[256];
  unsigned line, column, length;
  int used;
  if (sscanf(deleted(), "%255[^:]:%u:%u:%u:%n", file, &line, &column, &length, &used) != 4) return source;
  std::string mark = "#line 1 \"" + std::string(file) + "\"\n";
  size_t at = source.find(mark);
  if (at == std::string::npos) return source;
  for (at += mark.size(); --line > 0;) at = source.find('\n', at) + 1;
  return source.replace(at + column - 1, length, deleted() + used);
}

// `EMULATOR_SANITIZE=address` or `thread` instruments the kernels; the process has that sanitizer preloaded.
std::string sanitized() {
  const char *which = getenv("EMULATOR_SANITIZE");
  if (!which || !*which) return "";
  if (!strcmp(which, "thread")) return " -O1 -g1 -fsanitize=thread";
  return " -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fsanitize-sections=simt_shared -fno-omit-frame-pointer";
}

// The table that the driver's stand-in asks for, made from the source's `__global__ void NAME(`.
std::string table(const std::string &source) {
  static const std::regex kernel(R"(__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\()");
  std::string entries;
  for (std::sregex_iterator at(source.begin(), source.end(), kernel), end; at != end; ++at)
    entries += "  simt::Call<&" + (*at)[1].str() + ">::entry(\"" + (*at)[1].str() + "\"),\n";
  return "\nsimt::Runtime *simt_runtime;\n"
         "static const simt::Entry simt_entries[] = {\n" + entries + "};\n"
         "extern unsigned char __start_simt_shared[] __attribute__((weak, visibility(\"hidden\")));\n"
         "extern unsigned char __stop_simt_shared[] __attribute__((weak, visibility(\"hidden\")));\n"
         "struct SimtModule { void *library; simt::Runtime **runtime; const simt::Entry *entries; unsigned count; unsigned char *from, *to; };\n"
         "extern \"C\" __attribute__((visibility(\"default\"))) void simt_module(SimtModule *m) {\n"
         "  *m = {m->library, &simt_runtime, simt_entries, sizeof simt_entries / sizeof *simt_entries, __start_simt_shared, __stop_simt_shared};\n"
         "}\n";
}
}  // namespace

// Whether the machine has fused multiply-add; without it the sources call a function of libm for each.
bool fused() { return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2"); }

// No version of NVIDIA's, and another one for every state of the stand-in: what it made is never taken for anything else.
API nvrtcVersion(int *major, int *minor) { 
  *major = 0, *minor = EMULATOR_VERSION * 2 + fused();
  if (std::string other = deleted() + sanitized(); !other.empty()) *minor = (*minor + std::hash<std::string>{}(other)) % 1000000000;
  return OK;
}
API nvrtcCreateProgram(void **p, const char *source, const char *, int headers, const char *const *, const char *const *) {
  if (headers) return CREATION;
  *p = new Program{source, "", {}};
  return OK;
}
API nvrtcDestroyProgram(void **p) { delete static_cast<Program *>(*p), *p = nullptr; return OK; }
API nvrtcCompileProgram(void *p, int count, const char *const *options) {
  auto &program = *static_cast<Program *>(p);
  std::string flags;
  for (int i = 0; i < count; i++) {
    std::string option = options[i];
    if (option.rfind("-D", 0) == 0) flags += " '" + option + "'";
    else if (option.rfind("--gpu-architecture=sm_", 0) && option != "--fmad=false" && option != "--std=c++17") return INVALID_OPTION;
  }
  const char *temporary = getenv("TMPDIR");
  std::string folder = std::string(temporary ? temporary : "/tmp") + "/ple-emulator-XXXXXX";
  if (!mkdtemp(folder.data())) return INVALID_INPUT;
  std::string source = folder + "/kernels.cpp", image = folder + "/kernels.so", log = folder + "/log";
  std::ofstream(source) << "#include \"simt.hpp\"\n#line 1 \"kernels.cu\"\n" << without(program.source) << table(program.source);
  std::string command = EMULATOR_CXX " " EMULATOR_FLAGS " -O2 -shared -Wall -Wextra -Wno-unused-function -Wno-psabi -Werror "
                        "-I'" EMULATOR_MADE "' -I'" EMULATOR_HOST "'" + std::string(*deleted() ? " -w" : "") + (fused() ? " -mavx2 -mfma" : "") + sanitized() + flags + " -o '" + image + "' '" + source + "' > '" + log + "' 2>&1";
  unsetenv("LD_PRELOAD");  // a sanitizer is loaded by now, and the compiler needs none
  int status = system(command.c_str());
  program.log = read(log);
  std::string bytes = read(image);
  program.image.assign(bytes.begin(), bytes.end());
  for (const auto &file : {source, image, log}) unlink(file.c_str());
  rmdir(folder.c_str());
  return status == 0 && !program.image.empty() ? OK : COMPILATION;
}
API nvrtcGetProgramLogSize(void *p, size_t *n) { *n = static_cast<Program *>(p)->log.size() + 1; return OK; }
API nvrtcGetProgramLog(void *p, char *log) { strcpy(log, static_cast<Program *>(p)->log.c_str()); return OK; }
API nvrtcGetCUBINSize(void *p, size_t *n) { *n = static_cast<Program *>(p)->image.size(); return OK; }
API nvrtcGetCUBIN(void *p, char *image) {
  auto &bytes = static_cast<Program *>(p)->image;
  memcpy(image, bytes.data(), bytes.size());
  return OK;
}
extern "C" __attribute__((visibility("default"))) const char *nvrtcGetErrorString(int code) {
  return code == COMPILATION ? "compilation failed" : "an error of the emulated compiler";
}
