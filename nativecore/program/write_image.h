// `stasis-core program-image OUTPUT PRELOADED NODE ARGUMENT...`: starts a program
// of ours, lets it load everything, and writes what it is then as
// base/program_image.h has it. PRELOADED: of told_in_advance.cc.
#pragma once

namespace stasis {

int run_program_image_command(int argc, char** argv);

}  // namespace stasis
