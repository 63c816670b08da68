#include "launcher/warm_start.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

namespace stasis {
namespace {

constexpr std::string_view kAnnotation = "\"org.stasis.restore\"";
// More than any config.json, and any state of a container.
constexpr size_t kMaximalBytes = 4u << 20;

std::string read_all(int fd) {
  std::string content;
  char buffer[65536];
  for (;;) {
    const ssize_t length = ::read(fd, buffer, sizeof buffer);
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0 || content.size() + static_cast<size_t>(length) > kMaximalBytes) return content;
    content.append(buffer, static_cast<size_t>(length));
  }
}

std::string read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return {};
  std::string content = read_all(fd);
  ::close(fd);
  return content;
}

// The value of a flag in any spelling that Go's flag package takes.
std::string_view flag_value(const std::vector<std::string_view>& words, std::string_view name, std::string_view alias) {
  std::string_view value;
  for (size_t at = 1; at < words.size(); ++at) {
    std::string_view word = words[at];
    if (word.size() < 2 || word[0] != '-') continue;
    word.remove_prefix(word[1] == '-' ? 2 : 1);
    const size_t equals = word.find('=');
    const std::string_view flag = word.substr(0, equals);
    if (flag != name && flag != alias) continue;
    if (equals != std::string_view::npos) {
      value = word.substr(equals + 1);
    } else if (at + 1 < words.size()) {
      value = words[++at];
    }
  }
  return value;
}

// A text that is a key, and its value if that is a text, too. Between quotes
// without a backslash the key cannot be part of another text.
std::string annotation_of(const std::string& config) {
  const size_t key = config.find(kAnnotation);
  if (key == std::string::npos) return {};
  size_t at = config.find_first_not_of(" \t\r\n", key + kAnnotation.size());
  if (at == std::string::npos || config[at] != ':') return {};
  at = config.find_first_not_of(" \t\r\n", at + 1);
  if (at == std::string::npos || config[at] != '"') return {};
  std::string value;
  for (++at; at < config.size() && config[at] != '"'; ++at) {
    if (config[at] == '\\' && at + 1 < config.size()) ++at;
    value.push_back(config[at]);
  }
  return value;
}

void note(const std::string& images, std::string_view id) {
  const int fd = ::open((images + ".log").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return;  // what is missing there is told by the hook that wants to write there
  char stamp[32];
  const time_t now = ::time(nullptr);
  tm parts;
  ::gmtime_r(&now, &parts);
  ::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &parts);
  const std::string line = "time=\"" + std::string(stamp) + "\" level=info msg=\"container " + std::string(id) +
                           " starts cold: there is no checkpoint yet\"\n";
  (void)!::write(fd, line.data(), line.size());
  ::close(fd);
}

}  // namespace

bool starts_warm(int argc, char** argv) {
  const std::vector<std::string_view> words(argv, argv + argc);
  const std::string bundle(flag_value(words, "bundle", "b"));
  const std::string images = annotation_of(read_file(bundle.empty() ? "config.json" : bundle + "/config.json"));
  if (images.empty()) return false;
  if (images[0] != '/' || ::access(images.c_str(), F_OK) == 0) return true;  // refused by node, if it is no path
  note(images, words.back());
  return false;
}

std::string detach_hook() {
  const std::string state = read_all(STDIN_FILENO);
  const std::string command_line = read_file("/proc/" + std::to_string(::getppid()) + "/cmdline");
  std::vector<std::string_view> words;
  for (size_t at = 0; at < command_line.size();) {
    const size_t end = std::min(command_line.find('\0', at), command_line.size());
    words.emplace_back(command_line.data() + at, end - at);
    at = end + 1;
  }
  std::string root(flag_value(words, "root", "root"));
  if (::fork() != 0) ::_exit(0);  // also if it cannot be: a container is not to fail for that
  ::setsid();
  const int memory = ::memfd_create("stasis-hook", 0);
  if (memory < 0 || ::write(memory, state.data(), state.size()) != static_cast<ssize_t>(state.size())) ::_exit(1);
  ::lseek(memory, 0, SEEK_SET);
  ::dup2(memory, STDIN_FILENO);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(null, STDOUT_FILENO);
  ::dup2(null, STDERR_FILENO);
  // Whatever else the runtime has left open is not ours to hold.
  ::close_range(3, ~0u, 0);
  return root;
}

}  // namespace stasis
