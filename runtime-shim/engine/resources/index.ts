// The rooms, in order of work. Encoding and compilation walk the same list; a
// new kind of kernel resource is a new file and one line here.
import type { Room } from '../room.js';
import { credentialsRoom, deathSignalRoom } from './credentials.js';
import { descriptorsRoom } from './descriptors.js';
import { fileLocksRoom } from './file-locks.js';
import { filesRoom } from './files.js';
import { fsRoom } from './fs.js';
import { watchesRoom } from './inotify.js';
import { memoryRoom } from './memory.js';
import { rlimitsRoom } from './rlimits.js';
import { schedulingRoom } from './scheduling.js';
import { seccompRoom } from './seccomp.js';
import { signalsRoom } from './signals.js';
import { surroundingRooms } from './surroundings.js';
import { taskRoom } from './task.js';
import { threadsRoom } from './threads.js';
import { armTimersRoom, timersRoom } from './timers.js';

export const rooms: readonly Room[] = [
  // creates the tasks that all others add steps to
  taskRoom,
  // what everything after stands on: namespaces, mounts
  ...surroundingRooms,
  // open files, each once; then each task's numbers, then its directories
  filesRoom,
  descriptorsRoom,
  fsRoom,
  memoryRoom,
  // once no task closes a file any more
  fileLocksRoom,
  // threads before timers and signals that name them
  threadsRoom,
  timersRoom,
  schedulingRoom,
  signalsRoom,
  // when no file is opened or closed any more, by tasks that may still see all of them
  watchesRoom,
  // filters and limits while there is privilege, then the privilege itself
  seccompRoom,
  rlimitsRoom,
  credentialsRoom,
  // time runs again from here
  armTimersRoom,
  // after the last change of ids, which would reset it
  deathSignalRoom,
];
