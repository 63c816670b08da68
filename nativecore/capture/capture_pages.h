// Page contents: which pages of each address space differ from what a fresh
// mapping would hold, and their bytes into pages-N.img.
//
// Undo: the page files that were created are removed if writing fails.
// If we die here: the target has seen nothing; page files without an inventory
// are not a checkpoint.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// The pages to write; N counts from request.first_pages_id over the tasks that have memory.
PageMapData scan_pages(CaptureContext& context);

// Preconditions: `images_directory` is open; no page file of these numbers exists that matters.
void write_pages(CaptureContext& context, const PageMapData& pages, int images_directory);

uint64_t page_bytes(const PageMapData& pages);

}  // namespace stasis
