// SPDX-License-Identifier: GPL-2.0-only
//
// What all parts of the addon share: reading arguments, failing with an errno, and running one piece of work
// either at once or on libuv's thread pool.
//
// Rules that keep it loadable from any number of worker threads: no global and no static state, nothing that
// belongs to one napi_env outlives the call, except what a Job holds until its Promise settles.
//
// A worker thread may be terminated with jobs in flight: then nothing can be told to JavaScript any more, every
// attempt throws a Napi::Error that cannot be delivered, and NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS (binding.gyp)
// drops it. Without that define the whole process would abort.
//
// Known weakness: arguments are checked for type and range only as far as memory safety asks; the typed face
// in native/index.ts is the only caller.

#pragma once

#include <napi.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mxfs {

// ---- failing ---------------------------------------------------------------------------------------------

/** The symbolic name of a positive errno, "E<number>" for one that libc does not know. */
inline std::string ErrnoName(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "E" + std::to_string(error);
}

/** A system call that failed. Thrown on any thread; becomes a JavaScript Error on the right one. */
class SysError {
 public:
  /** @param detail what was attempted on what, for the reader of a log; may be empty. */
  SysError(int error, const char* syscall, std::string detail = {})
      : error_(error), syscall_(syscall), detail_(std::move(detail)) {}

  Napi::Error ToNapi(Napi::Env env) const {
    std::string message = ErrnoName(error_) + ": " + strerrordesc(error_) + ", " + syscall_;
    if (!detail_.empty()) message += " (" + detail_ + ")";
    Napi::Error result = Napi::Error::New(env, message);
    result.Set("code", Napi::String::New(env, ErrnoName(error_)));
    result.Set("errno", Napi::Number::New(env, -error_));
    result.Set("syscall", Napi::String::New(env, syscall_));
    return result;
  }

 private:
  static std::string strerrordesc(int error) {
    const char* text = strerrordesc_np(error);
    return text != nullptr ? text : "unknown error";
  }

  int error_;
  const char* syscall_;
  std::string detail_;
};

// ---- arguments -------------------------------------------------------------------------------------------

struct Bytes {
  uint8_t* data;
  size_t length;
};

[[noreturn]] inline void BadArgument(const Napi::CallbackInfo& info, size_t index, const char* expected) {
  throw Napi::TypeError::New(
      info.Env(), "mxfs_native: argument " + std::to_string(index + 1) + ": expected " + expected);
}

inline double NumberArg(const Napi::CallbackInfo& info, size_t index, double min, double max,
                        const char* expected) {
  if (!info[index].IsNumber()) BadArgument(info, index, expected);
  double value = info[index].As<Napi::Number>().DoubleValue();
  if (!(value >= min && value <= max) || std::trunc(value) != value) BadArgument(info, index, expected);
  return value;
}

inline int IntArg(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<int>(NumberArg(info, index, INT32_MIN, INT32_MAX, "a 32-bit integer"));
}

inline uint32_t UintArg(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<uint32_t>(NumberArg(info, index, 0, UINT32_MAX, "an unsigned 32-bit integer"));
}

/** A file offset: an integer that a double holds exactly. */
inline off_t OffsetArg(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<off_t>(NumberArg(info, index, 0, 9007199254740991.0, "an offset from 0 to 2^53 - 1"));
}

inline uint64_t KeyArg(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsBigInt()) BadArgument(info, index, "a bigint");
  bool lossless = false;
  uint64_t value = info[index].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) BadArgument(info, index, "an unsigned 64-bit bigint");
  return value;
}

inline bool BoolArg(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsBoolean()) BadArgument(info, index, "a boolean");
  return info[index].As<Napi::Boolean>().Value();
}

inline std::string StringArg(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsString()) BadArgument(info, index, "a string");
  std::string value = info[index].As<Napi::String>().Utf8Value();
  if (value.find('\0') != std::string::npos) BadArgument(info, index, "a string without NUL");
  return value;
}

