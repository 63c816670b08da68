// What the *_test.cc programs share: named test cases in plain programs, exit
// status 0 or 1. A case fails by an exception.
#pragma once

#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace stasis::testing {

struct Case {
  const char* name;
  void (*run)();
};

class Failed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename Left, typename Right>
void expect_equal(const Left& left, const Right& right, const char* text, const char* file, int line) {
  if (left == right) return;
  std::ostringstream message;
  message << file << ":" << line << ": " << text << ": " << left << " is not " << right;
  throw Failed(message.str());
}

inline void expect(bool condition, const char* text, const char* file, int line) {
  if (!condition) throw Failed(std::string(file) + ":" + std::to_string(line) + ": expected " + text);
}

#define EXPECT(condition) ::stasis::testing::expect(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
#define EXPECT_EQ(left, right) ::stasis::testing::expect_equal((left), (right), #left " == " #right, __FILE__, __LINE__)

// Runs all cases, or the one named on the command line.
inline int run_cases(const std::vector<Case>& cases, int argc, char** argv) {
  int failures = 0;
  for (const Case& test : cases) {
    if (argc > 1 && std::strcmp(argv[1], test.name) != 0) continue;
    try {
      test.run();
      std::printf("ok      %s\n", test.name);
    } catch (const std::exception& error) {
      std::printf("FAILED  %s\n        %s\n", test.name, error.what());
      ++failures;
    }
    std::fflush(stdout);
  }
  return failures ? 1 : 0;
}

}  // namespace stasis::testing
