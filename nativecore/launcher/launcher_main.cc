// The file that is installed as the OCI runtime. It looks at the verb and
// execs: the base runtime (runc, crun) for verbs that are not ours, arguments
// untouched; node with our program for ours. It decides nothing else, so that
// create, start, state, kill, delete and exec cost no more than one extra exec.
//
// Container managers start it with an almost empty environment (no PATH, no
// HOME) and any working directory: everything is found from /proc/self/exe.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/early_core.h"
#include "launcher/load_image.h"
#include "launcher/warm_start.h"

extern char** environ;

namespace {

constexpr std::string_view kOurVerbs[] = {"check",  "plan",    "inspect",  "pack", "unpack",
                                          "verify", "version", "features", "setup"};

// Global flags of runc and crun that take a value as the next word.
constexpr std::string_view kFlagsWithValue[] = {"root", "log",      "log-format",    "log-level",
                                                "criu", "rootless", "cgroup-manager"};

constexpr std::string_view kBaseNames[] = {"runc", "crun"};
constexpr std::string_view kSystemPath = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin";
// glibc 2.35: malloc says madvise(MADV_HUGEPAGE) of what it gets. Older ones overlook it. In one piece of 16 MiB, and
// the snapshot inside it: pieces begin at no boundary of huge pages, and each has small ones before the first and after
// the last. What has been freed stays for what comes next. One arena: node starts six threads, each would get one of
// its own, and the first byte that it takes there is a huge page to be cleared.
constexpr const char* kHugePages =
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=268435456:glibc.malloc.arena_max=1";
constexpr const char* kConfigFile = "/etc/stasis/config.json";

template <size_t N>
bool contains(const std::string_view (&list)[N], std::string_view word) {
  for (std::string_view item : list) {
    if (item == word) return true;
  }
  return false;
}

std::string directory_of(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string_view base_name(std::string_view path) {
  size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

std::string own_path() {
  char buffer[PATH_MAX];
  ssize_t length = ::readlink("/proc/self/exe", buffer, sizeof buffer);
  return length > 0 ? std::string(buffer, static_cast<size_t>(length)) : std::string();
}

// A small text file; empty if it cannot be read.
std::string read_small_file(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  char buffer[16384];
  ssize_t length = ::read(fd, buffer, sizeof buffer);
  ::close(fd);
  return length > 0 ? std::string(buffer, static_cast<size_t>(length)) : std::string();
}

// "key=value" lines of launcher.conf.
std::string conf_value(const std::string& conf, std::string_view key) {
  size_t at = 0;
  while (at < conf.size()) {
    size_t end = conf.find('\n', at);
    if (end == std::string::npos) end = conf.size();
    std::string_view line(conf.data() + at, end - at);
    if (line.size() > key.size() && line.substr(0, key.size()) == key && line[key.size()] == '=') {
      return std::string(line.substr(key.size() + 1));
    }
    at = end + 1;
  }
  return {};
}

// The value of the one key that we need of {"runtime": "/path"}; escapes
// other than \/ \\ and \" do not occur in a sensible path.
std::string json_runtime(const std::string& json) {
  size_t key = json.find("\"runtime\"");
  if (key == std::string::npos) return {};
  size_t at = json.find_first_not_of(" \t\r\n", key + 9);
  if (at == std::string::npos || json[at] != ':') return {};
  at = json.find_first_not_of(" \t\r\n", at + 1);
  if (at == std::string::npos || json[at] != '"') return {};
  std::string value;
  for (++at; at < json.size() && json[at] != '"'; ++at) {
    if (json[at] == '\\' && at + 1 < json.size()) ++at;
    value.push_back(json[at]);
  }
  return value;
}

std::string resolved(const std::string& directory, const std::string& path) {
  return path.empty() || path[0] == '/' ? path : directory + "/" + path;
}

// The first argument that is neither a flag nor a flag's value. `-f v`,
// `--f v`, `--f=v` and `-f=v` are all in use (Go's flag package takes any).
std::string_view verb_of(int argc, char** argv, bool& asks_version, bool& asks_help) {
  for (int i = 1; i < argc; ++i) {
    std::string_view word = argv[i];
    if (word.size() < 2 || word[0] != '-') return word;
    if (word == "--") return i + 1 < argc ? argv[i + 1] : "";
    std::string_view flag = word.substr(word[1] == '-' ? 2 : 1);
    if (flag == "version" || flag == "v") asks_version = true;
    if (flag == "help" || flag == "h") asks_help = true;
    if (contains(kFlagsWithValue, flag)) ++i;
  }
  return {};
}

bool same_file(const struct stat& one, const char* path) {
  struct stat other;
  return ::stat(path, &other) == 0 && other.st_dev == one.st_dev && other.st_ino == one.st_ino;
}

bool is_program(const std::string& path, const struct stat& self) {
  struct stat found;
  return ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode) && ::access(path.c_str(), X_OK) == 0 &&
         !(found.st_dev == self.st_dev && found.st_ino == self.st_ino);
}

std::string search(std::string_view directories, std::string_view name, const struct stat& self) {
  while (!directories.empty()) {
    size_t colon = directories.find(':');
    std::string_view directory = directories.substr(0, colon);
    directories = colon == std::string_view::npos ? std::string_view() : directories.substr(colon + 1);
    // An empty or relative entry means the working directory, which a runtime started as root must not trust.
    if (directory.empty() || directory[0] != '/') continue;
    std::string path = std::string(directory) + "/" + std::string(name);
    if (is_program(path, self)) return path;
  }
  return {};
}

[[noreturn]] void fail(const std::string& sentence) {
  std::string line = sentence + "\n";
  ssize_t ignored = ::write(2, line.data(), line.size());
  (void)ignored;
  ::_exit(1);
}

std::string base_runtime(const struct stat& self) {
  std::string configured;
  std::string where;
  if (const char* named = std::getenv("STASIS_RUNTIME"); named != nullptr && *named != '\0') {
    configured = named;
    where = "STASIS_RUNTIME";
  } else {
    configured = json_runtime(read_small_file(kConfigFile));
    where = kConfigFile;
  }
  const char* path = std::getenv("PATH");
  if (!configured.empty()) {
    std::string found = configured;
    if (configured.find('/') == std::string::npos) {
      found = search(path == nullptr ? "" : path, configured, self);
      if (found.empty()) found = search(kSystemPath, configured, self);
    }
    if (!found.empty() && same_file(self, found.c_str())) {
      fail("cannot start the base runtime: " + where + " names stasis itself (" + configured +
           "); name runc or crun there");
    }
    if (found.empty() || !is_program(found, self)) {
      fail("cannot start the base runtime: " + where + " names \"" + configured +
           "\", which is not an executable file; name the path of runc or crun there");
    }
    return found;
  }
  for (std::string_view name : kBaseNames) {
    std::string found = path == nullptr ? std::string() : search(path, name, self);
    if (found.empty()) found = search(kSystemPath, name, self);
    if (!found.empty()) return found;
  }
  fail(
      "cannot start the base runtime: neither runc nor crun is installed; install one (apt-get install runc), or name "
      "it "
      "in /etc/stasis/config.json as {\"runtime\": \"/path/to/runc\"}");
}

// What a program of ours consists of. All is fixed at install time: PATH may be missing or somebody else's, and a
// snapshot fits the node that has made it and no other.
struct ProgramFiles {
  std::string node, snapshot, bundle, image, preloaded;
};

ProgramFiles find_program(const std::string& own, std::string_view entry) {
  std::string library = directory_of(directory_of(own)) + "/lib/stasis";
  std::string conf = read_small_file(library + "/launcher.conf");
  std::string programs = resolved(library, conf_value(conf, "programs"));
  if (programs.empty() || programs == library + "/.") programs = library;
  ProgramFiles files;
  files.node = resolved(library, conf_value(conf, "node"));
  if (files.node.empty()) {
    fail("cannot start node: " + library +
         "/launcher.conf is missing or names no node; run hack/install (or hack/quickstart) again");
  }
  const std::string base = programs + "/" + std::string(entry);
  files.snapshot = base + ".blob";
  files.bundle = base + ".cjs";
  files.image = base + ".image";
  files.preloaded = library + "/told-in-advance.so";
  return files;
}

// node and its arguments, without those of the program. They point into `files`.
std::vector<char*> node_words(ProgramFiles& files) {
  // A snapshot's tables of names are hashed with the seed that it was made with; hashing them anew takes 7 ms of each
  // start. The seed guards servers against clients who choose names that collide; our names come from the kernel and
  // from images, whose sizes are bounded.
  // A command of 100 ms does not win back what V8 spends on optimised code, which it begins to make of a function after
  // 400 calls: a quarter of the processor time of a restore of 1000 files. Trees of 1000 processes still get theirs.
  static constexpr const char* kFlags[] = {
      "--no-rehash-snapshot", "--invocation-count-for-maglev=8000", "--invocation-count-for-maglev-osr=2000",
      "--invocation-count-for-turbofan=60000", "--invocation-count-for-osr=10000",
      // Most commands end before they have made that much: without it the first collection of
      // garbage comes at 1 MB, and three more, on threads that have to be woken for it.
      "--min-semi-space-size=8",
      // It collects when nothing has happened for some seconds. In an image they have gone by when the program starts.
      "--no-memory-reducer", "--snapshot-blob"};
  std::vector<char*> words{files.node.data()};
  if (::access(files.snapshot.c_str(), R_OK) == 0) {
    for (const char* flag : kFlags) words.push_back(const_cast<char*>(flag));
    words.push_back(files.snapshot.data());
  }
  // In the place of a script's name; with a snapshot nobody reads it.
  words.push_back(files.bundle.data());
  return words;
}

// As node does at its start: numbers of standard streams are nobody else's.
void open_standard_streams() {
  for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; ++standard) {
    if (::fcntl(standard, F_GETFD) < 0) ::open("/dev/null", O_RDWR);
  }
}

// Once in a thousand times we lie where the program has been, and as often the next time.
void start_elsewhere(char** argv) {
  constexpr char kTried[] = "STASIS_STARTED_ELSEWHERE";
  if (std::getenv(kTried) != nullptr) return;
  ::setenv(kTried, "1", 1);
  ::execv("/proc/self/exe", argv);
  ::unsetenv(kTried);
}

// `core`: the subcommand of the core that the program is going to ask for. `again`: we may be started with these words.
[[noreturn]] void run_program(const std::string& own, std::string_view entry, int argc, char** argv,
                              const char* core = nullptr, bool again = true) {
  ProgramFiles files = find_program(own, entry);
  open_standard_streams();
  const char* start = std::getenv("STASIS_START");
  const char* why_no_image = start != nullptr && std::string_view(start) == "ordinary" ? "STASIS_START says so"
                             : std::getenv("STASIS_LIB_DIR") != nullptr ? "STASIS_LIB_DIR names other files"
                                                                        : stasis::open_image(files.image.c_str());
  if (why_no_image == nullptr && again && stasis::is_in_the_way()) start_elsewhere(argv);

  // STASIS_LIB_DIR names another core than the one beside us.
  std::string early;
  if (core != nullptr && std::getenv("STASIS_LIB_DIR") == nullptr)
    early = stasis::start_core_early(directory_of(own) + "/stasis-core", core);

  // NODE_OPTIONS of the caller's shell could load foreign code into a root process or print on the container's streams.
  // The others are between us and the program.
  constexpr std::string_view kOurs[] = {
      "NODE_", "STASIS_EARLY_CORE=", "STASIS_NO_IMAGE=", "STASIS_PROGRAM_IMAGE=", "STASIS_STARTED_ELSEWHERE="};
  std::vector<char*> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    bool is_ours = false;
    for (std::string_view name : kOurs) is_ours = is_ours || std::strncmp(*variable, name.data(), name.size()) == 0;
    if (!is_ours) environment.push_back(*variable);
  }
  if (!early.empty()) environment.push_back(early.data());
  environment.push_back(nullptr);

