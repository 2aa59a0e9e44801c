// SPDX-License-Identifier: GPL-2.0-only
//
// Generic netlink sockets and wake-up eventfds. Carries bytes; the one message it understands is the
// controller's answer to CTRL_CMD_GETFAMILY, which has to be known before any socket is of use.
//
// Protocol: genlRecvBatch tries recvmmsg first and polls only when nothing is there, so a busy receiver pays
// one system call for a batch; who waits without a wake fd or a time limit sleeps in the receive itself. Messages are returned before a wake-up is consumed; a caller must therefore
// look at its own queue after every return.
//
// Known weakness: an overrun (ENOBUFS) tells that messages were lost, not which.

#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "common.h"

namespace mxfs {
namespace {

constexpr unsigned kBatchMax = 64;  // GENL_BATCH_MAX in native/index.ts
constexpr int kWoken = -1;          // RECV_WOKEN
constexpr int kTimeout = 0;         // RECV_TIMEOUT
constexpr time_t kResolveTimeoutS = 5;
// The controller's largest answer fits the skb it allocates (NLMSG_GOODSIZE, a page, before 6.x); this is ample.
constexpr size_t kResolveBytes = 65536;

/** Closes on scope exit unless released. */
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

void SetOption(int fd, int level, int option, int value, const char* name) {
  if (setsockopt(fd, level, option, &value, sizeof value) < 0) throw SysError(errno, "setsockopt", name);
}

/** The forced variant is not bound by the sysctl limit but needs CAP_NET_ADMIN: without it, the plain one. */
void SetBufferBytes(int fd, int forced, int plain, int bytes, const char* name) {
  if (setsockopt(fd, SOL_SOCKET, forced, &bytes, sizeof bytes) == 0) return;
  if (errno != EPERM) throw SysError(errno, "setsockopt", name);
  SetOption(fd, SOL_SOCKET, plain, bytes, name);
}

int OpenSocket() {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
  if (fd < 0) throw SysError(errno, "socket", "AF_NETLINK, NETLINK_GENERIC");
  return fd;
}

/** Binds to a port id of the kernel's choice and returns it. */
uint32_t BindSocket(int fd) {
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  socklen_t length = sizeof address;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) < 0) throw SysError(errno, "bind", "netlink");
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) < 0) {
    throw SysError(errno, "getsockname", "netlink");
  }
  return address.nl_pid;
}

/** A netlink socket that was never connected sends to the kernel. */
void SendDatagram(int fd, const void* data, size_t length) {
  ssize_t sent;
  do {
    sent = send(fd, data, length, 0);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) throw SysError(errno, "send", "netlink datagram of " + std::to_string(length) + " bytes");
  if (static_cast<size_t>(sent) != length) throw SysError(EIO, "send", "netlink datagram sent in part");
}

Napi::Value GenlOpen(const Napi::CallbackInfo& info) {
  int receive_bytes = IntArg(info, 0);
  int send_bytes = IntArg(info, 1);
  Fd fd(OpenSocket());
  SetBufferBytes(fd.get(), SO_RCVBUFFORCE, SO_RCVBUF, receive_bytes, "SO_RCVBUF");
  SetBufferBytes(fd.get(), SO_SNDBUFFORCE, SO_SNDBUF, send_bytes, "SO_SNDBUF");
  SetOption(fd.get(), SOL_NETLINK, NETLINK_NO_ENOBUFS, 0, "NETLINK_NO_ENOBUFS");
  SetOption(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, 1, "NETLINK_EXT_ACK");
  SetOption(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, 1, "NETLINK_CAP_ACK");
  uint32_t port_id = BindSocket(fd.get());
  Napi::Object handle = Napi::Object::New(info.Env());
  handle.Set("portId", Napi::Number::New(info.Env(), port_id));
  handle.Set("fd", Napi::Number::New(info.Env(), fd.release()));
  return handle;
}

Napi::Value GenlJoin(const Napi::CallbackInfo& info) {
  SetOption(IntArg(info, 0), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, IntArg(info, 1), "NETLINK_ADD_MEMBERSHIP");
  return info.Env().Undefined();
}

int GetBufferBytes(int fd, int option, const char* name) {
  int value = 0;
  socklen_t length = sizeof value;
  if (getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0) throw SysError(errno, "getsockopt", name);
  return value;
}