/**
 * The memory of a typed array, over an ArrayBuffer or a SharedArrayBuffer alike. (The raw call, because
 * node-addon-api's TypedArray::ArrayBuffer() does not know shared memory.)
 */
inline void* ArrayArg(const Napi::CallbackInfo& info, size_t index, napi_typedarray_type type,
                      const char* expected, size_t* length) {
  if (!info[index].IsTypedArray()) BadArgument(info, index, expected);
  napi_typedarray_type found;
  void* data = nullptr;
  napi_status status =
      napi_get_typedarray_info(info.Env(), info[index], &found, length, &data, nullptr, nullptr);
  if (status != napi_ok || found != type) BadArgument(info, index, expected);
  return data;
}

inline Bytes BytesArg(const Napi::CallbackInfo& info, size_t index) {
  Bytes bytes{};
  bytes.data = static_cast<uint8_t*>(ArrayArg(info, index, napi_uint8_array, "a Uint8Array", &bytes.length));
  return bytes;
}

// ---- running ---------------------------------------------------------------------------------------------

/** Exports a plain blocking function: a SysError becomes a JavaScript exception. */
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value Plain(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const SysError& error) {
    throw error.ToNapi(info.Env());
  }
}

/**
 * Work that exists in a blocking and an asynchronous form. A Work is constructed from the arguments on the
 * JavaScript thread, runs (throwing SysError) on any thread without touching JavaScript, and gives its result
 * on the JavaScript thread.
 */
template <typename Work>
Napi::Value Sync(const Napi::CallbackInfo& info) {
  try {
    Work work(info);
    work.Run();
    return work.Result(info.Env());
  } catch (const SysError& error) {
    throw error.ToNapi(info.Env());
  }
}

/** One Work on the thread pool. Keeps the argument objects, and so their memory, alive until it settles. */
template <typename Work>
class Job final : public Napi::AsyncWorker {
 public:
  explicit Job(const Napi::CallbackInfo& info)
      : Napi::AsyncWorker(info.Env(), "mxfs_native"),
        deferred_(Napi::Promise::Deferred::New(info.Env())),
        work_(info) {
    for (size_t index = 0; index < info.Length(); index++) {
      if (info[index].IsTypedArray() || info[index].IsExternal()) {
        kept_.push_back(Napi::Reference<Napi::Value>::New(info[index], 1));
      }
    }
  }

  Napi::Promise Promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    try {
      work_.Run();
    } catch (const SysError& error) {
      failure_ = error;
    }
  }

  void OnOK() override {
    if (failure_.has_value()) {
      deferred_.Reject(failure_->ToNapi(Env()).Value());
    } else {
      deferred_.Resolve(work_.Result(Env()));
    }
  }

  /** Only for what Run throws beside SysError (bad_alloc). */
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  Work work_;
  std::vector<Napi::Reference<Napi::Value>> kept_;
  std::optional<SysError> failure_;
};

template <typename Work>
Napi::Value Async(const Napi::CallbackInfo& info) {
  auto* job = new Job<Work>(info);  // deletes itself after OnOK or OnError
  Napi::Promise promise = job->Promise();
  job->Queue();
  return promise;
}

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void ExportPlain(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<&Plain<function>>(env, name));
}

template <typename Work>
void ExportWork(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<&Sync<Work>>(env, name));
  std::string async_name = std::string(name) + "Async";
  exports.Set(async_name, Napi::Function::New<&Async<Work>>(env, async_name.c_str()));
}

// ---- the parts, each in its own file -----------------------------------------------------------------------

void InitGenl(Napi::Env env, Napi::Object exports);
void InitScsi(Napi::Env env, Napi::Object exports);
void InitDirect(Napi::Env env, Napi::Object exports);
void InitHost(Napi::Env env, Napi::Object exports);

}  // namespace mxfs
