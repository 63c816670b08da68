#include "base/passed_descriptors.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/testing.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

struct Pair {
  Pair() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) throw Failed("socketpair");
    near = UniqueFd(ends[0]);
    far = UniqueFd(ends[1]);
  }
  UniqueFd near, far;
};

void carries_descriptors_in_order() {
  const Pair pair;
  int ends[2];
  if (::pipe(ends) < 0) throw Failed("pipe");
  const UniqueFd reader(ends[0]), writer(ends[1]);
  EXPECT_EQ(send_with_descriptors(pair.near.borrow(), "w", std::vector<int>{ends[0], ends[1]}), 1);
  const ReceivedByte received = receive_with_descriptors(pair.far.borrow());
  EXPECT_EQ(received.length, 1);
  EXPECT_EQ(received.byte, 'w');
  EXPECT_EQ(received.descriptors.size(), 2u);
  EXPECT_EQ(::write(received.descriptors[1].borrow(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(received.descriptors[0].borrow(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
  EXPECT_EQ(::fcntl(received.descriptors[0].borrow(), F_GETFD), FD_CLOEXEC);
}

void carries_a_byte_alone() {
  const Pair pair;
  EXPECT_EQ(send_with_descriptors(pair.near.borrow(), "d", {}), 1);
  const ReceivedByte received = receive_with_descriptors(pair.far.borrow());
  EXPECT_EQ(received.byte, 'd');
  EXPECT(received.descriptors.empty());
}

void tells_the_end_from_an_empty_queue() {
  Pair pair;
  EXPECT_EQ(receive_with_descriptors(pair.far.borrow(), MSG_DONTWAIT).length, -1);
  EXPECT_EQ(errno, EAGAIN);
  pair.near.reset();
  EXPECT_EQ(receive_with_descriptors(pair.far.borrow()).length, 0);
}

void refuses_more_than_one_message_carries() {
  const Pair pair;
  const std::vector<int> descriptors(kMaximalPassedDescriptors + 1, STDERR_FILENO);
  EXPECT_EQ(send_with_descriptors(pair.near.borrow(), "w", descriptors), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(send_with_descriptors(pair.near.borrow(), "w", std::span(descriptors).first(kMaximalPassedDescriptors)), 1);
  EXPECT_EQ(receive_with_descriptors(pair.far.borrow()).descriptors.size(), kMaximalPassedDescriptors);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases({{"carries descriptors in order", carries_descriptors_in_order},
                    {"carries a byte alone", carries_a_byte_alone},
                    {"tells the end from an empty queue", tells_the_end_from_an_empty_queue},
                    {"refuses more than one message carries", refuses_more_than_one_message_carries}},
                   argc, argv);
}
