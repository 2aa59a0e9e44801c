// SPDX-License-Identifier: GPL-2.0-only
//
// O_DIRECT files and block devices: single transfers, batches, flushes and sizes.
//
// Batches use kernel AIO (io_submit), not io_uring: for O_DIRECT it submits just as asynchronously (an O_DSYNC
// write to a block device becomes one FUA write), works where io_uring is switched off by sysctl or seccomp,
// and needs no rings mapped into this process.
//
// Known weakness: on a file that is not O_DIRECT io_submit does the transfers one after another; a transfer
// cannot be cancelled, so a hung disk holds its thread.

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <mutex>

#include "common.h"

namespace mxfs {
namespace {

constexpr uint32_t kBatchDepthMax = 1024;  // BATCH_DEPTH_MAX in native/index.ts

Napi::Value OpenDirect(const Napi::CallbackInfo& info) {
  std::string path = StringArg(info, 0);
  int flags = O_DIRECT | O_CLOEXEC;
  flags |= BoolArg(info, 1) ? O_RDWR : O_RDONLY;
  flags |= BoolArg(info, 2) ? O_EXCL : 0;
  flags |= BoolArg(info, 3) ? O_DSYNC : 0;
  int fd;
  do {
    fd = open(path.c_str(), flags);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    int error = errno;
    throw SysError(error, "open",
                   path + (error == EINVAL ? ": its file system does not support O_DIRECT" : ""));
  }
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value AddressModulo(const Napi::CallbackInfo& info) {
  Bytes bytes = BytesArg(info, 0);
  auto alignment = static_cast<uint32_t>(NumberArg(info, 1, 1, 1 << 20, "an alignment up to 1 MiB"));
  return Napi::Number::New(info.Env(), reinterpret_cast<uintptr_t>(bytes.data) % alignment);
}

/** pread or pwrite of a whole range. */
class Transfer {
 public:
  explicit Transfer(const Napi::CallbackInfo& info)
      : fd_(IntArg(info, 0)), bytes_(BytesArg(info, 1)), offset_(OffsetArg(info, 2)) {}

 protected:
  SysError Failure(int error, const char* syscall) const {
    std::string detail = "fd " + std::to_string(fd_) + ", " + std::to_string(bytes_.length) + " bytes at " +
                         std::to_string(offset_);
    if (error == EINVAL) {
      detail += ", memory address modulo 4096 is " +
                std::to_string(reinterpret_cast<uintptr_t>(bytes_.data) % 4096) +
                ": O_DIRECT wants all three in multiples of the logical block size";
    }
    return {error, syscall, detail};
  }

  int fd_;
  Bytes bytes_;
  off_t offset_;
  size_t done_ = 0;
};

class PreadWork : public Transfer {
 public:
  using Transfer::Transfer;

  void Run() {
    while (done_ < bytes_.length) {
      ssize_t moved = pread(fd_, bytes_.data + done_, bytes_.length - done_, offset_ + static_cast<off_t>(done_));
      if (moved < 0 && errno == EINTR) continue;
      // A read that stopped at an unaligned end of file cannot be continued, and need not be.
      if (moved < 0 && errno == EINVAL && done_ > 0) return;
      if (moved < 0) throw Failure(errno, "pread");
      if (moved == 0) return;
      done_ += static_cast<size_t>(moved);
    }
  }

  Napi::Value Result(Napi::Env env) const { return Napi::Number::New(env, static_cast<double>(done_)); }
};

class PwriteWork : public Transfer {
 public:
  using Transfer::Transfer;

  void Run() {
    while (done_ < bytes_.length) {
      ssize_t moved =
          pwrite(fd_, bytes_.data + done_, bytes_.length - done_, offset_ + static_cast<off_t>(done_));
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) throw Failure(errno, "pwrite");
      if (moved == 0) throw Failure(ENOSPC, "pwrite");  // the end of a block device
      done_ += static_cast<size_t>(moved);
    }
  }

  Napi::Value Result(Napi::Env env) const { return env.Undefined(); }
};

// ---- batches -----------------------------------------------------------------------------------------------

/** One AIO context. The mutex keeps batches apart: io_getevents would hand one batch's events to another. */
class AioContext {
 public:
  explicit AioContext(uint32_t depth) : depth_(depth) {
    if (syscall(SYS_io_setup, depth, &context_) < 0) {
      throw SysError(errno, "io_setup", std::to_string(depth) + " events; see /proc/sys/fs/aio-max-nr");
    }
  }
  AioContext(const AioContext&) = delete;
  AioContext& operator=(const AioContext&) = delete;
  ~AioContext() { Close(); }