Napi::Value GenlBufferSizes(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  Napi::Object sizes = Napi::Object::New(info.Env());
  sizes.Set("receive", Napi::Number::New(info.Env(), GetBufferBytes(fd, SO_RCVBUF, "SO_RCVBUF")));
  sizes.Set("send", Napi::Number::New(info.Env(), GetBufferBytes(fd, SO_SNDBUF, "SO_SNDBUF")));
  return sizes;
}

Napi::Value GenlSend(const Napi::CallbackInfo& info) {
  Bytes bytes = BytesArg(info, 1);
  SendDatagram(IntArg(info, 0), bytes.data, bytes.length);
  return info.Env().Undefined();
}

Napi::Value GenlSendBatch(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  Bytes bytes = BytesArg(info, 1);
  size_t span_numbers = 0;
  const auto* spans =
      static_cast<int32_t*>(ArrayArg(info, 2, napi_int32_array, "an Int32Array", &span_numbers));
  uint32_t count = UintArg(info, 3);
  if (count < 1 || count > kBatchMax || span_numbers < size_t{count} * 2) {
    BadArgument(info, 3, "1 to 64 datagrams, two numbers each");
  }
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  std::array<iovec, kBatchMax> pieces;
  std::array<mmsghdr, kBatchMax> messages{};
  for (uint32_t index = 0; index < count; index++) {
    int64_t offset = spans[index * 2];
    int64_t length = spans[index * 2 + 1];
    if (offset < 0 || length < 0 || static_cast<uint64_t>(offset + length) > bytes.length) {
      BadArgument(info, 2, "spans inside the buffer");
    }
    pieces[index] = {bytes.data + offset, static_cast<size_t>(length)};
    messages[index].msg_hdr.msg_name = &kernel;
    messages[index].msg_hdr.msg_namelen = sizeof kernel;
    messages[index].msg_hdr.msg_iov = &pieces[index];
    messages[index].msg_hdr.msg_iovlen = 1;
  }
  int sent;
  do {
    sent = sendmmsg(fd, messages.data(), count, 0);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) {
    throw SysError(errno, "sendmmsg", "netlink, first of " + std::to_string(count) + " datagrams");
  }
  return Napi::Number::New(info.Env(), sent);
}

/**
 * Makes who sleeps in genlRecvBatch on this very socket return: a datagram that does not come from the kernel. Never
 * blocks; where the socket is full its receiver does not sleep.
 */
Napi::Value GenlWake(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  sockaddr_nl self{};
  self.nl_family = AF_NETLINK;
  self.nl_pid = UintArg(info, 1);
  nlmsghdr nothing{};
  nothing.nlmsg_len = sizeof nothing;
  nothing.nlmsg_type = NLMSG_NOOP;
  ssize_t sent;
  do {
    sent = sendto(fd, &nothing, sizeof nothing, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&self), sizeof self);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno != EAGAIN && errno != ENOBUFS) throw SysError(errno, "sendto", "netlink, to itself");
  return info.Env().Undefined();
}

int64_t NowMs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

enum class Waited { kReadable, kWoken, kTimedOut };

/** Waits until the socket is readable, somebody wakes us, or `deadline_ms` (negative: never) has passed. */
Waited WaitReadable(int fd, int wake_fd, int64_t deadline_ms) {
  for (;;) {
    pollfd polled[2] = {{fd, POLLIN, 0}, {wake_fd, POLLIN, 0}};  // poll ignores a negative fd
    int64_t left_ms = deadline_ms < 0 ? -1 : std::max<int64_t>(deadline_ms - NowMs(), 0);
    int ready = poll(polled, 2, static_cast<int>(left_ms));
    if (ready < 0) {
      if (errno == EINTR) continue;
      throw SysError(errno, "poll", "netlink socket and wake fd");
    }
    if (polled[0].revents != 0) return Waited::kReadable;  // POLLERR, POLLNVAL too: recvmmsg says which error
    if ((polled[1].revents & POLLIN) != 0) {
      uint64_t count;
      // EAGAIN: another thread waiting on the same eventfd has consumed the wake-up; we were woken all the same.
      if (read(wake_fd, &count, sizeof count) < 0 && errno != EAGAIN) throw SysError(errno, "read", "wake fd");
      return Waited::kWoken;
    }
    if (polled[1].revents != 0) throw SysError(EBADF, "poll", "wake fd " + std::to_string(wake_fd));
    if (ready == 0) return Waited::kTimedOut;
  }
}

