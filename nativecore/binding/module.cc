// The addon: kernel calls that node does not have. No checkpoint logic, no
// decisions. Read next to nativecore/native-binding.ts: same order, same names.
#include "binding/module.h"

namespace stasis::binding {

void throw_errno(Napi::Env env, const char* call, int error_number) {
  Napi::Error error = Napi::Error::New(env, std::string(call) + ": " + std::strerror(error_number));
  error.Set("call", Napi::String::New(env, call));
  error.Set("errorNumber", Napi::Number::New(env, error_number));
  throw error;
}

namespace {

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("setChildSubreaper", Napi::Function::New(env, set_child_subreaper, "setChildSubreaper"));
  exports.Set("waitForExit", Napi::Function::New(env, wait_for_exit, "waitForExit"));
  exports.Set("exitAtOnce", Napi::Function::New(env, exit_at_once, "exitAtOnce"));
  exports.Set("tryLock", Napi::Function::New(env, try_lock, "tryLock"));
  exports.Set("renameWithoutReplacing", Napi::Function::New(env, rename_without_replacing, "renameWithoutReplacing"));
  exports.Set("openInRoot", Napi::Function::New(env, open_in_root, "openInRoot"));
  exports.Set("receivePacket", Napi::Function::New(env, receive_packet, "receivePacket"));
  exports.Set("sendPacket", Napi::Function::New(env, send_packet, "sendPacket"));
  exports.Set("receiveDescriptor", Napi::Function::New(env, receive_descriptor, "receiveDescriptor"));
  exports.Set("socketPair", Napi::Function::New(env, socket_pair, "socketPair"));
  exports.Set("peerPid", Napi::Function::New(env, peer_pid, "peerPid"));
  exports.Set("connectUnix", Napi::Function::New(env, connect_unix, "connectUnix"));
  exports.Set("punchHole", Napi::Function::New(env, punch_hole, "punchHole"));
  exports.Set("addBlocks", Napi::Function::New(env, add_blocks, "addBlocks"));
  exports.Set("getAttribute", Napi::Function::New(env, get_attribute, "getAttribute"));
  exports.Set("listAttributes", Napi::Function::New(env, list_attributes, "listAttributes"));
  exports.Set("setAttribute", Napi::Function::New(env, set_attribute, "setAttribute"));
  exports.Set("makeNode", Napi::Function::New(env, make_node, "makeNode"));
  exports.Set("copyWindowSize", Napi::Function::New(env, copy_window_size, "copyWindowSize"));
  exports.Set("loadCgroupDeviceProgram",
              Napi::Function::New(env, load_cgroup_device_program, "loadCgroupDeviceProgram"));
  exports.Set("attachCgroupDeviceProgram",
              Napi::Function::New(env, attach_cgroup_device_program, "attachCgroupDeviceProgram"));
  exports.Set("getKernelFacts", Napi::Function::New(env, get_kernel_facts, "getKernelFacts"));
  exports.Set("syncFiles", Napi::Function::New(env, sync_files, "syncFiles"));
  exports.Set("keepOwnDescriptors", Napi::Function::New(env, keep_own_descriptors, "keepOwnDescriptors"));
  exports.Set("awaitStart", Napi::Function::New(env, await_start, "awaitStart"));
  return exports;
}

}  // namespace
}  // namespace stasis::binding

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) {
  return stasis::binding::initialise(env, exports);
}

NODE_API_MODULE(stasis, init_addon)