  if (why_no_image == nullptr) why_no_image = stasis::become_program(argc - 1, argv + 1, environment.data());

  std::string no_image = std::string("STASIS_NO_IMAGE=") + why_no_image;
  environment.pop_back();
  environment.push_back(no_image.data());
  // Two copies of the snapshot, 7 MB each, in pages of 2 MiB: 4500 page faults fewer. A caller's own tunables stay;
  // ours end with this process (start-program.ts).
  if (std::getenv("GLIBC_TUNABLES") == nullptr) environment.push_back(const_cast<char*>(kHugePages));
  environment.push_back(nullptr);
  std::vector<char*> words = node_words(files);
  words.insert(words.end(), argv + 1, argv + argc);
  words.push_back(nullptr);
  ::execve(files.node.c_str(), words.data(), environment.data());
  fail("cannot start node: " + files.node + ": " + std::strerror(errno) +
       "; run hack/install (or hack/quickstart) again");
}

// `stasis setup`: the images that the programs start from, for this kernel, this processor and these files.
[[noreturn]] void run_setup(const std::string& own) {
  const std::string core = directory_of(own) + "/stasis-core";
  bool all_made = true;
  for (std::string_view entry : {"stasis", "criu"}) {
    ProgramFiles files = find_program(own, entry);
    // Code that has been compiled stays in the image, what was needed to get there does not.
    char keep_code[] = "--no-flush-bytecode", collect[] = "--expose-gc", verb[] = "program-image";
    std::vector<char*> words = node_words(files);
    words.insert(words.begin() + 1, {keep_code, collect});
    words.insert(words.begin(), {const_cast<char*>(core.c_str()), verb, files.image.data(), files.preloaded.data()});
    words.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execve(core.c_str(), words.data(), environ);
      fail("cannot set up: " + core + ": " + std::strerror(errno) + "; run hack/install again");
    }
    int status = -1;
    while (pid > 0 && ::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    const bool made = pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (made) std::printf("wrote %s\n", files.image.c_str());
    all_made = all_made && made;
  }
  std::fflush(stdout);
  ::_exit(all_made ? 0 : 1);
}

}  // namespace

