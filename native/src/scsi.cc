// SPDX-License-Identifier: GPL-2.0-only
//
// SCSI pass-through (SG_IO, version 3), LUN RESET (SG_SCSI_RESET), NVMe pass-through, and the reservation ioctls of
// linux/pr.h. Moves bytes and statuses; what a sense code or a reservation conflict means is decided in src/disk.
//
// Known weakness: a command cannot be cancelled from here, only its own timeout ends it.

#include <linux/nvme_ioctl.h>
#include <linux/pr.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>

#include <array>

#include "common.h"

namespace mxfs {
namespace {

constexpr size_t kCdbBytesMin = 6;
constexpr size_t kCdbBytesMax = 32;
constexpr size_t kSenseBytesMax = 252;  // SPC-4: the largest sense data; the header's field holds 255

class SgIoWork {
 public:
  explicit SgIoWork(const Napi::CallbackInfo& info) : fd_(IntArg(info, 0)) {
    Bytes cdb = BytesArg(info, 1);
    if (cdb.length < kCdbBytesMin || cdb.length > kCdbBytesMax) BadArgument(info, 1, "a CDB of 6 to 32 bytes");
    memcpy(cdb_.data(), cdb.data, cdb.length);
    header_.interface_id = 'S';
    header_.cmd_len = static_cast<unsigned char>(cdb.length);
    header_.dxfer_direction =
        static_cast<int>(NumberArg(info, 2, SG_DXFER_FROM_DEV, SG_DXFER_NONE, "a direction from -3 to -1"));
    bool has_data = !info[3].IsNull();
    if (has_data != (header_.dxfer_direction != SG_DXFER_NONE)) {
      BadArgument(info, 3, "data with direction in or out, null with none");
    }
    if (has_data) {
      Bytes data = BytesArg(info, 3);
      if (data.length == 0 || data.length > UINT32_MAX) BadArgument(info, 3, "a buffer that is not empty");
      header_.dxferp = data.data;
      header_.dxfer_len = static_cast<unsigned>(data.length);
    }
    header_.timeout = static_cast<unsigned>(NumberArg(info, 4, 1, INT32_MAX, "a timeout above 0 ms"));
  }

  void Run() {
    // The pointers are set here because a Work may have been moved since it was made.
    header_.cmdp = cdb_.data();
    header_.sbp = sense_.data();
    header_.mx_sb_len = kSenseBytesMax;
    if (ioctl(fd_, SG_IO, &header_) < 0) {
      throw SysError(errno, "SG_IO", "opcode " + std::to_string(cdb_[0]) + " on fd " + std::to_string(fd_));
    }
  }

  Napi::Value Result(Napi::Env env) const {
    Napi::Uint8Array sense = Napi::Uint8Array::New(env, header_.sb_len_wr);
    memcpy(sense.Data(), sense_.data(), header_.sb_len_wr);
    Napi::Object result = Napi::Object::New(env);
    result.Set("status", Napi::Number::New(env, header_.status));
    result.Set("hostStatus", Napi::Number::New(env, header_.host_status));
    result.Set("driverStatus", Napi::Number::New(env, header_.driver_status));
    result.Set("sense", sense);
    result.Set("residual", Napi::Number::New(env, header_.resid));
    result.Set("durationMs", Napi::Number::New(env, header_.duration));
    return result;
  }

 private:
  int fd_;
  sg_io_hdr_t header_{};
  std::array<uint8_t, kCdbBytesMax> cdb_{};
  std::array<uint8_t, kSenseBytesMax> sense_{};
};

class PrWork {
 public:
  explicit PrWork(const Napi::CallbackInfo& info)
      : fd_(IntArg(info, 0)),
        index_(static_cast<int>(NumberArg(info, 1, 0, 5, "a reservation ioctl from 0 to 5"))),
        key1_(KeyArg(info, 2)),
        key2_(KeyArg(info, 3)),
        type_(UintArg(info, 4)),
        flags_(UintArg(info, 5)) {}

