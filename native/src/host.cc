// SPDX-License-Identifier: GPL-2.0-only
//
// Small calls into the host kernel that Node does not offer: SO_BINDTODEVICE, memory locking of one buffer, and of
// the program itself, the I/O flusher flag, the boot clock, shutting an XFS down.
//
// Known weakness: PR_SET_IO_FLUSHER holds for the calling thread only (and threads it starts afterwards), so
// the launcher (launch.c) sets it before node exists.

#include <fcntl.h>
#include <link.h>
#include <linux/magic.h>
#include <linux/prctl.h>
#include <malloc.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

// xfs/xfs_fs.h comes with xfslibs-dev only; the number is kernel ABI.
#ifndef XFS_IOC_GOINGDOWN
#define XFS_IOC_GOINGDOWN _IOR('X', 125, uint32_t)
#endif

namespace mxfs {
namespace {

Napi::Value SetBindToDevice(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  std::string name = StringArg(info, 1);
  if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name.c_str(), static_cast<socklen_t>(name.size() + 1)) < 0) {
    throw SysError(errno, "setsockopt", "SO_BINDTODEVICE, interface \"" + name + "\"");
  }
  return info.Env().Undefined();
}

Napi::Value LockRange(const Napi::CallbackInfo& info) {
  Bytes bytes = BytesArg(info, 0);
  if (mlock2(bytes.data, bytes.length, 0) < 0) {
    throw SysError(errno, "mlock2", std::to_string(bytes.length) + " bytes; see RLIMIT_MEMLOCK");
  }
  return info.Env().Undefined();
}

Napi::Value UnlockRange(const Napi::CallbackInfo& info) {
  Bytes bytes = BytesArg(info, 0);
  if (munlock(bytes.data, bytes.length) < 0) throw SysError(errno, "munlock");
  return info.Env().Undefined();
}

/** What became of the program's pages; filled in under the dynamic loader's lock. */
struct Program {
  uintptr_t vdso;
  uintptr_t page;
  bool keep;
  int drop_error;
  int keep_error;
};

/**
 * Code and constants of one loaded object: its segments that are never written, so that every page of them is the
 * file's. (Relocated constants lie in a segment that is writable at first, and are left alone.)
 */
int TrimObject(dl_phdr_info* object, size_t, void* data) {
  auto* program = static_cast<Program*>(data);
  if (object->dlpi_addr == program->vdso) return 0;
  for (int index = 0; index < object->dlpi_phnum; index++) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[index];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
    uintptr_t from = (object->dlpi_addr + segment.p_vaddr) & ~(program->page - 1);
    uintptr_t to = (object->dlpi_addr + segment.p_vaddr + segment.p_memsz + program->page - 1) & ~(program->page - 1);
    void* address = reinterpret_cast<void*>(from);
    if (madvise(address, to - from, MADV_DONTNEED) < 0) program->drop_error = errno;
    if (program->keep && mlock2(address, to - from, MLOCK_ONFAULT) < 0) program->keep_error = errno;
  }
  return 0;
}

/** Gives back what only starting has needed. @see trimProgram in native/index.ts */
Napi::Value TrimProgram(const Napi::CallbackInfo& info) {
  Program program{};
  program.vdso = getauxval(AT_SYSINFO_EHDR);
  program.page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  program.keep = BoolArg(info, 0);
  malloc_trim(0);
  dl_iterate_phdr(TrimObject, &program);
  if (program.drop_error != 0) throw SysError(program.drop_error, "madvise", "MADV_DONTNEED, the program's code");
  if (program.keep_error != 0) {
    throw SysError(program.keep_error, "mlock2", "MLOCK_ONFAULT, the program's code; see RLIMIT_MEMLOCK");
  }
  return info.Env().Undefined();
}

Napi::Value SetIoFlusher(const Napi::CallbackInfo& info) {
  unsigned long on = BoolArg(info, 0) ? 1 : 0;
  if (prctl(PR_SET_IO_FLUSHER, on, 0UL, 0UL, 0UL) < 0) throw SysError(errno, "prctl", "PR_SET_IO_FLUSHER");
  return info.Env().Undefined();
}

Napi::Value GetIoFlusher(const Napi::CallbackInfo& info) {
  int on = prctl(PR_GET_IO_FLUSHER, 0UL, 0UL, 0UL, 0UL);
  if (on < 0) throw SysError(errno, "prctl", "PR_GET_IO_FLUSHER");
  return Napi::Boolean::New(info.Env(), on != 0);
}

timespec BootTime() {
  timespec now{};
  if (clock_gettime(CLOCK_BOOTTIME, &now) < 0) throw SysError(errno, "clock_gettime", "CLOCK_BOOTTIME");
  return now;
}

Napi::Value BootTimeNs(const Napi::CallbackInfo& info) {
  timespec now = BootTime();
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(now.tv_sec) * 1000000000u +
                                           static_cast<uint64_t>(now.tv_nsec));
}

Napi::Value BootTimeMs(const Napi::CallbackInfo& info) {
  timespec now = BootTime();
  return Napi::Number::New(info.Env(),
                           static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6);
}

Napi::Value XfsGoingDown(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  uint32_t how = UintArg(info, 1);
  struct statfs fs{};
  if (fstatfs(fd, &fs) < 0) throw SysError(errno, "fstatfs", "fd " + std::to_string(fd));
  // ext4, f2fs and others answer to the very same ioctl number: never shut the wrong file system down.
  if (fs.f_type != XFS_SUPER_MAGIC) {
    throw SysError(ENOTTY, "XFS_IOC_GOINGDOWN", "fd " + std::to_string(fd) + " is not on an XFS");
  }
  if (ioctl(fd, XFS_IOC_GOINGDOWN, &how) < 0) {
    throw SysError(errno, "XFS_IOC_GOINGDOWN", "fd " + std::to_string(fd));
  }
  return info.Env().Undefined();
}

/**
 * Sends as much as the socket takes at once. What is not taken, or fails, is left to whoever owns the socket: he will meet
 * the same error.
 */
Napi::Value SendNow(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  Bytes bytes = BytesArg(info, 1);
  ssize_t sent;
  do {
    sent = send(fd, bytes.data, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return Napi::Number::New(info.Env(), sent < 0 ? 0 : static_cast<double>(sent));
}

/** The same open file under another number, closed on exec. */
Napi::Value DupFd(const Napi::CallbackInfo& info) {
  int fd = fcntl(IntArg(info, 0), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) throw SysError(errno, "fcntl", "F_DUPFD_CLOEXEC");
  return Napi::Number::New(info.Env(), fd);
}

}  // namespace

void InitHost(Napi::Env env, Napi::Object exports) {
  ExportPlain<SetBindToDevice>(env, exports, "setBindToDevice");
  ExportPlain<LockRange>(env, exports, "lockRange");
  ExportPlain<UnlockRange>(env, exports, "unlockRange");
  ExportPlain<TrimProgram>(env, exports, "trimProgram");
  ExportPlain<SetIoFlusher>(env, exports, "setIoFlusher");
  ExportPlain<GetIoFlusher>(env, exports, "getIoFlusher");
  ExportPlain<BootTimeNs>(env, exports, "bootTimeNs");
  ExportPlain<BootTimeMs>(env, exports, "bootTimeMs");
  ExportPlain<SendNow>(env, exports, "sendNow");
  ExportPlain<DupFd>(env, exports, "dupFd");
  ExportPlain<XfsGoingDown>(env, exports, "xfsGoingDown");
}

}  // namespace mxfs
