// Which image file holds which message behind which magic numbers
// (CRIU image format, version 1.1). Names carry no number: "core" is
// core-<tid>.img.
import type { ImageMessageName } from '../codecs.js';

export const kCommonMagic = 0x54564319;
export const kServiceMagic = 0x55105940;
export const kInventoryMagic = 0x58313116;

export interface ImageKind {
  readonly magic: number;
  readonly message: ImageMessageName;
  /** Message of the first entry where it differs (pagemap). */
  readonly head?: ImageMessageName;
  /** Which magic comes first: the common one, the service one, or none (inventory). */
  readonly envelope: 'common' | 'service' | 'single';
}

// Generic in the message, so that the table below knows which kind holds which.
const common = <Name extends ImageMessageName>(
  magic: number,
  message: Name,
  head?: ImageMessageName,
): ImageKind & { readonly message: Name } =>
  head === undefined ? { magic, message, envelope: 'common' } : { magic, message, head, envelope: 'common' };

/** By file name without number and ".img". */
export const imageKinds = {
  inventory: { magic: kInventoryMagic, message: 'inventory_entry', envelope: 'single' },
  pstree: common(0x50273030, 'pstree_entry'),
  seccomp: common(0x64413049, 'seccomp_entry'),
  core: common(0x55053847, 'core_entry'),
  ids: common(0x54432030, 'task_kobj_ids_entry'),
  mm: common(0x57492820, 'mm_entry'),
  fs: common(0x51403912, 'fs_entry'),
  fdinfo: common(0x56213732, 'fdinfo_entry'),
  files: common(0x56303138, 'file_entry'),
  pagemap: common(0x56084025, 'pagemap_entry', 'pagemap_head'),
  'pagemap-shmem': common(0x56084025, 'pagemap_entry', 'pagemap_head'),
  filelocks: common(0x54323616, 'file_lock_entry'),
  'remap-fpath': common(0x59133954, 'remap_file_path_entry'),
  'ghost-file': common(0x52583605, 'ghost_file_entry'),
  'pipes-data': common(0x56453709, 'pipe_data_entry'),
  'fifo-data': common(0x59333054, 'pipe_data_entry'),
  'sk-queues': common(0x56264026, 'sk_packet_entry'),
  'tcp-stream': common(0x51465506, 'tcp_stream_entry'),
  'tty-info': common(0x59453036, 'tty_info_entry'),
  'tty-data': common(0x59413026, 'tty_data_entry'),
  memfd: common(0x48453499, 'memfd_inode_entry'),
  cgroup: common(0x59383330, 'cgroup_entry'),
  utsns: common(0x54473203, 'utsns_entry'),
  'ipcns-var': common(0x53115007, 'ipc_var_entry'),
  'ipcns-shm': common(0x46283044, 'ipc_shm_entry'),
  'ipcns-msg': common(0x55453737, 'ipc_msg_entry'),
  'ipcns-sem': common(0x59573019, 'ipc_sem_entry'),
  mountpoints: common(0x55563928, 'mnt_entry'),
  userns: common(0x55474906, 'userns_entry'),
  timens: common(0x43114433, 'timens_entry'),
  pidns: common(0x61157326, 'pidns_entry'),
  netns: common(0x55933752, 'netns_entry'),
  netdev: common(0x57373951, 'net_device_entry'),
  cpuinfo: common(0x61404013, 'cpuinfo_entry'),
  'stats-dump': { magic: 0x57093306, message: 'stats_entry', envelope: 'service' },
  'stats-restore': { magic: 0x57093306, message: 'stats_entry', envelope: 'service' },
} as const satisfies Record<string, ImageKind>;

export type ImageKindName = keyof typeof imageKinds;

/** "core-12.img" -> "core"; undefined for raw files and files that are not ours. */
export function imageKindOfFile(fileName: string): ImageKindName | undefined {
  const bare = fileName.replace(/\.img$/, '');
  if (bare in imageKinds) return bare as ImageKindName;
  const stem = bare.replace(/-[0-9a-f]+$/, '');
  return stem in imageKinds ? (stem as ImageKindName) : undefined;
}