SysError ReceiveError(int error, const char* syscall) {
  return SysError(error, syscall, error == ENOBUFS ? "netlink overrun: messages were lost" : "netlink");
}

/** What `lengths` tells of a datagram: 0 where it is not the kernel's, minus its length where it did not fit. */
int32_t SlotLength(const sockaddr_nl& sender, size_t length, bool truncated) {
  if (sender.nl_pid != 0) return 0;
  return truncated ? -static_cast<int32_t>(length) : static_cast<int32_t>(length);
}

Napi::Value GenlRecvBatch(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  Bytes into = BytesArg(info, 1);
  uint32_t slot_bytes = UintArg(info, 2);
  size_t length_slots = 0;
  auto* lengths = static_cast<int32_t*>(ArrayArg(info, 3, napi_int32_array, "an Int32Array", &length_slots));
  int wake_fd = info[4].IsNull() ? -1 : static_cast<int>(NumberArg(info, 4, 0, INT32_MAX, "null or a wake fd"));
  int timeout_ms = IntArg(info, 5);
  if (slot_bytes == 0 || slot_bytes % NLMSG_ALIGNTO != 0) BadArgument(info, 2, "a positive multiple of 4");
  size_t slots = std::min<size_t>({into.length / slot_bytes, length_slots, kBatchMax});
  if (slots == 0) BadArgument(info, 1, "room for at least one slot");

  std::array<sockaddr_nl, kBatchMax> senders;
  std::array<iovec, kBatchMax> pieces;
  std::array<mmsghdr, kBatchMax> messages;
  for (size_t index = 0; index < slots; index++) {
    pieces[index] = {into.data + index * slot_bytes, slot_bytes};
    messages[index] = {};
    messages[index].msg_hdr.msg_name = &senders[index];
    messages[index].msg_hdr.msg_namelen = sizeof(sockaddr_nl);
    messages[index].msg_hdr.msg_iov = &pieces[index];
    messages[index].msg_hdr.msg_iovlen = 1;
  }
  int64_t deadline_ms = timeout_ms < 0 ? -1 : NowMs() + timeout_ms;
  for (;;) {
    // MSG_TRUNC as a flag: msg_len is the datagram's full length, also where the slot was too short for it.
    int received =
        recvmmsg(fd, messages.data(), static_cast<unsigned>(slots), MSG_DONTWAIT | MSG_TRUNC, nullptr);
    if (received > 0) {
      for (int index = 0; index < received; index++) {
        bool truncated = (messages[index].msg_hdr.msg_flags & MSG_TRUNC) != 0;
        lengths[index] = SlotLength(senders[index], messages[index].msg_len, truncated);
      }
      return Napi::Number::New(info.Env(), received);
    }
    if (received < 0 && errno != EAGAIN && errno != EINTR) {
      throw ReceiveError(errno, "recvmmsg");
    }
    if (timeout_ms < 0 && wake_fd < 0) {
      // Nothing else to wait for: sleeps in the receive itself, one system call and one datagram a wake-up. If more have
      // come by then the next call finds them all.
      socklen_t address_bytes = sizeof senders[0];
      auto* sender = reinterpret_cast<sockaddr*>(&senders[0]);
      ssize_t length = recvfrom(fd, into.data, slot_bytes, MSG_TRUNC, sender, &address_bytes);
      if (length < 0 && errno == EINTR) continue;
      if (length < 0) throw ReceiveError(errno, "recvfrom");
      lengths[0] = SlotLength(senders[0], static_cast<size_t>(length), static_cast<size_t>(length) > slot_bytes);
      return Napi::Number::New(info.Env(), 1);
    }
    switch (WaitReadable(fd, wake_fd, deadline_ms)) {
      case Waited::kReadable:
        break;
      case Waited::kWoken:
        return Napi::Number::New(info.Env(), kWoken);
      case Waited::kTimedOut:
        return Napi::Number::New(info.Env(), kTimeout);
    }
  }
}

// ---- CTRL_CMD_GETFAMILY ------------------------------------------------------------------------------------

