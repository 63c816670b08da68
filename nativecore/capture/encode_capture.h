// schema/capture.proto in both directions that the core needs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "capture/capture_data.h"
#include "capture/page_files.h"

namespace stasis {

// Throws "bad_request" on anything that is not a CaptureRequest of version 1.
CaptureRequest decode_capture_request(std::string_view encoded);
std::string encode_capture(const CaptureData& capture, const std::vector<TimedPhase>& timings,
                           const std::vector<std::string>& log);
std::string encode_thawed(const std::vector<TimedPhase>& timings, bool tracked);
std::string encode_page_map(const PageMapData& pages, const std::vector<SharedPages>& shared,
                            const std::vector<TimedPhase>& timings, const std::vector<WrittenPageFile>& files);

}  // namespace stasis
