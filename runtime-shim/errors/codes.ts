// Every error code, with its kind: who has to act. The exit status follows
// from the kind. A code's prefix is its area. `docs/errors.md` is made of this
// table (catalogue.ts).

export type ErrorKind = 'usage' | 'unsupported' | 'environment' | 'conflict' | 'corrupt' | 'policy' | 'bug';

interface CodeFacts {
  readonly kind: ErrorKind;
  /** One sentence, for somebody who has only the code. */
  readonly meaning: string;
  /** Only where something is known to help whatever the message says. */
  readonly remedy?: string;
}

const codes = {
  // The request is malformed, or asks for what is not built: caller.
  USAGE: {
    kind: 'usage',
    meaning: 'The command line is malformed.',
    remedy: 'See `--help` of the command.',
  },
  OPTION_NOT_BUILT: {
    kind: 'usage',
    meaning: 'An option, or a setting of `config.json`, asks for something that is not built.',
    remedy: 'Leave it out; `--help` marks such options.',
  },
  // The target uses something that cannot be carried: workload owner.
  CAPTURE_FD_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'An open file of the container, or a lock on one, is of a kind or in a state that is not carried.',
    remedy: 'Let the process close or release it; the message names both.',
  },
  CAPTURE_MAPPING_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'A process has memory mapped that is of a kind that is not carried.',
  },
  CAPTURE_TASK_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'A process is in a state, or has a property, that is not carried or could not be read.',
    remedy: 'If the message says to try again, the state was a passing one.',
  },
  CAPTURE_MOUNT_UNSUPPORTED: {
    kind: 'unsupported',
    meaning:
      "The container has a mount that can be made again neither by the restore nor from the bundle's `config.json`.",
    remedy: 'List it as a bind mount in `config.json`, so that the restoring side provides it.',
  },
  CAPTURE_NAMESPACE_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'A namespace of the container, or something in one, is not carried.',
  },
  CAPTURE_CGROUP_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'Processes of the container are in cgroups other than that of its first process.',
  },
  IMAGE_FEATURE_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'The images are sound and hold something that this restore cannot make.',
    remedy:
      'Images of another program can hold what stasis does not carry: take it out of the container, and make the checkpoint again.',
  },
  ARCHIVE_UNSUPPORTED: {
    kind: 'unsupported',
    meaning: 'An archive, or a conversion between two forms of one, is not of a kind that can be read or made.',
  },
  // Kernel, permission, space: operator.
  ENVIRONMENT: {
    kind: 'environment',
    meaning: 'A file, directory, cgroup, hook or program that is needed on this machine failed.',
  },
  NO_SPACE: {
    kind: 'environment',
    meaning: 'A file system or a quota is full.',
    remedy: 'Free space there, or give a directory on another file system.',
  },
  NOT_ROOT: {
    kind: 'environment',
    meaning: 'The command needs root.',
    remedy: 'Run it as root.',
  },
  BASE_RUNTIME_MISSING: {
    kind: 'environment',
    meaning: 'Neither runc nor crun was found, or the configured one is not an executable file.',
    remedy: 'Install one, or name its path in the configuration.',
  },
  KERNEL_FEATURE_MISSING: {
    kind: 'environment',
    meaning: 'The kernel or the processor of this machine lacks something that the images need.',
    remedy: 'Restore on a machine like the one of the checkpoint; `stasis check` tells what this one has.',
  },
  BUNDLE_INVALID: {
    kind: 'environment',
    meaning: 'The bundle or its `config.json` cannot be read, or does not give what the images need.',
  },
  CORE_FAILED: {
    kind: 'environment',
    meaning: 'A system call of the native core failed; the message names the call, its object and the errno.',
    remedy:
      "See the log in the work directory. A checkpoint's container goes on running, a restore leaves nothing behind.",
  },
  // It changed under us: process gone, id taken, locked: retry.
  CONTAINER_MISSING: {
    kind: 'conflict',
    meaning: 'There is no container with this id.',
    remedy: 'See that `--root` is the one that the container was made with.',
  },
  CONTAINER_STATE: {
    kind: 'conflict',
    meaning: 'The container is in a state that does not allow the command, or another checkpoint of it is running.',
  },
  CONTAINER_EXISTS: {
    kind: 'conflict',
    meaning: 'The id or the cgroup for the restored container is in use.',
    remedy: 'Delete the old container, or choose another id.',
  },
  TASK_GONE: {
    kind: 'conflict',
    meaning: 'A process ended while it was being worked on, or was not there to begin with.',
    remedy: 'Try again.',
  },
  PID_TAKEN: {
    kind: 'conflict',
    meaning: 'A process number of the images is in use where they are restored.',
    remedy: 'End the process that has it, or restore in a pid namespace of its own.',
  },
  DEADLINE: {
    kind: 'conflict',
    meaning: 'The work was not done in its time and was rolled back.',
    remedy: 'The machine may be overloaded; try again.',
  },
  // Image or state file is not what it claims: use another copy.
  IMAGE_MISSING: {
    kind: 'corrupt',
    meaning: 'An image file is missing or empty.',
    remedy: 'Use a complete copy of the checkpoint.',
  },
  IMAGE_CORRUPT: {
    kind: 'corrupt',
    meaning: 'An image file is malformed, has the wrong length, or contradicts another one.',
    remedy: 'Use another copy of the checkpoint.',
  },
  IMAGE_VERSION: {
    kind: 'corrupt',
    meaning: 'The images are in a version of the format that is not known.',
    remedy: 'Make the checkpoint with a current version.',
  },
  IMAGE_MISMATCH: {
    kind: 'corrupt',
    meaning: "An image file's content differs from the digest in the manifest.",
    remedy: 'Use another copy of the checkpoint.',
  },
  ARCHIVE_CORRUPT: {
    kind: 'corrupt',
    meaning:
      'An archive is cut short or malformed, or a member of it is of a kind or has a name that no checkpoint has.',
    remedy: 'Use another copy; if there is none, do not trust whoever made it.',
  },
  STATE_CORRUPT: {
    kind: 'corrupt',
    meaning: "The container's state file cannot be read, or is in a form that is not known.",
  },
  // The images ask for more than the OCI spec grants: whoever wrote the spec.
  POLICY_WIDENED: {
    kind: 'policy',
    meaning: 'The images ask for more than `config.json` of the restoring side grants.',
    remedy: 'Restore under the spec that the container had, or grant there what the message names.',
  },
  BUG: {
    kind: 'bug',
    meaning: 'An invariant of stasis itself does not hold.',
    remedy: 'Report it, with the log of the work directory.',
  },
} as const satisfies Record<string, CodeFacts>;

export type ErrorCode = keyof typeof codes;

export function kindOfCode(code: ErrorCode): ErrorKind {
  return codes[code].kind;
}

export function factsOfCode(code: ErrorCode): CodeFacts {
  return codes[code];
}

export const errorCodes: readonly ErrorCode[] = Object.keys(codes) as ErrorCode[];

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