  uint32_t depth() const { return depth_; }

  void Close() {
    std::lock_guard<std::mutex> guard(mutex_);
    Destroy();
  }

  /** Runs the iocbs; results[i] (i = aio_data) becomes the bytes moved or a negative errno. */
  void Run(std::vector<iocb>* iocbs, std::vector<int32_t>* results) {
    std::lock_guard<std::mutex> guard(mutex_);
    if (context_ == 0) throw SysError(EINVAL, "io_submit", "the batch context is closed");
    std::vector<iocb*> pointers;
    for (iocb& one : *iocbs) pointers.push_back(&one);
    size_t next = 0;
    size_t in_flight = 0;
    while (next < pointers.size() || in_flight > 0) {
      if (next < pointers.size()) {
        long submitted = syscall(SYS_io_submit, context_, pointers.size() - next, pointers.data() + next);
        if (submitted > 0) {
          next += static_cast<size_t>(submitted);
          in_flight += static_cast<size_t>(submitted);
          continue;
        }
        bool full = submitted < 0 && errno == EAGAIN && in_flight > 0;  // then let some complete first
        if (!full) {
          if (submitted < 0 && errno == EINTR) continue;
          (*results)[pointers[next]->aio_data] = submitted < 0 ? -errno : -EIO;
          next++;
          continue;
        }
      }
      in_flight -= Reap(in_flight, results);
    }
  }

 private:
  /** Waits for all (or, where the queue was full, some) of what is in flight. */
  size_t Reap(size_t in_flight, std::vector<int32_t>* results) {
    io_event events[64];
    long wanted = static_cast<long>(in_flight < 64 ? in_flight : 64);
    long count;
    do {
      count = syscall(SYS_io_getevents, context_, wanted, wanted, events, nullptr);
    } while (count < 0 && errno == EINTR);
    if (count <= 0) {
      int error = count < 0 ? errno : EIO;
      Destroy();  // waits until the kernel has let go of the buffers
      throw SysError(error, "io_getevents");
    }
    for (long index = 0; index < count; index++) {
      (*results)[events[index].data] = static_cast<int32_t>(events[index].res);
    }
    return static_cast<size_t>(count);
  }

  void Destroy() {
    if (context_ != 0) syscall(SYS_io_destroy, context_);
    context_ = 0;
  }

  std::mutex mutex_;
  aio_context_t context_ = 0;
  uint32_t depth_;
};

using SharedContext = std::shared_ptr<AioContext>;

SharedContext ContextArg(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsExternal()) BadArgument(info, index, "a batch context");
  return *info[index].As<Napi::External<SharedContext>>().Data();
}

Napi::Value BatchOpen(const Napi::CallbackInfo& info) {
  auto depth = static_cast<uint32_t>(NumberArg(info, 0, 1, kBatchDepthMax, "a depth from 1 to 1024"));
  auto holder = std::make_unique<SharedContext>(std::make_shared<AioContext>(depth));
  auto external = Napi::External<SharedContext>::New(
      info.Env(), holder.get(), [](Napi::Env, SharedContext* context) { delete context; });
  holder.release();
  return external;
}

Napi::Value BatchClose(const Napi::CallbackInfo& info) {
  ContextArg(info, 0)->Close();
  return info.Env().Undefined();
}

class BatchWork {
 public:
  explicit BatchWork(const Napi::CallbackInfo& info) : context_(ContextArg(info, 0)) {
    int fd = IntArg(info, 1);
    bool write = BoolArg(info, 2);
    Bytes data = BytesArg(info, 3);
    size_t numbers = 0;
    const auto* spans = static_cast<double*>(ArrayArg(info, 4, napi_float64_array, "a Float64Array", &numbers));
    size_t count = numbers / 3;
    if (count == 0 || count > context_->depth() || numbers % 3 != 0) {
      BadArgument(info, 4, "one span at least, and no more than the depth of the batch context");
    }
    for (size_t index = 0; index < count; index++) {
      double data_offset = spans[index * 3];
      double length = spans[index * 3 + 1];
      double file_offset = spans[index * 3 + 2];
      bool whole = std::trunc(data_offset) == data_offset && std::trunc(length) == length &&
                   std::trunc(file_offset) == file_offset;
      bool inside = data_offset >= 0 && length > 0 && length <= INT32_MAX && file_offset >= 0 &&
                    file_offset <= 9007199254740991.0 && data_offset + length <= static_cast<double>(data.length);
      if (!whole || !inside) BadArgument(info, 4, "spans inside the buffer, not empty");
      iocb one{};
      one.aio_data = index;
      one.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
      one.aio_fildes = static_cast<uint32_t>(fd);
      one.aio_buf = reinterpret_cast<uintptr_t>(data.data) + static_cast<uint64_t>(data_offset);
      one.aio_nbytes = static_cast<uint64_t>(length);
      one.aio_offset = static_cast<int64_t>(file_offset);
      iocbs_.push_back(one);
    }
    results_.resize(count, -EIO);
  }

