#include "executor/start_door.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/native_error.h"
#include "base/testing.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

struct Directory {
  Directory() {
    if (!::mkdtemp(path)) throw Failed("mkdtemp");
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string fifo() const { return std::string(path) + "/exec.fifo"; }
  char path[32] = "/tmp/stasis-test-XXXXXX";
};

bool has_news(const StartDoor& door) {
  pollfd entry{door.borrow(), POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

void hears_of_a_reader_and_not_of_its_own_open() {
  const Directory directory;
  const StartDoor door(directory.fifo());
  EXPECT(!has_news(door));
  EXPECT(!door.has_been_opened());
  // As `runc start` does; it does not wait, because the other side is held.
  const UniqueFd reader(::open(directory.fifo().c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT(reader.valid());
  EXPECT(has_news(door));
  EXPECT(door.has_been_opened());
  EXPECT(!door.has_been_opened());  // told once
  EXPECT_EQ(::write(door.borrow_pipe(), "0", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(reader.borrow(), &byte, 1), 1);
  EXPECT_EQ(byte, '0');
}

void hears_of_a_writer() {
  const Directory directory;
  const StartDoor door(directory.fifo());
  // As `crun start` does.
  const UniqueFd writer(::open(directory.fifo().c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT(writer.valid());
  EXPECT(door.has_been_opened());
}

void is_not_opened_by_a_look_at_it() {
  const Directory directory;
  const StartDoor door(directory.fifo());
  struct stat status;
  EXPECT_EQ(::stat(directory.fifo().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode, static_cast<mode_t>(S_IFIFO | 0600));
  EXPECT(!door.has_been_opened());
}

void refuses_a_place_that_is_taken() {
  const Directory directory;
  const StartDoor door(directory.fifo());
  try {
    const StartDoor second(directory.fifo());
  } catch (const NativeError& error) {
    EXPECT_EQ(error.path, directory.fifo());
    return;
  }
  throw Failed("a second door at the same place");
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases({{"hears of a reader, and not of its own open", hears_of_a_reader_and_not_of_its_own_open},
                    {"hears of a writer", hears_of_a_writer},
                    {"is not opened by a look at it", is_not_opened_by_a_look_at_it},
                    {"refuses a place that is taken", refuses_a_place_that_is_taken}},
                   argc, argv);
}
