// SPDX-License-Identifier: GPL-2.0-only
//
// Puts the parts together. The names exported here are declared in native/index.ts (interface Addon).
//
// Known weakness: nothing checks that the two lists agree, except that the unit tests call every function.

#include "common.h"

namespace {

Napi::Value ErrnoNameOf(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), mxfs::ErrnoName(mxfs::IntArg(info, 0)));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  mxfs::InitGenl(env, exports);
  mxfs::InitScsi(env, exports);
  mxfs::InitDirect(env, exports);
  mxfs::InitHost(env, exports);
  mxfs::ExportPlain<ErrnoNameOf>(env, exports, "errnoName");
  return exports;
}

}  // namespace

// Registers by a well-known symbol: loadable by several worker threads at once.
NODE_API_MODULE(mxfs_native, Init)
