#include "capture/capture_steps.h"

#include <cstdio>
#include <cstdlib>

#include "base/fault_point.h"
#include "base/native_error.h"

namespace stasis {

// In the order in which a capture passes them for the first time.
const std::vector<CaptureStep> kCaptureSteps = {
    {"begin", false, false, "nothing has been touched"},
    {"seized_one", false, false, "one thread is seized and runs"},
    {"all_interrupted", false, false, "all known threads are asked to stop"},
    {"frozen", false, false, "all threads are stopped"},
    {"capture_tasks", false, false, "processes are read"},
    {"capture_threads", false, false, "threads are read"},
    {"parasite_map", false, false, "memory for the parasite is about to be mapped"},
    {"remote_call_registers_set", true, false,
     "registers are foreign, the system call has not started (a hazard only without a way home, see "
     "trace/remote_syscall.h)"},
    {"remote_call_entered", true, false, "inside the system call"},
    {"remote_call_done", true, false, "after the system call, registers still foreign"},
    {"parasite_mapped", false, false, "mapped, empty"},
    {"parasite_registers_set", false, false, "the parasite would run with the target's mask"},
    {"parasite_prepared", false, false, "the parasite would run with all signals blocked"},
    {"parasite_started", false, false, "it runs in all threads of a process"},
    {"parasite_answered", false, false, "it waits for us"},
    {"twin_forked", false, true, "a copy of its memory is born, and would end by itself"},
    {"twin_held", false, true, "the copy ends when we do"},
    {"parasite_interrupted", false, false, "its wait is interrupted"},
    {"parasite_unmap", false, false, "threads are put back, its memory is still mapped"},
    {"parasite_unmapped", false, false, "nothing of it is left"},
    {"capture_files", false, false, "descriptors are read"},
    {"lock_connections", false, true, "TCP connections have been found"},
    {"connections_locked", false, true, "their packets are dropped, and the guard waits for our death"},
    {"connection_in_repair", false, true, "one of them would neither take nor send anything"},
    {"connections_read", false, true, "none of them is in repair mode any more"},
    {"metadata_complete", false, false, "all but pages"},
    {"scan_pages", false, false, "pages are looked for"},
    {"write_pages", false, true, "page files are created"},
    {"pages_file_written", false, true, "the page files are complete"},
    {"protect_memory", false, true, "changes since the last checkpoint are about to be forgotten"},
    {"memory_protected", false, true, "changes from here on are noted while we hold the descriptors"},
    {"capture_complete", false, false, "everything is here, the tree still stopped"},
    {"thawed", false, true, "detached, not reported"},
    {"end_twins", false, true, "twins are about to be killed"},
    {"visit_parents", false, true, "they are dead, and still in their parents' lists of children"},
    {"keeper_started", false, true, "the process that keeps note of changes is there, and ends with us"},
    {"keep", false, true, "the images are committed, the keeper does not know it yet"},
    {"hold", false, true, "waiting for kill or abort"},
    {"kill", false, true, "about to kill the tree"},
    {"connections_silenced", false, true, "TCP connections are in repair mode, so that their end is silent"},
    {"end_announced", false, true, "from here on the guard ends the tree if we do not"},
    {"killed", false, true, "killed, not reported"},
};

void print_capture_steps() {
  int number = 0;
  for (const CaptureStep& step : kCaptureSteps) {
    std::printf("%d\t%s\t%s\t%s\n", ++number, step.name,
                step.hazard        ? "hazard"
                : step.conditional ? "conditional"
                                   : "-",
                step.meaning);
  }
}

namespace {

void arm(long number, FaultKind kind) {
  if (number < 1 || static_cast<size_t>(number) > kCaptureSteps.size()) {
    throw NativeError("bad_request", "there is no capture step " + std::to_string(number));
  }
  arm_fault_point(kCaptureSteps[static_cast<size_t>(number - 1)].name, kind);
}

}  // namespace

void arm_capture_faults(const CaptureRequest& request) {
  if (const char* number = std::getenv("STASIS_FAULT_STEP")) arm(std::atol(number), FaultKind::kill);
  if (const char* number = std::getenv("STASIS_FAULT_FAIL")) arm(std::atol(number), FaultKind::fail);
  for (const int32_t number : request.stop_before_step) arm(number, FaultKind::stop);
}

}  // namespace stasis
