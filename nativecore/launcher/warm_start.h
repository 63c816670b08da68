// Containers that start warm: whether a `create` is to be a restore, and the
// part of the poststart hook that somebody waits for. Read off config.json by
// its text, because every start of every container comes through here; what is
// found is parsed, and distrusted, by node.
#pragma once

#include <string>
#include <string_view>

namespace stasis {

// Whether config.json of the bundle names images that are there
// (org.stasis.restore). Where they are not there yet, a note of that goes into
// the file beside them that tells of warm starts.
bool starts_warm(int argc, char** argv);

// Takes the state of the container off standard input and returns, in a process
// that nobody waits for, what is left to be done: the root of the runtime that
// runs the hook, which the state does not tell. Standard input is a copy of
// what was there; the other streams go nowhere.
std::string detach_hook();

}  // namespace stasis
