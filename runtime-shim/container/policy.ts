// The trust check, a stage of its own: images may come from a stranger, so on
// a container restore the OCI spec of this side is the only authority. What
// images ask for may be less than the spec grants, never more.
import { capabilityBits, capabilityNames } from '../../oci-spec/capabilities.js';
import { MS_RDONLY, parseMountOptions } from '../../oci-spec/mount-options.js';
import { normalize } from '../../oci-spec/paths.js';
import { resourceNumbers } from '../../oci-spec/rlimits.js';
import type { RuntimeConfig, SpecIdMap } from '../../oci-spec/runtime-config.js';
import { StasisError, type Subject } from '../errors/index.js';
import { namespaceProcNames } from './externals.js';

/** What a set of images asks for; collected by the caller from the decoded images. */
export interface ImageClaims {
  readonly tasks: readonly ClaimedTask[];
  /** Kinds ("net") of the namespaces that are the tree's own. */
  readonly ownNamespaces: ReadonlySet<string>;
  readonly mounts: readonly ClaimedMount[];
  readonly uidMap: readonly ClaimedIdMap[];
  readonly gidMap: readonly ClaimedIdMap[];
}

export interface ClaimedTask {
  readonly nsPid: number;
  readonly comm: string;
  readonly uids: readonly number[];
  readonly capabilities: Readonly<Record<'inheritable' | 'permitted' | 'effective' | 'bounding' | 'ambient', bigint>>;
  readonly noNewPrivileges: boolean;
  readonly seccomp: boolean;
  /** Resource number -> hard limit; RLIM_INFINITY is the largest number. */
  readonly hardLimits: ReadonlyMap<number, bigint>;
}

export interface ClaimedMount {
  readonly mountPoint: string;
  readonly fsType: string;
  readonly readonly: boolean;
  /** Provided by the restoring side. */
  readonly external: boolean;
  readonly isRoot: boolean;
  /** A bind of another mount of the same tree. */
  readonly isBindInside: boolean;
}

export interface ClaimedIdMap {
  readonly inside: number;
  readonly outside: number;
  readonly count: number;
}

/** File systems whose content is the kernel's or the images' own; anything else reaches the host's data. */
const selfContained = new Set(['proc', 'sysfs', 'tmpfs', 'devtmpfs', 'devpts', 'mqueue', 'cgroup', 'cgroup2', 'ramfs']);

/** Every value that asks for more than the spec grants; empty: the images may be restored. */
export function checkPolicy(claims: ImageClaims, spec: RuntimeConfig): StasisError[] {
  return [
    ...claims.tasks.flatMap((task) => checkTask(task, spec)),
    ...checkNamespaces(claims, spec),
    ...checkMounts(claims, spec),
  ];
}

function checkTask(task: ClaimedTask, spec: RuntimeConfig): StasisError[] {
  const process = spec.process;
  if (process === undefined) return [];
  const problems: StasisError[] = [];
  const who = `pid ${task.nsPid} (${task.comm})`;
  const subject: Subject = { nsPid: task.nsPid, comm: task.comm };
  const widened = (what: string, grant: string, hint: string): void =>
    void problems.push(policyError(`${who} ${what}`, grant, hint, subject));

  const granted = process.capabilities;
  const allowed = capabilityBits(
    [granted?.bounding, granted?.effective, granted?.inheritable, granted?.permitted, granted?.ambient].flatMap(
      (set) => set ?? [],
    ),
  );
  for (const [set, bits] of Object.entries(task.capabilities)) {
    const more = bits & ~allowed;
    if (more === 0n) continue;
    const names = capabilityNames(more).join(', ');
    widened(
      `has ${names} in its ${set} set`,
      `process.capabilities do not grant ${names}`,
      'grant them there if the container is meant to have them',
    );
  }
  if (process.noNewPrivileges && !task.noNewPrivileges) {
    widened('may gain privileges', 'process.noNewPrivileges is true', 'set it to false if the container is meant to');
  }
  const seccomp = spec.linux?.seccomp;
  if (seccomp !== undefined && (seccomp.defaultAction !== '' || seccomp.syscalls.length > 0) && !task.seccomp) {
    widened(
      'has no seccomp filter',
      'linux.seccomp demands one',
      'remove linux.seccomp if the container is meant to run without',
    );
  }
  for (const limit of process.rlimits) {
    const resource = resourceNumbers.get(limit.type);
    const hard = resource === undefined ? undefined : task.hardLimits.get(resource);
    const grant = BigInt.asUintN(64, BigInt(limit.hard));
    if (hard !== undefined && hard > grant) {
      widened(
        `has a hard ${limit.type} of ${hard}`,
        `process.rlimits grants ${grant}`,
        'raise it there if the container is meant to have it',
      );
    }
  }
  // Without set-uid programs and CAP_SETUID there is no way to another user: such a task did not come from this spec.
  const fixedUser = process.noNewPrivileges && (allowed & capabilityBits(['CAP_SETUID'])) === 0n;
  const stranger = task.uids.find((uid) => uid !== process.uid);
  if (fixedUser && stranger !== undefined) {
    widened(
      `runs as user ${stranger}`,
      `process.user.uid is ${process.uid}, without any way to change it`,
      'give process.user the uid that the container had',
    );
  }
  return problems;
}