/** Walks netlink attributes, staying inside [data, data + length). */
class Attributes {
 public:
  Attributes(const uint8_t* data, size_t length) : data_(data), left_(length) {}

  /** Steps to the next attribute; false at the end or at one that claims more than is there. */
  bool Next() {
    if (left_ < sizeof(nlattr)) return false;
    nlattr header;
    memcpy(&header, data_, sizeof header);
    if (header.nla_len < NLA_HDRLEN || header.nla_len > left_) return false;
    type = header.nla_type & NLA_TYPE_MASK;
    payload = data_ + NLA_HDRLEN;
    length = header.nla_len - NLA_HDRLEN;
    size_t step = std::min<size_t>(NLA_ALIGN(header.nla_len), left_);
    data_ += step;
    left_ -= step;
    return true;
  }

  uint32_t U32() const { return Load<uint32_t>(); }
  uint16_t U16() const { return Load<uint16_t>(); }
  std::string Text() const {
    const char* text = reinterpret_cast<const char*>(payload);
    return {text, strnlen(text, length)};
  }
  Attributes Nested() const { return {payload, length}; }

  int type = 0;
  const uint8_t* payload = nullptr;
  size_t length = 0;

 private:
  template <typename T>
  T Load() const {
    T value{};
    if (length < sizeof value) throw SysError(EPROTO, "recv", "netlink controller: attribute too short");
    memcpy(&value, payload, sizeof value);
    return value;
  }

  const uint8_t* data_;
  size_t left_;
};

struct FamilyRequest {
  nlmsghdr header;
  genlmsghdr generic;
  nlattr attribute;
  char name[256];
};

void SendGetFamily(int fd, const std::string& name) {
  FamilyRequest request{};
  if (name.size() >= sizeof request.name) throw SysError(ERANGE, "sendto", "family name too long");
  request.attribute.nla_type = CTRL_ATTR_FAMILY_NAME;
  request.attribute.nla_len = static_cast<uint16_t>(NLA_HDRLEN + name.size() + 1);
  request.generic.cmd = CTRL_CMD_GETFAMILY;
  request.generic.version = 2;
  request.header.nlmsg_type = GENL_ID_CTRL;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.header.nlmsg_len =
      static_cast<uint32_t>(NLMSG_HDRLEN + GENL_HDRLEN + NLA_ALIGN(request.attribute.nla_len));
  memcpy(request.name, name.c_str(), name.size() + 1);
  SendDatagram(fd, &request, request.header.nlmsg_len);
}

Napi::Array ReadGroups(Napi::Env env, Attributes groups) {
  Napi::Array result = Napi::Array::New(env);
  while (groups.Next()) {
    Napi::Object group = Napi::Object::New(env);
    Attributes fields = groups.Nested();
    while (fields.Next()) {
      if (fields.type == CTRL_ATTR_MCAST_GRP_NAME) group.Set("name", fields.Text());
      if (fields.type == CTRL_ATTR_MCAST_GRP_ID) group.Set("id", Napi::Number::New(env, fields.U32()));
    }
    result.Set(result.Length(), group);
  }
  return result;
}

Napi::Object ReadFamily(Napi::Env env, Attributes fields) {
  Napi::Object family = Napi::Object::New(env);
  family.Set("groups", Napi::Array::New(env));  // a family without groups has no such attribute
  unsigned seen = 0;
  while (fields.Next()) {
    switch (fields.type) {
      case CTRL_ATTR_FAMILY_NAME:
        family.Set("name", fields.Text());
        break;
      case CTRL_ATTR_FAMILY_ID:
        family.Set("id", Napi::Number::New(env, fields.U16()));
        break;
      case CTRL_ATTR_VERSION:
        family.Set("version", Napi::Number::New(env, fields.U32()));
        break;
      case CTRL_ATTR_HDRSIZE:
        family.Set("headerBytes", Napi::Number::New(env, fields.U32()));
        break;
      case CTRL_ATTR_MAXATTR:
        family.Set("attrMax", Napi::Number::New(env, fields.U32()));
        break;
      case CTRL_ATTR_MCAST_GROUPS:
        family.Set("groups", ReadGroups(env, fields.Nested()));
        break;
      default:
        continue;
    }
    seen |= 1u << fields.type;
  }
  constexpr unsigned kNeeded = 1u << CTRL_ATTR_FAMILY_NAME | 1u << CTRL_ATTR_FAMILY_ID |
                               1u << CTRL_ATTR_VERSION | 1u << CTRL_ATTR_HDRSIZE | 1u << CTRL_ATTR_MAXATTR;
  if ((seen & kNeeded) != kNeeded) throw SysError(EPROTO, "recv", "netlink controller: incomplete family");
  return family;
}

