// The only import path of native things for TypeScript.
export { CoreProcess, boundaryCodec, kFirstExternalDescriptor, type CoreOptions } from './core-process.js';
export { findLocations, type Locations } from './locations.js';
export {
  loadedBinding,
  nativeBinding,
  type ExitStatus,
  type NativeBinding,
  type NativeKernelFacts,
} from './native-binding.js';
export { NativeError } from './native-error.js';
export { Placeholder } from './placeholder.js';
export * from './schema/messages.js';
