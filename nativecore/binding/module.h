// What the files of this folder export to module.cc.
#pragma once

#include <napi.h>
#include <cerrno>
#include <cstring>
#include <string>

namespace stasis::binding {

// Throws a JavaScript Error with `call` and `errorNumber`; the facade turns it into words.
[[noreturn]] void throw_errno(Napi::Env env, const char* call, int error_number);

Napi::Value set_child_subreaper(const Napi::CallbackInfo& info);
Napi::Value wait_for_exit(const Napi::CallbackInfo& info);
Napi::Value exit_at_once(const Napi::CallbackInfo& info);
Napi::Value try_lock(const Napi::CallbackInfo& info);
Napi::Value rename_without_replacing(const Napi::CallbackInfo& info);
Napi::Value open_in_root(const Napi::CallbackInfo& info);
Napi::Value receive_packet(const Napi::CallbackInfo& info);
Napi::Value send_packet(const Napi::CallbackInfo& info);
Napi::Value receive_descriptor(const Napi::CallbackInfo& info);
Napi::Value socket_pair(const Napi::CallbackInfo& info);
Napi::Value peer_pid(const Napi::CallbackInfo& info);
Napi::Value connect_unix(const Napi::CallbackInfo& info);
Napi::Value punch_hole(const Napi::CallbackInfo& info);
Napi::Value add_blocks(const Napi::CallbackInfo& info);
Napi::Value get_attribute(const Napi::CallbackInfo& info);
Napi::Value list_attributes(const Napi::CallbackInfo& info);
Napi::Value set_attribute(const Napi::CallbackInfo& info);
Napi::Value make_node(const Napi::CallbackInfo& info);
Napi::Value copy_window_size(const Napi::CallbackInfo& info);
Napi::Value load_cgroup_device_program(const Napi::CallbackInfo& info);
Napi::Value attach_cgroup_device_program(const Napi::CallbackInfo& info);
Napi::Value get_kernel_facts(const Napi::CallbackInfo& info);
Napi::Value sync_files(const Napi::CallbackInfo& info);
Napi::Value keep_own_descriptors(const Napi::CallbackInfo& info);
Napi::Value await_start(const Napi::CallbackInfo& info);

}  // namespace stasis::binding
