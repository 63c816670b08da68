// Every error code, with its kind: who has to act. The exit status follows
// from the kind. A code's prefix is its area.

export type ErrorKind = 'usage' | 'unsupported' | 'environment' | 'conflict' | 'corrupt' | 'policy' | 'bug';

const kinds = {
  // The request is malformed, or asks for what is not built: caller.
  USAGE: 'usage',
  OPTION_NOT_BUILT: 'usage',
  // The target uses something that cannot be carried: workload owner.
  CAPTURE_FD_UNSUPPORTED: 'unsupported',
  CAPTURE_MAPPING_UNSUPPORTED: 'unsupported',
  CAPTURE_TASK_UNSUPPORTED: 'unsupported',
  CAPTURE_MOUNT_UNSUPPORTED: 'unsupported',
  CAPTURE_NAMESPACE_UNSUPPORTED: 'unsupported',
  CAPTURE_CGROUP_UNSUPPORTED: 'unsupported',
  IMAGE_FEATURE_UNSUPPORTED: 'unsupported',
  // Kernel, permission, space: operator.
  ENVIRONMENT: 'environment',
  NO_SPACE: 'environment',
  NOT_ROOT: 'environment',
  BASE_RUNTIME_MISSING: 'environment',
  KERNEL_FEATURE_MISSING: 'environment',
  BUNDLE_INVALID: 'environment',
  CORE_FAILED: 'environment',
  // It changed under us: process gone, id taken, locked: retry.
  CONTAINER_MISSING: 'conflict',
  CONTAINER_STATE: 'conflict',
  CONTAINER_EXISTS: 'conflict',
  TASK_GONE: 'conflict',
  DEADLINE: 'conflict',
  // Image or state file is not what it claims: use another copy.
  IMAGE_MISSING: 'corrupt',
  IMAGE_CORRUPT: 'corrupt',
  IMAGE_VERSION: 'corrupt',
  IMAGE_MISMATCH: 'corrupt',
  STATE_CORRUPT: 'corrupt',
  // The images ask for more than the OCI spec grants: whoever wrote the spec.
  POLICY_WIDENED: 'policy',
  BUG: 'bug',
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof kinds;

export function kindOfCode(code: ErrorCode): ErrorKind {
  return kinds[code];
}

export const errorCodes: readonly ErrorCode[] = Object.keys(kinds) as ErrorCode[];

/** Exit status of our own verbs by kind; the runtime verbs use runc's 1 for everything. */
export const exitStatusOfKind: Readonly<Record<ErrorKind, number>> = {
  usage: 2,
  unsupported: 3,
  environment: 4,
  conflict: 5,
  corrupt: 6,
  policy: 7,
  bug: 70,
};
