// Included after the source of the kernels: how each kernel is called, and its parameters.
#pragma once

#include <stdint.h>

#include <type_traits>
#include <utility>

namespace cuda_on_cpu {

struct Parameter {
  const char* type;
  int is_pointer, is_const;
};

struct Kernel {
  void (*call)(const uint64_t* values);
  int most_threads;
  const Parameter* parameters;  // the last has no type
};

template <class T> constexpr const char* name_of() {
  if constexpr (std::is_same_v<T, void>) return "void";
  else if constexpr (std::is_same_v<T, bool>) return "bool";
  else if constexpr (std::is_same_v<T, float>) return "float32";
  else if constexpr (std::is_same_v<T, double>) return "float64";
#ifdef CUDA_ON_CPU_HALF
  else if constexpr (std::is_same_v<T, __half>) return "float16";
#endif
#ifdef CUDA_ON_CPU_BFLOAT
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
#endif
  else if constexpr (std::is_integral_v<T>) {
    constexpr const char* names[2][4] = {{"uint8", "uint16", "uint32", "uint64"}, {"int8", "int16", "int32", "int64"}};
    return names[std::is_signed_v<T>][__builtin_ctz(sizeof(T))];
  } else return "another type";
}

template <class... P> struct Parameters {
  static constexpr Parameter list[] = {{name_of<std::remove_cv_t<std::remove_pointer_t<P>>>(), std::is_pointer_v<P>,
                                        std::is_const_v<std::remove_pointer_t<P>>}..., {}};
};

template <class... P> Parameters<P...> parameters_of(void (*)(P...));

template <class P> __attribute__((no_sanitize_address)) inline P argument(const uint64_t* value) {
  P result;
  __builtin_memcpy(&result, value, sizeof result);
  return result;
}

template <class... P, size_t... I>
inline void call(void (*kernel)(P...), const uint64_t* values, std::index_sequence<I...>) {
  kernel(argument<P>(values + I)...);
}

template <class... P> inline void call(void (*kernel)(P...), const uint64_t* values) {
  call(kernel, values, std::index_sequence_for<P...>());
}

template <auto kernel> constexpr Kernel kernel_of(int most_threads, int = 0, int = 0) {
  return {[](const uint64_t* values) { call(kernel, values); }, most_threads, decltype(parameters_of(kernel))::list};
}

}  // namespace cuda_on_cpu

extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
extern "C" char* cuda_on_cpu_image[] = {__ehdr_start, _end};
