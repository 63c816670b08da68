// What a tree lives in, in the order in which the root task makes it again:
//
//   namespaces   joins, and what clone makes; umask 0 for all that follows
//   host paths   copies of the root file system and the bind mounts, while
//                the root task still is the host's root to the host's files
//   user         to be root inside, before anything that needs it
//   cgroups      the namespace, while the root task stands in its group
//   uts, ipc     ipc through the caller's /proc, so before the mounts
//   memfd        the same
//   net          before sysfs is mounted, which shows it
//   mounts       last: then the caller's files are gone
//
// All steps are the root task's, phase NAMESPACES.
import type { Room } from '../room.js';
import { cgroupsRoom } from './cgroups.js';
import { ipcNamespaceRoom } from './ipc-namespace.js';
import { memfdDirectoryRoom } from './memfd.js';
import { hostPathsRoom, mountsRoom } from './mounts.js';
import { namespacesRoom } from './namespaces.js';
import { netNamespaceRoom } from './net-namespace.js';
import { userNamespaceRoom } from './user-namespace.js';
import { utsNamespaceRoom } from './uts-namespace.js';

export const surroundingRooms: readonly Room[] = [
  namespacesRoom,
  hostPathsRoom,
  userNamespaceRoom,
  cgroupsRoom,
  utsNamespaceRoom,
  ipcNamespaceRoom,
  memfdDirectoryRoom,
  netNamespaceRoom,
  mountsRoom,
];