int main(int argc, char** argv) {
  std::string own = own_path();
  struct stat self;
  if (own.empty() || ::stat("/proc/self/exe", &self) != 0)
    fail("cannot find stasis's own files: /proc is not mounted; mount it");

  // Installed under CRIU's name, it is CRIU's command line on our engine. The name that counts is the one that was
  // called: distributions link criu to stasis-criu.
  std::string_view called = argc > 0 ? base_name(argv[0]) : std::string_view();
  if (called == "criu" || called == "stasis-criu" || base_name(own) == "stasis-criu")
    run_program(own, "criu", argc, argv);

  bool asks_version = false;
  bool asks_help = false;
  std::string_view verb = verb_of(argc, argv, asks_version, asks_help);
  if (verb == "hook" && !asks_help) {
    std::string root = stasis::detach_hook();
    if (root.empty()) run_program(own, "stasis", argc, argv, nullptr, false);
    std::vector<char*> words(argv, argv + argc);
    words.insert(words.begin() + 1,
                 {const_cast<char*>("--root"), root.data()});  // the caller's own comes later, and wins
    run_program(own, "stasis", argc + 2, words.data(), nullptr, false);
  }
  if (verb == "setup" && !asks_help && verb == argv[argc - 1]) run_setup(own);
  if (verb == "checkpoint") run_program(own, "stasis", argc, argv, "capture");
  if (verb == "restore" || (verb == "create" && stasis::starts_warm(argc, argv)))
    run_program(own, "stasis", argc, argv, "execute");
  if (contains(kOurVerbs, verb) || (verb == "hook" && asks_help) ||
      (verb.empty() && (asks_version || asks_help || argc < 2))) {
    run_program(own, "stasis", argc, argv);
  }

  std::string base = base_runtime(self);
  // argv[0] becomes the base's own path: runc re-executes itself and prints it in messages.
  if (argc > 0) {
    argv[0] = base.data();
  }
  ::execve(base.c_str(), argv, environ);
  fail("cannot start the base runtime: " + base + ": " + std::strerror(errno));
}
