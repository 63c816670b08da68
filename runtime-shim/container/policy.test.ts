import assert from 'node:assert/strict';
import { capabilityBits } from '../../oci-spec/capabilities.js';
import { parseRuntimeConfig } from '../../oci-spec/runtime-config.js';
import { checkPolicy, type ClaimedTask, type ImageClaims } from './policy.js';

const granted = ['CAP_KILL', 'CAP_CHOWN'];
const document = {
  ociVersion: '1.0.2',
  process: {
    user: { uid: 1000, gid: 1000 },
    cwd: '/',
    args: ['x'],
    noNewPrivileges: true,
    capabilities: { bounding: granted, permitted: granted },
    rlimits: [{ type: 'RLIMIT_NOFILE', soft: 64, hard: 1024 }],
  },
  root: { path: 'rootfs', readonly: true },
  mounts: [{ destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['ro'] }],
  linux: {
    namespaces: [{ type: 'pid' }, { type: 'mount' }],
    readonlyPaths: ['/proc/sys'],
    seccomp: { defaultAction: 'SCMP_ACT_ERRNO', syscalls: [] },
  },
};
const spec = parseRuntimeConfig(JSON.stringify(document));

const bits = capabilityBits(granted);
const task: ClaimedTask = {
  nsPid: 1,
  comm: 'x',
  uids: [1000],
  capabilities: { inheritable: 0n, permitted: bits, effective: bits, bounding: bits, ambient: 0n },
  noNewPrivileges: true,
  seccomp: true,
  hardLimits: new Map([[7, 1024n]]),
};
const root = { mountPoint: '/', fsType: 'overlay', readonly: true, external: false, isRoot: true, isBindInside: false };
const sys = {
  mountPoint: '/sys',
  fsType: 'sysfs',
  readonly: true,
  external: false,
  isRoot: false,
  isBindInside: false,
};
const claims: ImageClaims = {
  tasks: [task],
  ownNamespaces: new Set(['pid', 'mnt']),
  mounts: [root, sys],
  uidMap: [],
  gidMap: [],
};

const problems = (change: Partial<ImageClaims>): string[] =>
  checkPolicy({ ...claims, ...change }, spec).map(({ message }) => message);
const taskProblems = (change: Partial<ClaimedTask>): string[] => problems({ tasks: [{ ...task, ...change }] });

describe('the trust check', () => {
  it('lets images through that ask for what the spec grants, or less', () => {
    assert.deepEqual(problems({}), []);
    assert.deepEqual(
      taskProblems({ hardLimits: new Map([[7, 10n]]), capabilities: { ...task.capabilities, effective: 0n } }),
      [],
    );
  });

  const cases: readonly (readonly [string, () => string[], RegExp])[] = [
    [
      'a capability',
      () =>
        taskProblems({ capabilities: { ...task.capabilities, bounding: bits | capabilityBits(['CAP_SYS_ADMIN']) } }),
      /has CAP_SYS_ADMIN in its bounding set/,
    ],
    ['no_new_privs off', () => taskProblems({ noNewPrivileges: false }), /may gain privileges/],
    ['a missing seccomp filter', () => taskProblems({ seccomp: false }), /has no seccomp filter/],
    [
      'a higher hard limit',
      () => taskProblems({ hardLimits: new Map([[7, 4096n]]) }),
      /hard RLIMIT_NOFILE of 4096, but process.rlimits grants 1024/,
    ],
    ['another user', () => taskProblems({ uids: [0] }), /runs as user 0/],
    ['a shared namespace', () => problems({ ownNamespaces: new Set(['mnt']) }), /shared the pid namespace/],
    [
      'a mount of a real file system',
      () => problems({ mounts: [root, sys, { ...sys, mountPoint: '/host', fsType: 'ext4' }] }),
      /mount ext4 at \/host/,
    ],
    [
      'a writable root',
      () => problems({ mounts: [{ ...root, readonly: false }, sys] }),
      /root file system is writable/,
    ],
    [
      'a writable read-only mount',
      () => problems({ mounts: [root, { ...sys, readonly: false }] }),
      /mount at \/sys is writable/,
    ],
  ];
  for (const [what, found, pattern] of cases) {
    it(`stops ${what}, naming it, and nothing else`, () => {
      const messages = found();
      assert.equal(messages.length, 1);
      assert.match(messages[0]!, pattern);
    });
  }

  it('reports everything in one pass', () => {
    assert.equal(
      problems({
        tasks: [{ ...task, noNewPrivileges: false, seccomp: false }],
        mounts: [{ ...root, readonly: false }, sys],
      }).length,
      3,
    );
  });
});
