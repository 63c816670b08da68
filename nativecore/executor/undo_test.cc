// Taking back: what is removed, and above all what is not.
#include <fcntl.h>
#include <sys/stat.h>

#include "executor/testing_plan.h"
#include "executor/undo.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

using Kind = UndoAction::Kind;

bool exists(const std::string& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0;
}

void removes_files_and_directories() {
  TemporaryDirectory scratch;
  scratch.write("file", "x");
  ::mkdir((scratch.path() + "/directory").c_str(), 0700);
  EXPECT_EQ(perform_undo({{Kind::remove_file, scratch.path() + "/file"},
                          {Kind::remove_directory, scratch.path() + "/directory"}})
                .size(),
            0u);
  EXPECT(!exists(scratch.path() + "/file"));
  EXPECT(!exists(scratch.path() + "/directory"));
}

void counts_what_has_gone_as_done() {
  EXPECT_EQ(perform_undo({{Kind::remove_file, "/nonexistent/a"},
                          {Kind::remove_directory, "/nonexistent/a"},
                          {Kind::remove_tree, "/nonexistent/a"},
                          {Kind::remove_cgroup, "/nonexistent/a"}})
                .size(),
            0u);
}

void removes_a_state_directory() {
  TemporaryDirectory scratch;
  const std::string state = scratch.path() + "/state";
  ::mkdir(state.c_str(), 0700);
  for (int i = 0; i < 300; ++i)
    UniqueFd(::open((state + "/" + std::to_string(i)).c_str(), O_CREAT | O_WRONLY, 0600)).reset();
  EXPECT_EQ(perform_undo({{Kind::remove_tree, state}}).size(), 0u);
  EXPECT(!exists(state));
}

void does_not_follow_links() {
  TemporaryDirectory scratch, precious;
  precious.write("file", "x");
  const std::string state = scratch.path() + "/state", link = scratch.path() + "/link";
  ::mkdir(state.c_str(), 0700);
  EXPECT_EQ(::symlink(precious.path().c_str(), (state + "/inside").c_str()), 0);
  EXPECT_EQ(::symlink(precious.path().c_str(), link.c_str()), 0);
  EXPECT_EQ(perform_undo({{Kind::remove_tree, state}}).size(), 0u);
  EXPECT_EQ(perform_undo({{Kind::remove_tree, link}}).size(), 1u);
  EXPECT(!exists(state));
  EXPECT(exists(precious.path() + "/file"));
}

void leaves_directories_in_a_state_directory() {
  TemporaryDirectory scratch;
  const std::string state = scratch.path() + "/state";
  ::mkdir(state.c_str(), 0700);
  ::mkdir((state + "/nested").c_str(), 0700);
  const auto failures = perform_undo({{Kind::remove_tree, state}, {Kind::remove_file, "/nonexistent/a"}});
  EXPECT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0].error_number, ENOTEMPTY);
  EXPECT(exists(state + "/nested"));
}

void leaves_another_directory_in_the_same_place() {
  TemporaryDirectory scratch;
  const std::string state = scratch.path() + "/state";
  ::mkdir(state.c_str(), 0700);
  struct stat status;
  EXPECT_EQ(::lstat(state.c_str(), &status), 0);
  const uint64_t inode = status.st_ino;
  EXPECT_EQ(perform_undo({{Kind::remove_tree, state, inode + 1}, {Kind::remove_directory, state, inode + 1}}).size(),
            0u);
  EXPECT(exists(state));
  EXPECT_EQ(perform_undo({{Kind::remove_tree, state, inode}}).size(), 0u);
  EXPECT(!exists(state));
}

// The maker of a state directory may be killed on either side of the rename that publishes it.
void finds_a_directory_under_either_name() {
  for (const bool renamed : {false, true}) {
    TemporaryDirectory scratch;
    const std::string staging = scratch.path() + "/.staging", state = scratch.path() + "/state";
    ::mkdir(staging.c_str(), 0700);
    struct stat status;
    EXPECT_EQ(::lstat(staging.c_str(), &status), 0);
    if (renamed) EXPECT_EQ(::rename(staging.c_str(), state.c_str()), 0);
    EXPECT_EQ(perform_undo({{Kind::remove_tree, staging}, {Kind::remove_tree, state, status.st_ino}}).size(), 0u);
    EXPECT(!exists(staging));
    EXPECT(!exists(state));
  }
}

void takes_only_cgroups_for_cgroups() {
  TemporaryDirectory scratch;
  const auto failures = perform_undo({{Kind::remove_cgroup, scratch.path()}});
  EXPECT_EQ(failures.size(), 1u);
  EXPECT(exists(scratch.path()));
}

// In whichever hierarchies are mounted where distributions mount them.
void removes_nested_cgroups_when_they_are_empty() {
  int tried = 0;
  for (const std::string parent : {"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"}) {
    const std::string cgroup = parent + "/stasis-undo-test-" + std::to_string(::getpid());
    if (!exists(parent + "/cgroup.procs") || ::mkdir(cgroup.c_str(), 0755) < 0) continue;
    ++tried;
    EXPECT_EQ(::mkdir((cgroup + "/inner").c_str(), 0755), 0);
    // A member that leaves while the removal waits.
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    const pid_t member = ::fork();
    if (member == 0) {
      ::close(ends[1]);
      char byte;
      (void)!::read(ends[0], &byte, 1);
      ::_exit(0);
    }
    ::close(ends[0]);
    UniqueFd procs(::open((cgroup + "/inner/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
    const std::string pid = std::to_string(member);
    EXPECT_EQ(::write(procs.borrow(), pid.data(), pid.size()), static_cast<ssize_t>(pid.size()));
    const pid_t closer = ::fork();
    if (closer == 0) {
      ::poll(nullptr, 0, 30);
      ::_exit(0);  // closes its end; the last one but ours
    }
    ::close(ends[1]);
    const auto failures = perform_undo({{Kind::remove_cgroup, cgroup}});
    int status;
    ::waitpid(closer, &status, 0);
    ::waitpid(member, &status, 0);
    if (!failures.empty()) throw Failed(failures[0].what());
    EXPECT(!exists(cgroup));
  }
  EXPECT(tried > 0);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"removes files and directories", removes_files_and_directories},
          {"counts what has gone as done", counts_what_has_gone_as_done},
          {"removes a state directory with its files", removes_a_state_directory},
          {"does not follow links", does_not_follow_links},
          {"leaves directories in a state directory", leaves_directories_in_a_state_directory},
          {"leaves another directory in the same place", leaves_another_directory_in_the_same_place},
          {"finds a directory under either name", finds_a_directory_under_either_name},
          {"takes only cgroups for cgroups", takes_only_cgroups_for_cgroups},
          {"removes nested cgroups when they are empty", removes_nested_cgroups_when_they_are_empty},
      },
      argc, argv);
}
