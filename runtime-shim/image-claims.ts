// What a set of images asks for, in the words of the trust check.
import type { creds_entry, mnt_entry, task_kobj_ids_entry } from '../oci-spec/images/messages.js';
import { isEmptyDirectoryKey, type ClaimedMount, type ClaimedTask, type ImageClaims } from './container/index.js';
import type { ImageModel } from './engine/index.js';

const MS_RDONLY = 1;
const SECCOMP_MODE_FILTER = 2;

/** fstype of mnt_entry; 16 (AUTO) names the type itself. */
const fsTypes: Readonly<Record<number, string>> = {
  1: 'proc',
  2: 'sysfs',
  3: 'devtmpfs',
  5: 'tmpfs',
  6: 'devpts',
  12: 'cgroup',
  14: 'mqueue',
  17: 'overlay',
  23: 'cgroup2',
};

const namespaceFields: readonly (readonly [kind: string, field: keyof task_kobj_ids_entry])[] = [
  ['pid', 'pid_ns_id'],
  ['net', 'net_ns_id'],
  ['ipc', 'ipc_ns_id'],
  ['uts', 'uts_ns_id'],
  ['mnt', 'mnt_ns_id'],
  ['user', 'user_ns_id'],
  ['cgroup', 'cgroup_ns_id'],
  ['time', 'time_ns_id'],
];

export function collectClaims(model: ImageModel): ImageClaims {
  const rootIds = model.tasks[0]?.ids;
  const hostIds = model.inventory.root_ids;
  const ownNamespaces = new Set(
    namespaceFields
      .filter(([, field]) => rootIds?.[field] !== undefined && rootIds[field] !== hostIds?.[field])
      .map(([kind]) => kind),
  );
  const userNamespace = ownNamespaces.has('user') ? model.set.maybe('userns', rootIds?.user_ns_id) : undefined;
  const extent = (map: {
    first: number;
    lower_first: number;
    count: number;
  }): { inside: number; outside: number; count: number } => ({
    inside: map.first,
    outside: map.lower_first,
    count: map.count,
  });
  return {
    tasks: model.tasks.filter(({ zombie }) => !zombie).flatMap(claimsOfTask),
    ownNamespaces,
    mounts: ownNamespaces.has('mnt') ? claimsOfMounts(model.set.messages('mountpoints', rootIds!.mnt_ns_id!)) : [],
    uidMap: (userNamespace?.uid_map ?? []).map(extent),
    gidMap: (userNamespace?.gid_map ?? []).map(extent),
  };
}

/** Names under which the images want a directory that is empty, for masked ones: crun's binds. */
export function emptyDirectoryKeys(model: ImageModel): string[] {
  const mountNamespace = model.tasks[0]?.ids?.mnt_ns_id;
  const entries = mountNamespace === undefined ? [] : model.set.messages('mountpoints', mountNamespace);
  return entries.flatMap(({ ext_key }) => (ext_key !== undefined && isEmptyDirectoryKey(ext_key) ? [ext_key] : []));
}

/** Every thread has credentials of its own. */
function claimsOfTask(task: ImageModel['tasks'][number]): ClaimedTask[] {
  const hardLimits = new Map(
    (task.core.tc?.rlimits?.rlimits ?? []).map((limit, resource) => [resource, limit.max] as const),
  );
  return [...task.threads].flatMap(([tid, core]) => {
    const thread = core.thread_core;
    const creds = thread?.creds;
    if (creds === undefined) return [];
    return {
      nsPid: tid,
      comm: thread?.comm ?? task.core.tc?.comm ?? '',
      uids: [...new Set([creds.uid, creds.euid, creds.suid, creds.fsuid])],
      capabilities: {
        inheritable: wide(creds.cap_inh),
        permitted: wide(creds.cap_prm),
        effective: wide(creds.cap_eff),
        bounding: wide(creds.cap_bnd),
        ambient: wide(creds.cap_amb),
      },
      noNewPrivileges: (creds.no_new_privs ?? 0) !== 0,
      seccomp: (thread?.seccomp_mode ?? task.core.tc?.old_seccomp_mode) === SECCOMP_MODE_FILTER,
      hardLimits,
    };
  });
}

/** 64 bits as a list of 32-bit words, the low one first. */
function wide(words: creds_entry['cap_eff']): bigint {
  return words.reduce((sum, word, index) => sum | (BigInt(word >>> 0) << BigInt(32 * index)), 0n);
}

function claimsOfMounts(entries: readonly mnt_entry[]): ClaimedMount[] {
  const paths = entries.map((entry) => entry.mountpoint.replace(/^\.\//, '/').replace(/^\.$/, '/'));
  const root = entries[paths.indexOf('/')];
  return entries.map((entry, index) => ({
    mountPoint: paths[index]!,
    fsType: entry.fstype === 16 ? (entry.fsname ?? 'unknown') : (fsTypes[entry.fstype] ?? entry.fsname ?? 'unknown'),
    readonly: ((entry.flags | (entry.sb_flags ?? 0)) & MS_RDONLY) !== 0,
    external: entry.ext_mount === true || (entry.ext_key !== undefined && entry.ext_key !== ''),
    isRoot: paths[index] === '/',
    isBindInside: root !== undefined && entry.root_dev === root.root_dev && isBelow(entry.root, root.root),
  }));
}

function isBelow(path: string, top: string): boolean {
  return top === '/' || path === top || path.startsWith(`${top}/`);
}
