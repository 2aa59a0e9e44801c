// SPDX-License-Identifier: GPL-2.0-only
//
// SCSI pass-through (SG_IO, version 3) and the reservation ioctls of linux/pr.h. Moves bytes and statuses;
// what a sense code or a reservation conflict means is decided in src/disk/reservation.ts.
//
// Known weakness: a command cannot be cancelled from here, only its own timeout ends it.

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

}  // namespace

void InitScsi(Napi::Env env, Napi::Object exports) {
  ExportWork<SgIoWork>(env, exports, "sgIo");
  ExportWork<PrWork>(env, exports, "prIoctl");
}

}  // namespace mxfs