  void Run() { context_->Run(&iocbs_, &results_); }

  Napi::Value Result(Napi::Env env) const {
    Napi::Int32Array result = Napi::Int32Array::New(env, results_.size());
    memcpy(result.Data(), results_.data(), results_.size() * sizeof(int32_t));
    return result;
  }

 private:
  SharedContext context_;
  std::vector<iocb> iocbs_;
  std::vector<int32_t> results_;
};

// ---- flushes and sizes ---------------------------------------------------------------------------------------

class FsyncWork {
 public:
  explicit FsyncWork(const Napi::CallbackInfo& info) : fd_(IntArg(info, 0)) {}
  void Run() {
    if (fsync(fd_) < 0) throw SysError(errno, "fsync", "fd " + std::to_string(fd_));
  }
  Napi::Value Result(Napi::Env env) const { return env.Undefined(); }

 private:
  int fd_;
};

class FdatasyncWork {
 public:
  explicit FdatasyncWork(const Napi::CallbackInfo& info) : fd_(IntArg(info, 0)) {}
  void Run() {
    if (fdatasync(fd_) < 0) throw SysError(errno, "fdatasync", "fd " + std::to_string(fd_));
  }
  Napi::Value Result(Napi::Env env) const { return env.Undefined(); }

 private:
  int fd_;
};

template <typename T>
T AskDevice(const Napi::CallbackInfo& info, unsigned long request, const char* name) {
  int fd = IntArg(info, 0);
  T value{};
  if (ioctl(fd, request, &value) < 0) {
    int error = errno;
    throw SysError(error, name,
                   "fd " + std::to_string(fd) + (error == ENOTTY ? " is not a block device" : ""));
  }
  return value;
}

Napi::Value BlockDeviceBytes(const Napi::CallbackInfo& info) {
  auto bytes = AskDevice<uint64_t>(info, BLKGETSIZE64, "BLKGETSIZE64");
  return Napi::Number::New(info.Env(), static_cast<double>(bytes));
}

Napi::Value LogicalBlockBytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), AskDevice<int>(info, BLKSSZGET, "BLKSSZGET"));
}

Napi::Value PhysicalBlockBytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), AskDevice<unsigned>(info, BLKPBSZGET, "BLKPBSZGET"));
}

Napi::Value FlushBuffers(const Napi::CallbackInfo& info) {
  AskDevice<int>(info, BLKFLSBUF, "BLKFLSBUF");
  return info.Env().Undefined();
}

}  // namespace

void InitDirect(Napi::Env env, Napi::Object exports) {
  ExportPlain<OpenDirect>(env, exports, "openDirect");
  ExportPlain<AddressModulo>(env, exports, "addressModulo");
  ExportWork<PreadWork>(env, exports, "pread");
  ExportWork<PwriteWork>(env, exports, "pwrite");
  ExportPlain<BatchOpen>(env, exports, "batchOpen");
  ExportWork<BatchWork>(env, exports, "batchRun");
  ExportPlain<BatchClose>(env, exports, "batchClose");
  ExportWork<FsyncWork>(env, exports, "fsync");
  ExportWork<FdatasyncWork>(env, exports, "fdatasync");
  ExportPlain<BlockDeviceBytes>(env, exports, "blockDeviceBytes");
  ExportPlain<LogicalBlockBytes>(env, exports, "logicalBlockBytes");
  ExportPlain<PhysicalBlockBytes>(env, exports, "physicalBlockBytes");
  ExportPlain<FlushBuffers>(env, exports, "flushBuffers");
}

}  // namespace mxfs