Napi::Value GenlResolve(const Napi::CallbackInfo& info) {
  std::string name = StringArg(info, 0);
  Fd fd(OpenSocket());
  timeval limit{kResolveTimeoutS, 0};
  if (setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0) {
    throw SysError(errno, "setsockopt", "SO_RCVTIMEO");
  }
  BindSocket(fd.get());
  SendGetFamily(fd.get(), name);

  std::vector<uint8_t> answer(kResolveBytes);
  ssize_t length;
  do {
    length = recv(fd.get(), answer.data(), answer.size(), MSG_TRUNC);
  } while (length < 0 && errno == EINTR);
  if (length < 0) throw SysError(errno == EAGAIN ? ETIMEDOUT : errno, "recv", "netlink controller");
  nlmsghdr header;
  if (static_cast<size_t>(length) < sizeof header || static_cast<size_t>(length) > answer.size()) {
    throw SysError(EPROTO, "recv", "netlink controller: answer of " + std::to_string(length) + " bytes");
  }
  memcpy(&header, answer.data(), sizeof header);
  size_t body = std::min<size_t>(header.nlmsg_len, static_cast<size_t>(length));
  if (header.nlmsg_type == NLMSG_ERROR && body >= NLMSG_HDRLEN + sizeof(int)) {
    int error;
    memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof error);
    std::string family = "generic netlink family \"" + name + "\"";
    if (error == -ENOENT) family += " is not registered: is its kernel module loaded?";
    throw SysError(-error, "CTRL_CMD_GETFAMILY", family);
  }
  if (header.nlmsg_type != GENL_ID_CTRL || body < NLMSG_HDRLEN + GENL_HDRLEN) {
    throw SysError(EPROTO, "recv", "netlink controller: message type " + std::to_string(header.nlmsg_type));
  }
  return ReadFamily(info.Env(), {answer.data() + NLMSG_HDRLEN + GENL_HDRLEN, body - NLMSG_HDRLEN - GENL_HDRLEN});
}

// ---- wake-up -----------------------------------------------------------------------------------------------

Napi::Value WakeCreate(const Napi::CallbackInfo& info) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw SysError(errno, "eventfd");
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value WakeSignal(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  uint64_t one = 1;
  // EAGAIN: the counter is at its maximum, so the wake-up is pending already.
  if (write(fd, &one, sizeof one) < 0 && errno != EAGAIN) {
    throw SysError(errno, "write", "wake fd " + std::to_string(fd));
  }
  return info.Env().Undefined();
}

Napi::Value Close(const Napi::CallbackInfo& info) {
  int fd = IntArg(info, 0);
  // On Linux the fd is gone after EINTR too: calling again could close somebody else's.
  if (close(fd) < 0 && errno != EINTR) throw SysError(errno, "close", "fd " + std::to_string(fd));
  return info.Env().Undefined();
}

}  // namespace

void InitGenl(Napi::Env env, Napi::Object exports) {
  ExportPlain<GenlResolve>(env, exports, "genlResolve");
  ExportPlain<GenlOpen>(env, exports, "genlOpen");
  ExportPlain<GenlJoin>(env, exports, "genlJoin");
  ExportPlain<GenlBufferSizes>(env, exports, "genlBufferSizes");
  ExportPlain<GenlSend>(env, exports, "genlSend");
  ExportPlain<GenlSendBatch>(env, exports, "genlSendBatch");
  ExportPlain<GenlRecvBatch>(env, exports, "genlRecvBatch");
  ExportPlain<GenlWake>(env, exports, "genlWake");
  ExportPlain<WakeCreate>(env, exports, "wakeCreate");
  ExportPlain<WakeSignal>(env, exports, "wakeSignal");
  ExportPlain<Close>(env, exports, "close");
}

}  // namespace mxfs
