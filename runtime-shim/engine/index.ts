// The engine: raw capture to images, images to restore plan. Pure functions.
export { encodeImages, encodePageMaps, preDumpInventory, encodeStats, timingUs } from './encode.js';
export type { DumpTimings, EncodedImages, EncodeSummary, RestoreTimings } from './encode.js';
export { parentPages, type ParentPages } from './resources/page-map.js';
export { decodeImages } from './decode.js';
export { compilePlan, type CompiledPlan } from './compile.js';
export type { ImageModel, ImageTask } from './compile-context.js';
export type { CompileOptions, EncodeOptions, KernelFacts } from './options.js';
export { imageFileName, ImageSetReader, kParentName, type ImageFile, type ImageSource } from './image-set.js';
export { describeImages } from './describe.js';
export type * from './describe.js';
export { printPlan, printStep, type StepPosition } from './plan/print.js';
export { stepAt } from './plan/repeats.js';
export { containerFilter } from './resources/seccomp.js';
export { kUserfaultfdDevice } from './resources/memory-fills.js';
export { connectionLockName } from './resources/tcp-connection.js';
export { kConsoleChannel } from './resources/tty.js';
export { ProcStatus } from './proc-text.js';
export { verifyPlan } from './plan/verify.js';
