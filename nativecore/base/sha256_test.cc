// SHA-256 against the examples of FIPS 180-4, in one piece and in many.
#include "base/sha256.h"

#include "base/testing.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

std::string digest_of(const std::string& text) {
  Sha256 digest;
  digest.update(text.data(), text.size());
  return digest.finish();
}

void knows_the_examples() {
  EXPECT_EQ(digest_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(digest_of(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void does_not_care_how_it_is_cut() {
  const std::string text(1000, 'x');
  for (size_t piece = 1; piece < 200; ++piece) {
    Sha256 digest;
    for (size_t at = 0; at < text.size(); at += piece) digest.update(&text[at], std::min(piece, text.size() - at));
    EXPECT_EQ(digest.finish(), digest_of(text));
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {{"knows the examples", knows_the_examples}, {"does not care how it is cut", does_not_care_how_it_is_cut}}, argc,
      argv);
}
