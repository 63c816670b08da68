// Page contents of a frozen tree: which pages differ from what a fresh mapping
// would hold (page_runs.h), and their bytes into page files (page_files.h).
#pragma once

#include "capture/capture_context.h"
#include "capture/page_files.h"

namespace stasis {

// The pages to write; N counts from request.first_pages_id over the tasks that have memory.
PageMapData scan_pages(CaptureContext& context);

// Reads from the stopped processes themselves.
void write_pages(CaptureContext& context, const PageMapData& pages, PageFiles& files);

uint64_t page_bytes(const PageMapData& pages);

}  // namespace stasis
