// Which verb a container's status allows. A table: what is not a next status
// is the reason for the refusal.
import type { ContainerStatus } from '../../oci-spec/runtime-state.js';

export type Verb = 'checkpoint' | 'checkpoint --leave-running' | 'restore';
/** "absent": there is no container of that id. */
export type Status = ContainerStatus | 'absent';

export type Transition = { readonly next: Status } | { readonly refused: string; readonly hint: string };

const startFirst = 'start it first';
const exists = {
  refused: 'container with given ID already exists',
  hint: 'delete it first, or restore under another id',
};

// "container not running" are the words that CRI-O looks for.
const ended = {
  refused: 'container not running (its processes have ended)',
  hint: 'there is nothing left to checkpoint; delete it',
};

export const TRANSITIONS: Readonly<Record<Status, Readonly<Record<Verb, Transition>>>> = {
  absent: {
    checkpoint: {
      refused: 'container does not exist',
      hint: 'see "list" for the containers that there are; --root must be the one it was made with',
    },
    'checkpoint --leave-running': {
      refused: 'container does not exist',
      hint: 'see "list" for the containers that there are; --root must be the one it was made with',
    },
    restore: { next: 'running' },
  },
  creating: {
    checkpoint: { refused: 'it is still being created', hint: startFirst },
    'checkpoint --leave-running': { refused: 'it is still being created', hint: startFirst },
    restore: exists,
  },
  created: {
    checkpoint: { refused: 'it has not been started', hint: startFirst },
    'checkpoint --leave-running': { refused: 'it has not been started', hint: startFirst },
    restore: exists,
  },
  running: {
    checkpoint: { next: 'absent' },
    'checkpoint --leave-running': { next: 'running' },
    restore: exists,
  },
  paused: {
    checkpoint: { next: 'absent' },
    'checkpoint --leave-running': { next: 'paused' },
    restore: exists,
  },
  stopped: {
    checkpoint: ended,
    'checkpoint --leave-running': ended,
    restore: exists,
  },
};
