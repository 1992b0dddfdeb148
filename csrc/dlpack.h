// Memory as a tensor for whoever speaks DLPack, torch among them: the structs of its version 0, which are its ABI.
// (https://dmlc.github.io/dlpack)
#pragma once

#include <cstdint>

namespace maskpipe::dlpack {

inline constexpr const char* fresh = "dltensor";  // the name of a capsule; who takes the tensor gives it another one

enum Code : std::uint8_t { integers = 0, naturals = 1, reals = 2 };

struct Device {
  std::int32_t type = 1;  // of a CPU
  std::int32_t id = 0;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; nullptr: the values lie row after row, without gaps
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor* self);  // by whoever took it, in any thread
};

}  // namespace maskpipe::dlpack
