// Becomes a program from the image of it that `stasis-core program-image` has
// written: base/program_image.h, docs/design/0072.
#pragma once

namespace stasis {

// Each returns why the image does not fit here and now; nullptr: it does. The
// caller then starts the program in the ordinary way, by an exec, which clears
// away what is half done.
const char* open_image(const char* path);

// Something of ours lies where the program wants to be. The kernel puts us elsewhere at each exec.
bool is_in_the_way();

// Of an image that has been opened. Returns only if it cannot be done.
const char* become_program(int argc, char** argv, char** environment);

}  // namespace stasis