function checkNamespaces(claims: ImageClaims, spec: RuntimeConfig): StasisError[] {
  const problems: StasisError[] = [];
  for (const { type, path } of spec.linux?.namespaces ?? []) {
    const kind = namespaceProcNames[type];
    // An own time namespace can be added around any tree; a cgroup namespace is made by the executor when the spec has one.
    if (path !== '' || kind === 'time' || kind === 'cgroup' || claims.ownNamespaces.has(kind)) continue;
    problems.push(
      policyError(
        `the container shared the ${kind} namespace of its host`,
        `linux.namespaces demands an own one`,
        `remove "${type}" from linux.namespaces if the container is meant to share it`,
        {},
      ),
    );
  }
  const ownUser = spec.linux?.namespaces.some(({ type, path }) => type === 'user' && path === '') ?? false;
  if (ownUser) {
    problems.push(
      ...checkIdMap('uid', claims.uidMap, spec.linux?.uidMappings ?? []),
      ...checkIdMap('gid', claims.gidMap, spec.linux?.gidMappings ?? []),
    );
  }
  return problems;
}

function checkIdMap(
  which: 'uid' | 'gid',
  claimed: readonly ClaimedIdMap[],
  granted: readonly SpecIdMap[],
): StasisError[] {
  const text = (maps: readonly ClaimedIdMap[]): string =>
    maps.map((map) => `${map.inside} ${map.outside} ${map.count}`).join(', ');
  const wanted = granted.map((map) => ({ inside: map.containerId, outside: map.hostId, count: map.size }));
  if (text(claimed) === text(wanted)) return [];
  return [
    policyError(
      `the container had the ${which} map "${text(claimed)}"`,
      `linux.${which}Mappings is "${text(wanted)}"`,
      'use the same mapping on both sides',
      {},
    ),
  ];
}

function checkMounts(claims: ImageClaims, spec: RuntimeConfig): StasisError[] {
  const problems: StasisError[] = [];
  // Mounts may hide one another: the last one at a place is the visible one.
  const visible = new Map(claims.mounts.map((mount) => [normalize(mount.mountPoint), mount]));
  for (const mount of claims.mounts) {
    if (mount.isRoot || mount.external || mount.isBindInside || selfContained.has(mount.fsType)) continue;
    problems.push(
      policyError(
        `the images mount ${mount.fsType} at ${mount.mountPoint}`,
        'the spec has no such mount',
        'add it to mounts as a bind mount',
        { mount: mount.mountPoint },
      ),
    );
  }
  const demand = (path: string, where: string): void => {
    const mount = visible.get(normalize(path));
    if (mount !== undefined && !mount.readonly) {
      problems.push(
        policyError(
          `the mount at ${path} is writable`,
          `${where} demands read-only`,
          'make it writable there if the container is meant to write to it',
          { mount: path },
        ),
      );
    }
  };
  if (spec.root.readonly) {
    const root = claims.mounts.find((mount) => mount.isRoot);
    if (root !== undefined && !root.readonly) {
      problems.push(
        policyError(
          'the root file system is writable',
          'root.readonly is true',
          'set it to false if the container is meant to write to it',
          { mount: '/' },
        ),
      );
    }
  }
  for (const mount of spec.mounts) {
    if ((parseMountOptions(mount.options).flags & MS_RDONLY) === 0) continue;
    if (mount.type !== 'cgroup') {
      demand(mount.destination, 'mounts');
      continue;
    }
    // On v1 a writable tmpfs holds the mount points; the option is about the hierarchies in it.
    const top = normalize(mount.destination);
    for (const [path, { fsType }] of visible) {
      if (fsType.startsWith('cgroup') && (path === top || path.startsWith(`${top}/`))) demand(path, 'mounts');
    }
  }
  for (const path of spec.linux?.readonlyPaths ?? []) demand(path, 'linux.readonlyPaths');
  return problems;
}

function policyError(claim: string, grant: string, hint: string, subject: Subject): StasisError {
  return new StasisError({
    code: 'POLICY_WIDENED',
    message: `cannot restore these images under this bundle: ${claim}, but ${grant}`,
    subject,
    why: 'values in images may narrow what config.json grants, never widen it',
    hint,
  });
}