  void Run() {
    pr_registration registration{key1_, key2_, flags_, 0};
    pr_reservation reservation{key1_, type_, flags_};
    pr_preempt preempt{key1_, key2_, type_, flags_};
    pr_clear clear{key1_, flags_, 0};
    switch (index_) {
      case 0:
        return Issue(IOC_PR_REGISTER, "IOC_PR_REGISTER", &registration);
      case 1:
        return Issue(IOC_PR_RESERVE, "IOC_PR_RESERVE", &reservation);
      case 2:
        return Issue(IOC_PR_RELEASE, "IOC_PR_RELEASE", &reservation);
      case 3:
        return Issue(IOC_PR_PREEMPT, "IOC_PR_PREEMPT", &preempt);
      case 4:
        return Issue(IOC_PR_PREEMPT_ABORT, "IOC_PR_PREEMPT_ABORT", &preempt);
      default:
        return Issue(IOC_PR_CLEAR, "IOC_PR_CLEAR", &clear);
    }
  }

  Napi::Value Result(Napi::Env env) const { return Napi::Number::New(env, status_); }

 private:
  void Issue(unsigned long request, const char* name, void* argument) {
    status_ = ioctl(fd_, request, argument);
    if (status_ < 0) throw SysError(errno, name, "fd " + std::to_string(fd_));
  }

  int fd_;
  int index_;
  uint64_t key1_;
  uint64_t key2_;
  uint32_t type_;
  uint32_t flags_;
  int status_ = 0;
};

/** LOGICAL UNIT RESET and nothing wider: the kernel is told not to go on to target, bus or host. */
class ScsiResetWork {
 public:
  explicit ScsiResetWork(const Napi::CallbackInfo& info) : fd_(IntArg(info, 0)) {}

  void Run() {
    int what = kResetDevice | kResetNoEscalate;
    if (ioctl(fd_, SG_SCSI_RESET, &what) < 0) {
      throw SysError(errno, "SG_SCSI_RESET", "fd " + std::to_string(fd_));
    }
  }

  Napi::Value Result(Napi::Env env) const { return env.Undefined(); }

 private:
  // The kernel's include/scsi/sg.h; glibc's copy of it is too old to have the second one.
  static constexpr int kResetDevice = 1;
  static constexpr int kResetNoEscalate = 0x100;

  int fd_;
};

/** One I/O command of the namespace that the fd is open on. */
class NvmeWork {
 public:
  explicit NvmeWork(const Napi::CallbackInfo& info) : fd_(IntArg(info, 0)) {
    command_.opcode = static_cast<uint8_t>(NumberArg(info, 1, 0, 255, "an opcode from 0 to 255"));
    command_.cdw10 = UintArg(info, 2);
    command_.cdw11 = UintArg(info, 3);
    Bytes data = BytesArg(info, 4);
    if (data.length == 0 || data.length > UINT32_MAX) BadArgument(info, 4, "a buffer that is not empty");
    command_.addr = reinterpret_cast<uintptr_t>(data.data);
    command_.data_len = static_cast<uint32_t>(data.length);
    command_.timeout_ms = static_cast<uint32_t>(NumberArg(info, 5, 1, INT32_MAX, "a timeout above 0 ms"));
  }

  void Run() {
    int nsid = ioctl(fd_, NVME_IOCTL_ID);
    if (nsid < 0) throw SysError(errno, "NVME_IOCTL_ID", "fd " + std::to_string(fd_));
    command_.nsid = static_cast<uint32_t>(nsid);
    status_ = ioctl(fd_, NVME_IOCTL_IO_CMD, &command_);
    if (status_ < 0) {
      throw SysError(errno, "NVME_IOCTL_IO_CMD",
                     "opcode " + std::to_string(command_.opcode) + " on fd " + std::to_string(fd_));
    }
  }

  Napi::Value Result(Napi::Env env) const { return Napi::Number::New(env, status_); }

 private:
  int fd_;
  nvme_passthru_cmd command_{};
  int status_ = 0;
};

}  // namespace

void InitScsi(Napi::Env env, Napi::Object exports) {
  ExportWork<SgIoWork>(env, exports, "sgIo");
  ExportWork<PrWork>(env, exports, "prIoctl");
  ExportWork<ScsiResetWork>(env, exports, "scsiReset");
  ExportWork<NvmeWork>(env, exports, "nvme");
}

}  // namespace mxfs
