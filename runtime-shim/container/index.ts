export {
  baseRuntimeFeatures,
  baseRuntimeLines,
  baseRuntimeVersion,
  defaultStateRoot,
  deleteContainer,
  findBaseRuntime,
  findStateRoot,
  runBaseRuntime,
  type BaseRuntime,
  type BaseRuntimeVersion,
  type RuntimeFamily,
} from './base-runtime.js';
export { allowsDevice } from './device-program.js';
export { freezerOf, type Freezer } from './freezer.js';
export {
  cgroupDirectories,
  cgroupDirectoryOf,
  cgroupRoot,
  createCgroup,
  limitPids,
  missingCgroups,
  readCgroupLayout,
  removeEmptyCgroups,
  type CgroupLayout,
  type ContainerCgroup,
} from './cgroups.js';
export {
  checkContainerId,
  containerStatus,
  openContainer,
  refuseCrunOnVersion1,
  refuseUnlessAllowed,
  type Container,
} from './container.js';
export { copyOnWriteBytes } from './copy-on-write.js';
export {
  checkpointExternals,
  bindsOfEmptyDirectory,
  isEmptyDirectoryKey,
  kNullDevice,
  missingSources,
  openNamespaces,
  ownDescriptorLinks,
  parseDescriptors,
  restoreExternals,
  type CheckpointExternals,
  type RestoreExternals,
} from './externals.js';
export { TRANSITIONS, type Status, type Transition, type Verb } from './lifecycle.js';
export { checkPolicy, type ClaimedIdMap, type ClaimedMount, type ClaimedTask, type ImageClaims } from './policy.js';
export { pollUntil } from './poll.js';
export { removeContainer } from './remove-container.js';
export { isAlive, readProcess, readText } from './proc.js';
export { SystemdScope } from './systemd-scope.js';
